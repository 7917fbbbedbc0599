"""The launcher with real processes. Workers are small scripts, so that this is about it alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster import spec
from tests.running import ROOT, Process, clean_environment, run, wait_until

LIMIT_S = 60
# What scripts may use: their place, and words to say.
PRELUDE = """
import json, os, signal, subprocess, sys, time
place = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def say(word): print(word, flush=True)
def sleep(): say("asleep"); time.sleep(600)
"""


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """A shell starts what it puts into the background with SIGINT ignored; these tests need it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def mark() -> Iterator[str]:
    """A word for workers' command lines; nothing with it may be left in the end."""
    mark = f"mark-{uuid.uuid4()}"
    yield mark
    for process in marked(mark):
        process.kill()


def marked(
    mark: str, without: Process | subprocess.Popen[bytes] | None = None
) -> list[psutil.Process]:
    """The living processes that have ``mark`` as their last argument, all but the launcher."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if (process.info["cmdline"] or [])[-1:] == [mark]
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and (without is None or process.pid != without.pid)
    ]


def command(script: str, mark: str, *flags: str) -> list[str]:
    """The launcher's command line for workers that run ``script``, two if not said otherwise."""
    return ["python", "-m", "cluster.launch", "--workers=2", *flags, "--", *worker(script, mark)]


def worker(script: str, mark: str) -> list[str]:
    return ["python", "-c", PRELUDE + script, mark]


def wait_until_gone(mark: str) -> None:
    wait_until(lambda: not marked(mark), 10, "nothing is left")


def is_asleep(launcher: Process, workers: int = 2) -> Callable[[], bool]:
    return lambda: launcher.output.count("asleep") == workers


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_learns_its_place(workers: int, mark: str) -> None:
    output = run(command('say(os.environ["TF_CONFIG"])', mark, f"--workers={workers}"))
    said = re.findall(r"^\[worker (\d)\] (.*)$", output, re.MULTILINE)
    clusters = [spec.from_environment({"TF_CONFIG": text}) for _, text in sorted(said)]
    assert [int(place) for place, _ in sorted(said)] == list(range(workers))
    for place, cluster in enumerate(clusters):
        assert cluster is not None
        assert (cluster.index, cluster.size) == (place, workers)
        assert cluster.addresses == clusters[0].addresses  # type: ignore[union-attr]
    assert "[launch] all workers have finished" in output


def test_standard_error_stays_standard_error(mark: str) -> None:
    script = 'print("to out"); print("to err", file=sys.stderr); sys.stdout.write("no end")'
    ended = subprocess.run(
        [sys.executable, *command(script, mark, "--workers=1")[1:]],
        env=clean_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert ended.stdout == "[worker 0] to out\n[worker 0] no end\n"
    assert ended.stderr == "[worker 0] to err\n[launch] all workers have finished\n"


def test_a_flood_from_all_sides_comes_whole_and_in_order(mark: str) -> None:
    lines = 20_000
    script = f"""
for i in range({lines}):
    stream = sys.stdout if i % 2 else sys.stderr
    stream.write(f"{{i}} and a long")
    stream.write(f" line {{'x' * (i % 97)}} end of {{place}}\\n")
"""
    output = run(command(script, mark), limit_s=LIMIT_S)
    numbers: dict[tuple[str, int], list[int]] = {}
    for line in output.splitlines():
        if line.startswith("[launch]"):
            continue
        match = re.fullmatch(r"\[worker (\d)\] (\d+) and a long line x* end of (\d)", line)
        assert match is not None, f"torn: {line!r}"
        assert match[1] == match[3]
        number = int(match[2])
        numbers.setdefault((match[1], number % 2), []).append(number)
    assert numbers == {
        (place, odd): list(range(odd, lines, 2)) for place in ("0", "1") for odd in (0, 1)
    }


def test_nobody_reading_keeps_nobody_from_being_stopped(mark: str) -> None:
    script = 'say("first")\nwhile True: print("x" * 1000)'
    launcher = subprocess.Popen(
        [sys.executable, *command(script, mark)[1:]],
        env=clean_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:

        def blocked() -> bool:
            written = [p.io_counters().write_chars for p in marked(mark, launcher)]
            time.sleep(0.2)
            again = [p.io_counters().write_chars for p in marked(mark, launcher)]
            return len(written) == 2 and min(written) > 65536 and written == again

        wait_until(blocked, LIMIT_S, "workers can't print any more")
        launcher.send_signal(signal.SIGTERM)
        wait_until(lambda: not marked(mark, launcher), 10, "nothing is left")
        output, _ = launcher.communicate(timeout=LIMIT_S)
        assert launcher.returncode == 143
        assert b"[launch] stopped by SIGTERM" in output
    finally:
        launcher.kill()
        launcher.wait()


def test_a_reader_that_leaves_does_not_end_the_run(mark: str, tmp_path: Path) -> None:
    script = f'for _ in range(5000): print("x" * 100)\nopen(r"{tmp_path}/" + str(place), "w")'
    launcher = subprocess.Popen(
        [sys.executable, *command(script, mark)[1:]],
        env=clean_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        launcher.stdout.close()
        assert launcher.wait(LIMIT_S) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    finally:
        launcher.kill()
        launcher.wait()


@pytest.mark.parametrize("code", [1, 2, 77])
def test_a_failed_worker_ends_the_run_with_its_code(code: int, mark: str) -> None:
    script = f"sys.exit({code}) if place == 1 else sleep()"
    started_s = time.monotonic()
    output = run(command(script, mark, "--max_restarts=3"), expect=code)
    assert time.monotonic() - started_s < 8
    assert f"worker 1 ended with {code}" in output
    assert "sending SIGTERM to worker 0" in output
    assert not marked(mark)


def test_a_failure_that_comes_a_little_later_still_wins(mark: str) -> None:
    script = "time.sleep(place); sys.exit([138, 1][place])"
    output = run(command(script, mark, "--max_restarts=3"), expect=1)
    assert "[launch] worker 1 ended with 1 (failed): the run ends" in output
    assert "starting again" not in output


def test_how_a_worker_ends_that_was_stopped_because_of_another_does_not_count(mark: str) -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(138) if place else sleep()
"""
    output = run(command(script, mark), expect=138)
    assert "sending SIGTERM to worker 0" in output


def test_one_that_finishes_first_waits_for_the_others(mark: str) -> None:
    with Process(command("sleep() if place else None", mark)) as launcher:
        wait_until(is_asleep(launcher, 1), LIMIT_S, "worker 1 sleeps")
        wait_until(lambda: len(marked(mark, launcher)) == 1, LIMIT_S, "worker 0 has finished")
        assert launcher.popen.poll() is None
        launcher.signal(signal.SIGTERM)
        launcher.wait(143)


def test_a_killed_worker_starts_the_cluster_anew(mark: str, tmp_path: Path) -> None:
    script = f"""
restarts = len([name for name in os.listdir(r"{tmp_path}") if name.endswith(str(place))])
with open(r"{tmp_path}/{{}}-{{}}".format(restarts, place), "w") as file:
    file.write(os.environ["TF_CONFIG"])
if restarts == 2: say("well"); sys.exit(0)
if place: os.kill(os.getpid(), signal.SIGKILL)
sleep()
"""
    output = run(command(script, mark, "--max_restarts=2"), limit_s=LIMIT_S)
    assert "[launch] worker 1 was killed by SIGKILL: starting again, restart 1 of 2" in output
    assert re.search(
        r"worker 1 was killed by SIGKILL: starting again in \d\.\d s, restart 2", output
    )
    assert output.count("well") == 2
    ports = set()
    for restarts in range(3):
        for place in range(2):
            config = json.loads((tmp_path / f"{restarts}-{place}").read_text())
            assert config["task"]["index"] == place
            ports.add(tuple(config["cluster"]["worker"]))
    assert len(ports) == 3, "each start has one list of ports, of its own"
    assert not marked(mark)


@pytest.mark.parametrize("how", ["sys.exit(138)", "sys.exit(143)", "os.kill(os.getpid(), 9)"])
def test_it_gives_up_after_max_restarts(how: str, mark: str) -> None:
    output = run(command(f'say("start"); {how}', mark, "--max_restarts=2"), expect=138)
    assert output.count("start\n") == 6
    assert "with no restart left (--max_restarts=2 an hour)" in output


def test_a_signal_ends_the_wait_for_the_next_start(mark: str) -> None:
    with Process(command("sys.exit(138)", mark, "--max_restarts=50"), limit_s=LIMIT_S) as launcher:
        launcher.wait_for(r"starting again in [1-9]")
        launcher.signal(signal.SIGTERM)
        assert launcher.wait(143).endswith("[launch] stopped by SIGTERM\n")


SAVES = """
def stop(number, frame):
    say(f"saved on {signal.Signals(number).name}"); sys.exit(128 + number)
signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
sleep()
"""


@pytest.mark.parametrize(
    ("sent", "passed_on", "code"),
    [
        (signal.SIGINT, "SIGINT", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGTERM", 143),
    ],
)
def test_a_signal_is_passed_on_and_workers_may_save(
    sent: signal.Signals, passed_on: str, code: int, mark: str
) -> None:
    with Process(command(SAVES, mark, "--max_restarts=3"), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(sent)
        output = launcher.wait(code)
    assert output.count(f"saved on {passed_on}") == 2
    assert f"[launch] stopped by {passed_on}" in output
    assert not marked(mark)


def test_a_second_signal_kills_at_once(mark: str) -> None:
    script = 'signal.signal(signal.SIGINT, lambda *_: say("not yet"))\nsleep()\nsleep()'
    with Process(command(script, mark, "--stop_timeout_s=500"), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(signal.SIGINT)
        wait_until(lambda: launcher.output.count("not yet") == 2, LIMIT_S, "both have heard it")

        def again() -> bool:
            launcher.signal(signal.SIGINT)
            return not marked(mark, launcher)

        wait_until(again, 10, "both are killed")
        assert "sending SIGKILL" in launcher.wait(130)


def test_a_worker_that_does_not_leave_is_killed_after_the_limit(mark: str) -> None:
    script = "if place: signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsleep()"
    with Process(command(script, mark, "--stop_timeout_s=0.5"), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(signal.SIGTERM)
        assert "sending SIGKILL to worker 1\n" in launcher.wait(143)
    assert not marked(mark)


def test_a_save_that_fails_is_not_hidden_by_the_signal(mark: str) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(place))\nsleep()"
    with Process(command(script, mark), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(signal.SIGTERM)
        launcher.wait(1)


# A shell with a child, as people write it: the child is not the launcher's own.
FAMILY = 'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]])\n'


def test_what_a_finished_worker_leaves_behind_is_killed(mark: str) -> None:
    run(command(FAMILY + 'say("done")', mark), limit_s=LIMIT_S)
    wait_until_gone(mark)


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_nothing_outlives_a_killed_launcher(
    kill: Callable[[int, signal.Signals], None], mark: str
) -> None:
    with Process(command(FAMILY + "sleep()", mark)) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        assert len(marked(mark, launcher)) == 4
        kill(launcher.pid, signal.SIGKILL)
        launcher.wait(-signal.SIGKILL)
        wait_until_gone(mark)


def test_workers_die_with_launcher_and_guardian(mark: str) -> None:
    with Process(command("sleep()", mark)) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        (watchdog,) = (
            child
            for child in psutil.Process(launcher.pid).children()
            if child.cmdline()[-1].endswith("watchdog.py")
        )
        watchdog.kill()
        launcher.signal(signal.SIGKILL)
        wait_until_gone(mark)


@pytest.mark.parametrize("after_s", [0.05, 0.1, 0.15, 0.2])
def test_nothing_outlives_a_launcher_killed_while_it_starts(after_s: float, mark: str) -> None:
    with Process(command(FAMILY + "sleep()", mark, "--workers=8")) as launcher:
        time.sleep(after_s)  # any moment will do
        launcher.signal(signal.SIGKILL)
        launcher.wait(-signal.SIGKILL)
        wait_until_gone(mark)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--workers=0 -- true", "--workers is 0: it has to be 1 or more"),
        ("--workers=two -- true", "--workers"),
        ("--max_restarts=-1 -- true", "--max_restarts is -1"),
        ("--stop_timeout_s=nan -- true", "--stop_timeout_s is nan"),
        ("--worker=2 -- true", "unrecognized arguments: --worker=2"),
        ("true", "unrecognized arguments: true"),
        ("--workers=2", "put it after --"),
        ("--workers=2 --", "put it after --"),
        ("-- no-such-command", "'no-such-command' does not exist"),
        ("-- /etc", "'/etc' does not exist, or is not executable"),
    ],
)
def test_wrong_flags_are_named(arguments: str, says: str) -> None:
    output = run(["python", "-m", "cluster.launch", *arguments.split()], expect=2)
    assert says in output.splitlines()[-1]


def test_a_command_that_is_no_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF, but not really")
    path.chmod(0o755)
    output = run(["python", "-m", "cluster.launch", "--", str(path)], expect=1)
    assert output.startswith("[launch] can't run the command: ")
    assert len(output.splitlines()) == 1
