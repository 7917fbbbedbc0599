from __future__ import annotations

import json
from typing import Any

import pytest

from cluster import spec
from cluster.spec import Cluster, ClusterError

A, B, C = "a:1", "b:2", "c:3"


def read(cluster: Any, task: Any) -> Cluster | None:
    return spec.from_environment({"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})


def task(job: Any = "worker", index: Any = 0) -> dict[str, Any]:
    return {"type": job, "index": index}


@pytest.mark.parametrize(
    ("environ", "case"),
    [
        ({}, "unset"),
        ({"TF_CONFIG": ""}, "empty"),
        ({"TF_CONFIG": " \n"}, "blank"),
        ({"TF_CONFIG": "{}"}, "an empty object"),
        ({"TF_CONFIG": '{"cluster": {}}'}, "an empty cluster"),
        ({"TF_CONFIG": '{"task": {"type": "worker", "index": 0}}'}, "a job of one replica"),
        ({"TF_CONFIG": '{"cluster": {}, "task": {"type": "worker", "index": "0"}}'}, "quoted"),
    ],
)
def test_no_cluster_is_a_run_of_one_process(environ: dict[str, str], case: str) -> None:
    assert spec.from_environment(environ) is None, case


def test_workers_keep_their_order() -> None:
    cluster = read({"worker": [B, A, C]}, task(index=1))
    assert cluster is not None
    assert cluster.addresses == (B, A, C)
    assert cluster.names == ("worker 0", "worker 1", "worker 2")
    assert (cluster.size, cluster.index, cluster.name, cluster.address) == (3, 1, "worker 1", A)
    assert not cluster.is_chief


@pytest.mark.parametrize(
    ("this", "index", "is_chief"),
    [(task("chief"), 0, True), (task("worker", 0), 1, False), (task("worker", 1), 2, False)],
)
def test_a_chief_comes_first(this: dict[str, Any], index: int, is_chief: bool) -> None:
    cluster = read({"worker": [A, B], "chief": [C]}, this)
    assert cluster is not None
    assert cluster.addresses == (C, A, B)
    assert cluster.names == ("chief", "worker 0", "worker 1")
    assert (cluster.index, cluster.is_chief) == (index, is_chief)


def test_worker_0_is_chief_in_a_cluster_without_one() -> None:
    cluster = read({"worker": [A, B]}, task(index=0))
    assert cluster is not None
    assert cluster.is_chief


def test_a_quoted_index_and_foreign_keys_are_accepted() -> None:
    config = {
        "cluster": {"worker": [A, B]},
        "task": task(index="1"),
        "environment": "cloud",
        "rpc_layer": "grpc",
    }
    cluster = spec.from_environment({"TF_CONFIG": json.dumps(config)})
    assert cluster is not None
    assert cluster.index == 1


@pytest.mark.parametrize(
    "jobs", [{"worker": [A, B, C]}, {"chief": [A], "worker": [B, C]}, {"worker": ["[::1]:65535"]}]
)
def test_tf_config_describes_the_same_cluster(jobs: dict[str, list[str]]) -> None:
    for job, addresses in jobs.items():
        for index in range(len(addresses)):
            cluster = read(jobs, task(job, index))
            assert cluster is not None
            assert spec.from_environment({"TF_CONFIG": cluster.tf_config()}) == cluster
            assert json.loads(cluster.tf_config()) == {"cluster": jobs, "task": task(job, index)}


def test_local_workers_are_on_loopback() -> None:
    cluster = spec.local([4000, 4001], index=1)
    assert cluster.addresses == ("127.0.0.1:4000", "127.0.0.1:4001")
    assert cluster.name == "worker 1"
    assert spec.from_environment({"TF_CONFIG": cluster.tf_config()}) == cluster


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cluster": ', "not JSON"),
        ("worker", "'worker', which is not JSON"),
        ("[1, 2]", r"is \[1, 2\]: it has to be an object"),
        ("null", "is null: it has to be an object"),
        ('{"cluster": ["a:1"]}', r'cluster is \["a:1"\]: it has to be an object'),
        ('{"cluster": null}', "cluster is null: it has to be an object"),
        ('{"cluster": {"worker": ["a:1"]}, "task": 3}', "task is 3: it has to be an object"),
        ('{"task": {"type": "worker", "index": 1}}', "index 1, but TF_CONFIG has no cluster"),
    ],
)
def test_a_config_of_another_shape_is_refused(text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        spec.from_environment({"TF_CONFIG": text})


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ({"worker": []}, "no worker: list host:port"),
        ({"worker": A}, "\"a:1\" as the job 'worker': make it a list"),
        ({"worker": [A, 2]}, r'\["a:1", 2\] as the job'),
        ({"worker": {"0": A}}, "make it a list"),
        ({"worker": [A], "ps": [B]}, "the job 'ps': every process has to be a chief or a worker"),
        ({"worker": [A], "evaluator": [B]}, "the job 'evaluator'"),
        ({"worker": [A], "master": [B]}, "the job 'master'"),
        ({"worker": [A], "chief": [B, C]}, "2 chiefs, b:2, c:3: keep one"),
        ({"worker": [A, B, A]}, "a:1 for worker 0 and for worker 2: give every worker"),
        ({"worker": [A], "chief": [A]}, "a:1 for chief and for worker 0"),
    ],
)
def test_a_wrong_cluster_is_refused(jobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        read(jobs, task())


@pytest.mark.parametrize(
    "address",
    [
        *("", "a", ":1", "a:", "a:b", "a:0", "a:65536", "a:-1", "a:1:2", "a:\u0661"),
        *("::1:80", "[::1]", "[::1:80", "a b:1", "http://a:1", "a:1/", " a:1", "a:1\n"),
    ],
)
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="for worker 1: write it as host:port"):
        read({"worker": [A, address]}, task())


@pytest.mark.parametrize("address", ["a:1", "10.0.0.1:65535", "[::1]:80", "job-0.svc.local:2222"])
def test_an_address_is_accepted(address: str) -> None:
    assert Cluster((address,), ("worker 0",), 0).address == address


@pytest.mark.parametrize(
    ("this", "message"),
    [
        ({}, "task has no type"),
        ({"index": 0}, "task has no type"),
        (task("ps"), "the type 'ps': state whether this process is a 'chief' or a 'worker'"),
        (task("evaluator"), "the type 'evaluator'"),
        (task(["worker"]), "the type"),
        ({"type": "worker"}, "task has no index"),
        (task(index=None), "the index None: it has to be a whole number"),
        (task(index="one"), "the index 'one'"),
        (task(index=0.0), "the index 0.0"),
        (task(index=True), "the index True"),
        (task(index=-1), "worker -1, but the cluster lists 2"),
        (task(index=2), "worker 2, but the cluster lists 2 of the job 'worker'"),
        (task("chief"), "chief 0, but the cluster lists 0 of the job 'chief'"),
    ],
)
def test_a_wrong_task_is_refused(this: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        read({"worker": [A, B]}, this)


@pytest.mark.parametrize("index", [-1, 1])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(ClusterError, match=f"index of this process is {index}"):
        spec.local([4000], index)
