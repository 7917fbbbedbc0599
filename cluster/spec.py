"""TF_CONFIG: who the workers are, and which of them this process is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):(\d{1,5})")
_JOBS = ("chief", "worker")


class ClusterError(ValueError):
    """TF_CONFIG is wrong; the message says what it has, what it should have and where."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All workers of a run, and this process's place among them.

    Args:
        addresses: ``host:port`` of each, the chief first.
        names: ``"chief"`` or ``"worker <index>"`` of each, as TF_CONFIG counts them.
        index: this process's place in both.

    Raises:
        ClusterError: if there is no worker, an address is malformed or given twice, or ``index``
            is outside of them.
    """

    addresses: tuple[str, ...]
    names: tuple[str, ...]
    index: int

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ClusterError("TF_CONFIG names no worker: cluster needs a list of addresses")
        taken: dict[str, str] = {}
        for name, address in zip(self.names, self.addresses, strict=True):
            match = _ADDRESS.fullmatch(address)
            if match is None or not 1 <= int(match[2]) <= 65535:
                raise ClusterError(
                    f"TF_CONFIG has the address {address!r} for {name}: it has to be host:port, "
                    "with a port from 1 to 65535 and an IPv6 host in brackets"
                )
            if address in taken:
                raise ClusterError(
                    f"TF_CONFIG has {address} for {taken[address]} and for {name}: "
                    "every worker needs an address of its own"
                )
            taken[address] = name
        if not 0 <= self.index < self.size:
            raise ClusterError(f"worker {self.index} is outside of the {self.size} workers")

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self.addresses)

    @property
    def address(self) -> str:
        """This process's ``host:port``."""
        return self.addresses[self.index]

    @property
    def name(self) -> str:
        """This process's name."""
        return self.names[self.index]

    @property
    def is_chief(self) -> bool:
        """Whether this process writes for all."""
        return self.index == 0

    def tf_config(self) -> str:
        """The value of TF_CONFIG that describes this process."""
        jobs: dict[str, list[str]] = {}
        for name, address in zip(self.names, self.addresses, strict=True):
            jobs.setdefault(name.split()[0], []).append(address)
        job, _, task = self.name.partition(" ")
        return json.dumps({"cluster": jobs, "task": {"type": job, "index": int(task or 0)}})


def from_environment(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """Reads TF_CONFIG.

    Returns:
        The cluster, or None if TF_CONFIG is not set or names no cluster: a run of one process.

    Raises:
        ClusterError: if it can't be understood.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ClusterError(f"TF_CONFIG is not JSON ({error}): {text[:200]}") from None
    if not isinstance(config, dict):
        raise ClusterError(f"TF_CONFIG is {text[:200]}: it has to be an object with cluster, task")
    jobs, task = config.get("cluster", {}), config.get("task", {})
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise ClusterError("TF_CONFIG: cluster and task have to be objects")
    if not jobs:
        return None
    addresses, names = [], []
    for job, hosts in jobs.items():
        if job not in _JOBS:
            raise ClusterError(
                f"TF_CONFIG's cluster has the job {job!r}: every process is a chief or worker here"
            )
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise ClusterError(f"TF_CONFIG's job {job} is {hosts!r}: it has to be a list of strings")
    if len(jobs.get("chief", [])) > 1:
        raise ClusterError(f"TF_CONFIG has the chiefs {jobs['chief']}: there can be one")
    for job in _JOBS:
        for i, address in enumerate(jobs.get(job, [])):
            addresses.append(address)
            names.append("chief" if job == "chief" else f"worker {i}")
    return Cluster(tuple(addresses), tuple(names), names.index(_task_name(task, jobs)))


def _task_name(task: Mapping[str, Any], jobs: Mapping[str, list[str]]) -> str:
    job, index = task.get("type"), task.get("index")
    if job not in _JOBS:
        raise ClusterError(
            f"TF_CONFIG's task has the type {job!r}: this process has to be a chief or worker"
        )
    size = len(jobs.get(job, []))
    if isinstance(index, str) and index.isdigit():
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < size:
        raise ClusterError(
            f"TF_CONFIG's task has the index {index!r}: the cluster has {size} of the job {job}, "
            "counted from 0"
        )
    return "chief" if job == "chief" else f"worker {index}"
