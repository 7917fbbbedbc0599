"""The place of a task of a Slurm step, as ``srun`` describes it.

Only variables of the step count. Those of the job (``SLURM_NTASKS``, ``SLURM_JOB_NODELIST``) are
the same in the batch script and in the shell of ``salloc``, which are no workers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cluster.resolvers.place import Place, PlaceError
from cluster.resolvers.reading import check_all_set, optional_number, whole_number

_NEEDED = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST")
# Set for its processes by a launcher that runs inside of a job. Open MPI and MPICH use tasks of
# Slurm for their daemons, one on each node, and the daemons hand the variables of those tasks on.
_INNER_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def find(environ: Mapping[str, str]) -> Place | None:
    """Returns the place of this process in its step; None if it is not a task of Slurm's.

    Raises:
        PlaceError: if this is a batch script of several tasks, or tasks are distributed so that
            the node of rank 0 can't be known.
    """
    step_size = environ.get("SLURM_STEP_NUM_TASKS")
    if any(environ.get(name, step_size) != step_size for name in _INNER_SIZES):
        return None
    if "SLURM_STEP_ID" not in environ:
        _check_is_no_batch_script(environ)
        return None
    check_all_set(environ, _NEEDED, "Slurm")
    size = whole_number(environ, "SLURM_STEP_NUM_TASKS")
    distribution = environ.get("SLURM_DISTRIBUTION", "")
    if size > 1 and distribution.startswith("arbitrary"):
        raise PlaceError(
            f"SLURM_DISTRIBUTION is {distribution}: the node of rank 0 can't be known; start the "
            "workers with srun --distribution=block"
        )
    job = (environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return Place(
        engine="Slurm",
        found_by="SLURM_STEP_ID, SLURM_PROCID",
        rank=whole_number(environ, "SLURM_PROCID"),
        size=size,
        # Rank 0 is on the first node of the step, unless the distribution is arbitrary.
        # SLURM_SRUN_COMM_HOST and SLURM_LAUNCH_NODE_IPADDR are the node of srun itself.
        chief_host=first_node(environ["SLURM_STEP_NODELIST"]),
        chief_port=_first_reserved_port(environ),
        job=".".join([*job, environ.get("SLURM_RESTART_COUNT", "0")]),
        local_rank=optional_number(environ, "SLURM_LOCALID"),
        local_size=_tasks_on_this_node(environ),
        has_own_gpus=_has_own_gpus(environ),
    )


def _check_is_no_batch_script(environ: Mapping[str, str]) -> None:
    """Raises PlaceError in a batch script of several tasks: it runs once, on the first node."""
    if "SLURM_JOB_ID" not in environ or "SLURM_PROCID" not in environ:
        return  # the shell of salloc has no SLURM_PROCID
    for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"):
        if (optional_number(environ, name) or 1) > 1:
            raise PlaceError(
                f"{name} is {environ[name]}, but this is the batch script, which Slurm runs once: "
                "start the workers with srun, or with python -m cluster.slurm; or give "
                "--cluster=none to train on this node alone"
            )


def first_node(nodes: str) -> str:
    """Returns the first name of a node list such as ``rack[1-2]n[01-04],login``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise PlaceError(f"SLURM_STEP_NODELIST is {nodes!r}: it has to name the nodes of the step")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def tasks_per_node(counts: str) -> list[int]:
    """Returns the number of tasks on each node, given Slurm's short form ``2(x3),1``."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _tasks_on_this_node(environ: Mapping[str, str]) -> int | None:
    counts = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = optional_number(environ, "SLURM_NODEID")
    return counts[node] if node is not None and node < len(counts) else None


def _first_reserved_port(environ: Mapping[str, str]) -> int | None:
    """Returns the first of the ports that Slurm reserved for the step, if it reserved any."""
    ports = re.match(r"\d+", environ.get("SLURM_STEP_RESV_PORTS", ""))
    return int(ports[0]) if ports else None


def _has_own_gpus(environ: Mapping[str, str]) -> bool:
    binding = environ.get("SLURM_GPU_BIND", "")
    if binding:
        return bool(re.search(r"\b(single:1|per_task:\d+|(map|mask)(_gpu)?:.+)$", binding))
    if "SLURM_GPUS_PER_TASK" in environ or "gres/gpu" in environ.get("SLURM_TRES_PER_TASK", ""):
        return True
    # Not all versions hand those on to tasks. A task that sees a part of the step's GPUs on this
    # node has been given that part.
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible != [""] and len(visible) < (optional_number(environ, "SLURM_GPUS_ON_NODE") or 0)
