"""The launcher's flags; tests/processes/test_launch.py runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import launch
from cluster.hosts.hostlist import Host
from tests.running import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workers=0 -- true", "--workers is 0: it has to be 1 or more"),
        ("--workers=two -- true", "--workers"),
        ("--max_restarts=-1 -- true", "--max_restarts is -1"),
        ("--stop_timeout_s=nan -- true", "--stop_timeout_s is nan"),
        ("--worker=2 -- true", "unrecognized arguments: --worker=2"),
        ("true", "there is no -- before the command"),
        ("--workers=2", "put it after --"),
        ("--workers=2 --", "put it after --"),
        ("-- no-such-command", "'no-such-command' does not exist"),
        ("--hosts=h1:2,h1 -- true", "--hosts=h1:2,h1 has h1 twice"),
        ("--hosts=h1 --hostfile=x -- true", "--hosts and --hostfile are both given"),
        ("--hostfile=/no/such -- true", "--hostfile=/no/such can't be read"),
        ("--hosts=h1 --workers=2 -- true", "give each host its number, as in h1:2"),
        ("--hosts=h1:2,h2 --min_workers=4 -- true", "it has to be from 1 to 3"),
        ("--hosts=h1 --min_workers=0 -- true", "--min_workers is 0"),
        ("--min_workers=1 -- true", "--min_workers is for workers on other hosts"),
        ("--env=PATH -- true", "--env is for workers on other hosts"),
        ("--ssh_config=x -- true", "--ssh_config is for workers on other hosts"),
        (
            "--hosts=h1 --ssh_config=/no/such -- true",
            "--ssh_config=/no/such: there is no such file",
        ),
        ("--hosts=h1 --env=NO_SUCH -- true", "--env=NO_SUCH: there is no such variable"),
        ("-- /etc", "'/etc' does not exist, or is not executable"),
    ],
)
def test_wrong_flags_are_named(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        launch.main(arguments.split())
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_flags_are_read_from_the_command_line() -> None:
    output = run(["python", "-m", "cluster.launch", "--workers=0", "--", "true"], expect=2)
    assert "--workers is 0" in output.splitlines()[-1]


def test_a_host_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("h1 slots=2\nh2\n")
    flags = launch._parse([f"--hostfile={tmp_path}/hosts", "--", "not-here-but-there"])
    assert flags.hosts == [Host("h1", 2), Host("h2", 1)]


@pytest.mark.parametrize(
    ("arguments", "has_spares"),
    [
        ("--max_restarts=1 -- true -m tfdp.train --steps=9", True),
        ("-- true -m tfdp.train", False),
        ("--max_restarts=1 --no-spares -- true -m tfdp.train", False),
        ("--max_restarts=1 -- true -m tfdp.another", False),
        ("--max_restarts=1 --spares -- true tfdp.train", False),
    ],
)
def test_spares_are_for_restarts_of_commands_that_wait(arguments: str, has_spares: bool) -> None:
    assert launch._parse(arguments.split()).spares == has_spares
