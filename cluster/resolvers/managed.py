"""The place of a machine in a training job of Vertex AI or SageMaker: each is one worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cluster.resolvers.place import Place, PlaceError
from cluster.resolvers.reading import REMEDY

_RESOURCE_CONFIG: Final = Path("/opt/ml/input/config/resourceconfig.json")
_POOLS = ("workerpool0", "workerpool1")  # others have parameter servers, reducers and evaluators


def find_vertex(environ: Mapping[str, str]) -> Place | None:
    """Returns the place of this machine in a Vertex AI job, by CLUSTER_SPEC.

    Raises:
        PlaceError: if this machine is in a pool that is not for workers.
    """
    spec = _parsed(environ.get("CLUSTER_SPEC", ""))
    pools, task = spec.get("cluster"), spec.get("task")
    if not isinstance(pools, dict) or not isinstance(task, dict) or not pools.get(_POOLS[0]):
        return None  # another program's CLUSTER_SPEC
    pool, index = task.get("type"), task.get("index")
    if pool not in _POOLS or not isinstance(index, int):
        raise PlaceError(
            f"CLUSTER_SPEC's task is {json.dumps(task)}: workers have to be in the first two "
            "worker pools; move this machine there, or give --cluster=none"
        )
    addresses = [address for name in _POOLS for address in pools.get(name, ())]
    chief, _, port = addresses[0].partition(":")
    return Place(
        engine="Vertex AI",
        found_by="CLUSTER_SPEC",
        rank=index + (len(pools[_POOLS[0]]) if pool != _POOLS[0] else 0),
        size=len(addresses),
        chief_host=chief,
        chief_port=int(port) if port.isdecimal() else None,
        job=f"{chief} {task.get('trial', '')}".strip(),
        local_rank=0,
        local_size=1,
        has_own_gpus=True,
    )


def find_sagemaker(environ: Mapping[str, str], resource_config: str) -> Place | None:
    """Returns the place of this machine in a SageMaker job, by SM_HOSTS and SM_CURRENT_HOST.

    Args:
        environ: variables of the process.
        resource_config: text of the file that SageMaker puts into every container, from
            ``read_resource_config``; it is used if SM_HOSTS is not set.

    Raises:
        PlaceError: if this machine is not among the job's.
    """
    if environ.get("SM_HOSTS"):
        found_by, text = "SM_HOSTS, SM_CURRENT_HOST", environ["SM_HOSTS"]
        hosts, host = _parsed(f'{{"hosts": {text}}}').get("hosts"), environ.get("SM_CURRENT_HOST")
    elif resource_config:
        found_by, text = str(_RESOURCE_CONFIG), resource_config
        config = _parsed(resource_config)
        hosts, host = config.get("hosts"), config.get("current_host")
    else:
        return None
    if not isinstance(hosts, list) or host not in hosts:
        raise PlaceError(
            f"{found_by}: the hosts are {text}, and this one is {host!r}, which has to be among "
            f"them; {REMEDY}"
        )
    return Place(
        engine="SageMaker",
        found_by=found_by,
        rank=hosts.index(host),
        size=len(hosts),
        chief_host=hosts[0],
        job=environ.get("TRAINING_JOB_NAME", ""),
        local_rank=0,
        local_size=1,
        has_own_gpus=True,
    )


def read_resource_config() -> str:
    """Returns the text of SageMaker's file; elsewhere, where there is none, an empty text."""
    try:
        return _RESOURCE_CONFIG.read_text()
    except OSError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
