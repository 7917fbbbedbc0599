"""The place of a pod of an Indexed Job, a JobSet or Kubeflow's TrainJob.

An Indexed Job gives its pods an index (``JOB_COMPLETION_INDEX``) and names that end in it, but not
their number: ``TFDP_WORKERS`` has to. A TrainJob whose runtime is for JAX or PyTorch gives all.
Each pod is one worker, and its GPUs are its own.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from cluster.resolvers.place import Place, PlaceError
from cluster.resolvers.reading import check_all_set, optional_number, whole_number

# Size, rank, and the chief's address.
_JAX = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS")
_TORCH = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR")


def find(environ: Mapping[str, str], pod_name: str) -> Place | None:
    """Returns the place of this pod among the pods of its Indexed Job, or of its JobSet's one job.

    Args:
        environ: variables of the process.
        pod_name: the fully qualified name of the pod, from ``own_name``.

    Raises:
        PlaceError: if TFDP_WORKERS is missing, or the pod has no name from which the chief's
            follows.
    """
    index = environ.get("JOB_COMPLETION_INDEX", "")
    if not index and not environ.get("TFDP_WORKERS"):
        return None
    if not environ.get("TFDP_WORKERS"):
        raise PlaceError(
            f"JOB_COMPLETION_INDEX is {index}, but TFDP_WORKERS is not set: set it to the job's "
            "spec.completions, or give --cluster=none if each pod trains by itself"
        )
    check_all_set(environ, ("TFDP_WORKERS", "JOB_COMPLETION_INDEX"), "an Indexed Job")
    place = Place(
        engine="Kubernetes",
        found_by="JOB_COMPLETION_INDEX, TFDP_WORKERS",
        rank=whole_number(environ, "JOB_COMPLETION_INDEX"),
        size=whole_number(environ, "TFDP_WORKERS"),
        chief_host="localhost",
        local_rank=0,
        local_size=1,
        has_own_gpus=True,
    )
    if place.size == 1:
        return place
    chief = _chief_name(pod_name, place.rank)
    return dataclasses.replace(place, chief_host=chief, job=chief)


def _chief_name(pod_name: str, index: int) -> str:
    """Returns the name of the pod with index 0: ``mine-2.mine.…`` gives ``mine-0.mine.…``."""
    host, dot, domain = pod_name.partition(".")
    if not host.endswith(f"-{index}"):
        raise PlaceError(
            f"the pod's name is {pod_name!r}, and JOB_COMPLETION_INDEX is {index}: the name has to "
            f"end in -{index} for the chief's to follow from it; leave hostname and hostNetwork "
            "out of the pod's template, and let the job be Indexed"
        )
    if not dot:
        raise PlaceError(
            f"the pod's name is {pod_name!r}, which other pods can't find: make a headless Service "
            "and set the pod template's subdomain to its name, or use a JobSet"
        )
    return f"{host.removesuffix(str(index))}0.{domain}"


def own_name() -> str:
    """Returns the fully qualified name of this pod, or its short one if it has no other."""
    try:
        hosts = Path("/etc/hosts").read_text()
    except OSError:
        hosts = ""
    return qualified_name(socket.gethostname(), hosts)


def qualified_name(hostname: str, hosts: str) -> str:
    """Returns the full form of a name, given the text of ``/etc/hosts``.

    The kubelet writes it there, before the name itself, for a pod that has a subdomain.
    """
    for line in hosts.splitlines():
        names = line.partition("#")[0].split()[1:]
        for name in names:
            if hostname in names and name.startswith(f"{hostname}."):
                return name
    return hostname


def find_kubeflow(environ: Mapping[str, str]) -> Place | None:
    """Returns the place of this pod in a TrainJob whose runtime is for JAX or PyTorch.

    Raises:
        PlaceError: if variables are missing or wrong, or several processes a pod are asked for.
    """
    if any(environ.get(name) for name in _JAX):
        names, engine, port = _JAX, "Kubeflow's runtime for JAX", "JAX_COORDINATOR_PORT"
    elif any(environ.get(name) for name in _TORCH):
        names, engine, port = _TORCH, "Kubeflow's runtime for PyTorch", "PET_MASTER_PORT"
    else:
        return None
    check_all_set(environ, names, engine)
    _check_is_one_process_a_pod(environ)
    size, rank, address = names
    host = re.sub(r":\d+$", "", environ[address])
    return Place(
        engine=engine,
        found_by=f"{rank}, {size}",
        rank=whole_number(environ, rank),
        size=whole_number(environ, size),
        chief_host=host,
        chief_port=optional_number(environ, port),
        job=host,
        local_rank=0,
        local_size=1,
        has_own_gpus=True,
    )


def _check_is_one_process_a_pod(environ: Mapping[str, str]) -> None:
    processes = environ.get("PET_NPROC_PER_NODE") or "1"
    if processes not in ("1", "auto", "gpu", "cpu"):
        raise PlaceError(
            f"PET_NPROC_PER_NODE is {processes}, but this is the pod's only process: one worker "
            "uses all GPUs of its pod, so set numProcPerNode to 1 in the TrainJob"
        )
