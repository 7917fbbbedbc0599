"""The workers of a strategy, and small exchanges between them in Python, outside of a step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput, PeerFailed
from tfdp.whereabouts import ALL_REDUCE, SIGNS, marked
from tfdp.workers.faults import FAULTS


@cache
def workers_of(strategy: tf.distribute.Strategy) -> Workers:
    """Returns the workers of a strategy: one object per strategy, so its exchanges trace once."""
    return Workers(strategy)


@dataclasses.dataclass(frozen=True)
class Workers:
    """All workers of a strategy, and exchanges between them.

    Every exchange is a collective: all workers call it, at the same point of the program.

    Args:
        strategy: a MultiWorkerMirroredStrategy, or any strategy of a single process.
    """

    strategy: tf.distribute.Strategy

    @cached_property
    def _tasks(self) -> list[tuple[str, int]]:
        """Job and task index of every worker, the chief first."""
        resolver = self.strategy.cluster_resolver
        jobs = resolver.cluster_spec().as_dict() if resolver is not None else {}
        return [
            (job, task) for job in ("chief", "worker") for task in range(len(jobs.get(job, ())))
        ]

    @property
    def count(self) -> int:
        """Number of worker processes."""
        return max(1, len(self._tasks))

    @cached_property
    def index(self) -> int:
        """Index of this process among the workers; the chief's is 0."""
        if self.count == 1:
            return 0
        resolver = self.strategy.cluster_resolver
        return self._tasks.index((resolver.task_type, resolver.task_id))

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files for all workers."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Returns the name of a worker, for people: if some are away, indices are not ranks."""
        return FAULTS.names[index] if self.count > 1 and FAULTS.names[0] else f"worker {index}"

    @property
    def replicas(self) -> int:
        """Number of replicas over all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> int:
        """Number of replicas on each worker."""
        return self.replicas // self.count

    @marked(ALL_REDUCE)
    def gather(self, row: np.ndarray) -> np.ndarray:
        """Returns the ``row`` of every worker, in worker order: ``[workers, *row.shape]``.

        Args:
            row: int32, int64, float32 or float64, of one shape and dtype on all workers.
        """
        if self.count == 1:
            return row[np.newaxis]
        table = np.zeros((self.count, *row.shape), row.dtype)
        table[self.index] = row
        SIGNS.give()
        return self._all_reduce_sum(tf.constant(table)).numpy()  # type: ignore[no-any-return]

    @marked(ALL_REDUCE)
    def broadcast(self, data: bytes | np.ndarray | None) -> bytes:
        """Returns the chief's ``data`` on every worker; the argument of others is ignored.

        Args:
            data: bytes, as such or as uint8.
        """
        own = b"" if data is None or not self.is_chief else bytes(data)
        if self.count == 1:
            return own
        size = int(self.gather(np.array([len(own)], np.int64))[0, 0])
        total = self._all_reduce_sum(tf.constant(_as_words(own, size)))
        return total.numpy().tobytes()[:size]  # type: ignore[no-any-return]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Returns the ``data`` of every worker, in worker order; sizes may differ."""
        sizes = self.gather(np.array([len(data)], np.int64))[:, 0]
        rows = self.gather(_as_words(data, int(sizes.max())))
        return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def run_on_chief(self, work: Callable[[], Any]) -> Any:
        """Calls ``work`` on the chief alone and returns its result on every worker.

        Args:
            work: returns a value that JSON can hold.

        Raises:
            BadInput: on all workers, if ``work`` raises it.
            PeerFailed: on the other workers, if ``work`` raises anything else on the chief.
        """
        outcome: dict[str, Any] = {}
        failure: Exception | None = None
        if self.is_chief:
            try:
                outcome = {"result": work()}
            except BadInput as error:
                outcome = {"bad_input": str(error)}
            except Exception as error:
                failure = error
                outcome = {"failure": repr(error)}
        outcome = json.loads(self.broadcast(json.dumps(outcome).encode()))
        if "result" in outcome:
            return outcome["result"]
        self.settle()
        if failure is not None:
            raise failure
        if "failure" in outcome:
            raise PeerFailed(f"{self.name(0)} failed: {outcome['failure']}")
        raise BadInput(outcome["bad_input"])

    def barrier(self) -> None:
        """Returns when every worker has called it."""
        self.gather(np.zeros(1, np.int32))

    def settle(self) -> None:
        """A barrier after which any worker may leave without harm to the others.

        A worker may leave an exchange with its result before another worker has fetched its own.
        The second barrier prevents that: a worker reaches it only after all others have reached
        the first one, and no worker leaves before it. So a failure of the second one is harmless.
        """
        self.barrier()
        with contextlib.suppress(tf.errors.OpError):
            self.barrier()

    @cached_property
    def _all_reduce_sum(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def on_replica(value: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.equal(context.replica_id_in_sync_group % self.local_replicas, 0)
            return context.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.where(is_first, value, tf.zeros_like(value))
            )

        @tf.function(reduce_retracing=True, autograph=False)
        def on_all_replicas(value: tf.Tensor) -> Any:
            total = self.strategy.run(on_replica, args=(value,))
            return self.strategy.experimental_local_results(total)[0]

        return on_all_replicas  # type: ignore[no-any-return]


def _as_words(data: bytes, size: int) -> np.ndarray:
    """Returns ``data`` as int32, whose sum with zeros keeps all bits, with room for ``size`` bytes.

    The room is a multiple of a kilobyte: TensorFlow traces an exchange for each other length.
    """
    return np.frombuffer(data.ljust(-(-size // 1024) * 1024, b"\0"), np.int32)
