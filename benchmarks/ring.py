"""A model of a training step on many workers: computing, then ring all-reduces.

In a ring of R workers, each sends 2 (R - 1) messages of 1 / R of the bytes to its neighbour: R - 1
to add gradients up, and R - 1 to distribute the sums (Patarasuk and Yuan, 2009). G bytes of
gradients are sent in packs of sqrt(G R h) bytes, as ``tfdp.step.gradients`` chooses, so that

    reduce = 2 (R - 1) packs message + 2 (R - 1) / R G / bandwidth

holds for the time of links as well as for that of processors; the slower of the two counts. Up to
``overlap`` of the computing goes on during the all-reduces.
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


def step_s(compute_s: float, reduce_s: float, overlap: float = 0.0) -> float:
    """Returns seconds of a step; the share ``overlap`` of ``compute_s`` hides all-reduces."""
    return compute_s + max(0.0, reduce_s - overlap * compute_s)


def ring_traffic(workers: int, gradient_bytes: float) -> tuple[int, float]:
    """Returns the number of messages that a worker sends one after the other, and their bytes."""
    packs = math.ceil(math.sqrt(gradient_bytes / (workers * BYTES_PER_HOP)))
    return 2 * (workers - 1) * packs, 2 * (workers - 1) / workers * gradient_bytes


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
    """Assumptions of ``predict_gpus``: ResNet-50 with NCCL on GPUs, 8 of them in a node.

    Args:
        gradient_bytes: 25.6M parameters as float32; half of it as bfloat16.
        compute_s: seconds of a step of 128 images on one GPU.
        overlap: share of the computing that hides all-reduces: the backward pass, two thirds.
        message_s: seconds of one message between two GPUs.
        usable: share of the network's bandwidth that is usable. Rings of a node's GPUs share its
            network card; links inside a node are so much faster that they don't count.
    """

    gradient_bytes: float = 25.6e6 * 4
    compute_s: float = 0.1
    overlap: float = 2 / 3
    message_s: float = 10e-6
    usable: float = 0.8


def predict_gpus(assumed: Assumptions, gbit_per_s: float, gpus: int) -> tuple[float, float]:
    """Returns seconds of a step, and its speed over ``gpus`` times one GPU's (efficiency)."""
    network = RingCost(assumed.message_s, 8 / (gbit_per_s * 1e9 * assumed.usable))
    reduce_s = network.reduce_s(gpus, assumed.gradient_bytes)
    predicted_s = step_s(assumed.compute_s, reduce_s, assumed.overlap)
    return predicted_s, assumed.compute_s / predicted_s
