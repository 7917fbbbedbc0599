"""Workers that fail, freeze or are told to leave: what others say, when, and what comes then."""

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
    """Runs of which one worker fails, two at a time: how long the others took, and all words."""

    def run(fault: str, workdir: Path) -> tuple[float, list[str]]:
        code, _ = FAULTS[fault]
        at_fault = int(fault[-1])
        with Workers([command(workdir)] * 2, env={"FAULT": fault}) as workers:
            workers[at_fault].wait(code)
            failed_s = time.monotonic()
            workers[1 - at_fault].wait(code)
            took_s = time.monotonic() - failed_s
            outputs = workers.wait(code, code)
        assert checkpoints(workdir) == {}
        return took_s, [outputs[at_fault], outputs[1 - at_fault]]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = {
            fault: pool.submit(run, fault, tmp_path_factory.mktemp("failed")) for fault in FAULTS
        }
        yield lambda fault: runs[fault].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_worker_ends_all_with_its_words_and_code(
    fault: str, failed: Callable[[str], tuple[float, list[str]]]
) -> None:
    took_s, (at_fault, other) = failed(fault)
    code, words = FAULTS[fault]
    assert took_s < 3
    assert words in other
    assert_only_own_words(other)
    if code == 1:
        assert "small.py" in at_fault and words.rpartition("failed: ")[2] in at_fault
    else:
        assert_only_own_words(at_fault)


def test_a_signal_while_a_model_is_built_ends_all_at_once(tmp_path: Path) -> None:
    hold, marks = tmp_path / "hold", tmp_path / "marks"
    hold.touch()
    marks.mkdir()
    env = {"HOLD_BUILD": str(hold), "MARKS": str(marks)}
    with Workers([command(tmp_path / "run")] * 2, env=env) as workers:
        wait_until((marks / "build").exists, 40, "they build")
        workers[1].signal(signal.SIGTERM)
        chief, other = workers.wait(138, 143)
    assert chief == "tfdp: worker 1 was told to stop (SIGTERM)\n"
    assert other == ""


def test_a_signal_in_an_evaluation_between_stops_and_saves_there(tmp_path: Path) -> None:
    hold, workdir, marks = tmp_path / "hold", tmp_path / "run", tmp_path / "marks"
    hold.touch()
    marks.mkdir()
    env = {"HOLD_EVAL": f"{hold}:1", "MARKS": str(marks)}
    flags = ("--eval_every_steps=6", "--checkpoint_every_steps=100", "--global_batch_size=4")
    with Workers([command(workdir, *flags)] * 2, env=env) as workers:
        wait_until((marks / "eval").exists, 40, "they evaluate")
        workers[1].signal(signal.SIGTERM)
        workers[1].wait_for("got SIGTERM")
        hold.unlink()
        chief, other = workers.wait(138, 143)
    assert "stopped at step 6, as worker 1 was told to" in chief
    assert "stopped at step 6, as worker 1 was told to" in other
    assert list(checkpoints(workdir)) == [6]


def test_a_signal_in_the_last_evaluation_loses_no_training(tmp_path: Path) -> None:
    hold, workdir, marks = tmp_path / "hold", tmp_path / "run", tmp_path / "marks"
    hold.touch()
    marks.mkdir()
    env = {"HOLD_EVAL": f"{hold}:0", "MARKS": str(marks)}
    flags = ("--steps=9", "--checkpoint_every_steps=100")
    with Workers([command(workdir, *flags)] * 2, env=env) as workers:
        wait_until((marks / "eval").exists, 40, "they evaluate")
        workers[0].signal(signal.SIGTERM)
        chief, other = workers.wait(143, 138)
    assert other == "tfdp: worker 0 was told to stop (SIGTERM)\n"
    assert_only_own_words(chief)
    assert list(checkpoints(workdir)) == [9]


class Supervised:
    """One worker, started again when it ends with a code of 128 or more, as cluster managers do.

    Args:
        name: as it calls itself.
        arguments: its command.
        env: its variables; TF_CONFIG stays the same at every start.
        delay_s: between an end and the next start.
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
        """Waits until start ``number`` has ended, and gives what it said."""
        wait_until(
            lambda: len(self.outputs) > number, within_s, f"{self.name} has ended {number + 1} x"
        )
        return self.outputs[number]


def test_with_a_supervisor_a_node_all_come_together_again(unharmed: Path, tmp_path: Path) -> None:
    """A chief freezes; the other gives it up, and waits for a new one, not for the old."""
    hold, workdir = Hold(tmp_path), tmp_path / "run"
    configs = tf_configs(2)
    chief, other = (
        Supervised(f"worker {i}", command(workdir), {"TF_CONFIG": config, **hold.env}, delay_s)
        for i, (config, delay_s) in enumerate(zip(configs, (2.0, 0.0), strict=True))
    )
    try:
        wait_for_checkpoint(workdir, 8)
        old = chief.starts[0]
        old.signal(signal.SIGSTOP)
        said = other.wait_for_end(0, within_s=15)
        assert other.codes[0] == 138
        assert re.search(r"tfdp: worker 0 \(127.*\) was lost: it is frozen", said)
        assert_only_own_words(said)
        hold.end()
        wait_until(lambda: len(other.starts) == 2, 10, "worker 1 is started again")
        other.starts[1].wait_for(r"waiting for worker 0")
        assert old.popen.poll() is None
        old.signal(signal.SIGCONT)
        said = chief.wait_for_end(0, within_s=10)
        assert chief.codes[0] == 138
        assert "was lost" in said
        for each in (chief, other):
            each.thread.join(60)
        assert (chief.codes[-1], other.codes) == (0, [138, 0])
    finally:
        for each in (chief, other):
            for process in each.starts:
                process.kill()
    assert summary(workdir)["weights_sha256"] == summary(unharmed)["weights_sha256"]
