"""How gradients are summed over replicas: in packs, those of the last layer first.

The backward pass comes to the last layer first, so its pack is on the way while the others are
still computed. A pack is one all-reduce, and TensorFlow makes one after the other, in the order in
which they are traced (``tfdp.sums`` gathers what is small, in no order). Small packs begin early
and cost a round of messages each; large ones are sent at full speed, and the last of them when
there is nothing left to compute.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp import sums
from tfdp.errors import BadInput
from tfdp.sums import BYTES_PER_HOP
from tfdp.words import GradientDtype


@dataclasses.dataclass(frozen=True)
class Exchange:
    """How gradients are exchanged; alike on all workers, and part of what makes a run repeat.

    Args:
        gradient_dtype: ``"float32"`` sends gradients as they are. ``"bfloat16"`` halves what is
            sent: each replica's sum over its own examples is rounded, and so is each sum on the way
            around the ring; what the optimizer gets has the gradient's own dtype again. Rows of
            embeddings are sent as they are: TensorFlow gathers no bfloat16.
        bytes_per_pack: the most that an all-reduce sends; None chooses by ``settled_for``.

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

    def settled_for(self, model: keras.Model, replicas: int) -> Exchange:
        """The same with a pack size, chosen from the model and the number of replicas alone.

        On one replica nothing is sent, and nothing chosen.

        A pack of p bytes makes 2 (R - 1) hops of p / R bytes around a ring of R. Of G bytes of
        gradients, all but the last pack may hide behind computing, while each of the G / p packs
        costs its messages' time: the sum of the two is least at p = sqrt(G R h), where h is what a
        link carries in the time of a message.

        Args:
            model: a built model.
            replicas: that sum their gradients.
        """
        if self.bytes_per_pack is not None or replicas == 1:
            return self
        chosen = math.isqrt(self.bytes_of(model) * replicas * BYTES_PER_HOP)
        return dataclasses.replace(self, bytes_per_pack=max(1, chosen))

    def bytes_of(self, model: keras.Model) -> int:
        """What a built model's gradients have on the wire, if they are dense."""
        return sum(
            math.prod(weight.shape) * self._wire_dtype(tf.as_dtype(weight.dtype)).size
            for weight in model.trainable_weights
        )

    def summed(self, gradients: Sequence[Any], others: Sequence[tf.Tensor]) -> list[Any]:
        """The sums over all replicas, in the order of the arguments.

        Args:
            gradients: tensors or IndexedSlices, those of the first layer first.
            others: tensors that are sent as they are, before the gradients' first pack or with it.
        """
        if tf.distribute.get_replica_context().num_replicas_in_sync == 1:
            return [*gradients, *others]
        assert self.bytes_per_pack is not None
        sent = [
            each
            if isinstance(each, tf.IndexedSlices)
            else tf.cast(each, self._wire_dtype(each.dtype))
            for each in gradients
        ] + [*others]
        whole: list[Any] = [None] * len(sent)
        dense: list[tuple[int, tf.Tensor]] = []
        sparse: list[int] = []
        for place in reversed(range(len(sent))):
            if isinstance(sent[place], tf.IndexedSlices):
                sparse.append(place)
            else:
                dense.append((place, sent[place]))
        pieces: dict[int, list[tf.Tensor]] = {place: [] for place, _ in dense}
        for pack in _packs(dense, self.bytes_per_pack):
            for (place, _), total in zip(pack, _summed_at_once([x for _, x in pack]), strict=True):
                pieces[place].append(total)
        for place in sparse:  # embeddings': all packs would wait for them, if they came first
            whole[place] = sums.summed(sent[place])
        for place, totals in pieces.items():
            whole[place] = totals[0] if len(totals) == 1 else tf.concat(totals, axis=0)
        return [
            total if isinstance(total, tf.IndexedSlices) else tf.cast(total, each.dtype)
            for total, each in zip(whole, [*gradients, *others], strict=True)
        ]

    def _wire_dtype(self, dtype: tf.DType) -> tf.DType:
        return tf.bfloat16 if self.gradient_dtype == "bfloat16" and dtype.size > 2 else dtype


def _packs(
    tensors: Sequence[tuple[int, tf.Tensor]], bytes_per_pack: int
) -> Iterator[list[tuple[int, tf.Tensor]]]:
    """Groups tensors of one dtype, in their order, cut where one alone is more than a pack."""
    pack: list[tuple[int, tf.Tensor]] = []
    left = 0
    for place, tensor in tensors:
        for piece in _cut(tensor, bytes_per_pack):
            size = _bytes(piece)
            if pack and (size > left or piece.dtype != pack[0][1].dtype):
                yield pack
                pack = []
            if not pack:
                left = bytes_per_pack
            pack.append((place, piece))
            left -= size
    if pack:
        yield pack


def _cut(tensor: tf.Tensor, bytes_per_pack: int) -> list[tf.Tensor]:
    """A tensor in equal parts of at most ``bytes_per_pack``, or of a row if that is more."""
    if not (tensor.shape.rank and tensor.shape.is_fully_defined()):
        return [tensor]
    rows = tensor.shape[0]
    rows_per_pack = max(1, bytes_per_pack * rows // max(1, _bytes(tensor)))
    count = -(-rows // rows_per_pack)
    if count <= 1:
        return [tensor]
    return tf.split(tensor, [rows * (i + 1) // count - rows * i // count for i in range(count)])  # type: ignore[no-any-return]


def _bytes(tensor: tf.Tensor) -> int:
    """How many bytes a tensor has, or more than any pack where that is not known beforehand."""
    elements = tensor.shape.num_elements()
    return int(1 << 62 if elements is None else elements * tensor.dtype.size)


def _summed_at_once(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    if len(tensors) == 1:
        return [sums.summed(tensors[0])]
    total = sums.summed(tf.concat([tf.reshape(each, [-1]) for each in tensors], axis=0))
    flat = tf.split(total, [each.shape.num_elements() for each in tensors])
    return [tf.reshape(each, like.shape) for each, like in zip(flat, tensors, strict=True)]
