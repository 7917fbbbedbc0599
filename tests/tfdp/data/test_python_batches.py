from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.data.sources import as_data


class Data(keras.utils.PyDataset):
    """Batches of 2, 2 and 1 numbers, and what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        self.calls.append(index)
        rows = np.arange(2.0 * index, min(2 * index + 2, 5))
        return [rows[:, np.newaxis], {"a": rows.astype("int32")}]

    def on_epoch_begin(self) -> None:
        self.calls.append("begin")

    def on_epoch_end(self) -> None:
        self.calls.append("end")


def numbers(dataset: tf.data.Dataset) -> list[Any]:
    return [y["a"].numpy().tolist() for _, y in dataset]


def test_a_py_dataset_is_read_epoch_by_epoch_and_not_ahead() -> None:
    data = Data()
    dataset = as_data(data)
    assert dataset.cardinality() == 3
    assert dataset.element_spec == (
        tf.TensorSpec([None, 1], tf.float64),
        {"a": tf.TensorSpec([None], tf.int32)},
    )
    assert data.calls == [0, 1, "end"], "as Keras does"
    del data.calls[:]
    assert numbers(dataset.repeat().take(3)) == [[0, 1], [2, 3], [4]]
    assert data.calls == ["begin", 0, 1, 2, "end"]
    assert numbers(dataset) == [[0, 1], [2, 3], [4]]
    as_data(data, is_prediction=True)
    assert data.calls[5:] == ["begin", 0, 1, 2, "end", 0, 1]


def test_batches_are_shuffled_as_keras_shuffles_them() -> None:
    data = Data()
    dataset = as_data(data, shuffle=True)
    random.seed(3)
    expected = []
    for _ in range(2):
        order = [0, 1, 2]
        random.shuffle(order)
        expected += [*order, "end", "begin"]
    random.seed(3)
    del data.calls[:]
    assert len(numbers(dataset.repeat(2))) == 6
    assert data.calls == ["begin", *expected[:-1]]


def counts(end: int) -> Iterator[Any]:
    for number in range(end):
        yield (np.full((1 + number % 2, 3), number),)


def test_a_generator_is_read_once() -> None:
    dataset = as_data(counts(5))
    assert [batch.numpy()[0, 0] for (batch,) in dataset] == [0, 1, 2, 3, 4]
    assert dataset.element_spec == (tf.TensorSpec([None, 3], tf.int64),)
    with pytest.raises(tf.errors.OpError, match=r"the generator has ended.*steps_per_epoch"):
        list(dataset)


def test_a_generator_goes_on_where_it_was() -> None:
    generator = counts(9)
    for expected in ([0, 1, 2], [3, 4, 5]):  # nothing was read ahead
        batches = as_data(generator).take(3)
        assert [batch.numpy()[0, 0] for (batch,) in batches] == expected
    assert next(generator)[0][0, 0] == 6


def test_a_generator_has_no_length() -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(tfdp.BadInput, match=r"a generator has no length.*steps_per_epoch"):
        tfdp.fit(model, counts(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ([1.0] for _ in range(2)), "the generator yields a list"),
        (lambda: iter_of((1, 2, 3, 4)), "a batch is .*it has to be a tuple"),
        (lambda: iter_of((3.0, 1.0)), "has 3.0 in it: each array needs the examples"),
        (lambda: iter_of(), "the data is empty"),
    ],
)
def test_wrong_batches_are_refused(make: Any, message: str) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        as_data(make())


def iter_of(*batches: Any) -> Iterator[Any]:
    yield from batches


class DataLoader:
    """What is used of torch's, which is not installed."""

    dataset = range(5)

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield [np.zeros((3, 2), "float32"), np.array([1, 2, 3])]
        yield [np.zeros((2, 2), "float32"), np.array([4, 5])]


DataLoader.__module__ = "torch.utils.data.dataloader"


def test_a_loader_of_torch_is_read_again_in_each_epoch() -> None:
    dataset = as_data(DataLoader())
    assert dataset.cardinality() == 2
    assert [y.numpy().tolist() for _, y in dataset.repeat(2)] == [[1, 2, 3], [4, 5]] * 2
    with pytest.raises(tfdp.BadInput, match="given beside a DataLoader"):
        as_data(DataLoader(), np.zeros(5))
