"""A model of a training step on many workers: computing, then ring all-reduces.

In a ring of R workers, each sends 2 (R - 1) messages of 1 / R of the bytes to its neighbour: R - 1
to add gradients up, and R - 1 to distribute the sums (Patarasuk and Yuan, 2009). G bytes of
gradients are sent in packs of sqrt(G R h) bytes, as ``tfdp.step.gradients`` chooses, so that

    reduce = 2 (R - 1) packs message + 2 (R - 1) / R G / bandwidth

holds for the time of links as well as for that of processors; the slower of the two counts.
Packs travel one after the other, the first one when its gradients are computed. ``overlap`` is the
share of the computing during which gradients become ready.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BYTES_PER_HOP = 1 << 18  # h; a copy from tfdp.step.all_reduce, which imports TensorFlow


@dataclasses.dataclass(frozen=True)
class RingCost:
    """Time that links, or processors, need in a ring.

    Args:
        message_s: seconds per message, however short.
        s_per_byte: seconds per byte, the reciprocal of the bandwidth.
    """

    message_s: float
    s_per_byte: float

    def reduce_s(self, workers: int, gradient_bytes: float) -> float:
        """Returns seconds of the all-reduces of all packs."""
        messages, sent_bytes = ring_traffic(workers, gradient_bytes)
        return messages * self.message_s + sent_bytes * self.s_per_byte


def step_s(
    compute_s: float, reduce_s: float, overlap: float = 0.0, packs: float = math.inf
) -> float:
    """Returns seconds of a step whose gradients travel in equal packs.

    The gradients become ready at an even rate while the share ``overlap`` of ``compute_s`` passes.
    The first pack waits for the first 1 / ``packs`` of them, and nothing hides the last pack.
    """
    hidden_s = overlap * compute_s * (1 - 1 / packs)
    return compute_s + max(reduce_s - hidden_s, reduce_s / packs)


def pack_count(workers: int, gradient_bytes: float, bytes_per_pack: float | None = None) -> int:
    """Returns the number of packs; without ``bytes_per_pack``, of the size that tfdp chooses."""
    pack_bytes = bytes_per_pack or math.sqrt(gradient_bytes * workers * BYTES_PER_HOP)
    return math.ceil(gradient_bytes / pack_bytes)


def ring_traffic(workers: int, gradient_bytes: float) -> tuple[int, float]:
    """Returns the number of messages that a worker sends one after the other, and their bytes."""
    messages = 2 * (workers - 1) * pack_count(workers, gradient_bytes)
    return messages, 2 * (workers - 1) / workers * gradient_bytes


class MeasuredStep(NamedTuple):
    """A measured step without overlap of computing and all-reduce.

    Args:
        workers: number of workers; to fit, 2 or more.
        gradient_bytes: bytes of all gradients.
        workers_per_core: 1 or more; processors need so many times as long.
        compute_s: seconds of the step without the all-reduce.
        step_s: seconds of the step.
    """

    workers: int
    gradient_bytes: float
    workers_per_core: float
    compute_s: float
    step_s: float


def fit(steps: Sequence[MeasuredStep]) -> RingCost:
    """Returns the cost with the least squares of relative errors of step times.

    Raises:
        ValueError: if the steps don't determine both the cost of messages and that of bytes.
    """
    steps_s = np.array([step.step_s for step in steps], np.float64)
    reduce_s = steps_s - np.array([step.compute_s for step in steps], np.float64)
    traffic = np.array([ring_traffic(s.workers, s.gradient_bytes) for s in steps], np.float64)
    scale = np.linalg.norm(traffic, axis=0)  # messages and bytes differ by many orders
    if np.linalg.matrix_rank(traffic / scale) < 2:
        raise ValueError(f"{steps}: two sizes or two numbers of workers are needed at least")
    weights = np.array([step.workers_per_core for step in steps], np.float64) / steps_s
    rows, target = traffic / scale * weights[:, None], reduce_s / steps_s
    solution = np.linalg.lstsq(rows, target, rcond=None)[0]
    if solution.min() < 0:  # no time is negative: take the better fit with one of the two alone
        single = [max(0.0, float(column @ target / (column @ column))) for column in rows.T]
        errors = [
            np.linalg.norm(target - column * value)
            for column, value in zip(rows.T, single, strict=True)
        ]
        solution = np.where(np.arange(2) == int(np.argmin(errors)), single, 0.0)
    return RingCost(*(solution / scale).tolist())


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Assumptions of ``predict_gpus``: ResNet-50 with NCCL on GPUs, one of them in a node.

    Args:
        gradient_bytes: 25.6M parameters as float32; half of it as bfloat16.
        compute_s: seconds of a step of 128 images on one GPU.
        overlap: share of the computing during which gradients become ready: the backward pass,
            which has twice the operations of the forward pass.
        message_s: seconds of one message between two nodes. NCCL's own model of a ring (Simple
            protocol, src/graph/tuning.cc) has 9.6 us in version 2.8, and 14 us in 2.20.
        usable: share of the network's bandwidth that is usable.
        gpus_per_node: 1 or more.
        nics_per_node: network cards of a node, over which its rings are spread.
        node_message_s: seconds of one message inside a node; as in NCCL's model, by NVLink.
        node_gbit_per_s: usable bandwidth of a GPU inside a node, in one direction.
        bytes_per_pack: as of tfdp.train; None is the size that tfdp chooses.
        accumulate_steps: steps of ``compute_s`` in an update, which has one all-reduce.
    """

    gradient_bytes: float = 25.6e6 * 4
    compute_s: float = 0.1
    overlap: float = 2 / 3
    message_s: float = 10e-6
    usable: float = 0.8
    gpus_per_node: int = 1
    nics_per_node: int = 1
    node_message_s: float = 3.4e-6
    node_gbit_per_s: float = 1000.0
    bytes_per_pack: float | None = None
    accumulate_steps: int = 1


def predict_gpus(assumed: Assumptions, gbit_per_s: float, gpus: int) -> tuple[float, float]:
    """Returns seconds of an update, and its speed over ``gpus`` times one GPU's (efficiency).

    The ring visits the GPUs of a node one after the other. So a node sends as many bytes over the
    network as a GPU sends to the next one, however many GPUs it has. A piece travels twice around
    the ring without two hops, and so crosses 2 N borders of the N nodes, or 2 N - 2 if each has one
    GPU. (NCCL's own model, src/graph/tuning.cc, has 2 N - 2 for all.) The slower link counts.

    Args:
        assumed: all but the network and the number of GPUs.
        gbit_per_s: bandwidth of a network card, in one direction.
        gpus: R, 1 or more.
    """
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    packs = pack_count(gpus, assumed.gradient_bytes, assumed.bytes_per_pack)
    borders = 2 * nodes - 2 // assumed.gpus_per_node if nodes > 1 else 0
    messages_s = borders * assumed.message_s
    messages_s += (2 * (gpus - 1) - borders) * assumed.node_message_s
    network_s = 8e-9 / (gbit_per_s * assumed.usable * assumed.nics_per_node) if nodes > 1 else 0.0
    node_s = 8e-9 / assumed.node_gbit_per_s if gpus > nodes else 0.0
    sent_bytes = 2 * (gpus - 1) / gpus * assumed.gradient_bytes
    reduce_s = packs * messages_s + sent_bytes * max(network_s, node_s)
    earlier_s = (assumed.accumulate_steps - 1) * assumed.compute_s
    update_s = earlier_s + step_s(assumed.compute_s, reduce_s, assumed.overlap, packs)
    return update_s, (earlier_s + assumed.compute_s) / update_s
