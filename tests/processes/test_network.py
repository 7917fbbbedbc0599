"""A bad network between two workers, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.test_train import (
    Hold,
    assert_only_own_words,
    command,
    summary,
    wait_for_checkpoint,
)
from tests.running import Process

HOSTS = ("10.213.7.1", "10.213.7.2")
PORT = 2222


def ip(*arguments: str) -> None:
    """Runs ``ip``, or another program of iproute2 in a namespace."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def cable() -> Iterator[list[str]]:
    """Two namespaces with one cable between them, whose ends have the name "cable"."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces need iproute2 (ip, tc)")
    names = [f"tfdp-{os.getpid()}-{end}" for end in range(2)]
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ends = [token for name in names for token in ("name", "cable", "netns", name)]
            ip("link", "add", *ends[:4], "type", "veth", "peer", *ends[4:])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for name, host in zip(names, HOSTS, strict=True):
            ip("-n", name, "addr", "add", f"{host}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names


@contextlib.contextmanager
def workers(names: list[str], workdir: Path, env: dict[str, str]) -> Iterator[list[Process]]:
    addresses = [f"{host}:{PORT}" for host in HOSTS]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Process(
                    ["ip", "netns", "exec", name, sys.executable, *command(workdir)[1:]],
                    env=env | {"TF_CONFIG": tf_config(addresses, index)},
                    limit_s=90,
                )
            )
            for index, name in enumerate(names)
        ]


def tf_config(addresses: list[str], index: int) -> str:
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def test_a_cut_cable_is_a_lost_worker_at_both_ends(cable: list[str], tmp_path: Path) -> None:
    hold, workdir = Hold(tmp_path), tmp_path / "run"
    with workers(cable, workdir, dict(hold.env)) as both_workers:
        wait_for_checkpoint(workdir, 8)
        ip("-n", cable[0], "link", "set", "cable", "down")
        cut_s = time.monotonic()
        outputs = [process.wait(138) for process in both_workers]
        assert time.monotonic() - cut_s < 15
    for output, lost in zip(outputs, (1, 0), strict=True):
        assert re.search(rf"tfdp: worker {lost} \({HOSTS[lost]}:{PORT}\) was lost: ", output)
        assert_only_own_words(output)


def test_delay_loss_and_short_outages_change_nothing(
    cable: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    for name in cable:
        netem = ("tc", "qdisc", "add", "dev", "cable", "root", "netem")
        with contextlib.suppress(subprocess.CalledProcessError):  # a kernel without netem
            ip("netns", "exec", name, *netem, "delay", "10ms", "5ms", "loss", "3%")
    with workers(cable, tmp_path, {"PACE_S": "0.05"}) as both_workers:
        for step in (4, 20):
            wait_for_checkpoint(tmp_path, step)
            ip("-n", cable[0], "link", "set", "cable", "down")
            time.sleep(2)  # shorter than all timeouts
            ip("-n", cable[0], "link", "set", "cable", "up")
        for process in both_workers:
            process.wait(0)
    assert summary(tmp_path)["weights_sha256"] == summary(undisturbed)["weights_sha256"]
