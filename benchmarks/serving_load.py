"""The embedded server under load: what callers notice of publications, and of load itself.

    python -m benchmarks.serving_load [--rate=200] [--publications=20]
    python -m benchmarks.serving_load --what=curve [--rates=250,500,1000]

"publications": replicas on one folder of versions, calls at a steady rate balanced between them by
the client. While nothing happens, through publications, a rollback (the newest version is taken
away), and a replica that is killed and started again. No call may fail.

"curve": latency against offered load, of one server and of a bare gRPC echo, each on a core of its
own, the generator on the other. "Late" is how much after its time the generator began a call: where
that is not far below the latencies, they are the generator's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # it would speak up at every child

import grpc
import numpy as np

from benchmarks import load, measuring
from serving import tensors
from serving.protos import serving_pb2
from tests.running import Process, free_port, run

PREDICT = "/tensorflow.serving.PredictionService/Predict"
WIDTH = 32
_TIMEOUT_S = 10.0
# As serving.client has it: each call to the next replica, and again where nobody worked on it.
_CHANNEL = (
    (
        "grpc.service_config",
        """{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}],
        "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s",
        "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}""",
    ),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_MODEL = f"""
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        self.hidden = tf.Variable(tf.random.normal([{WIDTH}, 64]))
        self.out = tf.Variable(tf.random.normal([64, 10]))

    @tf.function(input_signature=[tf.TensorSpec([None, {WIDTH}], name="x")])
    def answer(self, x):
        return {{"y": tf.nn.relu(x @ self.hidden) @ self.out}}

model = Model()
tf.saved_model.save(model, sys.argv[1], signatures={{"serving_default": model.answer}})
"""
_ECHO = """
from concurrent.futures import ThreadPoolExecutor
import grpc

server = grpc.server(ThreadPoolExecutor(16))
echo = grpc.unary_unary_rpc_method_handler(lambda data, context: data)
service = "tensorflow.serving.PredictionService"
handler = grpc.method_handlers_generic_handler(service, {"Predict": echo})
server.add_generic_rpc_handlers((handler,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("ready on 127.0.0.1:%d" % port, flush=True)
server.wait_for_termination()
"""


@contextlib.asynccontextmanager
async def caller(ports: list[int]) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Gives a function that asks one of the servers, and returns the version that answered."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    spec = serving_pb2.ModelSpec(name="m")
    request = serving_pb2.PredictRequest(model_spec=spec)
    tensors.write(np.ones((1, WIDTH), np.float32), request.inputs["x"])
    data = request.SerializeToString()
    async with grpc.aio.insecure_channel(target, options=_CHANNEL) as channel:
        method = channel.unary_unary(PREDICT)

        async def call() -> int:
            try:
                answer = await method(data, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                raise RuntimeError(f"{error.code().name}: {error.details()}") from None
            response = serving_pb2.PredictResponse.FromString(answer)
            return response.model_spec.version.value

        yield call


class Replica:
    """A server of the folder on a port that it keeps, however often it is killed and started."""

    def __init__(self, base_path: Path, name: str) -> None:
        self.port = free_port()
        self._base_path = base_path
        self._name = name
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process(
            [
                *("python", "-m", "serving.server", f"--port={self.port}", "--model_name=m"),
                f"--model_base_path={self._base_path}",
            ],
            limit_s=3600,
        )

    def is_ready(self) -> bool:
        assert self._process is not None
        if self._process.popen.poll() is not None:
            raise RuntimeError(f"{self._name} ended:\n{self._process.tail()}")
        return "ready on" in self._process.output

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.kill()


async def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    ends_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError("what was waited for did not come about")
        await asyncio.sleep(0.05)


async def publications(settings: Any, folder: Path) -> dict[str, Any]:
    """Runs the scenario; returns a summary for each of its phases."""
    models = folder / "models"
    last = settings.publications + 1
    for number in range(1, last + 1):  # all is written before, so that a publication is a rename
        shutil.copytree(folder / "model", models / f".{number}")
    (models / ".1").rename(models / "1")
    replicas = [Replica(models, f"replica {i}") for i in range(settings.replicas)]
    seen: set[int] = set()
    phases: list[tuple[str, float]] = []  # name and beginning
    ended = False

    async def happen() -> None:
        nonlocal ended

        def phase(name: str) -> None:
            phases.append((name, time.perf_counter()))

        try:
            phase("warm-up")
            await asyncio.sleep(settings.pause_s)
            phase("usual")
            await asyncio.sleep(settings.usual_s)
            phase("publications")
            for number in range(2, last + 1):
                (models / f".{number}").rename(models / str(number))
                await until(lambda number=number: number in seen)
                await asyncio.sleep(settings.pause_s)
            phase("rollback")
            seen.clear()
            (models / str(last)).rename(models / f".{last}")
            await until(lambda: last - 1 in seen)
            await asyncio.sleep(settings.pause_s)
            phase("replica killed")
            replicas[0].kill()
            await asyncio.sleep(settings.pause_s)
            phase("replica started")
            replicas[0].start()
            await until(replicas[0].is_ready)
            await asyncio.sleep(settings.pause_s)
            phase("usual again")
            await asyncio.sleep(settings.usual_s)
        finally:
            ended = True

    with contextlib.ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        for replica in replicas:
            await until(replica.is_ready)
        async with caller([replica.port for replica in replicas]) as ask:

            async def call() -> None:
                seen.add(await ask())

            story = asyncio.create_task(happen())
            outcomes = await load.offer(call, settings.rate, lambda _: ended)
            await story
    begins = [*phases, ("", float("inf"))]
    by_phase = {
        name: [outcome for outcome in outcomes if began_s <= outcome.due_s < begins[i + 1][1]]
        for i, (name, began_s) in enumerate(phases)
    }
    usual = by_phase["usual"] + by_phase["usual again"]
    changes = [each for name in list(by_phase)[2:-1] for each in by_phase[name]]
    groups = {"usual": usual} | {name: by_phase[name] for name in list(by_phase)[2:-1]}
    groups["all changes"] = changes
    found = {name: load.summarise(group, settings.rate) for name, group in groups.items()}
    return {
        "calls": len(outcomes),
        "failed": sum(outcome.error is not None for outcome in outcomes),
        "errors": sorted({outcome.error for outcome in outcomes if outcome.error})[:5],
        "p99_over_usual": round(found["all changes"].p99_ms / found["usual"].p99_ms, 2),
        "phases": {name: dataclasses.asdict(summary) for name, summary in found.items()},
    }


async def curve(settings: Any, folder: Path) -> dict[str, Any]:
    """Latency against offered load, until a server can't keep up."""
    (folder / "models").mkdir()
    (folder / "model").rename(folder / "models" / "1")
    os.sched_setaffinity(0, {0})
    commands = {
        "gRPC echo": ["python", "-c", _ECHO],
        "serving.server": [
            *("python", "-m", "serving.server", "--port=0", "--model_name=m"),
            f"--model_base_path={folder / 'models'}",
        ],
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, command in commands.items():
        points = found[name] = []
        core = str((os.cpu_count() or 1) - 1)
        with Process(["taskset", "-c", core, *command], limit_s=3600) as process:
            port = int(process.wait_for(r"ready on 127\.0\.0\.1:(\d+)")[1])
            async with caller([port]) as ask:
                await load.offer(ask, 100, lambda s: s >= 2)
                for rate in settings.rates:
                    outcomes = await load.offer(ask, rate, lambda s: s >= settings.seconds)
                    points.append(dataclasses.asdict(load.summarise(outcomes, rate)))
                    if points[-1]["answered_per_s"] < 0.9 * rate:
                        break
    return found


def tell_publications(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(name, phase["calls"], phase["failed"]),
            *(f"{phase[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms")),
            f"{phase['p99_ms'] / figures['phases']['usual']['p99_ms']:.2f}",
        )
        for name, phase in figures["phases"].items()
    ]
    header = ("phase", "calls", "failed", "p50 ms", "p90", "p99", "max", "p99 over usual")
    errors = "".join(f"\n- {error}" for error in figures["errors"])
    return (
        f"{figures['failed']} of {figures['calls']} calls failed; p99 through all changes is "
        f"{figures['p99_over_usual']} times the usual one.{errors}\n\n"
        + measuring.table(header, rows)
    )


def tell_curve(figures: dict[str, Any]) -> str:
    keys = ("offered_per_s", "answered_per_s", "failed", "p50_ms", "p90_ms", "p99_ms")
    header = ("server", "offered/s", "answered/s", "failed", "p50 ms", "p90", "p99", "late, p99")
    rows = [
        (name, *(point[key] for key in keys), point["late_p99_ms"])
        for name, points in figures.items()
        for point in points
    ]
    most = {
        name: max(point["answered_per_s"] for point in points) for name, points in figures.items()
    }
    return (
        f"Most calls answered in a second: serving.server {most['serving.server']:,.0f}, "
        f"{most['serving.server'] / most['gRPC echo']:.2f} of the echo's "
        f"{most['gRPC echo']:,.0f}.\n\n" + measuring.table(header, rows)
    )


def main() -> None:
    settings = measuring.arguments(
        __doc__,
        what="publications",
        replicas=2,
        rate=200,
        publications=20,
        pause_s=1.5,
        usual_s=20.0,
        rates=(250, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 5000),
        seconds=8.0,
    )
    scenario, tell = {
        "publications": (publications, tell_publications),
        "curve": (curve, tell_curve),
    }[settings.what]
    began = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        run(["python", "-c", _MODEL, f"{folder}/model"])
        figures = asyncio.run(scenario(settings, Path(folder)))
    measuring.save(
        settings.results,
        f"serving_{settings.what}",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "grpcio", "numpy"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
