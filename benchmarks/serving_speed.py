"""Calls per second of the embedded server and of bare grpcio echo servers, in turn.

    python benchmarks/serving_speed.py [rounds] [flags for serving.server]

Servers have one core, the client (asyncio, one connection) another. The model is tiny, so the
figures are the server's. All calls are equal, as most of a caller's are but for their numbers: only
the first one is parsed. One echo server has threads, as the embedded server has; the other one is
``grpc.aio``'s. Prints medians and ranges. On a busy machine, only ratios are comparable.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "serving" / "recorded" / "models" / "half_plus"
METHOD = "/tensorflow.serving.PredictionService/Predict"
CONCURRENCIES = (1, 8, 32)
ROUND_S = 2.0


def handler(answer: Any) -> grpc.GenericRpcHandler:
    """Answers every method by ``answer``."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(answer)

    return Handler()


def echo() -> None:
    """Serves every method by sending the request back."""
    server = grpc.server(ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers((handler(lambda data, context: data),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"ready on 127.0.0.1:{port},", flush=True)
    server.wait_for_termination()


async def echo_aio() -> None:
    """Does the same in an event loop."""

    async def answer(data: bytes, context: object) -> bytes:
        return data

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready on 127.0.0.1:{port},", flush=True)
    await server.wait_for_termination()


def started(command: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Starts a server on the first core; returns it and its address."""
    process = subprocess.Popen(
        ["taskset", "-c", "0", sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.partition("ready on ")[2].partition(",")[0]


async def calls_per_s(address: str, request: bytes, concurrency: int) -> float:
    """Makes calls for ``ROUND_S`` seconds, ``concurrency`` at a time."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        await call(request, timeout=20)
        count, began_s = 0, time.perf_counter()
        end_s = began_s + ROUND_S

        async def ask() -> None:
            nonlocal count
            while time.perf_counter() < end_s:
                await call(request, timeout=20)
                count += 1

        await asyncio.gather(*(ask() for _ in range(concurrency)))
        return count / (time.perf_counter() - began_s)


def predict_request() -> bytes:
    """A PredictRequest of two rows."""
    from serving.protos import serving_pb2
    from serving.tensors import as_array, write

    request = serving_pb2.PredictRequest()
    request.model_spec.name = "half_plus"
    write(as_array([[1.0], [2.0]], "float32"), request.inputs["x"])
    return request.SerializeToString()


def main(rounds: int, flags: list[str]) -> None:
    """Alternates between the servers."""
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    server = ["-m", "serving.server", "--port=0", "--model_name=half_plus"]
    servers = {
        "echo": started([__file__, "echo"]),
        "grpc.aio's echo": started([__file__, "echo_aio"]),
        "serving.server": started([*server, f"--model_base_path={MODEL}", *flags]),
    }
    request = predict_request()
    found: dict[tuple[str, int], list[float]] = {}
    try:
        for _ in range(rounds):
            for concurrency in CONCURRENCIES:
                for name, (_, address) in servers.items():
                    rate = asyncio.run(calls_per_s(address, request, concurrency))
                    found.setdefault((name, concurrency), []).append(rate)
    finally:
        for process, _ in servers.values():
            process.kill()
            process.wait()
    for concurrency in CONCURRENCIES:
        bare = found["echo", concurrency]
        print(f"{concurrency:2} at a time: echo {statistics.median(bare):.0f} calls/s")
        for name in list(servers)[1:]:
            rates = found[name, concurrency]
            ratios = sorted(a / b for a, b in zip(rates, bare, strict=True))
            print(
                f"    {name}: {statistics.median(ratios):.2f} of these "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {statistics.median(rates):.0f}"
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["echo"]:
        echo()
    elif sys.argv[1:] == ["echo_aio"]:
        asyncio.run(echo_aio())
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:])
