"""TF_CONFIG: who the workers are, and which of them this process is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_JOBS = ("chief", "worker")  # in the order of their places
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})")
_SHOWN = 200  # characters of a wrong value that a message repeats


class ClusterError(ValueError):
    """TF_CONFIG is wrong; the message says what it has, the rule, and what to change."""


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
            raise ClusterError(
                "TF_CONFIG's cluster has no worker: list host:port of every worker, or leave "
                "TF_CONFIG unset to train on this machine alone"
            )
        taken: dict[str, str] = {}
        for name, address in zip(self.names, self.addresses, strict=True):
            match = _ADDRESS.fullmatch(address)
            if match is None or not 1 <= int(match[2]) <= 65535:
                raise ClusterError(
                    f"TF_CONFIG has the address {address!r} for {name}: write it as host:port, "
                    "with a port from 1 to 65535 and an IPv6 host in brackets"
                )
            if address in taken:
                raise ClusterError(
                    f"TF_CONFIG has {address} for {taken[address]} and for {name}: "
                    "give every worker an address of its own"
                )
            taken[address] = name
        if not 0 <= self.index < self.size:
            raise ClusterError(
                f"this process's place is {self.index}: it has to be from 0 to {self.size - 1}, "
                f"for {self.size} in the cluster"
            )

    @property
    def size(self) -> int:
        """How many workers there are, the chief included."""
        return len(self.addresses)

    @property
    def address(self) -> str:
        """This process's ``host:port``."""
        return self.addresses[self.index]

    @property
    def name(self) -> str:
        """This process's name."""
        return self.names[self.index]

    def who(self, index: int) -> str:
        """The worker at a place, for people: its name and its address."""
        return f"{self.names[index]} ({self.addresses[index]})"

    @property
    def is_chief(self) -> bool:
        """Whether this process writes for all: the chief, or worker 0 where none is named so."""
        return self.index == 0

    def tf_config(self) -> str:
        """The value of TF_CONFIG that describes this process."""
        jobs: dict[str, list[str]] = {}
        for name, address in zip(self.names, self.addresses, strict=True):
            jobs.setdefault(name.split()[0], []).append(address)
        job, _, task = self.name.partition(" ")
        return json.dumps({"cluster": jobs, "task": {"type": job, "index": int(task or 0)}})


def local(ports: Sequence[int], index: int) -> Cluster:
    """The cluster of one worker for each of ``ports``, all on this machine."""
    return Cluster(
        addresses=tuple(f"127.0.0.1:{port}" for port in ports),
        names=tuple(f"worker {i}" for i in range(len(ports))),
        index=index,
    )


def from_environment(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """Reads TF_CONFIG.

    A TF_CONFIG without a cluster is a run of one process, as it is to TensorFlow: operators set
    one for jobs of a single replica too. But one that says "I am the second" and names nobody
    lost its cluster on the way, and is an error.

    Returns:
        The cluster, or None if TF_CONFIG is unset, empty or names no cluster.

    Raises:
        ClusterError: if it can't be understood.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ClusterError(
            f"TF_CONFIG is {text[:_SHOWN]!r}, which is not JSON ({error}): correct or unset it"
        ) from None
    if not isinstance(config, dict):
        raise ClusterError(
            f"TF_CONFIG is {text[:_SHOWN]}: it has to be an object with a cluster and a task"
        )
    jobs, task = _object(config, "cluster"), _object(config, "task")
    if not jobs:
        if task.get("index", 0) not in (0, "0"):
            raise ClusterError(
                f"TF_CONFIG's task has the index {task['index']!r}, but there is no cluster that "
                "it could count in: add the cluster, or unset TF_CONFIG to train on this machine "
                "alone"
            )
        return None
    named = {
        _name(job, i): address
        for job, addresses in _checked(jobs).items()
        for i, address in enumerate(addresses)
    }
    names = tuple(named)
    index = names.index(_this_process(task, jobs)) if names else 0
    return Cluster(tuple(named.values()), names, index)


def _name(job: str, index: int) -> str:
    return job if job == "chief" else f"{job} {index}"


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise ClusterError(
            f"TF_CONFIG's {key} is {json.dumps(value)[:_SHOWN]}: it has to be an object"
        )
    return value


def _checked(jobs: Mapping[str, Any]) -> dict[str, list[str]]:
    """The addresses of each job, in the order of ``_JOBS``."""
    for job, addresses in jobs.items():
        if job not in _JOBS:
            raise ClusterError(
                f"TF_CONFIG's cluster has the job {job!r}: every process is a chief or a worker "
                "here, so drop the job or list its processes as workers"
            )
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise ClusterError(
                f"TF_CONFIG's cluster has {json.dumps(addresses)[:_SHOWN]} as the job {job!r}: "
                "make it a list of host:port strings"
            )
    if len(chiefs := jobs.get("chief", [])) > 1:
        raise ClusterError(
            f"TF_CONFIG's cluster has {len(chiefs)} chiefs, {', '.join(chiefs)}: keep one, and "
            "list the others as workers"
        )
    return {job: jobs.get(job, []) for job in _JOBS}


def _this_process(task: Mapping[str, Any], jobs: Mapping[str, list[str]]) -> str:
    job, index = task.get("type"), task.get("index")
    if job not in _JOBS:
        has = f"the type {job!r}" if "type" in task else "no type"
        raise ClusterError(
            f"TF_CONFIG's task has {has}: say whether this process is a 'chief' or a 'worker'"
        )
    if isinstance(index, str) and index.isdecimal():
        index = int(index)  # templates of cluster managers tend to quote it
    if not isinstance(index, int) or isinstance(index, bool):
        has = f"the index {index!r}" if "index" in task else "no index"
        raise ClusterError(
            f"TF_CONFIG's task has {has}: it has to be a whole number, this process's place "
            f"among the cluster's {job}s, counted from 0"
        )
    size = len(jobs.get(job, []))
    if not 0 <= index < size:
        raise ClusterError(
            f"TF_CONFIG's task says {job} {index}, but the cluster lists {size} of the job "
            f"{job!r}, counted from 0: correct the index, or list this process's address"
        )
    return _name(job, index)
