"""Slots in a Slurm job: each trial is a step, with the resources of as many tasks as workers.

A job has tasks, each with its CPUs and GPUs. A trial takes ``--workers_per_trial`` of them: on one
node if they fit there, otherwise whole nodes. Slurm chooses where there is room at the moment, so
that after the loss of a node (``sbatch --no-kill``) trials use the others.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from cluster.resolvers.slurm import tasks_per_node
from tfdp.errors import BadInput
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot, number_of_slots, thread_environ

# srun takes options of the job from these variables, where a step's are not given as flags.
_OF_JOB: Final = (
    *("SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_NPROCS"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_MEM_PER_NODE"),
    *("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"),
    *("SLURM_CPUS_PER_GPU", "SLURM_NTASKS_PER_GPU", "SLURM_DISTRIBUTION"),
)
_SHELL_OF_SALLOC: Final = "4294967290"  # the number of its step, at sites where it is one
_TRY_TIMEOUT_S: Final = 120.0  # Slurm's controller may be busy


def is_in_job(environ: Mapping[str, str]) -> bool:
    """Returns whether this process is in a batch script or in salloc, from where it can run srun.

    In a step that srun has started, it can't, and the step's resources are this process's own.
    """
    is_task = environ.get("SLURM_STEP_ID", _SHELL_OF_SALLOC) != _SHELL_OF_SALLOC
    return "SLURM_JOB_ID" in environ and not is_task


def find(settings: TuneSettings, environ: Mapping[str, str]) -> list[Slot]:
    """Returns as many slots as the job's resources allow; tries one of them.

    Raises:
        BadInput: if they are too few, or steps can't be started.
    """
    if shutil.which("srun", path=environ.get("PATH")) is None:
        raise BadInput(
            f"SLURM_JOB_ID is {environ['SLURM_JOB_ID']}, but srun does not exist here: start the "
            "search where Slurm's commands are installed, outside of a container"
        )
    workers = settings.workers_per_trial
    tasks = _tasks_per_node(environ)
    nodes = math.ceil(workers / max(tasks))  # of a trial
    if nodes == 1:
        fitting = sum(count // workers for count in tasks)
    else:
        fitting = len(tasks) // nodes
        if set(tasks) != {workers / nodes}:
            raise BadInput(
                f"--workers_per_trial is {workers}, more than a node's tasks, so that a trial "
                f"takes whole nodes, but this job's nodes have {_listed(tasks)} tasks: give all "
                "nodes the same number, of which --workers_per_trial is a multiple "
                "(sbatch --ntasks-per-node)"
            )
    count = number_of_slots(
        settings.parallel,
        fitting,
        f"this job's nodes have {_listed(tasks)} tasks, enough for {fitting} trials of {workers} "
        "workers",
        "lower --parallel or --workers_per_trial, or ask Slurm for more (sbatch --ntasks)",
    )
    flags = _srun_flags(environ, tasks, workers, nodes)
    without = [word for name in _OF_JOB if name in environ for word in ("-u", name)]
    command = (sys.executable, "-m", "cluster.slurm", "--one_of_several")
    launcher = ("env", *without, *command, f"--srun_flags={' '.join(flags)}", "--")
    _try(launcher, environ)
    threads = thread_environ(settings.threads_per_trial)
    return [Slot(f"slot {number}", launcher, threads, may_be_away=True) for number in range(count)]


def _tasks_per_node(environ: Mapping[str, str]) -> list[int]:
    """Returns the number of tasks that the job has on each node."""
    if "SLURM_NTASKS" in environ:
        return tasks_per_node(environ["SLURM_TASKS_PER_NODE"])
    return [1] * len(tasks_per_node(environ["SLURM_JOB_CPUS_PER_NODE"]))  # as for srun


def _srun_flags(
    environ: Mapping[str, str], tasks: Sequence[int], workers: int, nodes: int
) -> list[str]:
    """Returns the flags for a step of a trial, which leaves the rest of the job to others."""
    per_node = workers // nodes
    cpus = tasks_per_node(environ["SLURM_JOB_CPUS_PER_NODE"])
    cpus_per_task = int(
        environ.get("SLURM_CPUS_PER_TASK")
        or min(own // count for own, count in zip(cpus, tasks, strict=True))
    )
    flags = ["--exact", f"--nodes={nodes}", f"--ntasks={workers}", f"--ntasks-per-node={per_node}"]
    flags += [f"--cpus-per-task={cpus_per_task}", "--distribution=block"]
    if memory := int(environ.get("SLURM_MEM_PER_NODE", 0)):  # MB; a step would take all of it
        flags.append(f"--mem={memory // max(tasks) * per_node}")
    if gpus := environ.get("SLURM_GPUS_PER_TASK"):
        flags.append(f"--gpus-per-task={gpus}")
    elif gpus := environ.get("SLURM_GPUS_ON_NODE"):
        share, rest = divmod(int(gpus), max(tasks))
        if rest or not share:
            raise BadInput(
                f"this job has {gpus} GPUs on a node, which its {max(tasks)} tasks there can't "
                "share equally: ask for sbatch --gpus-per-task=1"
            )
        flags.append(f"--gpus-per-task={share}")
    return flags


def _try(launcher: Sequence[str], environ: Mapping[str, str]) -> None:
    """Runs a step that does nothing: what Slurm refuses now, it would refuse for each trial.

    Raises:
        BadInput: if it fails.
    """
    try:
        tried = subprocess.run(
            [*launcher, "true"],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TRY_TIMEOUT_S,
            check=False,
        )
        reason = "" if tried.returncode == 0 else " / ".join(tried.stderr.strip().splitlines())
    except subprocess.TimeoutExpired:
        reason = f"no answer for {_TRY_TIMEOUT_S:.0f} s"
    if reason:
        raise BadInput(
            f"Slurm can't start a step for a trial ({reason}): change the flags of sbatch, or run "
            "the search on one node, inside of srun --ntasks=1"
        )


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) if len(counts) <= 8 else f"{min(counts)} to {max(counts)}"
