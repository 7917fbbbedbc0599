"""Two embedded servers behind the gateway of deploy/, without containers: what callers notice.

They notice nothing, whatever happens to one replica, and while versions go on trial, up and back.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client import Client, Tls
from serving.protos import serving_pb2
from serving.rollout import cli as rollout
from tests.running import ROOT, Process, free_port, wait_until
from tests.serving.callers import Callers
from tests.serving.keys import make_keys

DEPLOY = ROOT / "deploy"
MODEL = ROOT / "tests/serving/recorded/models/half_plus/5"
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed"
)


@dataclass
class Replica:
    config: Path
    port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.target = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        monitoring = DEPLOY / "monitoring.config"
        flags = [f"--port={self.port}", f"--rest_api_port={self.http_port}"]
        flags += [f"--model_config_file={self.config}", f"--monitoring_config_file={monitoring}"]
        flags += [
            "--allow_version_labels_for_unavailable_models",
            "--enable_grpc_healthcheck_service",
        ]
        flags += ["--enable_batching", f"--batching_parameters_file={DEPLOY}/batching.config"]
        flags += ["--file_system_poll_wait_seconds=0.1"]
        self.process = Process(["python", "-m", "serving.server", *flags])

    def healthy(self) -> bool:
        command = ["bash", str(DEPLOY / "healthy.bash"), str(self.port)]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


@dataclass
class Stack:
    folder: Path
    replicas: list[Replica]

    def publish(self, *versions: int) -> None:
        for version in versions:
            hidden = self.folder / "half" / f".{version}"
            shutil.copytree(MODEL, hidden)
            hidden.rename(hidden.with_name(str(version)))

    def rollout(self, *command: str, expect: int = 0) -> str:
        targets = ",".join(replica.target for replica in self.replicas)
        flags = ["--model=half", f"--models_config={self.folder}/models.config"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = rollout.main([*command, *flags, f"--targets={targets}"])
        assert code == expect, said.getvalue()
        return said.getvalue()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models")
    stack = Stack(folder, [])
    stack.publish(1, 2)
    stack.rollout("promote", "1", f"--base_path={folder}/half")  # the file to start with
    with contextlib.ExitStack() as processes:
        for _ in range(2):
            stack.replicas.append(Replica(folder / "models.config"))
            processes.callback(lambda replica=stack.replicas[-1]: replica.process.kill())
        for replica in stack.replicas:
            replica.process.wait_for("ready on")
        yield stack


@contextlib.contextmanager
def gateway(stack: Stack, folder: Path, bind: str = "proto h2") -> Iterator[tuple[str, int]]:
    """HAProxy as in deploy/ but for addresses; gives its target and the port of its metrics."""
    text = (DEPLOY / "haproxy.cfg").read_text()
    port, http_port = free_port(), free_port()
    for name, address in {
        "serving-1:8500": stack.replicas[0].target,
        "serving-2:8500": stack.replicas[1].target,
        "bind :8500": f"bind 127.0.0.1:{port}",
        "bind :8404": f"bind 127.0.0.1:{http_port}",
    }.items():
        assert text.count(name) == 1
        text = text.replace(name, address)
    (folder / "haproxy.cfg").write_text(text)
    command = ["haproxy", "-f", str(folder / "haproxy.cfg")]
    with Process(command, env={"GATEWAY_BIND": bind}) as process:
        up = [("serving-1", True), ("serving-2", True)]
        wait_until(lambda: in_use(http_port) == dict(up), 60, f"both are up: {process.tail}")
        yield f"127.0.0.1:{port}", http_port


def page(port: int, path: str) -> str:
    return str(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read().decode())


def in_use(http_port: int) -> dict[str, bool]:
    """Which replicas the gateway gives calls to."""
    pattern = r'haproxy_server_status{proxy="replicas",server="([^"]+)",state="UP"} (\d)'
    try:
        return {name: up == "1" for name, up in re.findall(pattern, page(http_port, "/metrics"))}
    except OSError:
        return {}


def calling(target: str | list[str], retries: int) -> Callers:
    return Callers(Client(target, timeout_s=15, retries=retries), ask, pause_s=0.005)


def ask(client: Client) -> None:
    outputs = client.predict("half", {"x": np.ones((4, 1), np.float32)}, label="stable")
    assert outputs["y"].tolist() == [[2.5]] * 4


def stable_version(target: str) -> int:
    with Client(target) as client:
        return client.metadata("half", label="stable").version


def test_versions_go_on_trial_up_and_back_and_no_call_fails(stack: Stack):
    targets = [replica.target for replica in stack.replicas]
    with calling(targets, retries=0) as callers:
        callers.went_on()
        assert stack.rollout("canary", "2").count("on 2 replicas") == 2
        assert [stable_version(target) for target in targets] == [1, 1]
        stack.rollout("promote", "2")
        assert [stable_version(target) for target in targets] == [2, 2]
        callers.went_on()
        stack.rollout("rollback")
        assert [stable_version(target) for target in targets] == [1, 1]
        callers.went_on()
    assert stack.rollout("status").count("as in the file") == 2
    with Client(targets[0]) as client:
        states = {status.version: status.state for status in client.status("half")}
    assert states[1] == "AVAILABLE"
    assert states.get(2, "END") in ("UNLOADING", "END")


def test_a_version_that_can_not_be_loaded_is_taken_back(stack: Stack):
    broken = stack.folder / "half" / "9"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no model")
    before = (stack.folder / "models.config").read_text()
    said = stack.rollout("promote", "9", expect=1)
    assert "version 9 failed to load" in said and "restored" in said
    assert (stack.folder / "models.config").read_text() == before
    assert stack.rollout("status").count("as in the file") == 2
    shutil.rmtree(broken)


def test_the_health_check_of_the_containers_asks_the_health_service(stack: Stack):
    assert all(replica.healthy() for replica in stack.replicas)
    nobody = Replica.__new__(Replica)
    nobody.port = free_port()
    assert not nobody.healthy()
    nobody.port = stack.replicas[0].http_port  # somebody else
    assert not nobody.healthy()


@needs_haproxy
def test_calls_of_one_connection_are_spread(stack: Stack, tmp_path: Path):
    def answered(replica: Replica) -> int:
        pattern = r':tensorflow:serving:request_count{model_name="half",status="OK"} (\d+)'
        return int(
            re.findall(pattern, page(replica.http_port, "/monitoring/prometheus/metrics"))[0]
        )

    request = serving_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(
        serving_pb2.TensorProto(dtype=1, float_val=[1], tensor_shape={"dim": [{"size": 1}] * 2})
    )
    before = [answered(replica) for replica in stack.replicas]
    with gateway(stack, tmp_path) as (target, _), grpc.insecure_channel(target) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for _ in range(20):
            predict(request.SerializeToString(), timeout=10)
    shares = [answered(r) - b for r, b in zip(stack.replicas, before, strict=True)]
    assert sum(shares) == 20 and min(shares) >= 8


@needs_haproxy
def test_tls_is_one_switch(stack: Stack, tmp_path: Path):
    bind = re.search(r'GATEWAY_BIND: "(.+)"', (DEPLOY / "tls.yml").read_text())[1]
    keys = make_keys(tmp_path, gateway="IP:127.0.0.1")
    (tmp_path / "gateway.pem").write_bytes(keys["gateway.pem"] + keys["gateway.key"])
    with (
        gateway(stack, tmp_path, bind.replace("/tls/", f"{tmp_path}/")) as (target, _),
        Client(target, tls=Tls(root_certificates=keys["ca.pem"])) as client,
        Client(target, timeout_s=2) as bare,
    ):
        assert client.predict("half", {"x": np.ones((1, 1), np.float32)})["y"] == [[2.5]]
        with pytest.raises(Exception, match="UNAVAILABLE"):
            bare.status("half")


@needs_haproxy
def test_the_board_and_the_alerts_ask_for_metrics_that_there_are(stack: Stack, tmp_path: Path):
    board = json.loads((DEPLOY / "grafana/boards/serving.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += re.findall(
        r"expr: >?\s*((?:.+\n)+?)\s+(?:for|annotations):", (DEPLOY / "alerts.yml").read_text()
    )
    assert len(queries) > 10
    names = r"(:tensorflow(?::\w+)+|haproxy_\w+|\bup\b)"
    asked = {name for query in queries for name in re.findall(names, query)}
    assert {":tensorflow:serving:request_count", "haproxy_server_status", "up"} <= asked
    with gateway(stack, tmp_path) as (target, http_port):
        with Client(target) as client:
            client.predict("half", {"x": np.ones((1, 1), np.float32)})
        pages = page(http_port, "/metrics")
        for replica in stack.replicas:
            pages += page(replica.http_port, "/monitoring/prometheus/metrics")
    there = set(re.findall(r"^([:\w]+)(?:{| )", pages, re.MULTILINE)) | {"up"}
    assert asked <= there


@needs_haproxy
def test_no_call_fails_while_a_replica_is_frozen(stack: Stack, tmp_path: Path):
    frozen = stack.replicas[1].process
    with (
        gateway(stack, tmp_path) as (target, http_port),
        calling(target, retries=4) as callers,
    ):
        callers.went_on()
        frozen.signal(signal.SIGSTOP)
        wait_until(lambda: not in_use(http_port)["serving-2"], 30, "it is left out")
        callers.went_on()
        frozen.signal(signal.SIGCONT)
        wait_until(lambda: in_use(http_port)["serving-2"], 30, "it is used again")
        callers.went_on()


@needs_haproxy
def test_no_call_fails_when_a_replica_is_killed(stack: Stack, tmp_path: Path):
    """The gateway makes small calls again by itself: callers here don't."""
    with (
        gateway(stack, tmp_path) as (target, http_port),
        calling(target, retries=0) as callers,
    ):
        callers.went_on()
        stack.replicas[0].process.kill()
        callers.went_on()
        wait_until(lambda: not in_use(http_port)["serving-1"], 15, "it is left out")
        callers.went_on()
