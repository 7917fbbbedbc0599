"""The launcher with real processes, whose workers are small scripts without TensorFlow."""

from __future__ import annotations

import contextlib
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
# Names that the workers' scripts use.
PRELUDE = """
import json, os, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def say(text): print(text, flush=True)
def sleep(): say("asleep"); time.sleep(600)
"""


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Restores SIGINT: shells start background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def mark() -> Iterator[str]:
    """The last argument of workers' command lines, which identifies processes that are left."""
    mark = f"mark-{uuid.uuid4()}"
    yield mark
    for process in marked(mark):
        process.kill()


def marked(
    mark: str, without: Process | subprocess.Popen[bytes] | None = None
) -> list[psutil.Process]:
    """The running processes with ``mark`` as their last argument, without the launcher."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if (process.info["cmdline"] or [])[-1:] == [mark]
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and (without is None or process.pid != without.pid)
    ]


def command(script: str, mark: str, *flags: str) -> list[str]:
    """The launcher's command line for two workers, unless flags differ, that run ``script``."""
    return ["python", "-m", "cluster.launch", "--workers=2", *flags, "--", *worker(script, mark)]


def worker(script: str, mark: str) -> list[str]:
    return ["python", "-c", PRELUDE + script, mark]


def wait_until_gone(mark: str) -> None:
    wait_until(lambda: not marked(mark), 10, "no process is left")


def is_asleep(launcher: Process, workers: int = 2) -> Callable[[], bool]:
    return lambda: launcher.output.count("asleep") == workers


def test_every_worker_gets_its_tf_config(mark: str) -> None:
    output = run(command('say(os.environ["TF_CONFIG"])', mark, "--workers=3"))
    printed = sorted(re.findall(r"^\[worker (\d)\] (.*)$", output, re.MULTILINE))
    clusters = [spec.from_environment({"TF_CONFIG": text}) for _, text in printed]
    assert [index for index, _ in printed] == ["0", "1", "2"]
    for index, cluster in enumerate(clusters):
        assert cluster is not None
        assert (cluster.index, cluster.size) == (index, 3)
        assert cluster.addresses == clusters[0].addresses  # type: ignore[union-attr]
    assert "[launch] all workers have finished" in output


def test_workers_share_the_gpus_that_the_launcher_sees(mark: str) -> None:
    script = 'say(os.environ["CUDA_VISIBLE_DEVICES"])'
    output = run(command(script, mark), env={"CUDA_VISIBLE_DEVICES": "3,4,5,6"})
    assert sorted(re.findall(r"^\[worker \d\] \d,\d$", output, re.MULTILINE)) == [
        "[worker 0] 3,4",
        "[worker 1] 5,6",
    ]


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


def test_much_output_of_all_workers_is_complete_and_in_order(mark: str) -> None:
    lines = 20_000
    script = f"""
for i in range({lines}):
    stream = sys.stdout if i % 2 else sys.stderr
    stream.write(f"{{i}} and a long")
    stream.write(f" line {{'x' * (i % 97)}} end of {{index}}\\n")
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
        (index, odd): list(range(odd, lines, 2)) for index in ("0", "1") for odd in (0, 1)
    }


def test_workers_can_be_stopped_while_nobody_reads_their_output(mark: str) -> None:
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
        wait_until(lambda: not marked(mark, launcher), 10, "no process is left")
        output, _ = launcher.communicate(timeout=LIMIT_S)
        assert launcher.returncode == 143
        assert b"[launch] stopped by SIGTERM" in output
    finally:
        launcher.kill()
        launcher.wait()


def test_a_reader_that_leaves_does_not_end_the_run(mark: str, tmp_path: Path) -> None:
    script = f'for _ in range(5000): print("x" * 100)\nopen(r"{tmp_path}/" + str(index), "w")'
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


def test_the_others_are_stopped_after_a_worker_ended(mark: str) -> None:
    """How they end then does not count. Launchers run side by side: each takes seconds."""
    scripts = {
        77: "sys.exit(77) if index == 1 else sleep()",
        138: """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(138) if index == 1 else sleep()
""",
    }
    started_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        launchers = {
            code: stack.enter_context(Process(command(script, mark), limit_s=LIMIT_S))
            for code, script in scripts.items()
        }
        for code, launcher in launchers.items():
            output = launcher.wait(code)
            assert time.monotonic() - started_s < 8
            assert f"worker 1 ended with {code}" in output
            assert "sending SIGTERM to worker 0" in output
    assert not marked(mark)


def test_a_permanent_error_that_comes_a_little_later_still_wins(mark: str) -> None:
    script = "time.sleep(index / 2); sys.exit([138, 1][index])"
    output = run(command(script, mark, "--max_restarts=3"), expect=1)
    assert "[launch] worker 1 ended with 1 (failed): the run ends" in output
    assert "starting again" not in output


def test_a_worker_that_finishes_first_does_not_end_the_run(mark: str) -> None:
    with Process(command("sleep() if index else None", mark)) as launcher:
        wait_until(is_asleep(launcher, 1), LIMIT_S, "worker 1 sleeps")
        wait_until(lambda: len(marked(mark, launcher)) == 1, LIMIT_S, "worker 0 has finished")
        assert launcher.popen.poll() is None
        launcher.signal(signal.SIGTERM)
        launcher.wait(143)


def test_all_workers_start_again_after_one_was_killed(mark: str, tmp_path: Path) -> None:
    script = f"""
starts = len([name for name in os.listdir(r"{tmp_path}") if name.endswith(str(index))])
with open(r"{tmp_path}/{{}}-{{}}".format(starts, index), "w") as file:
    file.write(os.environ["TF_CONFIG"])
if starts == 2: say("finished"); sys.exit(0)
if index or starts == 1: os.kill(os.getpid(), signal.SIGKILL)
sleep()
"""
    output = run(command(script, mark, "--max_restarts=2"), limit_s=LIMIT_S)
    assert "[launch] worker 1 was killed by SIGKILL: starting again, restart 1 of 2" in output
    assert re.search(r"was killed by SIGKILL: starting again in \d\.\d s, restart 2", output)
    assert output.count("finished\n") == 3, "two workers, and the launcher"
    ports = set()
    for starts in range(3):
        for index in range(2):
            config = json.loads((tmp_path / f"{starts}-{index}").read_text())
            assert config["task"]["index"] == index
            ports.add(tuple(config["cluster"]["worker"]))
    assert len(ports) == 3, "all workers of a start have the same ports, and each start has others"
    assert not marked(mark)


def test_the_run_ends_after_max_restarts(mark: str) -> None:
    script = 'say("start"); sys.exit(143)'
    output = run(command(script, mark, "--max_restarts=2"), expect=138)
    assert output.count("start\n") == 6
    assert "with no restart left (--max_restarts=2 an hour)" in output


def test_a_signal_ends_the_pause_before_the_next_start(mark: str) -> None:
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
    ("sent", "forwarded", "code"),
    [(signal.SIGINT, "SIGINT", 130), (signal.SIGHUP, "SIGTERM", 143)],
)
def test_a_signal_is_forwarded_and_workers_may_save(
    sent: signal.Signals, forwarded: str, code: int, mark: str
) -> None:
    with Process(command(SAVES, mark, "--max_restarts=3"), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(sent)
        output = launcher.wait(code)
    assert output.count(f"saved on {forwarded}") == 2
    assert f"[launch] stopped by {forwarded}" in output
    assert not marked(mark)


def test_a_second_signal_kills_at_once(mark: str) -> None:
    script = 'signal.signal(signal.SIGINT, lambda *_: say("not yet"))\nsleep()\nsleep()'
    with Process(command(script, mark, "--stop_timeout_s=500"), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(signal.SIGINT)
        wait_until(lambda: launcher.output.count("not yet") == 2, LIMIT_S, "both have received it")

        def again() -> bool:
            launcher.signal(signal.SIGINT)
            return not marked(mark, launcher)

        wait_until(again, 10, "both are killed")
        assert "sending SIGKILL" in launcher.wait(130)


def test_a_worker_that_does_not_end_is_killed_after_the_limit(mark: str) -> None:
    script = "if index: signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsleep()"
    with Process(command(script, mark, "--stop_timeout_s=0.5"), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(signal.SIGTERM)
        assert "sending SIGKILL to worker 1\n" in launcher.wait(143)
    assert not marked(mark)


def test_a_failed_save_is_not_hidden_by_the_signal(mark: str) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(index))\nsleep()"
    with Process(command(script, mark), limit_s=LIMIT_S) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        launcher.signal(signal.SIGTERM)
        launcher.wait(1)


# Starts a child of the worker, which the launcher does not know.
WITH_CHILD = (
    'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]])\n'
)


def test_children_of_a_finished_worker_are_killed(mark: str) -> None:
    run(command(WITH_CHILD + 'say("done")', mark), limit_s=LIMIT_S)
    wait_until_gone(mark)


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_nothing_outlives_a_killed_launcher(
    kill: Callable[[int, signal.Signals], None], mark: str
) -> None:
    with Process(command(WITH_CHILD + "sleep()", mark)) as launcher:
        wait_until(is_asleep(launcher), LIMIT_S, "both workers sleep")
        assert len(marked(mark, launcher)) == 4
        kill(launcher.pid, signal.SIGKILL)
        launcher.wait(-signal.SIGKILL)
        wait_until_gone(mark)


def test_workers_die_with_launcher_and_watchdog(mark: str) -> None:
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
    with Process(command(WITH_CHILD + "sleep()", mark, "--workers=8")) as launcher:
        time.sleep(after_s)  # at any moment of the start
        launcher.signal(signal.SIGKILL)
        launcher.wait(-signal.SIGKILL)
        wait_until_gone(mark)


def test_a_command_that_can_not_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF, but not really")
    path.chmod(0o755)
    output = run(["python", "-m", "cluster.launch", "--", str(path)], expect=1)
    assert output.startswith("[launch] can't run the command: ")
    assert len(output.splitlines()) == 1
