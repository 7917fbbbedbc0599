"""How a step grows with workers on a network of known speed, and what a ring's model foretells.

    python -m benchmarks.network [--workers=1,2,4,8] [--rounds=2]        # as root, with iproute2

Each worker has a network namespace; all hang on one bridge, and `tc` limits what each sends. The
computing is a wait of known length, so that more workers than cores can be had. What a worker's
processor does for an exchange (gRPC, adding gradients up) is not replaced: with more workers than
cores, they take turns at it.

In the model of ``ring.py``, links are what `tc` was told; what a processor takes for a message and
for a byte is fitted on 2 and 4 workers on the fastest link, which leaves it to the processors. It
foretells 8 workers there, and all on the other links.
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
from typing import Any

from benchmarks import measuring, ring
from benchmarks.measuring import Spread
from tests.running import Process

PORT = 2222
WAIT_S = 0.05
SIZES = (2 << 20, 8 << 20)  # bytes of gradients
LAYERS = 8
FITTED = (2, 4)
LINKS = {  # name: Mbit/s, and milliseconds of delay
    "10 Gbit/s": (10_000, 0.0),
    "1 Gbit/s": (1_000, 0.0),
    "10 Gbit/s, 0.1 ms": (10_000, 0.1),
    "1 Gbit/s, 1 ms": (1_000, 1.0),
}
GPUS = (8, 64, 512)
NETWORKS_GBIT = (10, 25, 100)


class NoDelay(RuntimeError):  # noqa: N818 - the name says what is not there
    """This kernel can't delay packets."""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def hosts(count: int, mbit_per_s: int, delay_ms: float) -> Iterator[list[tuple[str, str]]]:
    """Namespaces on a bridge of their own: the name and the address of each."""
    switch = f"bench-{os.getpid()}-switch"
    places = [(f"bench-{os.getpid()}-{i}", f"10.213.9.{i + 1}") for i in range(count)]
    with contextlib.ExitStack() as stack:
        for name in (switch, *(name for name, _ in places)):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, (name, address) in enumerate(places):
            other = ("peer", "name", f"port{i}", "netns", switch)
            _run("ip", "link", "add", "cable", "netns", name, "type", "veth", *other)
            _run("ip", "-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _run("ip", "-n", name, "link", "set", "cable", "up")
            discipline = (
                ("netem", "rate", f"{mbit_per_s}mbit", "delay", f"{delay_ms}ms", "limit", "100000")
                if delay_ms
                else ("tbf", "rate", f"{mbit_per_s}mbit", "burst", "256kb", "latency", "100ms")
            )
            try:
                _run("tc", "-n", name, "qdisc", "add", "dev", "cable", "root", *discipline)
            except subprocess.CalledProcessError as error:
                raise NoDelay(error.stderr.strip()) if delay_ms else error from None
        yield places


def worker() -> None:
    """Trains for each size of gradients and reports seconds of a step."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdp

    def wait(x: Any) -> Any:
        time.sleep(WAIT_S)
        return x

    class Waiting(keras.layers.Layer):
        """Has weights of a size, and does nothing but wait."""

        def __init__(self, size_bytes: int) -> None:
            super().__init__()
            shape = (size_bytes // 4 // LAYERS,)
            self.parts = [self.add_weight(shape=shape, initializer="zeros") for _ in range(LAYERS)]

        def call(self, x: Any) -> Any:
            waited = tf.ensure_shape(tf.numpy_function(wait, [x], tf.float32), x.shape)
            return waited + sum(tf.reduce_mean(part) for part in self.parts)

    strategy = tfdp.connect()
    batch = strategy.num_replicas_in_sync
    for size_bytes in SIZES:
        with strategy.scope():
            model = keras.Sequential([keras.layers.Input((1,)), Waiting(size_bytes)])
            model.compile("sgd", "mse")
        ends: list[float] = []
        clock = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_, ends=ends: ends.append(time.perf_counter())
        )
        data = tfdp.from_arrays(np.zeros((64, 1), np.float32), np.zeros((64, 1), np.float32))
        fit = {"epochs": 4, "steps_per_epoch": 15, "verbose": 0, "callbacks": [clock]}
        tfdp.fit(model, data, batch_size=batch, **fit)
        if tfdp.is_chief():
            measuring.report(size_bytes=size_bytes, step_s=(ends[-1] - ends[1]) / 30)


def measure(places: Sequence[tuple[str, str]]) -> dict[int, float]:
    """Seconds of a step by size of gradients."""
    cluster = {"worker": [f"{address}:{PORT}" for _, address in places]}
    command = [sys.executable, "-m", "benchmarks.network", "worker"]
    with contextlib.ExitStack() as stack:
        processes = []
        for index, (name, _) in enumerate(places):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            env = {"TF_CONFIG": json.dumps(config)} if len(places) > 1 else {}
            whole = ["ip", "netns", "exec", name, *command]
            processes.append(stack.enter_context(Process(whole, env=env, limit_s=400)))
        outputs = [process.wait() for process in processes]
    return {found["size_bytes"]: found["step_s"] for found in measuring.reports_in(outputs[0])}


def modelled(links: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Fits processors to small clusters on the fastest link, and says what it makes of every point.

    Args:
        links: of each name in ``LINKS``, its points; they get ``model_s`` and ``use``.
    """
    fastest = next(iter(LINKS))
    cores = os.cpu_count() or 1

    def of(point: dict[str, Any], points: list[dict[str, Any]]) -> ring.Point:
        workers, size = point["workers"], point["bytes"]
        (alone,) = (p for p in points if (p["workers"], p["bytes"]) == (1, size))
        turns = max(1.0, workers / cores)
        compute_s = WAIT_S + (Spread.of(alone["step_s"]).median - WAIT_S) * turns
        return ring.Point(workers, size, turns, compute_s, Spread.of(point["step_s"]).median)

    points = links[fastest]["points"]
    processors = ring.fit([of(p, points) for p in points if p["workers"] in FITTED])
    for name, link in links.items():
        mbit_per_s, delay_ms = LINKS[name]
        wire = ring.Ring(delay_ms / 1000, 8e-6 / mbit_per_s)
        for point in link["points"]:
            known = of(point, link["points"])
            exchanged = known.workers, known.gradient_bytes
            processors_s = known.turns * processors.reduce_s(*exchanged)
            reduce_s = max(processors_s, wire.reduce_s(*exchanged))
            point["model_s"] = ring.step_s(known.compute_s, reduce_s)
            is_fitted = name == fastest and known.workers <= max(FITTED)
            point["use"] = "fitted" if is_fitted else "foretold"
            if known.workers == 1:
                point["use"] = "given"
    return dataclasses.asdict(processors)


def tell(figures: dict[str, Any]) -> str:
    rows, texts = [], []
    for name, link in figures["links"].items():
        for p in link["points"]:
            measured_ms = Spread.of([1000 * s for s in p["step_s"]])
            off = f"{100 * (p['model_s'] / Spread.of(p['step_s']).median - 1):+.0f} %"
            mib = p["bytes"] >> 20
            rows.append(
                (
                    name,
                    p["workers"],
                    mib,
                    measured_ms.text(1),
                    p["use"],
                    f"{1000 * p['model_s']:.1f}",
                    off,
                )
            )
    processors = figures["processors"]
    texts.append(
        f"A processor takes {1e3 * processors['message_s']:.2f} ms for a message and "
        f"{1e9 * processors['s_per_byte']:.1f} ms for a megabyte; the links' speeds are known."
    )
    texts += [f"{name}: not measured; {why}" for name, why in figures["left_out"].items()]
    header = ("link", "workers", "MiB", "step, ms", "use", "model, ms", "model is off by")
    assumed = ring.Assumptions()
    expected = [
        (
            f"{gbit} Gbit/s a GPU",
            *(f"{100 * ring.foretell(assumed, gbit, n)[1]:.0f} %" for n in GPUS),
        )
        for gbit in NETWORKS_GBIT
    ]
    return (
        f"{measuring.table(header, rows)}\n\n" + "\n".join(texts) + "\n\n"
        "Not measured but expected, of so many times one GPU's examples/s, with "
        f"{assumed}:\n\n{measuring.table(('network', *(f'{n} GPUs' for n in GPUS)), expected)}"
    )


def main() -> None:
    settings = measuring.arguments(__doc__, workers=(1, 2, 4, 8), rounds=2)
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    if not {1, *FITTED} <= set(settings.workers):
        raise SystemExit(f"the model is fitted on 1 and {FITTED} workers: --workers needs them")
    began = measuring.machine()
    figures: dict[str, Any] = {"links": {}, "left_out": {}}
    for name, (mbit_per_s, delay_ms) in LINKS.items():
        found: dict[tuple[int, int], list[float]] = {}
        try:
            for _ in range(settings.rounds):
                for workers in settings.workers:
                    with hosts(workers, mbit_per_s, delay_ms) as places:
                        for size, step_s in measure(places).items():
                            found.setdefault((workers, size), []).append(step_s)
        except NoDelay as error:
            figures["left_out"][name] = f"this kernel has no netem to delay packets ({error})"
            continue
        points = [{"workers": w, "bytes": b, "step_s": s} for (w, b), s in sorted(found.items())]
        figures["links"][name] = {"points": points}
        print(f"{name}: {points}", file=sys.stderr, flush=True)
    figures["processors"] = modelled(figures["links"])
    measuring.save(
        settings.results,
        "network",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "keras"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        worker()
    else:
        main()
