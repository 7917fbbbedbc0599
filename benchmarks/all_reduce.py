"""Time of an all-reduce of 64 MB of gradients between two workers, by pack size.

    python -m benchmarks.all_reduce [--rounds=3]

Each worker is pinned to one core. Results are milliseconds of an all-reduce, and the processor time
of the chief in them: with other work on the machine, only processor time means something.
"""

from __future__ import annotations

import resource
import sys
import time

from benchmarks import measuring

MEGABYTE = 1 << 20
GRADIENT_BYTES = 64 * MEGABYTE  # in float32
DTYPES = ("float32", "bfloat16")
PACKS_MB = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)  # as sent over the network
REPEATS = 3


def worker() -> None:
    """All-reduces the same gradients with each dtype and pack size."""
    import tensorflow as tf

    import tfdp
    from tfdp.step.gradients import GradientAllReduce

    strategy = tfdp.connect()
    gradients = [tf.zeros([2048, 2048])] * (GRADIENT_BYTES // (4 * 2048 * 2048))

    def measure(all_reduce: GradientAllReduce) -> None:
        @tf.function
        def run() -> tf.Tensor:
            for _ in tf.range(REPEATS):
                strategy.run(lambda: all_reduce.sum(gradients, []))
            return tf.constant(0)

        run()
        began_s, processor_began_s = time.perf_counter(), _processor_s()
        run()
        if tfdp.is_chief():
            measuring.report(
                dtype=all_reduce.gradient_dtype,
                pack=all_reduce.bytes_per_pack / MEGABYTE,
                wall_ms=1000 * (time.perf_counter() - began_s) / REPEATS,
                processor_ms=1000 * (_processor_s() - processor_began_s) / REPEATS,
            )

    for dtype in DTYPES:
        for pack_mb in PACKS_MB:
            measure(GradientAllReduce(dtype, int(pack_mb * MEGABYTE)))


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures in rounds and writes the table."""
    settings = measuring.arguments(__doc__, rounds=3)
    began = measuring.machine()
    command = [sys.executable, "-m", "benchmarks.all_reduce", "worker"]
    reports = []
    for _ in range(settings.rounds):
        outputs = measuring.run_pinned([command] * 2, measuring.tf_configs(2))
        reports += measuring.reports_in(outputs[0])
    rows = []
    for dtype in DTYPES:
        for pack_mb in PACKS_MB:
            rounds = [r for r in reports if (r["dtype"], r["pack"]) == (dtype, pack_mb)]
            spreads = [
                measuring.Spread.of([report[key] for report in rounds]).text(0)
                for key in ("wall_ms", "processor_ms")
            ]
            rows.append([f"{dtype}, {pack_mb:g} MB", *spreads])
    measuring.save_results(
        "all-reduce",
        vars(settings) | {"bytes": GRADIENT_BYTES},
        began,
        {"all": reports},
        measuring.table(["pack", "ms", "of which processor"], rows),
    )


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
