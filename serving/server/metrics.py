"""What happens in the server, counted, under the names that TF Serving gives it to Prometheus.

The text is made here rather than by prometheus_client, which would add ``_total`` to TF Serving's
counters; and a call is counted in about a microsecond.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

# TF Serving's: 33 from 10 us on, each 1.8 times the one before; about 20 minutes.
_LATENCY_BOUNDS_US = [10 * 1.8**power for power in range(33)]
_BATCH_SIZE_BOUNDS = [2**power for power in range(13)]
_INFERENCE = {"Predict", "Classify", "Regress", "MultiInference"}
_UNKNOWN = ""  # stands for every model that the server doesn't have

M = TypeVar("M")


class Counter:
    """A number for each set of label values; safe to share between threads.

    Args:
        name: as Prometheus sees it.
        labels: names of the labels.
    """

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._name, self._labels = name, labels
        self._values: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, values: tuple[str, ...], amount: int = 1) -> None:
        """Adds to the number of these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0) + amount

    def lines(self) -> Iterator[str]:
        """Prometheus's text."""
        yield f"# TYPE {self._name} counter"
        with self._lock:
            numbers = list(self._values.items())
        for values, number in numbers:
            yield f"{self._name}{{{_pairs(self._labels, values)}}} {number}"


class Histogram:
    """How observed values are spread, for each set of label values; safe to share.

    Args:
        name: as Prometheus sees it.
        labels: names of the labels.
        bounds: upper bounds of the buckets, ascending; one without bound is added.
    """

    def __init__(self, name: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._labels, self._bounds = name, labels, bounds
        self._buckets: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observe(self, values: tuple[str, ...], value: float) -> None:
        """Counts ``value`` under these label values."""
        index = bisect_left(self._bounds, value)
        with self._lock:
            buckets = self._buckets.get(values)
            if buckets is None:
                buckets = self._buckets[values] = [0] * (len(self._bounds) + 1)
                self._sums[values] = 0.0
            buckets[index] += 1
            self._sums[values] += value

    def lines(self) -> Iterator[str]:
        """Prometheus's text."""
        yield f"# TYPE {self._name} histogram"
        with self._lock:
            spread = [(v, list(counts), self._sums[v]) for v, counts in self._buckets.items()]
        for values, counts, total in spread:
            pairs, so_far = _pairs(self._labels, values), 0
            for bound, count in zip([*self._bounds, "+Inf"], counts, strict=True):
                so_far += count
                le = bound if isinstance(bound, str) else f"{bound:.6g}"
                yield f'{self._name}_bucket{{{pairs},le="{le}"}} {so_far}'
            yield f"{self._name}_sum{{{pairs}}} {total:.0f}"
            yield f"{self._name}_count{{{pairs}}} {so_far}"


class Metrics:
    """What this server counts: its calls, and the versions that it loads."""

    def __init__(self) -> None:
        self._requests = Counter(":tensorflow:serving:request_count", ("model_name", "status"))
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            ("model_name", "API", "entrypoint"),
            _LATENCY_BOUNDS_US,
        )
        self._batch_size = Histogram(
            ":tensorflow:serving:batching_session:processed_batch_size",
            ("thread_pool_name",),
            _BATCH_SIZE_BOUNDS,
        )
        self._loads = Counter(
            ":tensorflow:cc:saved_model:load_attempt_count", ("model_path", "status")
        )
        self._load_us = Counter(":tensorflow:cc:saved_model:load_latency", ("model_path",))

    def observer(
        self, models: Container[str]
    ) -> Callable[[str, str, grpc.StatusCode, float], None]:
        """Counts calls for inference when they end, as TF Serving does.

        Args:
            models: the names of the server's models. Others are counted as one, so that callers
                can't fill the memory with names.
        """

        def observe(method: str, model: str, code: grpc.StatusCode, seconds: float) -> None:
            if method not in _INFERENCE:
                return
            name = model if model in models else _UNKNOWN
            self._requests.add((name, code.name))
            if code is grpc.StatusCode.OK:
                self._latency.observe((name, method, "GRPC"), seconds * 1e6)

        return observe

    def observe_batch(self, rows: int) -> None:
        """Counts a batch that was computed."""
        self._batch_size.observe(("model_server_batch_threads",), rows)

    def counting(self, load: Callable[[Path], M]) -> Callable[[Path], M]:
        """The same loader, its successes and failures and its time counted."""

        def counted(folder: Path) -> M:
            began_s, status = time.perf_counter(), "fail"
            try:
                model = load(folder)
                status = "success"
            finally:
                self._loads.add((str(folder), status))
                self._load_us.add((str(folder),), int((time.perf_counter() - began_s) * 1e6))
            return model

        return counted

    def page(self) -> str:
        """Everything, in Prometheus's text format."""
        metrics = (self._loads, self._load_us, self._requests, self._latency, self._batch_size)
        return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(
        f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True)
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
