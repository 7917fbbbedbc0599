"""What a worker knows of the others before it has met them: from TF_CONFIG, or from an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Final, Literal

from cluster import spec
from cluster.meeting import ports
from cluster.meeting.ports import PORTS
from cluster.resolvers.finding import find_place
from cluster.resolvers.place import Place, PlaceError
from cluster.spec import Cluster, ClusterError

Choice = Literal["auto", "none", "tf_config", "slurm", "kubernetes", "env"]

_CANDIDATES: Final = 4  # of ports where a chief meets its workers, if the engine names none


@dataclasses.dataclass(frozen=True)
class Group:
    """The workers of a run as one of them knows them before they meet.

    Args:
        rank: of this process, from 0; the chief's is 0.
        size: number of workers.
        key: text that the workers of one start have in common. Others are refused.
        names: of all workers, for people.
        refusal: why a chief refuses a worker with another key, for people.
        chief_addresses: ``host:port`` where the chief may be met, the likeliest first.
        addresses: ``host:port`` of TensorFlow on each worker; None if they tell each other.
        place: what the engine said; None for TF_CONFIG.
    """

    rank: int
    size: int
    key: str
    names: tuple[str, ...]
    refusal: str
    chief_addresses: tuple[str, ...]
    addresses: tuple[str, ...] | None = None
    place: Place | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief."""
        return self.rank == 0

    @property
    def origin(self) -> str:
        """What the group was found by, for people."""
        return "TF_CONFIG" if self.place is None else self.place.engine

    def of_identity(self, identity: str) -> Group:
        """Returns a group that only workers with an equal ``identity`` can join."""
        return dataclasses.replace(
            self,
            key=hashlib.sha256(f"{self.key}\n{identity}".encode()).hexdigest(),
            refusal=f"{self.refusal}, or other flags, recipe or packages",
        )

    def describe(self, rank: int) -> str:
        """Returns the name of a worker, and its address if it is known, for people."""
        if self.addresses is not None:
            return f"{self.names[rank]} ({self.addresses[rank]})"
        if rank == 0:
            return f"{self.names[0]} (on {spec.host_and_port(self.chief_addresses[0])[0]})"
        return self.names[rank]


def find_group(choice: Choice = "auto", environ: Mapping[str, str] = os.environ) -> Group | None:
    """Finds the workers that this process is one of.

    A TF_CONFIG with a cluster wins over what engines say.

    Args:
        choice: what to look at: ``"tf_config"``, the variables of one kind of engine, ``"auto"``
            for the first of all that describes a cluster, or ``"none"``.
        environ: environment variables.

    Returns:
        The group, or None if this process trains by itself.

    Raises:
        ClusterError: if what is found is wrong, or ``choice`` names something that is not there.
    """
    if choice == "none":
        return None
    if choice in ("auto", "tf_config"):
        cluster = spec.from_environment(environ)
        if cluster is not None:
            return of_cluster(cluster)
        if choice == "tf_config":
            raise ClusterError(
                "--cluster is tf_config, and TF_CONFIG has no cluster: set it, or leave out "
                "--cluster"
            )
        if environ.get("TF_CONFIG", "").strip():
            return None  # it says that this process is alone
    try:
        place = find_place(choice, environ)
    except PlaceError as error:
        raise ClusterError(str(error)) from None
    return None if place is None or place.size == 1 else of_place(place)


def of_cluster(cluster: Cluster) -> Group:
    """Returns the group of a cluster of which all addresses are known."""
    return Group(
        rank=cluster.index,
        size=cluster.size,
        key=hashlib.sha256("\n".join(cluster.addresses).encode()).hexdigest(),
        names=cluster.names,
        refusal="the chief's TF_CONFIG lists other workers",
        chief_addresses=cluster.addresses[:1],
        addresses=cluster.addresses,
    )


def of_place(place: Place) -> Group:
    """Returns the group of which an engine names the chief, the size and a rank."""
    # Without the chief's host, which the chief itself may know by another name.
    about = (place.engine, place.job, place.size, place.chief_port)
    key = hashlib.sha256(repr(about).encode()).hexdigest()
    numbers = [] if place.chief_port is None else [place.chief_port]
    numbers += [PORTS[(int(key[:8], 16) + 997 * i) % len(PORTS)] for i in range(_CANDIDATES)]
    return Group(
        rank=place.rank,
        size=place.size,
        key=key,
        names=tuple(spec.task_name("worker", rank) for rank in range(place.size)),
        refusal="it is the chief of another job, or of another start of this one",
        chief_addresses=tuple(ports.address(place.chief_host, number) for number in numbers),
        place=place,
    )
