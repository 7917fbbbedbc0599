"""The GPUs of a machine, divided among the workers that a launcher starts on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "CUDA_VISIBLE_DEVICES"


def listed(text: str) -> list[str]:
    """Returns the GPUs that a value of CUDA_VISIBLE_DEVICES makes visible, as it names them."""
    devices: list[str] = []
    for device in map(str.strip, text.split(",")):
        if not device or device.startswith("-"):  # CUDA ignores the rest
            break
        devices.append(device)
    return devices


def of_worker(environ: Mapping[str, str], index: int, workers: int) -> dict[str, str]:
    """Returns the variable that gives a worker its equal share of the GPUs.

    It is empty, so that all workers see the same GPUs, if CUDA_VISIBLE_DEVICES is not set or the
    workers can't share them equally.

    Args:
        environ: variables of all workers.
        index: of the worker among those on its machine, from 0.
        workers: their number.
    """
    devices = listed(environ.get(VARIABLE, ""))
    share, rest = divmod(len(devices), workers)
    if not share or rest:
        return {}
    return {VARIABLE: ",".join(devices[index * share : (index + 1) * share])}


def found_by_nvidia_smi(output: str) -> list[str]:
    """Returns all GPUs of a machine, given what ``nvidia-smi -L`` prints there."""
    lines = [line for line in output.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]
