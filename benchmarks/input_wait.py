"""Training from JPEGs: time that a step waits for input, and CPU time of input per worker.

    python -m benchmarks.input_wait [--task=cnn] [--images=1024] [--rounds=3]

The script writes images of ImageNet's size into four TFRecord files: JPEGs of 500 by 375 pixels and
about 110 KB. Two workers with a core each measure the time of three steps: training from arrays in
memory, reading without training, and training from the JPEGs. A core that decodes and computes in
turns needs at least the sum of the first two for the last; the rest is waiting.

Then 1, 2 and 4 workers read without training, each 32 examples a step. This gives the CPU time per
example that a worker reads, by number of workers.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import EpochTimes, Spread
from benchmarks.peers.models import BATCH, TASKS, arrays, build
from tests.running import run

FILES = 4
HEIGHT, WIDTH = 375, 500
MEASURED_S = 6.0  # approximate length of the measurement of input
WORKERS = (1, 2, 4)
_MODULE = (sys.executable, "-m", "benchmarks.input_wait")


def write(folder: Path, images: int) -> None:
    """Writes large soft patches with grain: encoded, they are as large as photographs."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for file in range(FILES):
        with tf.io.TFRecordWriter(str(folder / f"{file}.tfrecord")) as writer:
            for _ in range(images // FILES):
                patches = tf.image.resize(rng.uniform(0, 255, (12, 16, 3)), (HEIGHT, WIDTH))
                grain = rng.normal(0, 17, (HEIGHT, WIDTH, 1))
                pixels = tf.cast(tf.clip_by_value(patches + grain, 0, 255), tf.uint8)
                writer.write(tf.io.encode_jpeg(pixels, quality=90).numpy())


def parse(record: Any) -> Any:
    import tensorflow as tf

    image = tf.image.resize(tf.io.decode_jpeg(record, channels=3), (32, 32), antialias=True)
    return image / 255.0, tf.strings.to_hash_bucket_fast(record, 10)


def worker(folder: str, task: str, only_input: bool) -> None:
    """Measures on one worker; the chief reports."""
    import keras

    import tfdp
    from tfdp.data import pipeline
    from tfdp.data.order import Order
    from tfdp.workers.collectives import workers_of

    strategy = tfdp.connect()
    workers = workers_of(strategy)
    batch = BATCH * workers.count
    images = tfdp.from_tfrecords(f"{folder}/*.tfrecord", parse)
    order = Order(len(images), batch, run_length=images.run_length)
    iterator = pipeline.from_source(images, order, workers).iterator()

    def drain(steps: int) -> None:
        for _ in itertools.islice(iterator, steps):
            pass

    steps = _steps_in(MEASURED_S, drain)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    drain(steps)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    figures = {
        "input_s": wall_s / steps,
        "input_cpu_ms_per_example": 1000 * cpu_s / steps / BATCH,
    }
    if not only_input:
        del iterator
        for name, source in (("compute_s", None), ("step_s", images)):
            data = source or tfdp.from_arrays(*arrays(task, 20 * batch))
            keras.utils.set_random_seed(0)
            with strategy.scope():
                model = build(task, keras)
            figures[name] = _fit_step_s(model, data, batch)
    if workers.is_chief:
        measuring.report(**figures)


def _steps_in(seconds: float, work: Callable[[int], None]) -> int:
    """Returns how many steps take about ``seconds``; runs 40 to measure that, and to warm up."""
    work(20)
    began_s = time.perf_counter()
    work(20)
    return max(20, round(20 * seconds / (time.perf_counter() - began_s)))


def _fit_step_s(model: Any, data: Any, batch: int) -> float:
    """Trains and returns seconds per step."""
    import keras

    import tfdp

    times = EpochTimes()
    clock = keras.callbacks.LambdaCallback(on_epoch_end=times.record)
    steps = 50
    tfdp.fit(
        model,
        data,
        batch_size=batch,
        epochs=4,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[clock],
    )
    return times.step_s(steps)


def measure(folder: str, task: str, workers: int, only_input: bool) -> dict[str, Any]:
    command = [*_MODULE, "worker", folder, task, str(int(only_input))]
    outputs = measuring.run_pinned([command] * workers, measuring.tf_configs(workers))
    return measuring.reports_in(outputs[0])[-1]


def to_markdown(figures: dict[str, Any]) -> str:
    rounds = figures["two_workers"]
    waiting = [100 * (r["step_s"] / (r["compute_s"] + r["input_s"]) - 1) for r in rounds]
    times = [
        (name, Spread.of([1000 * r[key] for r in rounds]).text(1))
        for name, key in (
            ("a step from arrays, ms", "compute_s"),
            ("input of a step alone, ms", "input_s"),
            ("a step from JPEGs, ms", "step_s"),
        )
    ]
    input_cpu_ms = {
        workers: [r["input_cpu_ms_per_example"] for r in reports]
        for workers, reports in figures["input_alone"].items()
    }
    by_workers = [
        (
            f"{workers} over 1 worker",
            measuring.ratios(cpu_ms, input_cpu_ms[1]).text(3),
            Spread.of(cpu_ms).text(3),
        )
        for workers, cpu_ms in input_cpu_ms.items()
    ]
    return (
        f"A step from JPEGs takes {Spread.of(waiting).text(1)} % more than computing and decoding "
        f"on the same core.\n\n{measuring.table(('', 'median (least to most)'), times)}\n\n"
        + measuring.table(("input CPU of a worker's example", "ratio", "ms"), by_workers)
    )


def main() -> None:
    settings = measuring.arguments(__doc__, task="cnn", images=1024, rounds=3)
    if TASKS[settings.task].shape != (32, 32, 3):
        raise SystemExit(f"--task={settings.task}: only tasks on images can read JPEGs")
    if settings.images % (BATCH * max(WORKERS)):
        raise SystemExit(
            f"--images={settings.images}: it has to be a multiple of {BATCH * max(WORKERS)}, or "
            "some batches would be smaller than others"
        )
    began = measuring.machine()
    figures: dict[str, Any] = {"two_workers": [], "input_alone": {w: [] for w in WORKERS}}
    with tempfile.TemporaryDirectory() as folder:
        run([*_MODULE, "write", folder, str(settings.images)])
        total_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.tfrecord"))
        figures["bytes_per_image"] = total_bytes // settings.images
        for _ in range(settings.rounds):
            figures["two_workers"].append(measure(folder, settings.task, 2, only_input=False))
            for workers, reports in figures["input_alone"].items():
                reports.append(measure(folder, settings.task, workers, only_input=True))
    measuring.save_results("input_wait", vars(settings), began, figures, to_markdown(figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3], only_input=sys.argv[4] == "1")
    else:
        main()
