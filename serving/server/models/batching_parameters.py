"""Reads a ``--batching_parameters_file``. Without TensorFlow, so errors are reported at once.

The file is TF Serving's, a BatchingParameters message in text format. An example:

    max_batch_size { value: 64 }
    batch_timeout_micros { value: 1000 }
    num_batch_threads { value: 2 }
    allowed_batch_sizes: 16
    allowed_batch_sizes: 64
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from serving.protos import server_config_pb2
from serving.server import text_protos

# Fields of type Int64Value.
_WRAPPED = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")


@dataclass(frozen=True)
class BatchingParameters:
    """How calls are gathered into batches; the defaults are TF Serving's.

    Attributes:
        max_batch_size: largest number of rows in a batch, and in a call.
        batch_timeout_micros: microseconds that a batch waits for more rows if a thread is free.
        max_enqueued_batches: largest number of full batches that wait for a thread; further calls
            are refused.
        num_batch_threads: number of batches computed at the same time, for each signature.
        allowed_batch_sizes: sizes that batches are padded to, ascending up to max_batch_size.
        pad_variable_length_inputs: whether calls of different shapes share a batch. Each is padded
            with its own first element to the shape of the largest.

    Raises:
        ValueError: a value is out of range.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def __post_init__(self) -> None:
        for name in _WRAPPED:
            least, value = int(name != "batch_timeout_micros"), getattr(self, name)
            if not least <= value < 2**31:
                raise ValueError(f"{name} is {value}; it must be from {least} to {2**31 - 1}")
        sizes = self.allowed_batch_sizes
        if sizes and (sizes != tuple(sorted(set(sizes))) or sizes[0] < 1):
            raise ValueError(f"allowed_batch_sizes are {list(sizes)}; they must be ascending")
        if sizes and sizes[-1] != self.max_batch_size:
            raise ValueError(
                "Last entry in allowed_batch_sizes must match max_batch_size; "
                f"last entry was {sizes[-1]}; expected {self.max_batch_size}"
            )


def read(path: Path) -> BatchingParameters:
    """Reads a BatchingParameters message in text format.

    Raises:
        ValueError: the file can't be read or parsed, or a value is out of range; the message
            contains the file's name.
    """
    try:
        message = text_protos.read(path, server_config_pb2.BatchingParameters())
        wrapped = {
            name: getattr(message, name).value for name in _WRAPPED if message.HasField(name)
        }
        return BatchingParameters(
            **wrapped,
            allowed_batch_sizes=tuple(message.allowed_batch_sizes),
            pad_variable_length_inputs=message.pad_variable_length_inputs,
        )
    except ValueError as error:
        raise ValueError(f"batching parameters in {path}: {error}") from None
