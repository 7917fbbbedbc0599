"""The place of a process that torchrun, MPI's launchers or a person describe by variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from cluster.resolvers.place import Place, PlaceError
from cluster.resolvers.reading import check_all_set, optional_number, whole_number

_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


class _Names(NamedTuple):
    """The variables of a launcher of MPI."""

    engine: str
    rank: str
    size: str
    local_rank: str
    local_size: str


_MPI: Final = (
    _Names(
        "Open MPI",
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    _Names("MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


class ChiefUnknown(PlaceError):  # noqa: N818
    """MPI's launcher gives rank and size, but not the node of rank 0."""


def find(environ: Mapping[str, str]) -> Place | None:
    """Returns the place by RANK, WORLD_SIZE and MASTER_ADDR, which torchrun and others set.

    MASTER_ADDR alone describes no process: job scripts export it for whatever they start.

    Raises:
        PlaceError: if one of them is missing or wrong.
    """
    if not environ.get("RANK") and environ.get("WORLD_SIZE", "1") in ("", "1"):
        return None
    check_all_set(environ, _TORCH, "who starts the workers")
    port = optional_number(environ, "MASTER_PORT")
    run = environ.get("TORCHELASTIC_RUN_ID", "")
    if run:
        # torchrun itself listens at MASTER_PORT, which is another one for each of its starts.
        start = (run, str(port), environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        run, port = ".".join(start), None
    return Place(
        engine="torchrun" if run else "the environment",
        found_by=", ".join(_TORCH),
        rank=whole_number(environ, "RANK"),
        size=whole_number(environ, "WORLD_SIZE"),
        chief_host=environ["MASTER_ADDR"],
        chief_port=port,
        job=run,
        local_rank=optional_number(environ, "LOCAL_RANK"),
        local_size=optional_number(environ, "LOCAL_WORLD_SIZE"),
    )


def find_mpi(environ: Mapping[str, str]) -> Place | None:
    """Returns the place of a process that ``mpirun`` (Open MPI, MPICH, Intel MPI) has started.

    The chief's host is MASTER_ADDR, unless all workers are on one node. What launchers export
    besides (``OMPI_MCA_orte_hnp_uri``, ``PMIX_NAMESPACE``) names the node of the launcher, which
    need not be that of rank 0.

    Raises:
        ChiefUnknown: if workers are on several nodes, and MASTER_ADDR is not set.
        PlaceError: if a variable is missing or wrong.
    """
    names = next((each for each in _MPI if environ.get(each.rank) or environ.get(each.size)), None)
    if names is None:
        return None
    check_all_set(environ, (names.rank, names.size), names.engine)
    size, local_size = whole_number(environ, names.size), optional_number(environ, names.local_size)
    chief = environ.get("MASTER_ADDR") or ("localhost" if size in (1, local_size) else "")
    if not chief:
        raise ChiefUnknown(
            f"{names.size} is {size}, but MASTER_ADDR is not set: set it to the node of rank 0 "
            "(mpirun -x MASTER_ADDR=… with Open MPI, mpiexec -genv MASTER_ADDR … with others)"
        )
    return Place(
        engine=names.engine,
        found_by=f"{names.rank}, {names.size}",
        rank=whole_number(environ, names.rank),
        size=size,
        chief_host=chief,
        chief_port=optional_number(environ, "MASTER_PORT"),
        job=environ.get("PMIX_NAMESPACE", ""),
        local_rank=optional_number(environ, names.local_rank),
        local_size=local_size,
    )
