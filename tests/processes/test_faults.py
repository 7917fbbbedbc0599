"""Workers that fail, freeze or get a signal: how soon the others end, and what they print."""

from __future__ import annotations

import concurrent.futures
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.test_train import (
    Hold,
    assert_only_own_words,
    checkpoints,
    command,
    summary,
    wait_for_checkpoint,
)
from tests.processes.workers import Workers, tf_configs
from tests.running import Process, wait_until

FAULTS = {
    "build_model:1": (1, "worker 1 failed: ZeroDivisionError: this worker can't build"),
    "train_data:0": (2, "worker 0 failed: BadInput: this worker has no data: give it some"),
    "read:1": (1, "OverflowError: this worker can't read"),
}


@pytest.fixture(scope="module")
def failed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], tuple[float, list[str]]]]:
    """Runs of which one worker fails: seconds until the other has ended, and both outputs."""

    def run(fault: str, workdir: Path) -> tuple[float, list[str]]:
        code, _ = FAULTS[fault]
        failed_index = int(fault[-1])
        with Workers([command(workdir)] * 2, env={"FAULT": fault}) as workers:
            workers[failed_index].wait(code)
            ended_s = time.monotonic()
            workers[1 - failed_index].wait(code)
            took_s = time.monotonic() - ended_s
            outputs = workers.wait(code, code)
        assert checkpoints(workdir) == {}
        return took_s, [outputs[failed_index], outputs[1 - failed_index]]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # two runs side by side
        runs = {
            fault: pool.submit(run, fault, tmp_path_factory.mktemp("failed")) for fault in FAULTS
        }
        yield lambda fault: runs[fault].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_of_one_worker_ends_all_with_its_message_and_code(
    fault: str, failed: Callable[[str], tuple[float, list[str]]]
) -> None:
    took_s, (output, other_output) = failed(fault)
    code, message = FAULTS[fault]
    assert took_s < 3
    assert message in other_output
    assert_only_own_words(other_output)
    if code == 1:
        assert "small.py" in output and message.rpartition("failed: ")[2] in output
    else:
        assert_only_own_words(output)


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file; workers wait while it exists."""
    path = tmp_path / "hold"
    path.touch()
    return path


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which workers make a file when they reach a phase."""
    path = tmp_path / "marks"
    path.mkdir()
    return path


def test_a_signal_while_a_model_is_built_ends_all_at_once(
    hold: Path, marks: Path, tmp_path: Path
) -> None:
    env = {"HOLD_BUILD": str(hold), "MARKS": str(marks)}
    with Workers([command(tmp_path / "run")] * 2, env=env) as workers:
        wait_until((marks / "build").exists, 40, "both workers build")
        workers[1].signal(signal.SIGTERM)
        chief, other = workers.wait(138, 143)
    assert chief == "tfdp: worker 1 got SIGTERM and ends\n"
    assert other == ""


def test_a_signal_in_an_evaluation_between_steps_saves_there(
    hold: Path, marks: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    env = {"HOLD_EVAL": f"{hold}:1", "MARKS": str(marks)}
    flags = ("--eval_every_steps=6", "--checkpoint_every_steps=100", "--global_batch_size=4")
    with Workers([command(workdir, *flags)] * 2, env=env) as workers:
        wait_until((marks / "eval").exists, 40, "both workers evaluate")
        workers[1].signal(signal.SIGTERM)
        workers[1].wait_for("got SIGTERM")
        hold.unlink()
        chief, other = workers.wait(138, 143)
    assert "stopped at step 6: worker 1 got a signal to stop" in chief
    assert "stopped at step 6: worker 1 got a signal to stop" in other
    assert list(checkpoints(workdir)) == [6]


def test_a_signal_in_the_last_evaluation_loses_no_training(
    hold: Path, marks: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    env = {"HOLD_EVAL": f"{hold}:0", "MARKS": str(marks), "CALLBACKS": "none"}
    flags = ("--steps=9", "--checkpoint_every_steps=100")
    with Workers([command(workdir, *flags)] * 2, env=env) as workers:
        wait_until((marks / "eval").exists, 40, "both workers evaluate")
        workers[0].signal(signal.SIGTERM)
        chief, other = workers.wait(143, 138)
    assert other == "tfdp: worker 0 got SIGTERM and ends\n"
    assert_only_own_words(chief)
    assert list(checkpoints(workdir)) == [9]


class Supervised:
    """One worker that is started again after exit codes of 128 and more, as by cluster managers.

    Args:
        name: the worker's name.
        arguments: its command.
        env: its environment variables, the same at every start.
        delay_s: from an end to the next start.
    """

    def __init__(
        self, name: str, arguments: list[str], env: dict[str, str], delay_s: float
    ) -> None:
        self.name = name
        self.starts: list[Process] = []
        self.codes: list[int] = []
        self.outputs: list[str] = []
        self._arguments, self._env, self._delay_s = arguments, env, delay_s
        self.thread = threading.Thread(target=self._supervise, daemon=True)
        self.thread.start()

    def _supervise(self) -> None:
        while True:
            with Process(self._arguments, env=self._env, limit_s=60) as process:
                self.starts.append(process)
                self.codes.append(process.popen.wait())
                self.outputs.append(process.output)
            if 0 <= self.codes[-1] < 128:
                return
            time.sleep(self._delay_s)

    def wait_for_end(self, number: int, within_s: float) -> str:
        """Waits until start ``number`` has ended; returns its output."""
        wait_until(
            lambda: len(self.outputs) > number,
            within_s,
            f"{self.name} has ended {number + 1} times",
        )
        return self.outputs[number]


def test_with_a_supervisor_for_each_node_all_workers_connect_again(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The chief freezes; the other worker ends, and then waits for the new chief, not the old."""
    hold, workdir = Hold(tmp_path), tmp_path / "run"
    configs = tf_configs(2)
    chief, other = (
        Supervised(f"worker {i}", command(workdir), {"TF_CONFIG": config, **hold.env}, delay_s)
        for i, (config, delay_s) in enumerate(zip(configs, (2.0, 0.0), strict=True))
    )
    try:
        wait_for_checkpoint(workdir, 8)
        frozen_chief = chief.starts[0]
        frozen_chief.signal(signal.SIGSTOP)
        output = other.wait_for_end(0, within_s=15)
        assert other.codes[0] == 138
        assert re.search(r"tfdp: worker 0 \(127.*\) was lost: it is frozen", output)
        assert_only_own_words(output)
        hold.end()
        wait_until(lambda: len(other.starts) == 2, 10, "worker 1 is started again")
        other.starts[1].wait_for(r"waiting for worker 0")
        assert frozen_chief.popen.poll() is None
        frozen_chief.signal(signal.SIGCONT)
        output = chief.wait_for_end(0, within_s=10)
        assert chief.codes[0] == 138
        assert "was lost" in output
        for supervised in (chief, other):
            supervised.thread.join(60)
        assert (chief.codes[-1], other.codes) == (0, [138, 0])
    finally:
        for supervised in (chief, other):
            for process in supervised.starts:
                process.kill()
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]
