"""Metrics for Prometheus, under TF Serving's names.

prometheus_client can't write these names: it adds ``_total`` to counters. It also takes 3.4 us to
count a call, and the code below 1.4 us.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

# TF Serving's: 33 bounds from 10 us to about 20 minutes, each 1.8 times the one before.
_LATENCY_BOUNDS_US = [10 * 1.8**power for power in range(33)]
_BATCH_SIZE_BOUNDS = [2**power for power in range(13)]
# Names of gRPC's methods, and of REST's as they are in URLs.
_INFERENCE = {"Predict", "Classify", "Regress", "MultiInference", "predict", "classify", "regress"}
_UNKNOWN = ""  # the name under which calls of unknown models are counted

M = TypeVar("M")


class Counter:
    """A number for each set of label values; safe to share between threads.

    Args:
        name: the metric's name.
        labels: names of the labels.
    """

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._name, self._labels = name, labels
        self._values: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, values: tuple[str, ...], amount: int = 1) -> None:
        """Adds ``amount`` to the number of these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0) + amount

    def lines(self) -> Iterator[str]:
        """Yields the lines of Prometheus's text format."""
        yield f"# TYPE {self._name} counter"
        with self._lock:
            numbers = list(self._values.items())
        for values, number in numbers:
            yield f"{self._name}{{{_pairs(self._labels, values)}}} {number}"


class Histogram:
    """A histogram for each set of label values; safe to share between threads.

    Args:
        name: the metric's name.
        labels: names of the labels.
        bounds: upper bounds of the buckets, ascending; a bucket without bound is added.
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
        """Yields the lines of Prometheus's text format."""
        yield f"# TYPE {self._name} histogram"
        with self._lock:
            copies = [(v, list(counts), self._sums[v]) for v, counts in self._buckets.items()]
        for values, counts, total in copies:
            pairs, cumulative = _pairs(self._labels, values), 0
            for bound, count in zip([*self._bounds, "+Inf"], counts, strict=True):
                cumulative += count
                le = bound if isinstance(bound, str) else f"{bound:.6g}"
                yield f'{self._name}_bucket{{{pairs},le="{le}"}} {cumulative}'
            yield f"{self._name}_sum{{{pairs}}} {total:.0f}"
            yield f"{self._name}_count{{{pairs}}} {cumulative}"


class Metrics:
    """The server's metrics: calls, batches, and loads of versions."""

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
        self, models: Container[str], entrypoint: str = "GRPC"
    ) -> Callable[[str, str, grpc.StatusCode, float], None]:
        """Returns a function that counts calls for inference when they end, as in TF Serving.

        Args:
            models: names of the server's models. Calls of other models are counted under one name,
                so that callers can't fill the memory with names.
            entrypoint: how the calls come in, GRPC or REST.
        """

        def observe(method: str, model: str, code: grpc.StatusCode, seconds: float) -> None:
            if method not in _INFERENCE:
                return
            name = model if model in models else _UNKNOWN
            self._requests.add((name, code.name))
            if code is grpc.StatusCode.OK:
                self._latency.observe((name, method, entrypoint), seconds * 1e6)

        return observe

    def observe_batch(self, rows: int) -> None:
        """Counts a computed batch by its number of rows."""
        self._batch_size.observe(("model_server_batch_threads",), rows)

    def counting(self, load: Callable[[Path], M]) -> Callable[[Path], M]:
        """Returns ``load`` with its successes, failures and time counted."""

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
        """Returns all metrics in Prometheus's text format."""
        metrics = (self._loads, self._load_us, self._requests, self._latency, self._batch_size)
        return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(
        f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True)
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
