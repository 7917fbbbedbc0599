from __future__ import annotations

import pytest

from cluster.resolvers import kubernetes
from cluster.resolvers.place import Place, PlaceError

POD = "mine-2.mine.default.svc.cluster.local"
INDEXED = {"JOB_COMPLETION_INDEX": "2", "TFDP_WORKERS": "3"}
JAX = {
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
    "JAX_COORDINATOR_ADDRESS": "mine-node-0-0.mine:6666",
    "JAX_COORDINATOR_PORT": "6666",
    "JOB_COMPLETION_INDEX": "2",
}
TORCH = {
    "PET_NNODES": "3",
    "PET_NPROC_PER_NODE": "1",
    "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "mine-node-0-0.mine",
    "PET_MASTER_PORT": "29500",
    "JOB_COMPLETION_INDEX": "2",
}


def test_a_pod_of_an_indexed_job_is_a_worker() -> None:
    chief = "mine-0.mine.default.svc.cluster.local"
    assert kubernetes.find(INDEXED, POD) == Place(
        engine="Kubernetes",
        found_by="JOB_COMPLETION_INDEX, TFDP_WORKERS",
        rank=2,
        size=3,
        chief_host=chief,
        job=chief,
        local_rank=0,
        local_size=1,
        has_own_gpus=True,
    )


@pytest.mark.parametrize(
    ("index", "pod", "chief"),
    [
        (2, "mine-workers-0-2.mine.ns.svc.cluster.local", "mine-workers-0-0.mine.ns.svc"),
        (12, "mine-12.mine.ns.svc.cluster.local", "mine-0.mine.ns.svc.cluster.local"),
        (2, "v2-2.v2-2.ns-2.svc.cluster.local", "v2-0.v2-2.ns-2.svc.cluster.local"),
        (0, "mine-0.mine.ns.svc.cluster.local", "mine-0.mine.ns.svc.cluster.local"),
    ],
)
def test_the_chief_has_the_name_of_index_0(index: int, pod: str, chief: str) -> None:
    place = kubernetes.find({"JOB_COMPLETION_INDEX": str(index), "TFDP_WORKERS": "20"}, pod)
    assert place is not None
    assert place.chief_host.startswith(chief)
    assert place.rank == index


def test_no_index_is_no_indexed_job() -> None:
    assert kubernetes.find({}, POD) is None
    assert kubernetes.find({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, POD) is None


def test_one_pod_needs_no_name() -> None:
    place = kubernetes.find({"JOB_COMPLETION_INDEX": "0", "TFDP_WORKERS": "1"}, "mine-0")
    assert place is not None
    assert place.size == 1


@pytest.mark.parametrize(
    ("environ", "pod", "message"),
    [
        ({"JOB_COMPLETION_INDEX": "0"}, POD, "is 0, but TFDP_WORKERS is not set: set it to the"),
        ({"TFDP_WORKERS": "3"}, POD, "TFDP_WORKERS is '3', but JOB_COMPLETION_INDEX is not set"),
        (INDEXED | {"TFDP_WORKERS": "2"}, POD, "gives the rank 2 of 2 workers"),
        (INDEXED | {"TFDP_WORKERS": "0"}, POD, "gives 0 workers"),
        (INDEXED | {"TFDP_WORKERS": "three"}, POD, "TFDP_WORKERS is 'three'"),
        (INDEXED | {"JOB_COMPLETION_INDEX": "x"}, POD, "JOB_COMPLETION_INDEX is 'x'"),
        (INDEXED, "mine-2", "set the pod template's subdomain to its name"),
        (INDEXED, "node-12.example.org", "has to end in -2"),
        (INDEXED, "node2.example.org", "leave hostname and hostNetwork out"),
    ],
)
def test_a_pod_that_can_not_know_its_place_says_why(
    environ: dict[str, str], pod: str, message: str
) -> None:
    with pytest.raises(PlaceError, match=message) as error:
        kubernetes.find(environ, pod)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (f"127.0.0.1\tlocalhost\n10.244.1.7\t{POD}\tmine-2\n", POD),
        (f"10.244.1.7 mine-2 {POD}\n", POD),
        ("127.0.0.1\tlocalhost\n10.244.1.7\tmine-2\n", "mine-2"),
        (f"# 10.244.1.7\t{POD}\tmine-2\n10.244.1.7\tmine-2", "mine-2"),
        ("10.244.1.8\tmine-21.mine.ns\tmine-21\n", "mine-2"),
        ("", "mine-2"),
    ],
)
def test_the_full_name_is_in_the_hosts_file(hosts: str, name: str) -> None:
    assert kubernetes.qualified_name("mine-2", hosts) == name


def test_a_host_name_that_is_full_stays() -> None:
    assert kubernetes.qualified_name(POD, f"10.244.1.7\t{POD}\n") == POD


@pytest.mark.parametrize(
    ("environ", "port", "found_by"),
    [
        (JAX, 6666, "JAX_PROCESS_ID, JAX_NUM_PROCESSES"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "mine-node-0-0.mine"}, 6666, "JAX_PROCESS_ID, JAX_NUM"),
        (TORCH, 29500, "PET_NODE_RANK, PET_NNODES"),
        (TORCH | {"PET_NPROC_PER_NODE": "auto"}, 29500, "PET_NODE_RANK"),
        (TORCH | {"PET_NPROC_PER_NODE": ""}, 29500, "PET_NODE_RANK"),
    ],
)
def test_a_pod_of_a_train_job_is_a_worker(
    environ: dict[str, str], port: int, found_by: str
) -> None:
    place = kubernetes.find_kubeflow(environ)
    assert place is not None
    assert (place.rank, place.size) == (2, 3)
    assert (place.chief_host, place.chief_port) == ("mine-node-0-0.mine", port)
    assert (place.local_rank, place.local_size, place.has_own_gpus) == (0, 1, True)
    assert place.found_by.startswith(found_by)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCH | {"PET_NPROC_PER_NODE": "4"}, "set numProcPerNode to 1 in the TrainJob"),
        (TORCH | {"PET_NODE_RANK": ""}, "PET_NODE_RANK is not set"),
        (JAX | {"JAX_PROCESS_ID": "", "JAX_NUM_PROCESSES": ""}, "JAX_PROCESS_ID are not set"),
        (JAX | {"JAX_PROCESS_ID": "3"}, "gives the rank 3 of 3"),
        (JAX | {"JAX_COORDINATOR_PORT": "http"}, "JAX_COORDINATOR_PORT is 'http'"),
    ],
)
def test_a_train_job_that_is_wrong_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        kubernetes.find_kubeflow(environ)


def test_other_pods_are_not_of_a_train_job() -> None:
    assert kubernetes.find_kubeflow(INDEXED) is None
