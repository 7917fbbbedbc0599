"""A search over hosts by real ssh, killed on the way, beside one on this machine: ``make ssh``."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes.search_chaos import FILES, SPACE, command
from tests.processes.ssh_hosts import hosts_up
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


def assert_same(workdir: Path, other: Path) -> None:
    for name in FILES:
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.timeout(900)
def test_a_search_on_hosts_is_that_of_one_machine(tmp_path: Path) -> None:
    run(search(tmp_path / "here"), limit_s=LIMIT_S)
    (tmp_path / "hosts").mkdir()
    with hosts_up(tmp_path / "hosts") as hosts:
        on_hosts = ("--hosts=h1,h2", f"--ssh_config={hosts.config}")
        enter = ("nsenter", f"--net=/run/netns/{hosts.hub}")
        words = [*enter, *search(tmp_path / "there", *on_hosts)]
        with Process(words, limit_s=LIMIT_S) as killed:
            wait_until(lambda: has_checkpoint(tmp_path / "there"), LIMIT_S, "a trial trains")
            killed.signal(signal.SIGKILL)
            killed.wait(-signal.SIGKILL)
            hosts.wait_until_empty(10)
        run(words, limit_s=LIMIT_S)
        hosts.wait_until_empty(10)
    assert_same(tmp_path / "here", tmp_path / "there")
