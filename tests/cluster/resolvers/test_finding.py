from __future__ import annotations

import pytest

from cluster.resolvers import kubernetes, managed
from cluster.resolvers.finding import find_place
from cluster.resolvers.place import PlaceError
from tests.cluster.resolvers import test_kubernetes as k8s
from tests.cluster.resolvers import test_managed as clouds
from tests.cluster.resolvers import test_slurm as slurm
from tests.cluster.resolvers import test_variables as given

SAGEMAKER = {"SM_HOSTS": '["algo-1","algo-2"]', "SM_CURRENT_HOST": "algo-2"}
VERTEX = clouds.vertex(clouds.POOLS, "workerpool1", 0)
JOB_SCRIPT = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
ON_ONE_NODE = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}


@pytest.fixture(autouse=True)
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "own_name", lambda: k8s.POD)
    monkeypatch.setattr(managed, "read_resource_config", lambda: "")


def engine(choice: str, environ: dict[str, str]) -> str | None:
    place = find_place(choice, environ)
    return place and place.engine


@pytest.mark.parametrize(
    ("environ", "choice", "name"),
    [
        (slurm.TASK, "slurm", "Slurm"),
        (k8s.INDEXED, "kubernetes", "Kubernetes"),
        (k8s.JAX, "kubernetes", "Kubeflow's runtime for JAX"),
        (k8s.TORCH, "kubernetes", "Kubeflow's runtime for PyTorch"),
        (given.GIVEN, "env", "the environment"),
        (given.TORCHRUN, "env", "torchrun"),
        (given.OPEN_MPI | JOB_SCRIPT, "env", "Open MPI"),
        (given.MPICH | JOB_SCRIPT, "env", "MPI"),
        (VERTEX, "env", "Vertex AI"),
        (SAGEMAKER, "env", "SageMaker"),
    ],
)
def test_an_engine_is_found_by_itself_and_by_its_choice_alone(
    environ: dict[str, str], choice: str, name: str
) -> None:
    assert engine("auto", environ) == engine(choice, environ) == name
    for other in {"slurm", "kubernetes", "env"} - {choice}:
        if name.startswith("Kubeflow") and other == "kubernetes":
            continue
        with pytest.raises(PlaceError, match=f"--cluster is {other}, but .* not set: "):
            find_place(other, environ)


@pytest.mark.parametrize(
    ("environ", "case"),
    [
        ({}, "no engine"),
        (slurm.JOB, "the shell of salloc"),
        (slurm.TASK | slurm.ONE_TASK, "srun -n1, or --pty"),
        (slurm.TASK | slurm.ONE_TASK | JOB_SCRIPT, "srun -n1 in a script for others"),
        (JOB_SCRIPT, "an address describes no process"),
        (given.GIVEN | {"WORLD_SIZE": "1", "RANK": "0"}, "torchrun with one process"),
        ({"JOB_COMPLETION_INDEX": "0", "TFDP_WORKERS": "1"}, "one pod"),
        ({"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"}, "one machine"),
    ],
)
def test_a_process_that_trains_alone(environ: dict[str, str], case: str) -> None:
    assert find_place("auto", environ) is None, case


def test_one_worker_of_the_chosen_engine_trains_alone() -> None:
    assert find_place("slurm", slurm.TASK | slurm.ONE_TASK) is None


@pytest.mark.parametrize(
    ("environ", "name", "rank", "size"),
    [
        # Engines inside of each other: the inner one counts processes.
        (slurm.TASK | given.TORCHRUN, "torchrun", 1, 3),
        (
            slurm.TASK | given.OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "8"} | JOB_SCRIPT,
            "Open MPI",
            3,
            8,
        ),
        (slurm.BATCH_SCRIPT | given.OPEN_MPI | JOB_SCRIPT, "Open MPI", 3, 4),
        (slurm.BATCH_SCRIPT | given.OPEN_MPI | ON_ONE_NODE, "Open MPI", 3, 4),
        (slurm.TASK | slurm.ONE_TASK | given.OPEN_MPI | ON_ONE_NODE, "Open MPI", 3, 4),
        (k8s.TORCH | given.TORCHRUN, "torchrun", 1, 3),
        (SAGEMAKER | given.TORCHRUN, "torchrun", 1, 3),
        (SAGEMAKER | given.OPEN_MPI | JOB_SCRIPT, "Open MPI", 3, 4),
        (k8s.INDEXED | given.OPEN_MPI | ON_ONE_NODE, "Open MPI", 3, 4),
        # srun --mpi=pmi2 sets MPI's variables for tasks of Slurm's.
        (slurm.TASK | given.MPICH, "Slurm", 3, 4),
        (slurm.TASK | given.MPICH | JOB_SCRIPT, "Slurm", 3, 4),
        # Kubeflow knows the number of pods.
        (k8s.JAX | {"TFDP_WORKERS": "3"}, "Kubeflow's runtime for JAX", 2, 3),
        # What a job script exports for all tasks is half a description.
        (slurm.TASK | JOB_SCRIPT, "Slurm", 3, 4),
        (slurm.TASK | JOB_SCRIPT | {"WORLD_SIZE": "16"}, "Slurm", 3, 4),
        (slurm.TASK | {"RANK": "x", "WORLD_SIZE": "16"}, "Slurm", 3, 4),
        (k8s.INDEXED | {"WORLD_SIZE": "3"}, "Kubernetes", 2, 3),
        (k8s.INDEXED | {"PET_NNODES": "3"}, "Kubernetes", 2, 3),
        # A person's whole description wins over what is around it.
        (slurm.BATCH_SCRIPT | given.GIVEN, "the environment", 1, 3),
        (k8s.INDEXED | given.GIVEN, "the environment", 1, 3),
    ],
)
def test_the_inner_whole_description_counts(
    environ: dict[str, str], name: str, rank: int, size: int
) -> None:
    place = find_place("auto", environ)
    assert place is not None
    assert (place.engine, place.rank, place.size) == (name, rank, size)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "4"}, "RANK and MASTER_ADDR are not set"),
        ({"WORLD_SIZE": "4"} | slurm.JOB, "RANK and MASTER_ADDR are not set"),
        ({"RANK": "x", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "RANK is 'x'"),
        (given.GIVEN | {"RANK": "3"}, "the rank 3 of 3"),
        (slurm.BATCH_SCRIPT, "start the workers with srun"),
        (slurm.BATCH_SCRIPT | JOB_SCRIPT, "start the workers with srun"),
        ({"JOB_COMPLETION_INDEX": "0"}, "TFDP_WORKERS is not set"),
        # Slurm and SageMaker count the nodes, mpirun starts two workers on each.
        (slurm.TASK | given.OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "8"}, "MASTER_ADDR is not set"),
        (SAGEMAKER | given.OPEN_MPI, "MASTER_ADDR is not set"),
        (slurm.BATCH_SCRIPT | given.OPEN_MPI, "MASTER_ADDR is not set"),
    ],
)
def test_half_a_description_is_an_error(environ: dict[str, str], message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        find_place("auto", environ)


@pytest.mark.parametrize(
    ("choice", "missing"),
    [
        ("slurm", "SLURM_STEP_ID is not set: start the workers with srun"),
        ("kubernetes", "JOB_COMPLETION_INDEX is not set"),
        ("env", "RANK and WORLD_SIZE are not set"),
    ],
)
def test_a_choice_that_finds_nothing_names_what_is_missing(choice: str, missing: str) -> None:
    with pytest.raises(PlaceError, match=f"--cluster is {choice}, but {missing}"):
        find_place(choice, {"MASTER_ADDR": "a"})
