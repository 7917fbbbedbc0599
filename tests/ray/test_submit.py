"""examples/ray/submit.py: workers on real nodes of Ray, killed in every way."""

from __future__ import annotations

import json
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes.test_train import Hold, command, summary, wait_for_checkpoint
from tests.running import ROOT, Process, run, wait_until

SUBMIT = ROOT / "examples" / "ray" / "submit.py"
PRELUDE = """
import json, os, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def say(text): print(text, flush=True)
def sleep(): say("asleep"); time.sleep(600)
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """The last argument of workers' command lines, which identifies processes that are left."""
    mark = f"mark-{uuid.uuid4()}"
    yield mark
    for process in marked(mark):
        process.kill()


def marked(mark: str) -> list[psutil.Process]:
    """The running processes with ``mark`` as an argument, without submit.py."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if mark in (process.info["cmdline"] or [])
        and str(SUBMIT) not in process.info["cmdline"]
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def workers_of(workdir: Path) -> list[psutil.Process]:
    """The running workers of a run, by index."""

    def index(process: psutil.Process) -> int:
        return int(json.loads(process.environ()["TF_CONFIG"])["task"]["index"])

    return sorted(marked(f"--workdir={workdir}"), key=index)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, even if nobody has taken note of it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def submit(cluster: Any, arguments: list[str], *flags: str, limit_s: float = 120) -> Process:
    return Process(
        ["python", str(SUBMIT), "--workers=2", *flags, "--", *arguments],
        env={"RAY_ADDRESS": cluster.address},
        limit_s=limit_s,
    )


def script(text: str, mark: str) -> list[str]:
    return ["python", "-c", PRELUDE + text, mark]


def wait_until_gone(mark: str) -> None:
    wait_until(lambda: not marked(mark), 10, "no process is left")


@pytest.mark.timeout(600)  # seven starts one after the other
def test_a_run_that_is_harmed_ends_with_the_weights_of_the_launcher(
    cluster: Any, tmp_path: Path
) -> None:
    launched, workdir, hold = tmp_path / "launched", tmp_path / "run", Hold(tmp_path)
    run(["python", "-m", "cluster.launch", "--workers=2", "--", *command(launched)])
    variables = [f"{name}={value}" for name, value in hold.env.items()]
    arguments = ["env", *variables, sys.executable, *command(workdir)[1:]]
    flags = ("--placement=STRICT_SPREAD", "--max_restarts=9")

    with submit(cluster, arguments, *flags, limit_s=300) as driver:
        wait_for_checkpoint(workdir, 8)
        workers_of(workdir)[1].kill()
        driver.wait_for("worker 1 was killed by SIGKILL: starting again, restart 1 of 9")

        wait_for_checkpoint(workdir, 16)
        workers = workers_of(workdir)
        workers[0].parent().kill()
        driver.wait_for("the actor of worker 0 was lost: ")
        driver.wait_for("worker 0 was lost with its actor: starting again.*, restart 2 of 9")
        assert has_ended(workers[0])

        wait_for_checkpoint(workdir, 24)
        workers = workers_of(workdir)
        worker_of = {process.parent().ppid(): process for process in workers}
        node, lost = next(
            (each, worker_of[raylet_of(each)])
            for each in cluster.worker_nodes
            if raylet_of(each) in worker_of
        )
        cluster.remove_node(node, allow_graceful=False)
        driver.wait_for("starting again.*, restart 3 of 9")  # Ray may be late to notice
        assert has_ended(lost)

        wait_for_checkpoint(workdir, 32)
        driver.signal(signal.SIGTERM)
        driver.wait_for(r"\[worker 0\] tfdp: got SIGTERM: saving")
        driver.wait_for(r"\[worker 1\] tfdp: got SIGTERM: saving")
        hold.end()
        output = driver.wait(143)
    assert output.count("its state is saved") == 2
    assert "[submit] stopped by SIGTERM\n" in output
    assert not workers_of(workdir)

    with submit(cluster, arguments, *flags) as driver:
        assert "[submit] all workers have finished\n" in driver.wait()
    assert summary(workdir)["restarts"] == 4
    assert summary(workdir)["weights_sha256"] == summary(launched)["weights_sha256"]


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def test_a_wrong_flag_ends_the_run_without_a_restart(cluster: Any, tmp_path: Path) -> None:
    arguments = command(tmp_path / "run", "--steps=0")
    with submit(cluster, arguments, "--max_restarts=3") as driver:
        output = driver.wait(2)
    assert "--steps" in output
    assert re.search(r"\[submit\] worker \d ended with 2 \(bad input\): the run ends\n", output)


def test_workers_get_the_addresses_of_their_nodes_and_interpreter_and_folder(
    cluster: Any, mark: str
) -> None:
    text = """
say(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]); say(os.getcwd()); say(sys.executable)
print("no end", end="", file=sys.stderr)
"""
    with submit(cluster, script(text, mark)) as driver:
        output = driver.wait()
    addresses = re.findall(r"^\[worker \d\] \['(.*):(\d+)', '(.*):(\d+)'\]$", output, re.M)
    assert len(addresses) == 2
    assert addresses[0] == addresses[1]
    assert addresses[0][1] != addresses[0][3], "ports of one machine differ"
    for line in (str(ROOT), sys.executable, "no end"):
        assert output.count(f"] {line}\n") == 2, line


def test_much_output_is_complete_and_in_order(cluster: Any, mark: str) -> None:
    text = "for i in range(20_000): print(i, 'x' * (i % 97))"
    with submit(cluster, script(text, mark)) as driver:
        output = driver.wait()
    for worker in (0, 1):
        lines = re.findall(rf"^\[worker {worker}\] (\d+) (x*)$", output, re.M)
        assert lines == [(str(i), "x" * (i % 97)) for i in range(20_000)]


def test_ctrl_c_is_forwarded_and_a_second_one_kills(cluster: Any, mark: str) -> None:
    text = 'signal.signal(signal.SIGINT, lambda *_: say("not yet"))\nsleep()\nsleep()'
    with submit(cluster, script(text, mark), "--stop_timeout_s=500") as driver:
        wait_until(lambda: driver.output.count("asleep") == 2, 60, "both sleep")
        driver.signal(signal.SIGINT)
        wait_until(lambda: driver.output.count("not yet") == 2, 20, "both have received it")

        def again() -> bool:
            driver.signal(signal.SIGINT)
            return not marked(mark)

        wait_until(again, 10, "both are killed")
        assert "sending SIGKILL" in driver.wait(130)


WITH_CHILD = (
    'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]])\n'
)


@pytest.mark.parametrize("starts_ray", [False, True], ids=["on a cluster", "starts Ray itself"])
def test_nothing_outlives_a_killed_driver(cluster: Any, mark: str, starts_ray: bool) -> None:
    arguments = script(WITH_CHILD + "sleep()", mark)
    address = {"RAY_ADDRESS": "local" if starts_ray else cluster.address}
    command = ["python", str(SUBMIT), "--workers=2", "--", *arguments]
    with Process(command, env=address) as driver:
        wait_until(lambda: driver.output.count("asleep") == 2, 60, "both sleep")
        workers = marked(mark)
        actors = [process.parent() for process in workers]
        assert len(workers) == 4
        driver.signal(signal.SIGKILL)
        driver.popen.wait()
        wait_until_gone(mark)
        wait_until(lambda: all(map(has_ended, actors)), 20, "actors are gone")


def test_missing_nodes_are_named_and_a_signal_ends_the_wait(cluster: Any) -> None:
    flags = ("--workers=9", "--placement=STRICT_SPREAD")
    with submit(cluster, ["python", "-c", ""], *flags) as driver:
        driver.wait_for(r"waiting for nodes: 9 of \{'CPU': 1.*\} by STRICT_SPREAD")
        driver.signal(signal.SIGTERM)
        assert "[submit] stopped by SIGTERM\n" in driver.wait(143)


def test_a_command_that_can_not_run_is_named(cluster: Any) -> None:
    with submit(cluster, ["/no/such/program"], "--max_restarts=3") as driver:
        assert "[submit] can't run the command: " in driver.wait(1)
