"""Keras's losses, and means of losses, on a replica's share of a global batch."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.step import keras_private
from tfdp.step import share as share_module
from tfdp.step.metrics import restored_if_empty
from tfdp.step.rules import Rules
from tfdp.step.share import Share


class ShareLosses:
    """Makes Keras compute losses on a share, by a step's rules.

    Args:
        rules: how the replicas' results combine.

    Attributes:
        notes: keys of ``keras_private.NOTES`` that were found while tracing.
    """

    def __init__(self, rules: Rules) -> None:
        self.notes: set[str] = set()
        self._rules = rules
        self._replica = threading.local()  # MirroredStrategy traces each replica in a thread

    @contextlib.contextmanager
    def of(self, share: Share, model: Any) -> Iterator[None]:
        """Inside the block, a replica's step is traced on this share; its rules start anew."""
        self._replica.share, self._replica.places = share, Counter()
        with restored_if_empty(model, share), share_module.computed(share):
            yield

    @contextlib.contextmanager
    def adapted(self) -> Iterator[None]:
        """Inside the block, Keras computes losses and means on shares; call it once for a trace."""
        with (
            keras_private.losses_of_shares(lambda: self._replica.share, self._term, self.notes.add),
            keras_private.means_of_scalars(self._scalar),
        ):
            yield

    def _term(self, value: Any, given: Any) -> Any:
        how = self._rules.term(self._next("term"))
        if not self._rules.is_rehearsed and given is not None and given.shape.rank:
            how = "sum"  # Keras adds up the values of single examples
        return self._replica.share.as_mean(value, how)

    def _scalar(self, metric: keras.metrics.Metric, value: Any) -> tuple[Any, Any]:
        how = self._rules.scalar(self._next("scalar"))
        share = self._replica.share
        return share.as_mean(value, how), share.contribution(tf.ones_like(value))

    def _next(self, kind: str) -> int:
        """Returns how many calls of a kind there were before on this share."""
        place = self._replica.places[kind]
        self._replica.places[kind] += 1
        return int(place)
