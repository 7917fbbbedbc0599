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
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

_FIELD = descriptor_pb2.FieldDescriptorProto
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
                f"the last of allowed_batch_sizes is {sizes[-1]}; it must be max_batch_size, "
                f"{self.max_batch_size}"
            )


def read(path: Path) -> BatchingParameters:
    """Reads a BatchingParameters message in text format.

    Raises:
        ValueError: the file can't be read or parsed, or a value is out of range; the message
            contains the file's name.
    """
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), _message())
        wrapped = {
            name: getattr(message, name).value for name in _WRAPPED if message.HasField(name)
        }
        return BatchingParameters(
            **wrapped,
            allowed_batch_sizes=tuple(message.allowed_batch_sizes),
            pad_variable_length_inputs=message.pad_variable_length_inputs,
        )
    except (OSError, UnicodeDecodeError, text_format.ParseError, ValueError) as error:
        raise ValueError(f"batching parameters in {path}: {error}") from None


def _message() -> Any:
    """Returns an empty BatchingParameters message, which tensorflow-serving-api does not have."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/server/batching.proto",
        package="tfdp.serving.server",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    message = file.message_type.add(name="BatchingParameters")

    def add(number: int, name: str, type_name: str | None, kind: int, *, many: bool) -> None:
        label = _FIELD.LABEL_REPEATED if many else _FIELD.LABEL_OPTIONAL
        message.field.add(number=number, name=name, type_name=type_name, type=kind, label=label)

    for number, name in enumerate(_WRAPPED, 1):
        add(number, name, ".google.protobuf.Int64Value", _FIELD.TYPE_MESSAGE, many=False)
    # Only TF Serving's metrics use this field; it is accepted because files contain it.
    string = ".google.protobuf.StringValue"
    add(5, "thread_pool_name", string, _FIELD.TYPE_MESSAGE, many=False)
    add(6, "allowed_batch_sizes", None, _FIELD.TYPE_INT64, many=True)
    add(7, "pad_variable_length_inputs", None, _FIELD.TYPE_BOOL, many=False)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    name = "tfdp.serving.server.BatchingParameters"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()
