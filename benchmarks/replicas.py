"""Replicas of the embedded server, and versions to publish, promote and roll back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.running import Process, free_port, run

WIDTH = 32
_SAVE = f"""
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self, number):
        self.number = tf.Variable(number)
        self.hidden = tf.Variable(tf.random.normal([{WIDTH}, 64]))
        self.out = tf.Variable(tf.random.normal([64, 10]))

    @tf.function(input_signature=[tf.TensorSpec([None, {WIDTH}], name="x")])
    def answer(self, x):
        y = tf.nn.relu(x @ self.hidden) @ self.out
        return {{"y": y, "number": tf.fill([tf.shape(x)[0]], self.number)}}

for number in range(1, int(sys.argv[2]) + 1):
    model = Model(number)
    folder = sys.argv[1] + "/." + str(number)
    tf.saved_model.save(model, folder, signatures={{"serving_default": model.answer}})
"""


class Models:
    """A folder of versions, written before under hidden names, so that publishing is a rename."""

    def __init__(self, folder: Path, versions: int, by_rollout: bool) -> None:
        self._base_path = folder / "m"
        self._config = folder / "models.config" if by_rollout else None
        run(["python", "-c", _SAVE, str(self._base_path), str(versions)])
        self._rename(".1", "1")
        if self._config is not None:
            run([*self._rollout("promote", "1", ports=()), f"--base_path={self._base_path}"])

    @property
    def flags(self) -> list[str]:
        """Flags of a replica that serves the models."""
        if self._config is None:
            return ["--model_name=m", f"--model_base_path={self._base_path}"]
        labels = "--allow_version_labels_for_unavailable_models"
        return [f"--model_config_file={self._config}", labels]

    async def publish(self, number: int, ports: Sequence[int]) -> None:
        self._rename(f".{number}", str(number))
        if self._config is not None:
            await _finished(self._rollout("promote", str(number), ports=ports))

    async def take_back(self, number: int, ports: Sequence[int]) -> None:
        """Returns from ``number``, the newest version, to the version before it."""
        if self._config is not None:
            await _finished(self._rollout("rollback", ports=ports))
        else:
            self._rename(str(number), f".{number}")

    def _rename(self, old: str, new: str) -> None:
        (self._base_path / old).rename(self._base_path / new)

    def _rollout(self, *command: str, ports: Sequence[int]) -> list[str]:
        targets = ",".join(f"127.0.0.1:{port}" for port in ports)
        where = ["--model=m", f"--models_config={self._config}", f"--targets={targets}"]
        return ["python", "-m", "serving.rollout", *command, *where]


class Replica:
    """A server that keeps its port and its core when it is started again.

    Replicas of a real service have processors of their own, too.
    """

    def __init__(self, models: Models, index: int) -> None:
        self.port = free_port()
        server = ["python", "-m", "serving.server", f"--port={self.port}", *models.flags]
        self._command = ["taskset", "-c", str(index % (os.cpu_count() or 1)), *server]
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process(self._command, limit_s=3600)

    def is_ready(self) -> bool:
        assert self._process is not None
        if self._process.popen.poll() is not None:
            raise RuntimeError(f"a replica ended:\n{self._process.tail()}")
        return "ready on" in self._process.output

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.kill()


async def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    ends_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError("the condition did not become true")
        await asyncio.sleep(0.05)


async def _finished(command: list[str]) -> None:
    with Process(command) as process:
        await until(lambda: process.popen.poll() is not None)
        process.wait()
