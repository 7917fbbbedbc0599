from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.resolvers import managed
from cluster.resolvers.place import Place, PlaceError

POOLS = {"workerpool0": ["pool0-0:2222"], "workerpool1": ["pool1-0:2222", "pool1-1:2222"]}
RESOURCES = '{"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "network_interface": "eth0"}'


def vertex(pools: Any, pool: Any, index: Any, **task: Any) -> dict[str, str]:
    spec = {"cluster": pools, "task": {"type": pool, "index": index} | task, "environment": "cloud"}
    return {"CLUSTER_SPEC": json.dumps(spec)}


def test_a_machine_of_vertex() -> None:
    assert managed.find_vertex(vertex(POOLS, "workerpool1", 1, trial="5")) == Place(
        engine="Vertex AI",
        found_by="CLUSTER_SPEC",
        rank=2,
        size=3,
        chief_host="pool0-0",
        chief_port=2222,
        job="pool0-0 5",
        local_rank=0,
        local_size=1,
        has_own_gpus=True,
    )


@pytest.mark.parametrize(
    ("pools", "pool", "index", "rank", "size"),
    [
        (POOLS, "workerpool0", 0, 0, 3),
        (POOLS, "workerpool1", 0, 1, 3),
        (POOLS | {"workerpool2": ["reducer:2222"]}, "workerpool1", 1, 2, 3),
        ({"workerpool0": ["a:1", "b:1"], "workerpool1": ["c:1"]}, "workerpool1", 0, 2, 3),
        ({"workerpool0": ["a:1"]}, "workerpool0", 0, 0, 1),
    ],
)
def test_ranks_of_vertex(pools: Any, pool: str, index: int, rank: int, size: int) -> None:
    place = managed.find_vertex(vertex(pools, pool, index))
    assert place is not None
    assert (place.rank, place.size) == (rank, size)


@pytest.mark.parametrize("text", ["", "cluster.yaml", "[1]", "{}", '{"cluster": {"worker": []}}'])
def test_the_cluster_spec_of_another_program(text: str) -> None:
    assert managed.find_vertex({"CLUSTER_SPEC": text}) is None


@pytest.mark.parametrize(
    ("pool", "index", "message"),
    [
        ("workerpool2", 0, "workers have to be in the first two worker pools"),
        ("workerpool1", None, "workers have to be in"),
        ("workerpool1", 2, "gives the rank 3 of 3"),
    ],
)
def test_a_machine_of_vertex_that_is_no_worker(pool: str, index: Any, message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        managed.find_vertex(vertex(POOLS, pool, index))


@pytest.mark.parametrize(
    ("environ", "resources", "found_by"),
    [
        ({"SM_HOSTS": '["algo-1","algo-2"]', "SM_CURRENT_HOST": "algo-2"}, "", "SM_HOSTS"),
        ({"SM_HOSTS": '["algo-1","algo-2"]', "SM_CURRENT_HOST": "algo-2"}, "{}", "SM_HOSTS"),
        ({}, RESOURCES, "/opt/ml/input/config/resourceconfig.json"),
    ],
)
def test_a_machine_of_sagemaker(environ: dict[str, str], resources: str, found_by: str) -> None:
    place = managed.find_sagemaker(environ | {"TRAINING_JOB_NAME": "mine-2"}, resources)
    assert place is not None
    assert (place.rank, place.size, place.chief_host, place.job) == (1, 2, "algo-1", "mine-2")
    assert (place.local_rank, place.local_size, place.has_own_gpus) == (0, 1, True)
    assert place.found_by.startswith(found_by)


@pytest.mark.parametrize(
    ("environ", "resources"),
    [
        ({"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-2"}, ""),
        ({"SM_HOSTS": '["algo-1"]'}, ""),
        ({"SM_HOSTS": "algo-1", "SM_CURRENT_HOST": "algo-1"}, ""),
        ({}, "{}"),
        ({}, "half a fi"),
    ],
)
def test_a_description_of_sagemaker_that_is_wrong(environ: dict[str, str], resources: str) -> None:
    with pytest.raises(PlaceError, match="has to be among them"):
        managed.find_sagemaker(environ, resources)


def test_other_machines_are_not_sagemakers() -> None:
    assert managed.find_sagemaker({}, "") is None
    assert managed.read_resource_config() == ""
