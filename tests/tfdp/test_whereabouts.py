"""Where the main thread is, as another thread finds out while it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdp import whereabouts
from tfdp.whereabouts import CALLBACK, ELSEWHERE, INPUT, STEP, Place, marked
from tfdp.workers.collectives import Workers

FILE = "test_whereabouts.py"
places: list[Place] = []


def look(find: Callable[[], Place] = whereabouts.of_main_thread) -> Place:
    """Looks from another thread, while the main thread is in here."""
    with ThreadPoolExecutor(1) as pool:
        places.append(pool.submit(find).result())
    return places[-1]


@marked("outer")
def outer(inner: Callable[[], Any] = look) -> Any:
    return inner()


@marked("inner")
def inner() -> Place:
    return look()


def test_of_two_places_the_inner_one_counts() -> None:
    assert (outer().name, outer(inner).name) == ("outer", "inner")
    assert look().name == ELSEWHERE


def test_the_line_is_the_users() -> None:
    place = outer()
    assert place.line.startswith(f"look at {FILE}:"), "the innermost that is not Python's own"
    assert place.hook == ""


def test_a_mark_changes_nothing_about_a_function() -> None:
    def function() -> None: ...

    assert marked("a place")(function) is function


class Looking(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        look()

    def on_train_begin(self, logs: Any = None) -> None:
        outer()


def test_a_callback_is_named_with_its_hook() -> None:
    listed = keras.callbacks.CallbackList([Looking()])
    listed.on_epoch_end(0)
    place = places[-1]
    assert (place.name, place.hook) == (CALLBACK, "Looking.on_epoch_end")
    listed.on_train_begin()
    place = places[-1]
    assert (place.name, place.hook) == ("outer", "Looking.on_train_begin")


def test_an_exchange_of_workers_is_found_and_gives_signs() -> None:
    class TwoWorkers(Workers):
        count, index = 2, 0

        @property
        def _all_reduce_sum(self) -> Any:  # type: ignore[override]
            return lambda table: (look(), table)[1]

    before = whereabouts.SIGNS.count
    TwoWorkers(tf.distribute.get_strategy()).gather_bytes(b"abc")
    assert places[-1].name == whereabouts.ALL_REDUCE
    assert whereabouts.SIGNS.count == before + 2


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def batches(read: Callable[[], Any]) -> Any:
    def read_one(_: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(read, [], tf.int64)

    return iter(tf.data.Dataset.range(10).map(read_one))


@marked(STEP, input="iterator")
def step(iterator: Any) -> Place:
    return look(whereabouts.probed)


def stuck(event: threading.Event) -> np.ndarray:
    event.wait(60)
    return np.int64(0)


def test_a_step_whose_batch_does_not_come_waits_for_input(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whereabouts, "PROBE_S", 0.5)
    entered = threading.Event()

    def read() -> np.ndarray:
        entered.set()
        return stuck(released)

    iterator = batches(read)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, iterator)
        assert entered.wait(20)
        place = step(iterator)
        released.set()
    assert place.name == INPUT
    assert place.line.startswith(f"stuck at {FILE}:")


def test_a_step_whose_batch_comes_computes(released: threading.Event) -> None:
    entered = threading.Event()

    def compute() -> np.ndarray:
        entered.set()
        return stuck(released)

    @tf.function
    def computing() -> tf.Tensor:
        return tf.numpy_function(compute, [], tf.int64)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(computing)
        assert entered.wait(20)
        place = step(batches(lambda: np.int64(1)))
        released.set()
        result.result()
    assert place.name == STEP
    assert place.line.startswith(f"stuck at {FILE}:")
