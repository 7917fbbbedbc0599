"""docker-compose.yml is run: train, serve, observe, in containers with the limits that it sets.

Images that can't be pulled are stood in for (images.py): what runs here is our Dockerfile, Debian's
HAProxy and Prometheus, and the embedded server with the flags, mounts, user and limits that TF
Serving gets. Grafana is not run. Minutes long; skipped where there is no container engine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client import Client
from serving.rollout import cli as rollout
from tests.processes import images
from tests.processes.test_gateway import Callers
from tests.running import ROOT, Process, wait_until
from tfdp.recipes.scans import scans

GATEWAY = "127.0.0.1:8500"
REPLICAS = "127.0.0.1:8511,127.0.0.1:8512"


def missing() -> str:
    """Why this can't be run here; empty if it can."""
    for program in ("docker", "docker-compose", "debootstrap"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    engine = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    if engine.returncode != 0:
        return f"no container engine answers: {engine.stderr.strip().splitlines()[-1:]}"
    return "" if os.geteuid() == 0 else "only root can make base images by debootstrap"


pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(1800)]


class Project:
    """A copy of what the containers mount, and compose on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy")
        shutil.copy(ROOT / "docker-compose.yml", folder)
        shutil.copy(ROOT / "tests/processes/compose.yml", folder)
        (folder / "runs").mkdir()
        os.chown(folder / "runs", 1000, 1000)
        for part in [folder, *folder.parents][:-2]:  # pytest's folders are for their owner only
            part.chmod(0o755)

    def compose(self, *arguments: str, epochs: int = 0, limit_s: float = 300) -> str:
        files = ["-f", "docker-compose.yml", "-f", "compose.yml"]
        profiles = [f"--profile={name}" for name in ("train", "serve", "observe")]
        command = ["docker-compose", "-p", "tfdptest", *files, *profiles, *arguments]
        env = {"EPOCHS": str(epochs)}
        with Process(command, cwd=self.folder, env=env, limit_s=limit_s) as process:
            return process.wait()

    def container(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's container."""
        name = self.compose("ps", "-q", service).split()[-1]
        output = subprocess.run(["docker", "inspect", name], capture_output=True, check=True)
        found: dict[str, Any] = json.loads(output.stdout)[0]
        return found

    def kill(self, service: str) -> None:
        """The program dies; nobody has asked the engine to stop it, so it starts it again."""
        os.kill(self.container(service)["State"]["Pid"], signal.SIGKILL)

    def is_healthy(self, service: str) -> bool:
        return bool(self.container(service)["State"]["Health"]["Status"] == "healthy")

    def train(self, epochs: int) -> None:
        self.compose("up", "-d", "--no-build", "node-1", "node-2", epochs=epochs)

    def finish(self) -> dict[str, Any]:
        """Waits for both nodes' end; gives the run's summary."""
        for node in ("node-1", "node-2"):
            state = wait_until(lambda n=node: self._ended(n), 600, f"{node} ended")
            assert state["ExitCode"] == 0, self.compose("logs", "--tail=50", node)
        summary: dict[str, Any] = json.loads((self.folder / "runs/demo/summary.json").read_text())
        return summary

    def _ended(self, service: str) -> dict[str, Any] | None:
        state: dict[str, Any] = self.container(service)["State"]
        return state if state["Status"] == "exited" else None

    def rollout(self, *command: str, targets: str = REPLICAS) -> int:
        flags = ["--model=digits", f"--models_config={self.folder}/runs/demo/models.config"]
        return rollout.main([*command, *flags, f"--targets={targets}"])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    images.make()
    project = Project(tmp_path_factory.mktemp("project"))
    try:
        yield project
        for service in ("node-1", "serving-1", "serving-2", "gateway", "prometheus"):
            print(project.compose("logs", "--tail=30", service))  # shown if a test failed
    finally:
        project.compose("down", "--volumes", "--timeout=10")


def ask(client: Client) -> None:
    """All of the images that the model never saw, at once."""
    pictures, numbers = scans(held_out=True)
    logits = client.predict("digits", {"features": pictures[:64]}, label="stable")["outputs"]
    assert np.mean(logits.argmax(axis=1) == numbers[:64]) > 0.9


def stable_version() -> int:
    with Client(GATEWAY) as client:
        return client.metadata("digits", label="stable").version


def test_two_nodes_train_and_publish_although_one_dies(project: Project):
    project.train(epochs=60)
    wait_until(
        lambda: "tfdp: step" in project.compose("logs", "--no-color", "node-1"), 180, "they train"
    )
    project.kill("node-2")
    summary = project.finish()
    assert summary["workers"] == 2
    assert summary["export_path"] == "runs/demo/model/1"
    assert project.container("node-2")["RestartCount"] >= 1


def test_replicas_behind_a_gateway_serve_what_was_published(project: Project):
    assert project.rollout("promote", "1", "--base_path=/models/model", targets="") == 0
    project.compose("up", "-d", "serving-1", "serving-2", "gateway", "prometheus")
    for service in ("serving-1", "serving-2", "gateway"):
        wait_until(lambda name=service: project.is_healthy(name), 180, f"{service} is healthy")
    with Client(GATEWAY) as client:
        client.wait_until_ready("digits")
        ask(client)
    assert project.rollout("status") == 0


@pytest.mark.parametrize(
    ("service", "user", "cpus", "memory_mb"),
    [
        ("serving-1", 65534, 1, 2048),
        ("gateway", 99, 1, 512),
        ("prometheus", 65534, 1, 1024),
    ],
)
def test_limits_hold_and_nobody_is_root(
    project: Project, service: str, user: int, cpus: int, memory_mb: int
):
    container = project.container(service)
    host, pid = container["HostConfig"], container["State"]["Pid"]
    assert (host["NanoCpus"], host["Memory"]) == (cpus * 10**9, memory_mb << 20)
    status = Path(f"/proc/{pid}/status").read_text()  # as the kernel sees it
    assert re.search(rf"^Uid:\s+{user}\s+{user}\s", status, re.M)
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert host["ReadonlyRootfs"]
    published = [binding["HostIp"] for ports in host["PortBindings"].values() for binding in ports]
    assert set(published) <= {"127.0.0.1"}


def test_no_call_fails_when_a_replica_dies_and_comes_back(project: Project):
    with Callers(GATEWAY, retries=4, ask=ask) as callers:
        callers.went_on()
        project.kill("serving-1")
        callers.went_on()
        wait_until(lambda: project.is_healthy("serving-1"), 120, "it is back")
        callers.went_on()
    assert project.container("serving-1")["RestartCount"] == 1
    wait_until(lambda: project.rollout("status") == 0, 60, "it serves as the file states")


def test_a_new_version_is_published_goes_on_trial_up_and_back(project: Project):
    with Callers(GATEWAY, retries=4, ask=ask) as callers:
        callers.went_on()
        project.train(epochs=61)
        assert project.finish()["export_path"] == "runs/demo/model/2"
        assert stable_version() == 1  # published is not yet promoted
        assert project.rollout("canary", "2") == 0
        assert stable_version() == 1
        assert project.rollout("promote", "2") == 0
        assert stable_version() == 2
        callers.went_on()
        assert project.rollout("rollback") == 0
        assert stable_version() == 1
        callers.went_on()
    assert project.rollout("status") == 0


def test_prometheus_sees_all_of_them(project: Project):
    def ask_prometheus(query: str) -> list[dict[str, Any]]:
        address = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            reply = json.load(answer)
        assert reply["status"] == "success"
        result: list[dict[str, Any]] = reply["data"]["result"]
        return result

    def all_up() -> bool:
        return [sample["value"][1] for sample in ask_prometheus("up")] == ["1"] * 3

    wait_until(all_up, 60, "all are scraped")
    board = json.loads((ROOT / "deploy/grafana/boards/serving.json").read_text())
    for panel in board["panels"]:
        answers = [
            ask_prometheus(target["expr"].replace("$__rate_interval", "5m"))
            for target in panel["targets"]
        ]
        if panel["title"] not in ("Errors", "Versions that failed to load"):  # there were none
            assert any(answers), panel["title"]


def test_down_leaves_nothing(project: Project):
    project.compose("down", "--volumes", "--timeout=10")
    label = "--filter=label=com.docker.compose.project=tfdptest"
    for command in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        left = subprocess.run(["docker", *command, "--quiet", label], capture_output=True)
        assert left.stdout == b""
