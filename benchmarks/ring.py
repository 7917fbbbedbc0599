"""A model of a step on many workers: computing, then ring all-reduces.

In a ring of R, every worker sends 2 (R - 1) messages of 1 / R of the bytes to its neighbour, R - 1
to add them up and R - 1 to hand the sums round (Patarasuk and Yuan, 2009). G bytes of gradients go
in packs of sqrt(G R h), as ``tfdp.exchange`` chooses, so that

    reduce = 2 (R - 1) packs message + 2 (R - 1) / R G / bandwidth

holds for what a link takes as well as for what a processor takes; the slower of the two counts.
Up to ``overlap`` of the computing hides it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BYTES_PER_HOP = 1 << 18  # h; as in tfdp.sums, which takes TensorFlow to import


@dataclasses.dataclass(frozen=True)
class Ring:
    """What links, or processors, take for a ring.

    Args:
        message_s: seconds of one message, however short.
        s_per_byte: of a stream, the reciprocal of its bandwidth.
    """

    message_s: float
    s_per_byte: float

    def reduce_s(self, workers: int, gradient_bytes: float) -> float:
        """Seconds of all packs' all-reduces."""
        messages, sent_bytes = terms(workers, gradient_bytes)
        return messages * self.message_s + sent_bytes * self.s_per_byte


def step_s(compute_s: float, reduce_s: float, overlap: float = 0.0) -> float:
    """Seconds of a step; of ``compute_s``, the share ``overlap`` goes on while bytes travel."""
    return compute_s + max(0.0, reduce_s - overlap * compute_s)


def terms(workers: int, gradient_bytes: float) -> tuple[int, float]:
    """How many messages a worker sends one after the other, and how many bytes these are."""
    packs = math.ceil(math.sqrt(gradient_bytes / (workers * BYTES_PER_HOP)))
    return 2 * (workers - 1) * packs, 2 * (workers - 1) / workers * gradient_bytes


class Point(NamedTuple):
    """A measured step, nothing of whose all-reduce is hidden.

    Args:
        workers: 2 or more.
        gradient_bytes: that they exchange.
        turns: workers to a core, 1 at least: so many times as long does it take.
        compute_s: seconds of the step without an exchange.
        step_s: seconds of the step.
    """

    workers: int
    gradient_bytes: float
    turns: float
    compute_s: float
    step_s: float


def fit(points: Sequence[Point]) -> Ring:
    """The ring for which modelled steps are nearest to measured ones, relative to these.

    Raises:
        ValueError: the points can't tell messages from bytes.
    """
    whole_s = np.array([point.step_s for point in points], np.float64)
    reduce_s = whole_s - np.array([point.compute_s for point in points], np.float64)
    rows = np.array([terms(p.workers, p.gradient_bytes) for p in points], np.float64)
    scale = np.linalg.norm(rows, axis=0)  # seconds and bytes differ by many orders
    if np.linalg.matrix_rank(rows / scale) < 2:
        raise ValueError(f"{points}: two sizes or two numbers of workers are needed at least")
    weights = np.array([point.turns for point in points], np.float64) / whole_s
    rows, target = rows / scale * weights[:, None], reduce_s / whole_s
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
        message_s: of one message between two GPUs.
        usable: of the network's bandwidth. Rings of a node's GPUs share its network card; inside
            a node, links are so much faster that they don't count.
    """

    gradient_bytes: float = 25.6e6 * 4
    compute_s: float = 0.1
    overlap: float = 2 / 3
    message_s: float = 10e-6
    usable: float = 0.8


def foretell(assumed: Assumptions, gbit_per_s: float, gpus: int) -> tuple[float, float]:
    """Seconds of a step, and the share of ``gpus`` times one GPU's speed that is reached."""
    network = Ring(assumed.message_s, 8 / (gbit_per_s * 1e9 * assumed.usable))
    reduce_s = network.reduce_s(gpus, assumed.gradient_bytes)
    whole_s = step_s(assumed.compute_s, reduce_s, assumed.overlap)
    return whole_s, assumed.compute_s / whole_s
