from __future__ import annotations

import pytest

from cluster.resolvers import variables
from cluster.resolvers.place import Place, PlaceError

GIVEN = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "a", "MASTER_PORT": "2222"}
TORCHRUN = GIVEN | {
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "TORCHELASTIC_RUN_ID": "run",
    "TORCHELASTIC_RESTART_COUNT": "4",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-login-4711@1",
    "PMIX_RANK": "3",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_variables_that_a_person_sets() -> None:
    assert variables.find(GIVEN) == Place(
        engine="the environment",
        found_by="RANK, WORLD_SIZE, MASTER_ADDR",
        rank=1,
        size=3,
        chief_host="a",
        chief_port=2222,
    )


def test_variables_of_torchrun() -> None:
    place = variables.find(TORCHRUN)
    assert place is not None
    assert (place.engine, place.rank, place.size, place.chief_host) == ("torchrun", 1, 3, "a")
    assert (place.local_rank, place.local_size, place.has_own_gpus) == (1, 2, False)
    assert place.chief_port is None, "torchrun listens there"
    assert place.job == "run.2222.4"


@pytest.mark.parametrize(
    "environ",
    [{}, {"MASTER_ADDR": "a", "MASTER_PORT": "2222"}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}],
)
def test_variables_that_describe_no_process(environ: dict[str, str]) -> None:
    assert variables.find(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is '4', but RANK and MASTER_ADDR are not set"),
        ({"RANK": "0"}, "RANK is '0', but WORLD_SIZE and MASTER_ADDR are not set"),
        (GIVEN | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        (GIVEN | {"RANK": "one"}, "RANK is 'one': it has to be a whole number from 0; correct or"),
        (GIVEN | {"RANK": "-1"}, "RANK is '-1'"),
        (GIVEN | {"RANK": "\u0661"}, "RANK is"),
        (GIVEN | {"RANK": "3"}, "gives the rank 3 of 3 workers: it has to be from 0 to 2"),
        (GIVEN | {"WORLD_SIZE": "0"}, "gives 0 workers"),
        (GIVEN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (TORCHRUN | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ],
)
def test_variables_that_are_wrong(environ: dict[str, str], message: str) -> None:
    with pytest.raises(PlaceError, match=message) as error:
        variables.find(environ)
    assert "--cluster=none" in str(error.value) or "gives" in str(error.value)


@pytest.mark.parametrize(("environ", "job"), [(OPEN_MPI, "prterun-login-4711@1"), (MPICH, "")])
def test_a_rank_of_mpi(environ: dict[str, str], job: str) -> None:
    place = variables.find_mpi(environ | {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"})
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (3, 4, 1, 2)
    assert (place.chief_host, place.chief_port, place.job) == ("n1", 29500, job)


@pytest.mark.parametrize("environ", [OPEN_MPI, MPICH])
def test_ranks_on_several_nodes_need_the_chiefs(environ: dict[str, str]) -> None:
    with pytest.raises(variables.ChiefUnknown, match="mpirun -x MASTER_ADDR="):
        variables.find_mpi(environ)


@pytest.mark.parametrize(
    "environ",
    [OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, MPICH | {"MPI_LOCALNRANKS": "4"}],
)
def test_ranks_on_one_node_meet_there(environ: dict[str, str]) -> None:
    place = variables.find_mpi(environ)
    assert place is not None
    assert place.chief_host == "localhost"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PMI_RANK": "1"}, "PMI_RANK is '1', but PMI_SIZE is not set"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": ""}, "OMPI_COMM_WORLD_RANK is not set"),
        (MPICH | {"PMI_RANK": "4", "MASTER_ADDR": "a"}, "gives the rank 4 of 4"),
    ],
)
def test_a_rank_that_is_wrong(environ: dict[str, str], message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        variables.find_mpi(environ)


def test_no_rank_of_mpi() -> None:
    assert variables.find_mpi(GIVEN) is None
