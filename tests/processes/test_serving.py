"""The embedded server as a process: publishing, swapping, failing, stopping."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import tensorflow as tf

from serving.client import Client, errors
from tests.running import Process, free_port, run, wait_until
from tests.serving.callers import Callers


class Numbered(tf.Module):
    """Tells its number, echoes what it gets, and can be kept busy."""

    def __init__(self, number: int) -> None:
        self.number = tf.Variable(float(number))

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"number": tf.zeros_like(x) + self.number, "x": x}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="turns")])
    def work(self, turns: tf.Tensor) -> dict[str, tf.Tensor]:
        square = tf.ones([200, 200])
        for _ in tf.range(turns):
            square = tf.linalg.matmul(square, square) * 0.005
        return {"sum": tf.reduce_sum(square)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 4, not published yet."""
    folder = tmp_path_factory.mktemp("exported")
    for number in range(1, 5):
        module = Numbered(number)
        signatures = {"serving_default": module.answer, "work": module.work}
        tf.saved_model.save(module, str(folder / str(number)), signatures=signatures)
    return folder


def publish(exported: Path, base: Path, number: int) -> None:
    """Version ``number`` appears whole, by one rename."""
    base.mkdir(exist_ok=True)
    hidden = base / ".incoming"
    shutil.copytree(exported / str(number), hidden)
    hidden.rename(base / str(number))


@contextmanager
def serve(base: Path, *flags: str, ready: bool = True) -> Iterator[tuple[Process, str]]:
    """A server of model ``m``; gives its process and where it listens."""
    command = ["python", "-m", "serving.server", "--model_name=m", f"--model_base_path={base}"]
    port = 0 if ready else free_port()
    options = [f"--port={port}", "--file_system_poll_wait_seconds=0.05", *flags]
    with Process([*command, *options]) as process:
        if ready:
            port = int(process.wait_for(r"ready on 127\.0\.0\.1:(\d+), model m version \d+\n")[1])
        yield process, f"127.0.0.1:{port}"


def number_of(client: Client) -> int:
    return int(client.predict("m", {"x": np.zeros(1, np.float32)})["number"][0])


def test_new_versions_are_picked_up_without_a_failed_call(exported: Path, tmp_path: Path):
    base = tmp_path / "m"
    publish(exported, base, 1)
    seen: defaultdict[int, list[int]] = defaultdict(list)  # by caller

    def ask(client: Client) -> None:
        seen[threading.get_ident()].append(number_of(client))

    with serve(base) as (process, target), Client(target) as client:
        with Callers(Client(target), ask) as callers:
            callers.went_on()
            for number in (2, 3, 4):
                publish(exported, base, number)
                wait_until(lambda n=number: number_of(client) == n, 30, f"{number} answers")
            callers.went_on()
        for numbers in seen.values():
            assert numbers == sorted(numbers) and {1, 4} <= set(numbers)
        expected = [(4, "AVAILABLE"), (3, "END"), (2, "END"), (1, "END")]
        wait_until(
            lambda: [(status.version, status.state) for status in client.status("m")] == expected,
            10,
            "the old versions are unloaded",
        )
        assert "version 4 is served now" in process.output


@pytest.fixture(scope="module")
def served(
    exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, str]]:
    """One server of version 1 for the tests below; the last one stops it."""
    base = tmp_path_factory.mktemp("served") / "m"
    publish(exported, base, 1)
    with serve(base) as server:
        yield server


def test_it_prints_one_line_and_answers(served: tuple[Process, str]):
    process, target = served
    assert process.output == f"serving.server: ready on {target}, model m version 1\n"
    with Client(target) as client:
        outputs = client.predict("m", np.array([1.5, 2.5], np.float32))
        assert outputs["x"].tolist() == [1.5, 2.5]
        assert outputs["number"].tolist() == [1, 1]
        x = np.arange(3_000_000, dtype=np.float32)  # more than the 4 MB that gRPC allows by itself
        np.testing.assert_array_equal(client.predict("m", x, timeout_s=60)["x"], x)


def test_the_command_line_end_to_end(served: tuple[Process, str], tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0], np.float32))
    target = served[1]
    client = ["python", "-m", "serving.client"]
    where = ["--target", target, "--model", "m"]
    assert run([*client, "wait", *where]) == "model m is ready, version 1\n"
    printed = run([*client, "predict", *where, "--input", f"@{tmp_path}/x.npy", "--output", "-"])
    assert printed == '{"number": [1.0, 1.0], "x": [1.0, 2.0]}\n'
    assert "x: float32 [any]" in run([*client, "metadata", *where])
    assert "Latest(nope)" in run([*client, "metadata", "--target", target, "--model=nope"], 1)


def test_a_deadline_ends_the_work_on_the_server_too(served: tuple[Process, str]):
    process, target = served
    with Client(target) as client:
        with pytest.raises(errors.DeadlineExceeded):
            client.predict("m", {"turns": np.int32(10**9)}, signature="work", timeout_s=0.5)
        assert number_of(client) == 1
        usage = psutil.Process(process.pid)
        wait_until(lambda: usage.cpu_percent(interval=0.5) < 20, 10, "nothing computes any more")


def test_sigterm_lets_the_calls_under_way_end(served: tuple[Process, str]):
    process, target = served
    with Client(target, timeout_s=60) as client:
        with ThreadPoolExecutor(1) as pool:
            work = {"turns": np.int32(8000)}
            usage = psutil.Process(process.pid)
            usage.cpu_percent()
            slow = pool.submit(client.predict, "m", work, signature="work")
            wait_until(lambda: usage.cpu_percent(interval=0.1) > 15, 30, "the call is under way")
            assert not slow.done()
            process.signal(signal.SIGTERM)
            assert slow.result()["sum"] > 0
        assert process.wait(0).count("\n") == 1  # TensorFlow has printed nothing
        with pytest.raises(errors.Unavailable):
            client.status("m")


def test_without_a_version_it_refuses_connections_and_sigint_ends_it(tmp_path: Path):
    base = tmp_path / "none"
    with serve(base, ready=False) as (process, target):
        process.wait_for(f"no version of model m to serve in {base} yet; waiting")
        # Callers of several replicas go to the others at once.
        with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")(b"", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        process.signal(signal.SIGINT)
        output = process.wait(130)
    assert "ready" not in output and output.count("waiting") == 1


def test_a_bad_flag_exits_with_2_before_tensorflow_is_imported(tmp_path: Path):
    output = run(["python", "-X", "importtime", "-m", "serving.server", "--port=0"], expect=2)
    imports, said = [], []
    for line in output.splitlines():
        (imports if line.startswith("import time:") else said).append(line)
    assert len(said) == 1 and "model_base_path" in said[0]
    assert imports and not any(line.endswith("| tensorflow") for line in imports)


def test_a_taken_port_is_said(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = ["python", "-m", "serving.server", f"--model_base_path={tmp_path}"]
        output = run([*command, f"--port={port}"], expect=1)
    assert f"can't listen on 127.0.0.1:{port}" in output and output.count("\n") == 1
