"""Rollouts against servers that keep TF Serving's rules: see fake_tf_serving.py."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.client import Client, retries
from serving.rollout import models_config, replicas
from serving.rollout.cli import main
from tests.running import Process, wait_until
from tests.serving.fake_tf_serving import Serving, Stack


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setattr(replicas, "_PAUSE_S", 0.005)
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(replicas, "_STALE_S", 0.05)
    stack = Stack(tmp_path)
    yield stack
    for server in stack.servers:
        server.stop()


def test_a_version_goes_on_trial_is_promoted_and_taken_back(
    stack: Stack, capsys: pytest.CaptureFixture[str]
):
    with stack.file.open() as reader:
        assert stack.run("canary", "3") == 0
        assert reader.read() == stack.text  # whole, for one who had opened it before
    stack.settled({"stable": 2, "canary": 3, "previous": 1})
    for _ in range(2):  # the second changes nothing
        assert stack.run("promote", "3") == 0
        stack.settled({"stable": 3, "canary": 3, "previous": 2})
    for server in stack.servers:
        server.disk.discard(2)  # it could not be loaded again, and need not be
    assert stack.run("rollback") == 0
    stack.settled({"stable": 2, "canary": 2})
    assert stack.run("rollback") == 2
    assert "nothing to go back to" in capsys.readouterr().err
    stack.settled({"stable": 2, "canary": 2})


def test_a_trial_goes_on_while_another_version_is_promoted(stack: Stack):
    assert stack.run("canary", "4") == 0
    assert stack.run("promote", "3") == 0
    stack.settled({"stable": 3, "canary": 4, "previous": 2})
    assert stack.run("canary", "3") == 0  # ends the trial; who asks for the canary is answered
    stack.settled({"stable": 3, "canary": 3, "previous": 2})


def test_a_label_whose_version_is_gone_can_be_moved(stack: Stack):
    assert stack.run("canary", "4") == 0
    (stack.file.parent / "m" / "4").rmdir()
    for server in stack.servers:
        server.disk.discard(4)
        del server.states[4]
    assert stack.run("canary", "2") == 0
    for server in stack.servers:
        server.faults.clear()  # it led to nothing when the rollout began
    stack.settled({"stable": 2, "canary": 2, "previous": 1})


def test_labels_of_others_are_kept_with_their_versions(stack: Stack):
    stack.start(stack.say({"stable": 2, "batch": 1}, {1, 2}))
    assert stack.run("promote", "3") == 0
    stack.settled({"stable": 3, "canary": 3, "previous": 2, "batch": 1})


def test_a_file_that_follows_the_newest_gets_labels(stack: Stack):
    stack.start(stack.say({}, set()))
    assert [server.up for server in stack.servers] == [{4}, {4}]
    assert stack.run("canary", "3") == 2  # of what?
    assert stack.run("promote", "3") == 0
    stack.settled({"stable": 3, "canary": 3})


def test_a_model_and_a_first_file_are_made(stack: Stack, tmp_path: Path):
    new = tmp_path / "models.config.2"
    command = ["promote", "2", "--model=m", f"--models_config={new}", "--targets="]
    assert main(command) == 2  # where is it?
    assert not new.exists()
    assert main([*command, "--base_path=models/m"]) == 2
    assert main([*command, "--base_path=/models/m"]) == 0
    said = text_format.Parse(new.read_text(), model_server_config_pb2.ModelServerConfig())
    assert said.model_config_list.config[0].base_path == "/models/m"
    assert new.stat().st_mode & 0o777 == 0o644  # replicas run as somebody else
    assert dict(said.model_config_list.config[0].version_labels) == {"stable": 2, "canary": 2}
    assert main([*command, "--base_path=/elsewhere/m"]) == 2

    (said.model_config_list.config[0].name) = "first"
    stack.file.write_text(text_format.MessageToString(said))
    for server in stack.servers:
        server.states.clear()
        server.labels.clear()
    assert stack.run("promote", "3", "--base_path=/models/m") == 0  # beside the other
    for server in stack.servers:
        assert (server.up, server.labels) == ({3}, {"stable": 3, "canary": 3})
        names = [part.name for part in server.reloads[-1].model_config_list.config]
        assert names == ["first", "m"]


def test_a_version_that_fails_on_one_replica_is_taken_back_everywhere(
    stack: Stack, capsys: pytest.CaptureFixture[str]
):
    stack.servers[1].broken = {3}
    assert stack.run("promote", "3") == 1
    said = capsys.readouterr().err
    assert f"{stack.servers[1].target}: version 3 failed to load: bad weights" in said
    assert "restored" in said
    assert stack.file.read_text() == stack.text  # to the byte
    stack.settled({"stable": 2, "canary": 2, "previous": 1})


def test_an_older_failure_is_not_taken_for_a_new_one(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replicas, "_STALE_S", 5.0)
    for server in stack.servers:
        server.broken = {3}

    def mended(server: Serving) -> None:
        server.broken = set()
        server.states[3] = "LOADING"

    for server in stack.servers:
        threading.Timer(0.2, mended, [server]).start()
    assert stack.run("promote", "3") == 0


def test_a_label_that_can_not_move_is_put_back_everywhere(
    stack: Stack, capsys: pytest.CaptureFixture[str]
):
    second = stack.servers[1]

    def lose_it_once() -> None:  # between its loading and the label's move
        if 3 in second.up and second.labels["stable"] == 2:
            second.states[3] = "LOADING"

    second.before_reload = lose_it_once
    assert stack.run("promote", "3") == 1
    assert "not currently available" in capsys.readouterr().err
    assert stack.file.read_text() == stack.text
    stack.settled({"stable": 2, "canary": 2, "previous": 1})


def test_a_replica_that_never_gets_there_is_named(stack: Stack, capsys: pytest.CaptureFixture[str]):
    stack.servers[0].disk = {1, 2}
    assert main(stack.arguments("promote", "3", "--timeout_s=0.5")) == 1
    assert f"{stack.servers[0].target}, after 0.5 s: it has not found version 3" in (
        capsys.readouterr().err
    )
    stack.settled({"stable": 2, "canary": 2, "previous": 1})


def test_nothing_changes_if_a_replica_is_down(stack: Stack, capsys: pytest.CaptureFixture[str]):
    stack.servers[1].stop()
    assert stack.run("promote", "3") == 1
    assert f"at {stack.servers[1].target} failed: UNAVAILABLE" in capsys.readouterr().err
    assert stack.file.read_text() == stack.text
    assert not stack.servers[0].reloads
    assert stack.run("status") == 1
    assert "UNAVAILABLE" in capsys.readouterr().out


def test_one_that_starts_anew_meanwhile_is_waited_for(stack: Stack):
    first, second = stack.servers
    port = int(second.target.rpartition(":")[2])

    def restart() -> None:  # with the file, which has the same configuration as the reload
        second.before_reload = lambda: None
        second.stop()
        stack.servers[1] = Serving(second.disk, second.broken, port=port)
        stack.servers[1].begin(stack.file.read_text())

    first.before_reload = lambda: (restart(), setattr(first, "before_reload", lambda: None))[0]
    assert stack.run("promote", "3") == 0
    stack.settled({"stable": 3, "canary": 3, "previous": 2})


def test_a_dead_replica_is_named_and_the_others_put_back(
    stack: Stack, capsys: pytest.CaptureFixture[str]
):
    first, second = stack.servers
    first.before_reload = second.stop
    assert main(stack.arguments("promote", "3", "--timeout_s=0.5")) == 1
    said = capsys.readouterr().err
    assert f"{second.target}, after 0.5 s" in said
    assert f"{second.target} could not be restored" in said
    assert stack.file.read_text() == stack.text
    assert (first.labels, first.up) == ({"stable": 2, "canary": 2, "previous": 1}, {1, 2})
    assert not first.faults


class Killed(BaseException):
    """What a SIGKILL is to a program: nothing of it runs any more."""


def instants(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Notes every write and call; dies right before the ``kill_at``-th, and right after it."""
    seen: list[str] = []

    def counted(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def instant() -> None:
            seen.append(name)
            if len(seen) == kill_at:
                raise Killed

        def call(*arguments, **options):
            instant()
            result = real(*arguments, **options)
            instant()
            return result

        monkeypatch.setattr(owner, name, call)

    counted(os, "fsync")
    counted(Path, "rename")
    counted(Client, "reload")
    return seen


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (["promote", "3"], {"stable": 3, "canary": 3, "previous": 2}),
        (["rollback"], {"stable": 1, "canary": 1}),
    ],
    ids=["promote", "rollback"],
)
def test_killed_at_any_instant_the_same_command_goes_on(
    stack: Stack,
    command: list[str],
    wanted: dict[str, int],
    capsys: pytest.CaptureFixture[str],
):
    for server in stack.servers:
        server.slow = 0
    with pytest.MonkeyPatch.context() as patch:
        seen = instants(patch, None)
        assert stack.run(*command) == 0
        count = len(seen)
    assert count > 20
    calls = seen[::2]  # each is noted before and after
    for place, name in enumerate(calls):
        assert name != "rename" or calls[place - 1] == calls[place + 1] == "fsync"
    for kill_at in range(1, count + 1):
        stack.start(stack.text)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            instants(patch, kill_at)
            stack.run(*command)
        labels, versions = stack.read()  # whole, and what a replica may start with
        assert set(labels.values()) <= versions
        code = stack.run(*command)
        if command == ["rollback"] and code == 2:  # all was done: only the process was left to end
            assert kill_at >= count - 1
        else:
            assert code == 0, (kill_at, capsys.readouterr().err)
        stack.settled(wanted)
        assert sorted(path.name for path in stack.file.parent.iterdir()) == ["m", "models.config"]


def test_a_rollout_by_hand_killed_for_real(stack: Stack):
    held = threading.Event()
    stack.servers[1].before_reload = lambda: held.wait(20) and None
    command = ["python", "-m", "serving.rollout", *stack.arguments("promote", "3")]
    with Process(command) as process:
        wait_until(lambda: stack.servers[0].reloads, 20, "the first replica was told")
        assert stack.run("promote", "4") == 1  # not while another one is at it
        process.signal(signal.SIGKILL)
        process.wait(-signal.SIGKILL)
    held.set()
    assert stack.read() == ({"stable": 2, "canary": 2, "previous": 1}, {1, 2, 3})
    assert stack.run("promote", "3") == 0
    stack.settled({"stable": 3, "canary": 3, "previous": 2})


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["promote", "9"], "version 9 is not in"),
        (["promote", "seven"], "has to be a version's number"),
        (["promote", "3", "--timeout_s=0"], "above 0"),
        (["promote"], "required: version"),
        (["demote", "3"], "invalid choice"),
    ],
)
def test_what_can_not_be_asked_for(
    stack: Stack, command: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    try:
        code: object = stack.run(*command)
    except SystemExit as exit_:  # argparse's way
        code = exit_.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert stack.file.read_text() == stack.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_config_list { config { name: 'x' } }", "has 'x', not 'm'"),
        ("model_config_list { confg { } }", "is not a models.config that can be kept"),
        ("\xff", "is not a models.config"),
    ],
)
def test_files_that_can_not_be_worked_with(
    stack: Stack, text: str, says: str, capsys: pytest.CaptureFixture[str]
):
    stack.file.write_bytes(text.encode("latin-1"))
    assert stack.run("promote", "3") == 2
    assert says in capsys.readouterr().err
    assert stack.file.read_bytes() == text.encode("latin-1")


def test_status_says_how_a_replica_differs(stack: Stack, capsys: pytest.CaptureFixture[str]):
    assert stack.run("status") == 0
    said = capsys.readouterr().out
    assert "canary 2, previous 1, stable 2; versions 1, 2" in said
    assert said.count("as in the file") == 2
    stack.servers[0].labels["stable"] = 1
    stack.servers[1].states[4] = "AVAILABLE"
    assert stack.run("status") == 1
    said = capsys.readouterr().out
    assert "label 'stable' points to 1, not to version 2" in said
    assert "it serves 4 too" in said
    stack.servers[1].labels.clear()
    del stack.servers[1].states[4]
    stack.run("status")
    assert "points to nothing" in capsys.readouterr().out


def test_a_disk_that_is_full_leaves_the_file_alone(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models_config.os, "fsync", full)
    assert stack.run("promote", "3") == 1
    assert "No space left" in capsys.readouterr().err
    assert stack.file.read_text() == stack.text
    assert not stack.servers[0].reloads
