"""Time of a step by number of workers on networks of known speed, against a model of a ring.

    python -m benchmarks.network [--workers=1,2,4,8] [--rounds=2]        # as root, with iproute2

Each worker has a network namespace. A bridge connects them, and `tc` limits the rate at which each
sends. The computing is a wait of known length, so that more workers than cores are possible. The
processors' work for an all-reduce (gRPC, adding gradients up) is real: with more workers than
cores, workers take turns at it.

In the model of ``ring.py``, links have the speed that `tc` sets. A processor's time for a message
and for a byte is fitted on 2 and 4 workers on the fastest link, where processors are the
bottleneck. The model then predicts 8 workers there, and all workers on the other links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import measuring, ring
from benchmarks.measuring import EpochTimes, Spread
from tests.running import Process

PORT = 2222
WAIT_S = 0.05
GRADIENT_BYTES = (2 << 20, 8 << 20)
LAYERS = 8
FITTED_WORKERS = (2, 4)
LINKS = {  # name: Mbit/s, and delay in milliseconds
    "10 Gbit/s": (10_000, 0.0),
    "1 Gbit/s": (1_000, 0.0),
    "10 Gbit/s, 0.1 ms": (10_000, 0.1),
    "1 Gbit/s, 1 ms": (1_000, 1.0),
}
GPU_COUNTS = (8, 64, 512)
NETWORKS_GBIT_PER_S = (10, 25, 100)


class DelayError(RuntimeError):
    """This kernel can't delay packets."""


class Host(NamedTuple):
    """A network namespace of one worker."""

    namespace: str
    address: str


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def connected_hosts(count: int, mbit_per_s: int, delay_ms: float) -> Iterator[list[Host]]:
    """Makes network namespaces that a bridge in another namespace connects.

    Raises:
        DelayError: if ``delay_ms`` is not 0 and this kernel has no netem.
    """
    switch = f"bench-{os.getpid()}-switch"
    hosts = [Host(f"bench-{os.getpid()}-{i}", f"10.213.9.{i + 1}") for i in range(count)]
    with contextlib.ExitStack() as stack:
        for namespace in (switch, *(host.namespace for host in hosts)):
            _run("ip", "netns", "add", namespace)
            stack.callback(_run, "ip", "netns", "del", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, (namespace, address) in enumerate(hosts):
            other_end = ("peer", "name", f"port{i}", "netns", switch)
            _run("ip", "link", "add", "cable", "netns", namespace, "type", "veth", *other_end)
            _run("ip", "-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "cable")
            _run("ip", "-n", namespace, "link", "set", "cable", "up")
            discipline = (
                ("netem", "rate", f"{mbit_per_s}mbit", "delay", f"{delay_ms}ms", "limit", "100000")
                if delay_ms
                else ("tbf", "rate", f"{mbit_per_s}mbit", "burst", "256kb", "latency", "100ms")
            )
            try:
                _run("tc", "-n", namespace, "qdisc", "add", "dev", "cable", "root", *discipline)
            except subprocess.CalledProcessError as error:
                raise DelayError(error.stderr.strip()) if delay_ms else error from None
        yield hosts


def worker() -> None:
    """Trains with each size of gradients; the chief reports seconds per step."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdp

    def wait(x: Any) -> Any:
        time.sleep(WAIT_S)
        return x

    class Waiting(keras.layers.Layer):
        """Has weights of a given size; its computing is a wait."""

        def __init__(self, size_bytes: int) -> None:
            super().__init__()
            shape = (size_bytes // 4 // LAYERS,)
            self.kernels = [
                self.add_weight(shape=shape, initializer="zeros") for _ in range(LAYERS)
            ]

        def call(self, x: Any) -> Any:
            waited = tf.ensure_shape(tf.numpy_function(wait, [x], tf.float32), x.shape)
            return waited + sum(tf.reduce_mean(kernel) for kernel in self.kernels)

    strategy = tfdp.connect()
    batch = strategy.num_replicas_in_sync
    for size_bytes in GRADIENT_BYTES:
        with strategy.scope():
            model = keras.Sequential([keras.layers.Input((1,)), Waiting(size_bytes)])
            model.compile("sgd", "mse")
        times = EpochTimes()
        clock = keras.callbacks.LambdaCallback(on_epoch_end=times.record)
        data = tfdp.from_arrays(np.zeros((64, 1), np.float32), np.zeros((64, 1), np.float32))
        fit = {"epochs": 4, "steps_per_epoch": 15, "verbose": 0, "callbacks": [clock]}
        tfdp.fit(model, data, batch_size=batch, **fit)
        if tfdp.is_chief():
            measuring.report(size_bytes=size_bytes, step_s=times.step_s(fit["steps_per_epoch"]))


def measure(hosts: Sequence[Host]) -> dict[int, float]:
    """Returns seconds of a step by bytes of gradients, with a worker on each host."""
    cluster = {"worker": [f"{host.address}:{PORT}" for host in hosts]}
    worker_command = [sys.executable, "-m", "benchmarks.network", "worker"]
    with contextlib.ExitStack() as stack:
        processes = []
        for index, host in enumerate(hosts):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            env = {"TF_CONFIG": json.dumps(config)} if len(hosts) > 1 else {}
            command = ["ip", "netns", "exec", host.namespace, *worker_command]
            processes.append(stack.enter_context(Process(command, env=env, limit_s=400)))
        outputs = [process.wait() for process in processes]
    return {report["size_bytes"]: report["step_s"] for report in measuring.reports_in(outputs[0])}


def fit_and_predict(links: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Fits the processors' cost to few workers on the fastest link, and predicts every point.

    Args:
        links: by name, as in ``LINKS``, the measured points. Each point gets ``model_s``, the
            step's seconds in the model, and ``use``: given, fitted or foretold (predicted).

    Returns:
        The fitted cost, by its fields.
    """
    fastest = next(iter(LINKS))
    cores = os.cpu_count() or 1

    def measured_step(point: dict[str, Any], points: list[dict[str, Any]]) -> ring.MeasuredStep:
        workers, size = point["workers"], point["bytes"]
        (one_worker,) = (p for p in points if (p["workers"], p["bytes"]) == (1, size))
        workers_per_core = max(1.0, workers / cores)
        processor_s = Spread.of(one_worker["step_s"]).median - WAIT_S
        compute_s = WAIT_S + processor_s * workers_per_core
        step_s = Spread.of(point["step_s"]).median
        return ring.MeasuredStep(workers, size, workers_per_core, compute_s, step_s)

    points = links[fastest]["points"]
    processors = ring.fit(
        [measured_step(p, points) for p in points if p["workers"] in FITTED_WORKERS]
    )
    for name, link in links.items():
        mbit_per_s, delay_ms = LINKS[name]
        link_cost = ring.RingCost(delay_ms / 1000, 8e-6 / mbit_per_s)
        for point in link["points"]:
            step = measured_step(point, link["points"])
            size = step.workers, step.gradient_bytes
            processors_s = step.workers_per_core * processors.reduce_s(*size)
            reduce_s = max(processors_s, link_cost.reduce_s(*size))
            point["model_s"] = ring.step_s(step.compute_s, reduce_s)
            is_fitted = name == fastest and step.workers <= max(FITTED_WORKERS)
            point["use"] = "fitted" if is_fitted else "foretold"
            if step.workers == 1:
                point["use"] = "given"
    return dataclasses.asdict(processors)


def to_markdown(figures: dict[str, Any]) -> str:
    rows = []
    for name, link in figures["links"].items():
        for point in link["points"]:
            measured = Spread.of([1000 * step_s for step_s in point["step_s"]])
            model_ms = 1000 * point["model_s"]
            error = f"{100 * (model_ms / measured.median - 1):+.0f} %"
            size = (point["workers"], point["bytes"] >> 20)
            rows.append((name, *size, measured.text(1), point["use"], f"{model_ms:.1f}", error))
    processors = figures["processors"]
    notes = [
        f"A processor takes {1e3 * processors['message_s']:.2f} ms for a message and "
        f"{1e9 * processors['s_per_byte']:.1f} ms for a megabyte; the links' speeds are known."
    ]
    notes += [f"{name}: not measured; {why}" for name, why in figures["left_out"].items()]
    header = ("link", "workers", "MiB", "step, ms", "use", "model, ms", "model is off by")
    assumed = ring.Assumptions()
    predicted = [
        (
            f"{gbit_per_s} Gbit/s a GPU",
            *(f"{100 * ring.predict_gpus(assumed, gbit_per_s, n)[1]:.0f} %" for n in GPU_COUNTS),
        )
        for gbit_per_s in NETWORKS_GBIT_PER_S
    ]
    return (
        f"{measuring.table(header, rows)}\n\n" + "\n".join(notes) + "\n\n"
        "Not measured but predicted, examples/s over so many times one GPU's, with "
        f"{assumed}:\n\n"
        + measuring.table(("network", *(f"{n} GPUs" for n in GPU_COUNTS)), predicted)
    )


def main() -> None:
    settings = measuring.arguments(__doc__, workers=(1, 2, 4, 8), rounds=2)
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    if not {1, *FITTED_WORKERS} <= set(settings.workers):
        raise SystemExit(
            f"the model is fitted on 1 and {FITTED_WORKERS} workers: --workers needs them"
        )
    began = measuring.machine()
    figures: dict[str, Any] = {"links": {}, "left_out": {}}
    for name, (mbit_per_s, delay_ms) in LINKS.items():
        steps_s: dict[tuple[int, int], list[float]] = {}
        try:
            for _ in range(settings.rounds):
                for workers in settings.workers:
                    with connected_hosts(workers, mbit_per_s, delay_ms) as hosts:
                        for size, step_s in measure(hosts).items():
                            steps_s.setdefault((workers, size), []).append(step_s)
        except DelayError as error:
            figures["left_out"][name] = f"this kernel has no netem to delay packets ({error})"
            continue
        points = [{"workers": w, "bytes": b, "step_s": s} for (w, b), s in sorted(steps_s.items())]
        figures["links"][name] = {"points": points}
        print(f"{name}: {points}", file=sys.stderr, flush=True)
    figures["processors"] = fit_and_predict(figures["links"])
    measuring.save_results("network", vars(settings), began, figures, to_markdown(figures))


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        worker()
    else:
        main()
