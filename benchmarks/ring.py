"""A model of a step on many workers: computing, then a ring all-reduce.

In a ring of N, every worker sends 2(N-1) pieces of 1/N of the gradients to its neighbour, N-1 to
add them up and N-1 to hand the sums round (Patarasuk and Yuan, 2009):

    step = compute + 2(N-1) latency + 2(N-1)/N bytes / bandwidth

where up to ``overlap`` of the computing hides the all-reduce.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ring:
    """A network.

    Args:
        latency_s: of one piece, from a worker to the next.
        s_per_byte: of a stream, the reciprocal of its bandwidth.
    """

    latency_s: float
    s_per_byte: float

    def reduce_s(self, workers: int, gradient_bytes: float) -> float:
        """Seconds of an all-reduce."""
        pieces, share = terms(workers, gradient_bytes)
        return pieces * self.latency_s + share * self.s_per_byte

    def step_s(
        self, workers: int, gradient_bytes: float, compute_s: float, overlap: float = 0.0
    ) -> float:
        """Seconds of a step; of ``compute_s``, the share ``overlap`` goes on while bytes travel."""
        left_s = self.reduce_s(workers, gradient_bytes) - overlap * compute_s
        return compute_s + max(0.0, left_s)


def terms(workers: int, gradient_bytes: float) -> tuple[int, float]:
    """How many pieces a worker sends one after the other, and how many bytes these are."""
    return 2 * (workers - 1), 2 * (workers - 1) / workers * gradient_bytes


def fit(points: Sequence[tuple[int, float, float, float]]) -> Ring:
    """The ring for which modelled steps are nearest to measured ones, relative to these.

    Args:
        points: workers (2 or more), bytes of gradients, seconds of computing, seconds of the step;
            nothing of the all-reduce is hidden.

    Raises:
        ValueError: the points can't tell latency from bandwidth.
    """
    step_s = np.array([step_s for *_, step_s in points], np.float64)
    reduce_s = step_s - np.array([compute_s for _, _, compute_s, _ in points], np.float64)
    rows = np.array([terms(workers, size) for workers, size, *_ in points], np.float64)
    if np.linalg.matrix_rank(rows / np.linalg.norm(rows, axis=0)) < 2:
        raise ValueError(f"{points}: two sizes or two numbers of workers are needed at least")
    scale = np.linalg.norm(rows, axis=0)  # seconds and bytes differ by many orders
    rows, target = rows / scale / step_s[:, None], reduce_s / step_s
    found = np.linalg.lstsq(rows, target, rcond=None)[0]
    if found.min() < 0:  # neither can be: then one alone explains most, of those that may
        alone = [max(0.0, float(row @ target / (row @ row))) for row in rows.T]
        left = [np.linalg.norm(target - row * one) for row, one in zip(rows.T, alone, strict=True)]
        best = int(np.argmin(left))
        found = np.where(np.arange(2) == best, alone, 0.0)
    return Ring(*(found / scale).tolist())


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What ``foretell`` takes for granted: ResNet-50 on GPUs with 8 to a node, by NCCL.

    Args:
        gradient_bytes: 25.6M parameters as float32, or half of it as bfloat16.
        compute_s: of a step of 128 images on one GPU.
        overlap: the backward pass, two thirds of it, goes on meanwhile.
        latency_s: of one piece between two GPUs.
        usable: of the network's bandwidth. Rings of a node's GPUs share its network card; inside
            a node, links are so much faster that they don't count.
    """

    gradient_bytes: float = 25.6e6 * 4
    compute_s: float = 0.1
    overlap: float = 2 / 3
    latency_s: float = 10e-6
    usable: float = 0.8


def foretell(assumed: Assumptions, gbit_per_s: float, gpus: int) -> tuple[float, float]:
    """Seconds of a step, and the share of ``gpus`` times one GPU's speed that is reached."""
    network = Ring(assumed.latency_s, 8 / (gbit_per_s * 1e9 * assumed.usable))
    step_s = network.step_s(gpus, assumed.gradient_bytes, assumed.compute_s, assumed.overlap)
    return step_s, assumed.compute_s / step_s
