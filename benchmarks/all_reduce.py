"""Time of an all-reduce of 64 MB of gradients between two workers, by the size of its packs.

    python -m benchmarks.all_reduce [--rounds=3]

Each worker is pinned to one core. Shown are milliseconds, and how many of them the chief's
processor worked: with others at work on the machine, only those mean something.
"""

from __future__ import annotations

import resource
import sys
import time

from benchmarks import measuring

MEGABYTE = 1 << 20
SENT = 64 * MEGABYTE  # in float32
PACKS = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)  # MB on the wire
REPEATS = 3


def worker() -> None:
    """Sums the same gradients again and again, in packs of each size."""
    import tensorflow as tf

    import tfdp
    from tfdp.step.gradients import GradientAllReduce

    strategy = tfdp.connect()
    gradients = [tf.zeros([2048, 2048])] * (SENT // (4 * 2048 * 2048))

    def measure(exchange: GradientAllReduce) -> None:
        @tf.function
        def run() -> tf.Tensor:
            for _ in tf.range(REPEATS):
                strategy.run(lambda: exchange.all_reduce_sum(gradients, []))
            return tf.constant(0)

        run()
        began_s, worked_s = time.perf_counter(), _worked_s()
        run()
        if tfdp.is_chief():
            measuring.report(
                dtype=exchange.gradient_dtype,
                pack=exchange.bytes_per_pack / MEGABYTE,
                wall_ms=1000 * (time.perf_counter() - began_s) / REPEATS,
                processor_ms=1000 * (_worked_s() - worked_s) / REPEATS,
            )

    for dtype in ("float32", "bfloat16"):
        for pack in PACKS:
            measure(GradientAllReduce(dtype, int(pack * MEGABYTE)))


def _worked_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures in rounds, and writes the table."""
    flags = measuring.arguments(__doc__, rounds=3)
    began = measuring.machine()
    command = [sys.executable, "-m", "benchmarks.all_reduce", "worker"]
    figures = []
    for _ in range(flags.rounds):
        outputs = measuring.run_pinned([command] * 2, measuring.tf_configs(2))
        figures += measuring.reports_in(outputs[0])
    rows = []
    for dtype in ("float32", "bfloat16"):
        for pack in PACKS:
            of_this = [each for each in figures if (each["dtype"], each["pack"]) == (dtype, pack)]
            spreads = [
                measuring.Spread.of([each[name] for each in of_this]).text(0)
                for name in ("wall_ms", "processor_ms")
            ]
            rows.append([f"{dtype}, {pack:g} MB", *spreads])
    measuring.save(
        flags.results,
        "all-reduce",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "keras"),
        settings={"rounds": flags.rounds, "bytes": SENT},
        figures={"all": figures},
        text=measuring.table(["pack", "ms", "of them processor"], rows),
    )


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
