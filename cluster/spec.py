"""TF_CONFIG: the addresses of all workers, and which worker this process is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_JOBS = ("chief", "worker")  # in the order of their workers' indices
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})")
_SHOWN_CHARACTERS = 200  # of a wrong value


class ClusterError(ValueError):
    """TF_CONFIG is wrong; the message contains the value, the rule and what to change."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, and the index of this process among them.

    Args:
        addresses: ``host:port`` of each worker, the chief first.
        names: ``"chief"`` or ``"worker <task index>"`` of each.
        index: of this process in both.

    Raises:
        ClusterError: if there is no worker, an address is malformed or occurs twice, or ``index``
            is out of range.
    """

    addresses: tuple[str, ...]
    names: tuple[str, ...]
    index: int

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ClusterError(
                "TF_CONFIG's cluster has no worker: list host:port of every worker, or leave "
                "TF_CONFIG unset to train on this machine alone"
            )
        name_of: dict[str, str] = {}
        for name, address in zip(self.names, self.addresses, strict=True):
            match = _ADDRESS.fullmatch(address)
            if match is None or not 1 <= int(match[2]) <= 65535:
                raise ClusterError(
                    f"TF_CONFIG has the address {address!r} for {name}: write it as host:port, "
                    "with a port from 1 to 65535 and an IPv6 host in brackets"
                )
            if address in name_of:
                raise ClusterError(
                    f"TF_CONFIG has {address} for {name_of[address]} and for {name}: "
                    "give every worker an address of its own"
                )
            name_of[address] = name
        if not 0 <= self.index < self.size:
            raise ClusterError(
                f"the index of this process is {self.index}: it has to be from 0 to "
                f"{self.size - 1}, as the cluster has {self.size}"
            )

    @property
    def size(self) -> int:
        """Number of workers, the chief included."""
        return len(self.addresses)

    @property
    def address(self) -> str:
        """``host:port`` of this process."""
        return self.addresses[self.index]

    @property
    def name(self) -> str:
        """Name of this process."""
        return self.names[self.index]

    def describe(self, index: int) -> str:
        """Returns the name and the address of a worker, for people."""
        return f"{self.names[index]} ({self.addresses[index]})"

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief, or worker 0 of a cluster without one."""
        return self.index == 0

    def tf_config(self) -> str:
        """Returns the TF_CONFIG of this process. Its tasks are counted without gaps."""
        has_chief = self.names[0] == "chief"
        jobs = {"worker": list(self.addresses[has_chief:])}
        task = {"type": "worker", "index": self.index - has_chief}
        if has_chief:
            jobs = {"chief": [self.addresses[0]], **jobs}
            if self.is_chief:
                task = {"type": "chief", "index": 0}
        jobs = {job: addresses for job, addresses in jobs.items() if addresses}
        return json.dumps({"cluster": jobs, "task": task})


def local(ports: Sequence[int], index: int) -> Cluster:
    """Returns a cluster on this machine, with a worker for each of ``ports``."""
    return Cluster(
        addresses=tuple(f"127.0.0.1:{port}" for port in ports),
        names=tuple(task_name("worker", i) for i in range(len(ports))),
        index=index,
    )


def from_environment(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """Reads TF_CONFIG.

    A TF_CONFIG without a cluster stands for a run of one process, as in TensorFlow: operators of
    cluster managers set it for jobs of a single replica too. It is an error if its task has an
    index above 0, which needs a cluster.

    Returns:
        The cluster, or None if TF_CONFIG is unset, empty or has no cluster.

    Raises:
        ClusterError: if TF_CONFIG is wrong.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ClusterError(
            f"TF_CONFIG is {_shown(text)!r}, which is not JSON ({error}): correct or unset it"
        ) from None
    if not isinstance(config, dict):
        raise ClusterError(
            f"TF_CONFIG is {_shown(text)}: it has to be an object with a cluster and a task"
        )
    jobs, task = _object(config, "cluster"), _object(config, "task")
    if not jobs:
        if task.get("index", 0) not in (0, "0"):
            raise ClusterError(
                f"TF_CONFIG's task has the index {task['index']!r}, but TF_CONFIG has no cluster: "
                "add the cluster, or unset TF_CONFIG to train on this machine alone"
            )
        return None
    address_of = {
        task_name(job, i): address
        for job, addresses in _checked_jobs(jobs).items()
        for i, address in enumerate(addresses)
    }
    names = tuple(address_of)
    index = names.index(_name_of_this_task(task, jobs)) if names else 0
    return Cluster(tuple(address_of.values()), names, index)


def task_name(job: str, index: int) -> str:
    """Returns the name of a worker, given its job and its task index."""
    return job if job == "chief" else f"{job} {index}"


def host_and_port(address: str) -> tuple[str, int]:
    """Splits ``host:port`` into the pair that sockets take."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _shown(text: str) -> str:
    return text[:_SHOWN_CHARACTERS]


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise ClusterError(
            f"TF_CONFIG's {key} is {_shown(json.dumps(value))}: it has to be an object"
        )
    return value


def _checked_jobs(jobs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the addresses of each job, in the order of ``_JOBS``, after checks."""
    for job, addresses in jobs.items():
        if job not in _JOBS:
            raise ClusterError(
                f"TF_CONFIG's cluster has the job {job!r}: every process has to be a "
                "chief or a worker, so drop the job or list its processes as workers"
            )
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise ClusterError(
                f"TF_CONFIG's cluster has {_shown(json.dumps(addresses))} as the job {job!r}: "
                "make it a list of host:port strings"
            )
    if len(chiefs := jobs.get("chief", [])) > 1:
        raise ClusterError(
            f"TF_CONFIG's cluster has {len(chiefs)} chiefs, {', '.join(chiefs)}: keep one, and "
            "list the others as workers"
        )
    return {job: jobs.get(job, []) for job in _JOBS}


def _name_of_this_task(task: Mapping[str, Any], jobs: Mapping[str, list[str]]) -> str:
    job, index = task.get("type"), task.get("index")
    if job not in _JOBS:
        given = f"the type {job!r}" if "type" in task else "no type"
        raise ClusterError(
            f"TF_CONFIG's task has {given}: state whether this process is a 'chief' or a 'worker'"
        )
    if isinstance(index, str) and index.isdecimal():
        index = int(index)  # templates of cluster managers often quote it
    if not isinstance(index, int) or isinstance(index, bool):
        given = f"the index {index!r}" if "index" in task else "no index"
        raise ClusterError(
            f"TF_CONFIG's task has {given}: it has to be a whole number, the index of this "
            f"process among the cluster's {job}s, from 0"
        )
    size = len(jobs.get(job, []))
    if not 0 <= index < size:
        raise ClusterError(
            f"TF_CONFIG's task is {job} {index}, but the cluster lists {size} of the job "
            f"{job!r}, counted from 0: correct the index, or list this process's address"
        )
    return task_name(job, index)
