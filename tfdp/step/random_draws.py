"""Random numbers of ``tf.random`` and ``tf.nn.dropout`` within a step.

``tf.random.normal`` and its like count their draws in a state of the process. Replicas with equal
seeds would draw the same numbers, and a resumed run would draw others than an undisturbed one.
Within a step they are replaced by their stateless twins, whose seed is a function of (global seed,
place in the step, step, replica).
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdp.step.keras_private import replaced

_MOST_BATCHES = 4  # joined into one, of which a rehearsal knows the rows

Seed = Callable[[int | None], tf.Tensor]


@contextlib.contextmanager
def stateless(seed: Seed) -> Iterator[None]:
    """Inside the block, functions of ``tf.random`` draw from seeds that ``seed`` returns.

    Args:
        seed: returns int32[2] for the op's own seed, or None; called once for each draw.
    """

    def normal_like(name: str) -> Callable[..., tf.Tensor]:
        def drawn(
            shape: Any,
            mean: Any = 0.0,
            stddev: Any = 1.0,
            dtype: Any = tf.float32,
            seed: int | None = None,
            name: str | None = None,
        ) -> tf.Tensor:
            return getattr(tf.random, stateless_name)(shape, draw(seed), mean, stddev, dtype, name)

        stateless_name = f"stateless_{name}"
        return drawn

    def uniform(
        shape: Any,
        minval: Any = 0,
        maxval: Any = None,
        dtype: Any = tf.float32,
        seed: int | None = None,
        name: str | None = None,
    ) -> tf.Tensor:
        if maxval is None:
            maxval = 1
        return tf.random.stateless_uniform(shape, draw(seed), minval, maxval, dtype, name)

    def categorical(
        logits: Any,
        num_samples: Any,
        dtype: Any = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> tf.Tensor:
        dtype = tf.int64 if dtype is None else dtype
        return tf.random.stateless_categorical(logits, num_samples, draw(seed), dtype, name)

    def shuffle(value: Any, seed: int | None = None, name: str | None = None) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(value, draw(seed), name=name)

    def dropout(
        x: Any,
        rate: Any,
        noise_shape: Any = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> tf.Tensor:
        return tf.nn.experimental.stateless_dropout(
            x, rate, draw(seed), "auto_select", noise_shape, name
        )

    draw = seed
    with contextlib.ExitStack() as stack:
        for name in ("normal", "truncated_normal"):
            stack.enter_context(replaced(tf.random, name, normal_like(name)))
        for function in (uniform, categorical, shuffle):
            stack.enter_context(replaced(tf.random, function.__name__, function))
        stack.enter_context(replaced(tf.nn, "dropout", dropout))
        yield


def of_step(step: tf.Tensor) -> Seed:
    """Returns a function that gives seeds from (global seed, draw, ``step``, replica).

    Args:
        step: int64 scalar, number of earlier updates.
    """
    draws: Counter[int] = Counter()  # MirroredStrategy has a thread for each replica

    def seed(own: int | None) -> tf.Tensor:
        draw = draws[threading.get_ident()]
        draws[threading.get_ident()] += 1
        global_seed = tf.compat.v1.get_default_graph().seed or 0
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        words = tf.constant([own or 0, global_seed & 0x7FFFFFFF], tf.int32)
        for number in (draw, step, replica):
            words = tf.random.experimental.stateless_fold_in(words, tf.cast(number, tf.int32))
        return words

    return seed


@contextlib.contextmanager
def of_rows(rows: Callable[[], range], whole: int) -> Iterator[None]:
    """Inside the block, some rows of a batch get the draws that they have in the whole batch.

    So a part of a batch can be compared with the whole. A draw with a row for each of the part's
    examples is made for the whole batch, and cut; also one for a few such batches that were joined,
    as of real and generated images.

    Args:
        rows: returns the rows that this thread computes.
        whole: number of rows of the whole batch.
    """
    draws: Counter[int] = Counter()

    def seed(own: int | None) -> tf.Tensor:
        draws[threading.get_ident()] += 1
        return tf.constant([own or 0, draws[threading.get_ident()]], tf.int32)

    def cut(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(shape: Any, *args: Any, **options: Any) -> tf.Tensor:
            sizes, part = [int(size) for size in shape], rows()
            batches, rest = divmod(sizes[0], len(part)) if sizes else (0, 0)
            if rest or not 1 <= batches <= _MOST_BATCHES:
                return function(shape, *args, **options)
            drawn = function([batches * whole, *sizes[1:]], *args, **options)
            by_batch = tf.reshape(drawn, [batches, whole, *sizes[1:]])
            return tf.reshape(by_batch[:, part.start : part.stop], sizes)

        return wrapper

    def dropout(
        x: Any,
        rate: Any,
        seed: Any,
        rng_alg: str = "auto_select",
        noise_shape: Any = None,
        name: str | None = None,
    ) -> tf.Tensor:
        shape = x.shape if noise_shape is None else noise_shape
        kept = tf.random.stateless_uniform(shape, seed) >= rate
        return tf.where(kept, x / tf.cast(1 - rate, x.dtype), tf.zeros_like(x))

    def categorical(
        logits: Any, num_samples: Any, seed: Any, dtype: Any = tf.int64, name: str | None = None
    ) -> tf.Tensor:
        rows, classes = logits.shape
        uniform = tf.random.stateless_uniform([rows, num_samples, classes], seed)
        chances = tf.cast(logits, tf.float32)[:, tf.newaxis] - tf.math.log(-tf.math.log(uniform))
        return tf.argmax(chances, axis=-1, output_type=dtype)

    def unshuffled(value: Any, seed: Any, alg: str = "auto_select", name: Any = None) -> Any:
        return value  # a part can't be shuffled as the whole

    names = ("stateless_normal", "stateless_truncated_normal", "stateless_uniform")
    with stateless(seed), contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(replaced(tf.random, name, cut(getattr(tf.random, name))))
        for owner, name, function in (
            (tf.random, "stateless_categorical", categorical),
            (tf.random.experimental, "stateless_shuffle", unshuffled),
            (tf.nn.experimental, "stateless_dropout", dropout),
        ):
            stack.enter_context(replaced(owner, name, function))
        yield
