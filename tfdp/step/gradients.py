"""The all-reduce of gradients: in packs, the last layer's gradients first.

The backward pass reaches the last layer first, so its pack travels while other gradients are still
computed. Each pack is one all-reduce. TensorFlow runs them one after the other in the order of
tracing; packs that ``tfdp.step.all_reduce`` gathers have no order. Small packs start early but cost
one round of messages each. Large packs use the full bandwidth, but nothing is left to compute while
the last one travels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.choices import GradientDtype
from tfdp.errors import BadInput
from tfdp.step import all_reduce
from tfdp.step.all_reduce import BYTES_PER_HOP


@dataclasses.dataclass(frozen=True)
class GradientAllReduce:
    """How gradients are all-reduced.

    The settings are equal on all workers. A resumed run needs the same ones: otherwise the last
    bits of its results differ.

    Args:
        gradient_dtype: ``"float32"`` sends gradients in their own dtype. ``"bfloat16"`` sends half
            the bytes: each replica's gradient is rounded, and so is every partial sum on the way
            around the ring. The optimizer gets sums in the gradient's own dtype. Rows of embeddings
            are sent in their own dtype, because TensorFlow does not gather bfloat16.
        bytes_per_pack: largest size of one all-reduce; None lets ``with_pack_size`` choose it.

    Raises:
        BadInput: if a value is out of range.
    """

    gradient_dtype: GradientDtype = "float32"
    bytes_per_pack: int | None = None

    def __post_init__(self) -> None:
        if self.gradient_dtype not in ("float32", "bfloat16"):
            raise BadInput(
                f"gradient_dtype is {self.gradient_dtype}: it has to be float32 or bfloat16"
            )
        if self.bytes_per_pack is not None and self.bytes_per_pack < 1:
            raise BadInput(f"bytes_per_pack is {self.bytes_per_pack}: it has to be 1 or more")

    def with_pack_size(self, model: keras.Model, replicas: int) -> GradientAllReduce:
        """Returns a copy with a pack size that depends on the model and the replicas alone.

        With one replica nothing is sent, and no size is chosen.

        A pack of p bytes takes 2 (R - 1) hops of p / R bytes around a ring of R replicas. Of G
        bytes of gradients, all packs but the last can travel while gradients are computed, and each
        of the G / p packs costs the time of its messages. The sum of both is least at
        p = sqrt(G R h), where h is the bytes that a link carries in the time of a message.

        Args:
            model: a built model.
            replicas: number of replicas that sum their gradients.
        """
        if self.bytes_per_pack is not None or replicas == 1:
            return self
        chosen = math.isqrt(self.gradient_bytes(model) * replicas * BYTES_PER_HOP)
        return dataclasses.replace(self, bytes_per_pack=max(1, chosen))

    def gradient_bytes(self, model: keras.Model) -> int:
        """Returns the bytes that a replica sends for a built model if all gradients are dense."""
        return sum(
            math.prod(weight.shape) * self._sent_dtype(tf.as_dtype(weight.dtype)).size
            for weight in model.trainable_weights
        )

    def sum(self, gradients: Sequence[Any], others: Sequence[tf.Tensor]) -> list[Any]:
        """Returns sums over all replicas, in the order of the arguments.

        Args:
            gradients: tensors or IndexedSlices, the first layer's first.
            others: tensors that keep their dtype; they travel before or with the first pack.
        """
        if tf.distribute.get_replica_context().num_replicas_in_sync == 1:
            return [*gradients, *others]
        assert self.bytes_per_pack is not None
        sent = [
            gradient
            if isinstance(gradient, tf.IndexedSlices)
            else tf.cast(gradient, self._sent_dtype(gradient.dtype))
            for gradient in gradients
        ] + [*others]
        sums: list[Any] = [None] * len(sent)
        dense: list[tuple[int, tf.Tensor]] = []
        sparse: list[int] = []
        for place in reversed(range(len(sent))):
            if isinstance(sent[place], tf.IndexedSlices):
                sparse.append(place)
            else:
                dense.append((place, sent[place]))
        pieces: dict[int, list[tf.Tensor]] = {place: [] for place, _ in dense}
        for pack in _packs(dense, self.bytes_per_pack):
            totals = _all_reduce_pack([piece for _, piece in pack])
            for (place, _), total in zip(pack, totals, strict=True):
                pieces[place].append(total)
        # Embeddings are mostly the first layer, so their gradients come last; packs must not wait
        # for them.
        for place in sparse:
            sums[place] = all_reduce.all_reduce_sum(sent[place])
        for place, totals in pieces.items():
            sums[place] = totals[0] if len(totals) == 1 else tf.concat(totals, axis=0)
        return [
            total if isinstance(total, tf.IndexedSlices) else tf.cast(total, value.dtype)
            for total, value in zip(sums, [*gradients, *others], strict=True)
        ]

    def _sent_dtype(self, dtype: tf.DType) -> tf.DType:
        return tf.bfloat16 if self.gradient_dtype == "bfloat16" and dtype.size > 2 else dtype


def _packs(
    tensors: Sequence[tuple[int, tf.Tensor]], bytes_per_pack: int
) -> Iterator[list[tuple[int, tf.Tensor]]]:
    """Groups tensors of one dtype in their order; a tensor larger than a pack is cut."""
    pack: list[tuple[int, tf.Tensor]] = []
    left_bytes = 0
    for place, tensor in tensors:
        for piece in _cut(tensor, bytes_per_pack):
            piece_bytes = _bytes(piece)
            if pack and (piece_bytes > left_bytes or piece.dtype != pack[0][1].dtype):
                yield pack
                pack = []
            if not pack:
                left_bytes = bytes_per_pack
            pack.append((place, piece))
            left_bytes -= piece_bytes
    if pack:
        yield pack


def _cut(tensor: tf.Tensor, bytes_per_pack: int) -> list[tf.Tensor]:
    """Cuts a tensor by rows into equal pieces of at most ``bytes_per_pack``, or of one row."""
    if not (tensor.shape.rank and tensor.shape.is_fully_defined()):
        return [tensor]
    rows = tensor.shape[0]
    rows_per_pack = max(1, bytes_per_pack * rows // max(1, _bytes(tensor)))
    count = -(-rows // rows_per_pack)
    if count <= 1:
        return [tensor]
    return tf.split(tensor, [rows * (i + 1) // count - rows * i // count for i in range(count)])  # type: ignore[no-any-return]


def _bytes(tensor: tf.Tensor) -> int:
    """Returns a tensor's size in bytes; more than any pack if it is not known statically."""
    elements = tensor.shape.num_elements()
    return int(1 << 62 if elements is None else elements * tensor.dtype.size)


def _all_reduce_pack(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    if len(tensors) == 1:
        return [all_reduce.all_reduce_sum(tensors[0])]
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    totals = tf.split(
        all_reduce.all_reduce_sum(flat), [tensor.shape.num_elements() for tensor in tensors]
    )
    return [tf.reshape(total, like.shape) for total, like in zip(totals, tensors, strict=True)]
