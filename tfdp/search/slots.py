"""Where trials run: each slot runs one trial at a time.

On this machine; on other hosts, with ``--hosts``; or in the Slurm job whose batch script started
the search.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping

from cluster import devices
from cluster.resolvers.finding import find_place
from cluster.resolvers.place import PlaceError
from tfdp.errors import BadInput
from tfdp.search import slots_hosts, slots_slurm
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot, number_of_slots, thread_environ

_NVIDIA_SMI_TIMEOUT_S = 60.0  # it may have to load the driver


def find_slots(settings: TuneSettings, environ: Mapping[str, str]) -> list[Slot]:
    """Returns the places for trials, and checks that trials can run there.

    Args:
        settings: flags of the search; ``threads_per_trial`` is the number of TensorFlow's threads
            of each worker, which its defaults decide if it is None.
        environ: variables of this process.

    Raises:
        BadInput: if trials can't run as the flags say, or other processes run this search as well.
    """
    if environ.get("TF_CONFIG"):
        raise _started_often("TF_CONFIG is set")
    if settings.hosts:
        slots = slots_hosts.find(settings, environ)
    elif slots_slurm.is_in_job(environ):
        slots = slots_slurm.find(settings, environ)
    else:
        slots = _on_this_machine(settings, environ)
    return slots


def _on_this_machine(settings: TuneSettings, environ: Mapping[str, str]) -> list[Slot]:
    try:
        place = find_place("auto", environ)
    except PlaceError as error:
        raise BadInput(str(error)) from None
    if place is not None:
        raise _started_often(f"this is {place}")
    workers = settings.workers_per_trial
    words = (sys.executable, "-m", "cluster.launch", f"--workers={workers}", "--")
    launcher = words if workers > 1 else ()
    threads = thread_environ(settings.threads_per_trial)
    gpus = _gpus(environ)
    if not gpus:
        return [Slot(f"slot {i}", launcher, threads) for i in range(settings.parallel or 1)]
    count = number_of_slots(
        settings.parallel,
        len(gpus) // workers,
        f"this machine's {len(gpus)} GPUs ({','.join(gpus)}) are enough for "
        f"{len(gpus) // workers} trials of {workers} workers, each with a GPU",
        "lower --parallel or --workers_per_trial, or set CUDA_VISIBLE_DEVICES= (nothing) to train "
        "on CPUs",
    )
    slots = []
    for number in range(count):
        own = ",".join(gpus[number * workers : (number + 1) * workers])
        slots.append(Slot(f"gpu {own}", launcher, {**threads, devices.VARIABLE: own}))
    return slots


def _gpus(environ: Mapping[str, str]) -> list[str]:
    """Returns the GPUs that processes on this machine see, as CUDA_VISIBLE_DEVICES names them."""
    if devices.VARIABLE in environ:
        return devices.listed(environ[devices.VARIABLE])
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return []
    try:
        asked = subprocess.run(
            [program, "-L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BadInput(
            f"can't ask {program} for this machine's GPUs ({error}): set CUDA_VISIBLE_DEVICES"
        ) from None
    return devices.found_by_nvidia_smi(asked.stdout)


def _started_often(reason: str) -> BadInput:
    return BadInput(
        f"{reason}, but a search is started once, and starts the workers of its trials itself: "
        "start python -m tfdp.tune alone, with --workers_per_trial, --parallel and --hosts"
    )
