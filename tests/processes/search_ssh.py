"""A search over hosts by real ssh, killed on the way, beside one on this machine: ``make ssh``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.search_chaos import SPACE, assert_alike, command
from tests.processes.ssh_hosts import Hosts, hosts_up
from tests.running import Process, run, wait_until

LIMIT_S = 400
FLAGS = ("--trials=4", "--trials_in_flight=2", "--threads_per_trial=1", "--export_dir=none")
OF_TRIALS = ("--steps=20", "--checkpoint_every_steps=4")


def search(workdir: Path, *flags: str) -> list[str]:
    space = [f"--search={each}" for each in SPACE]
    recipe = "tfdp.recipes.digits"
    return command(recipe, workdir, *FLAGS, *space, *flags, of_trials=OF_TRIALS)


def has_checkpoint(workdir: Path) -> bool:
    return any(workdir.glob("trials/*/checkpoints/*"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a search on this machine, which nobody disturbed."""
    workdir = tmp_path_factory.mktemp("here") / "search"
    run(search(workdir), limit_s=LIMIT_S)
    return workdir


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts_up(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def search_on(hosts: Hosts, workdir: Path) -> list[str]:
    enter = ("nsenter", f"--net=/run/netns/{hosts.hub}")
    return [*enter, *search(workdir, "--hosts=h1,h2", f"--ssh_config={hosts.config}")]


@pytest.mark.timeout(900)
def test_a_search_on_hosts_is_that_of_one_machine(hosts: Hosts, here: Path, tmp_path: Path) -> None:
    words = search_on(hosts, tmp_path)
    with Process(words, limit_s=LIMIT_S) as killed:
        wait_until(lambda: has_checkpoint(tmp_path), LIMIT_S, "a trial trains")
        killed.signal(signal.SIGKILL)
        killed.wait(-signal.SIGKILL)
        hosts.wait_until_empty(10)
    run(words, limit_s=LIMIT_S)
    hosts.wait_until_empty(10)
    assert_alike(here, tmp_path)


@pytest.mark.timeout(900)
def test_a_search_goes_on_without_a_host(hosts: Hosts, here: Path, tmp_path: Path) -> None:
    with Process(search_on(hosts, tmp_path), limit_s=LIMIT_S) as started:
        wait_until((tmp_path / ".check").exists, LIMIT_S, "hosts were looked at")
        hosts.cut(hosts[1], "host")
        try:
            output = started.wait(0)
        finally:
            hosts.mend(hosts[1], "host")
    assert "before it trained on h2: it starts again" in output
    hosts.wait_until_empty(20)
    assert_alike(here, tmp_path)
