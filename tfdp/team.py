"""The workers of a run, as one of them sees them: meeting, and small exchanges between steps."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from cluster import rendezvous
from cluster.spec import Cluster, ClusterError, from_environment
from cluster.wire import Wire
from tfdp.errors import BadInput, PeerFailed, PeerMissing
from tfdp.log import say
from tfdp.peers import PEERS
from tfdp.words import Communication


def connect(
    communication: Communication = "auto", startup_timeout_s: float = 600.0
) -> tf.distribute.Strategy:
    """Joins the cluster that TF_CONFIG describes; without one, takes this machine's devices.

    It has to come before any other use of TensorFlow in the process. From then on the workers watch
    each other: when one is lost the process ends with 138, and with 1 when one ends by an
    exception, wherever the main thread is (docs/faults.md).

    Args:
        communication: how workers all-reduce: ``"nccl"`` (GPUs), ``"ring"`` (any device) or
            ``"auto"``, TensorFlow's choice.
        startup_timeout_s: seconds to wait for the other workers, which TensorFlow itself would do
            for ever.

    Returns:
        A MultiWorkerMirroredStrategy with TF_CONFIG; without, a MirroredStrategy over several
        GPUs, or TensorFlow's default strategy.

    Raises:
        BadInput: if TF_CONFIG is wrong, NCCL is asked for and there is no GPU, or TensorFlow was
            in use already.
        PeerMissing: if a worker did not come; the message names it.
    """
    cluster = cluster_here()
    gpus = tf.config.list_physical_devices("GPU")
    if communication == "nccl" and not gpus:
        raise BadInput(
            "communication is nccl, which needs GPUs, and TensorFlow sees none on this machine: "
            "use ring or auto, or install the CUDA libraries (pip install 'tfdp[train,gpu]')"
        )
    if cluster is None:
        return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
    try:
        channels = rendezvous.meet(cluster, startup_timeout_s, waiting=say)
    except rendezvous.MissingWorkers as error:
        raise PeerMissing(str(error)) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # an earlier process of this worker may be leaving
            raise PeerMissing(f"the port of {cluster.address} is in use: {error}") from None
        raise BadInput(f"can't listen at {cluster.address}, as TF_CONFIG says: {error}") from None
    implementation = tf.distribute.experimental.CommunicationImplementation[communication.upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    wire = Wire(cluster, channels)
    with _alarm(startup_timeout_s), wire.guarding():
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except RuntimeError as error:
            if "program startup" not in str(error):
                raise
            raise BadInput(
                "TensorFlow was used before the workers were connected: make tensors, datasets "
                "and models in functions that run after tfdp.connect(), not at import"
            ) from error
    PEERS.join(wire, cluster.names[cluster.index])
    team_of(strategy).settle()
    wire.begin()  # all are through TensorFlow's start
    return strategy


def cluster_here() -> Cluster | None:
    """The cluster that TF_CONFIG describes, or None; BadInput if it is wrong."""
    try:
        return from_environment()
    except ClusterError as error:
        raise BadInput(str(error)) from None


def is_chief() -> bool:
    """Whether this process is the chief: the one that writes (always true without TF_CONFIG)."""
    cluster = cluster_here()
    return cluster is None or cluster.is_chief


@contextlib.contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    """Ends the process by SIGALRM if its block takes longer, because a worker has frozen in it.

    TensorFlow holds Python's lock while it waits, so that nothing gentler would have its turn.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def team_of(strategy: tf.distribute.Strategy) -> Team:
    """The team of a strategy, made once: its exchanges are traced once too."""
    return Team(strategy)


@dataclasses.dataclass(frozen=True)
class Team:
    """All workers of a strategy, and exchanges between them.

    Every exchange is a collective: all workers call it, at the same point of the program.
    """

    strategy: tf.distribute.Strategy

    @cached_property
    def _members(self) -> list[tuple[str, int]]:
        resolver = self.strategy.cluster_resolver
        jobs = resolver.cluster_spec().as_dict() if resolver is not None else {}
        return [
            (job, task) for job in ("chief", "worker") for task in range(len(jobs.get(job, ())))
        ]

    @property
    def workers(self) -> int:
        """How many processes there are."""
        return max(1, len(self._members))

    @cached_property
    def index(self) -> int:
        """This process's place among them, the chief's being 0."""
        if self.workers == 1:
            return 0
        resolver = self.strategy.cluster_resolver
        return self._members.index((resolver.task_type, resolver.task_id))

    @property
    def is_chief(self) -> bool:
        """Whether this process writes for all."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """Replicas over all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> int:
        """Replicas of each worker."""
        return self.replicas // self.workers

    def gather(self, row: np.ndarray) -> np.ndarray:
        """Every worker's ``row``, stacked in the workers' order: ``[workers, *row.shape]``.

        Args:
            row: an array of int32, int64, float32 or float64, of one shape and dtype everywhere.
        """
        if self.workers == 1:
            return row[np.newaxis]
        table = np.zeros((self.workers, *row.shape), row.dtype)
        table[self.index] = row
        return self._sum(tf.constant(table)).numpy()  # type: ignore[no-any-return]

    def broadcast(self, data: bytes | None) -> bytes:
        """The chief's ``data`` for everybody; what others pass is not looked at."""
        if self.workers == 1:
            return data or b""
        size = int(self.gather(np.array([len(data or b"")], np.int64))[0, 0])
        words = np.zeros(-(-size // 4), np.int32)  # summed as integers, so bits stay what they are
        if self.is_chief and data:
            words = np.frombuffer(data.ljust(4 * len(words), b"\0"), np.int32)
        return self._sum(tf.constant(words)).numpy().tobytes()[:size]  # type: ignore[no-any-return]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Every worker's ``data``, in the workers' order."""
        sizes = self.gather(np.array([len(data)], np.int64))[:, 0]
        words = np.frombuffer(data.ljust(-(-int(sizes.max()) // 4) * 4, b"\0"), np.int32)
        rows = self.gather(words)
        return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def by_chief(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives on the chief, which alone does it, for everybody.

        Args:
            work: gives something that JSON takes.

        Raises:
            BadInput: everywhere, if ``work`` raises it.
            PeerFailed: elsewhere, if ``work`` raises anything else on the chief.
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
        if failure is not None:
            self.settle()
            raise failure
        if "failure" in outcome:
            self.settle()
            raise PeerFailed(f"worker 0 failed: {outcome['failure']}")
        if "bad_input" in outcome:
            self.settle()
            raise BadInput(outcome["bad_input"])
        return outcome["result"]

    def barrier(self) -> None:
        """Returns when every worker has come here."""
        self.gather(np.zeros(1, np.int32))

    def settle(self) -> None:
        """A barrier after which any worker may leave without harm to the others.

        A worker that has what it wants of an exchange may be gone before another has fetched its
        part. So there is a second barrier: who comes to it has seen all others at the first, and
        nobody leaves before it, so that it does no harm if it fails.
        """
        self.barrier()
        with contextlib.suppress(tf.errors.OpError):
            self.barrier()

    @cached_property
    def _sum(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def on_replica(value: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group % self.local_replicas, 0)
            return context.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.where(first, value, tf.zeros_like(value))
            )

        @tf.function(reduce_retracing=True, autograph=False)
        def everywhere(value: tf.Tensor) -> Any:
            total = self.strategy.run(on_replica, args=(value,))
            return self.strategy.experimental_local_results(total)[0]

        return everywhere  # type: ignore[no-any-return]
