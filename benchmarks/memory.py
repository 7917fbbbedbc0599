"""Memory of training, saving, resuming, evaluating and exporting, beside plain Keras.

    python -m benchmarks.memory [--state_gb=0.1,0.4,1.2] [--workers=2]

A model with four dense layers trains under Adam, whose state is three times the weights. Peaks are
of memory that a process has for itself (RssAnon): pages of a mapped file can be dropped at any
time. Keras trains with ``Model.fit`` in one process. Tables have the worker with the highest peak.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measuring
from benchmarks.measuring import report
from tests.running import Process

LAYERS, BATCH = 4, 8  # examples per worker and step
SAVE_EVERY_STEPS, SAVED_STEPS, STEPS = 4, 4, 16
SAMPLE_EVERY_S = 0.01
PHASES = ("training", "first save", "resuming", "saving", "evaluating", "exporting")


@dataclasses.dataclass(frozen=True)
class HParams:
    """Units of each layer."""

    width: int = 64


def width_of(state_gb: float) -> int:
    """Returns the units of a layer so that weights and both moments of Adam have so many GB."""
    return round((state_gb * 1e9 / 4 / 3 / LAYERS) ** 0.5)


def build_model(hparams: HParams) -> Any:
    import keras

    layers = [keras.layers.Dense(hparams.width, activation="relu") for _ in range(LAYERS)]
    model = keras.Sequential([keras.layers.Input((hparams.width,)), *layers])
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    return model


def _arrays(width: int, examples: int) -> tuple[Any, Any]:
    import numpy as np

    rows = np.random.default_rng(0).random((examples, width), np.float32)
    return rows, rows[:, ::-1].copy()


def train_data(hparams: HParams) -> Any:
    import tfdp

    return tfdp.from_arrays(*_arrays(hparams.width, 4 * BATCH))


def eval_data(hparams: HParams) -> Any:
    return train_data(hparams)


def callbacks(hparams: HParams) -> list[Any]:
    """Reports when each step has ended, and how long each save held a step."""
    import keras

    from tfdp.checkpoints.saving import Saver

    save = Saver.save

    def timed_save(saver: Saver, *args: Any) -> None:
        began_s = time.monotonic()
        save(saver, *args)
        report(pid=os.getpid(), saved_s=time.monotonic() - began_s)

    Saver.save = timed_save  # type: ignore[method-assign]

    def report_step(batch: int, logs: Any) -> None:
        report(pid=os.getpid(), step_at_s=time.monotonic())

    return [keras.callbacks.LambdaCallback(on_train_batch_end=report_step)]


class Memory:
    """Samples of the memory of processes, taken in a thread until ``stop``."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._samples: list[tuple[float, int, int]] = []  # time, process, bytes
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            for pid in self._pids:
                with contextlib.suppress(OSError, psutil.Error, AttributeError):
                    text = Path(f"/proc/{pid}/status").read_text()
                    found = re.search(r"RssAnon:\s*(\d+)", text)
                    if found:
                        self._samples.append((time.monotonic(), pid, int(found[1]) * 1024))

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def peak_gb(self, begin_s: float = 0.0, end_s: float = float("inf")) -> float:
        """Returns the highest sample of any process in an interval of ``time.monotonic``."""
        return max(used for at_s, _, used in self._samples if begin_s <= at_s <= end_s) / 1e9


def _run(
    commands: Sequence[Sequence[str]], envs: Sequence[dict[str, str]]
) -> tuple[Memory, list[dict[str, Any]], str]:
    """Runs processes to their end; returns their memory, and what they reported."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(Process(command, env=env, limit_s=900))
            for command, env in zip(commands, envs, strict=True)
        ]
        memory = Memory([process.pid for process in processes])
        output = "".join(process.wait() for process in processes)
        memory.stop()
    return memory, measuring.reports_in(output), output


def _keras_peak_gb(width: int) -> float:
    """Returns the peak of ``Model.fit``, this module run as ``--keras``."""
    command = [sys.executable, "-m", "benchmarks.memory", f"--keras={width}"]
    memory, _, _ = _run([command], [{}])
    return memory.peak_gb()


def _fit(width: int) -> None:
    model = build_model(HParams(width))
    model.fit(*_arrays(width, 4 * BATCH), batch_size=BATCH, epochs=2, verbose=0)


def measure(state_gb: float, workers: int, workdir: Path) -> dict[str, float]:
    """Returns peaks of all phases, in GB, and times, in seconds."""
    width = width_of(state_gb)
    envs = measuring.tf_configs(workers)
    common = [f"--recipe={__file__}", f"--workdir={workdir}", f"--hparam=width={width}"]
    batch = f"--global_batch_size={workers * BATCH}"

    def train(steps: int, every: int) -> tuple[Memory, list[dict[str, Any]]]:
        flags = (*common, batch, f"--steps={steps}", f"--checkpoint_every_steps={every}")
        command = [sys.executable, "-m", "tfdp.train", *flags, "--export_dir=none"]
        memory, reports, _ = _run([command] * workers, envs)
        return memory, reports

    def ends_s(reports: list[dict[str, Any]]) -> list[float]:
        return sorted(each["step_at_s"] for each in reports if "step_at_s" in each)[::workers]

    figures = {"keras_gb": _keras_peak_gb(width)}
    memory, reports = train(SAVED_STEPS, 1000)
    trained_s = ends_s(reports)[-1]
    figures["training_gb"] = memory.peak_gb(end_s=trained_s)
    figures["first save_gb"] = memory.peak_gb(begin_s=trained_s)
    memory, reports = train(STEPS, SAVE_EVERY_STEPS)
    first_s = ends_s(reports)[0]
    figures["resuming_gb"] = memory.peak_gb(end_s=first_s)
    figures["saving_gb"] = memory.peak_gb(begin_s=first_s)
    saves_s = sorted(each["saved_s"] for each in reports if "saved_s" in each)
    figures["save_s"] = saves_s[-2]  # the longest on a chief; the last one has nothing to do
    for phase, command, flags in (
        ("evaluating", "evaluate", [batch]),
        ("exporting", "export", [f"--export_dir={workdir}/model"]),
    ):
        memory, _, _ = _run(
            [[sys.executable, "-m", f"tfdp.{command}", *common, *flags]] * workers, envs
        )
        figures[f"{phase}_gb"] = memory.peak_gb()
    return figures


def to_markdown(figures: dict[str, dict[str, float]]) -> str:
    """Returns the table of peaks."""
    rows = [
        [f"{state} GB", f"{of['keras_gb']:.2f}", *(f"{of[f'{phase}_gb']:.2f}" for phase in PHASES)]
        for state, of in figures.items()
    ]
    return measuring.table(["state", "Keras's fit", *PHASES], rows)


def main() -> None:
    if sys.argv[1:2] and sys.argv[1].startswith("--keras="):
        _fit(int(sys.argv[1].partition("=")[2]))
        return
    settings = measuring.arguments(__doc__, state_gb=(0.1, 0.4, 1.2), workers=2)
    began = measuring.machine()
    figures = {}
    for state_gb in settings.state_gb:
        with tempfile.TemporaryDirectory() as folder:
            figures[str(state_gb)] = measure(state_gb, settings.workers, Path(folder) / "run")
        print(state_gb, figures[str(state_gb)], flush=True)
    measuring.save_results("memory", vars(settings), began, figures, to_markdown(figures))


if __name__ == "__main__":
    main()
