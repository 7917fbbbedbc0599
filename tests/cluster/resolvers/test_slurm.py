from __future__ import annotations

from collections.abc import Mapping

import pytest

from cluster.resolvers import slurm
from cluster.resolvers.place import Place, PlaceError

# What Slurm sets for all parts of a job of two nodes with two tasks each.
JOB = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}
BATCH_SCRIPT = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TASK = JOB | {
    "SLURM_STEP_ID": "7",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_SRUN_COMM_HOST": "10.0.0.9",
}
ONE_TASK = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0"}


def find(environ: Mapping[str, str]) -> Place:
    place = slurm.find(environ)
    assert place is not None
    return place


def test_a_task_of_a_step_is_a_worker() -> None:
    assert find(TASK) == Place(
        engine="Slurm",
        found_by="SLURM_STEP_ID, SLURM_PROCID",
        rank=3,
        size=4,
        chief_host="n1",
        job="41.7.0",
        local_rank=1,
        local_size=2,
    )


def test_only_the_step_counts() -> None:
    smaller = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "n2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": "1",
        "SLURM_NODEID": "0",
    }
    place = find(TASK | smaller)
    assert (place.rank, place.size, place.chief_host, place.local_size) == (1, 2, "n2", 2)


@pytest.mark.parametrize(
    ("environ", "case"),
    [
        ({}, "no Slurm"),
        (JOB, "the shell of salloc"),
        (BATCH_SCRIPT | {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}, "a script of one task"),
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}, "a script without numbers"),
        (TASK | {"OMPI_COMM_WORLD_SIZE": "16"}, "started by mpirun, whose daemon is the task"),
        (TASK | {"PMI_SIZE": "8"}, "started by mpiexec"),
        (BATCH_SCRIPT | {"OMPI_COMM_WORLD_SIZE": "4"}, "started by mpirun in the script itself"),
    ],
)
def test_other_processes_are_not_started_by_slurm(environ: dict[str, str], case: str) -> None:
    assert slurm.find(environ) is None, case


def test_tasks_with_mpi_are_tasks() -> None:
    assert find(TASK | {"PMI_SIZE": "4", "PMI_RANK": "3"}) == find(TASK)


def test_one_task_is_one_worker() -> None:
    assert find(TASK | ONE_TASK).size == 1
    interactive = {"SLURM_STEP_ID": "4294967290", "SLURM_PTY_PORT": "34811"}
    assert find(TASK | ONE_TASK | interactive).size == 1


@pytest.mark.parametrize(
    ("environ", "value"),
    [
        (BATCH_SCRIPT, "SLURM_NTASKS is 4"),
        (BATCH_SCRIPT | {"SLURM_NTASKS": ""}, "SLURM_JOB_NUM_NODES is 2"),
    ],
)
def test_the_batch_script_is_told_to_use_srun(environ: dict[str, str], value: str) -> None:
    with pytest.raises(PlaceError, match="start the workers with srun, or with") as error:
        slurm.find(environ)
    assert str(error.value).startswith(value)
    assert "--cluster=none" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_PROCID": "4"}, "gives the rank 4 of 4 workers"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID is '-1': it has to be a whole number"),
        ({"SLURM_STEP_NUM_TASKS": "four"}, "SLURM_STEP_NUM_TASKS is 'four'"),
        ({"SLURM_PROCID": ""}, "but SLURM_PROCID is not set"),
        ({"SLURM_STEP_NODELIST": ","}, "SLURM_STEP_NODELIST is ','"),
        ({"SLURM_DISTRIBUTION": "arbitrary"}, "start the workers with srun --distribution=block"),
    ],
)
def test_a_description_that_is_wrong_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        slurm.find(TASK | change)


@pytest.mark.parametrize("distribution", ["block", "cyclic", "plane", "block:cyclic,Pack"])
def test_rank_0_is_on_the_first_node_under_other_distributions(distribution: str) -> None:
    assert find(TASK | {"SLURM_DISTRIBUTION": distribution}).chief_host == "n1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("n1,n2", "n1"),
        ("n[1-3]", "n1"),
        ("gpu-a[01-03,07],login", "gpu-a01"),
        ("login,gpu-a[01-03]", "login"),
        ("gpu-a[07,01-03]-ib", "gpu-a07-ib"),
        ("rack[1-2]n[01-04]", "rack1n01"),
        ("n[0001]", "n0001"),
        ("a.b.c,d[1-2]", "a.b.c"),
    ],
)
def test_the_first_name_of_a_node_list(nodes: str, first: str) -> None:
    assert slurm.first_node(nodes) == first


@pytest.mark.parametrize(
    ("counts", "numbers"),
    [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4,1(x2)", [4, 1, 1]), ("16(x1)", [16]), ("", [])],
)
def test_tasks_on_each_node(counts: str, numbers: list[int]) -> None:
    assert slurm.tasks_per_node(counts) == numbers


@pytest.mark.parametrize(
    ("node", "local_size"), [("0", 2), ("2", 2), ("3", 1), ("4", None), ("", None)]
)
def test_tasks_on_this_node(node: str, local_size: int | None) -> None:
    counts = {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": node}
    assert find(TASK | counts).local_size == local_size


def test_a_requeued_job_is_another_one() -> None:
    assert find(TASK | {"SLURM_RESTART_COUNT": "2"}).job == "41.7.2"


@pytest.mark.parametrize(
    ("ports", "port"), [("42000-42004", 42000), ("42007,42010-42011", 42007), ("", None)]
)
def test_the_first_reserved_port_is_the_chiefs(ports: str, port: int | None) -> None:
    assert find(TASK | {"SLURM_STEP_RESV_PORTS": ports}).chief_port == port


@pytest.mark.parametrize(
    ("variables", "own"),
    [
        ({}, False),
        ({"SLURM_GPUS_PER_TASK": "1"}, True),
        ({"SLURM_TRES_PER_TASK": "cpu:4,gres/gpu:2"}, True),
        ({"SLURM_TRES_PER_TASK": "cpu:4"}, False),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_GPUS": "0,1"}, False),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, False),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "1"}, True),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),
        ({"SLURM_GPU_BIND": "single:1"}, True),
        ({"SLURM_GPU_BIND": "verbose,per_task:2"}, True),
        ({"SLURM_GPU_BIND": "map_gpu:0,1"}, True),
        ({"SLURM_GPU_BIND": "mask:0x1,0x2"}, True),
        ({"SLURM_GPU_BIND": "single:2"}, False),
        ({"SLURM_GPU_BIND": "single:16"}, False),
        ({"SLURM_GPU_BIND": "closest"}, False),
        ({"SLURM_GPU_BIND": "none", "SLURM_GPUS_PER_TASK": "1"}, False),
    ],
)
def test_gpus_for_each_task(variables: dict[str, str], own: bool) -> None:
    assert find(TASK | variables).has_own_gpus == own
