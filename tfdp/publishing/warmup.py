"""Requests that TF Serving makes of a version before callers can, so that none is slow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfdp.publishing.signatures import LENGTH, PREDICT, Features, as_sent, example_dtype

PATH = Path("assets.extra", "tf_serving_warmup_requests")

Inputs = dict[str, np.ndarray]  # of a signature, by name


def inputs_of(features: Features, size: int) -> Inputs:
    """A batch of real features, as callers send it; of zeros, where there are none.

    Zeros have one element in each dimension of unknown size.
    """
    if features.read is not None:
        sent = as_sent(features.read(size))
        return {name: value.numpy() for name, value in sent.items()}
    zeros = {}
    for name, spec in features.inputs().items():
        shape = [size, *(1 if each is None else each for each in spec.shape[1:])]
        zeros[name] = tf.zeros(shape, spec.dtype).numpy()
    return zeros


def as_examples(inputs: Inputs, features: Features) -> list[bytes]:
    """The same batch as serialized ``tf.train.Example``, for Classify and Regress."""
    rows = []
    for place in range(len(next(iter(inputs.values())))):
        example = tf.train.Example()
        for name, spec in features.specs.items():
            row = inputs[name][place]
            if isinstance(spec, tf.RaggedTensorSpec):
                row = row[: inputs[name + LENGTH][place]]
            values = np.asarray(row).reshape(-1)
            feature = example.features.feature[name]
            dtype = example_dtype(spec.dtype)
            if dtype == tf.string:
                feature.bytes_list.value.extend(values.tolist())
            elif dtype == tf.int64:
                feature.int64_list.value.extend(values.astype(np.int64).tolist())
            else:
                feature.float_list.value.extend(values.astype(np.float32).tolist())
        rows.append(example.SerializeToString())
    return rows


def request(servable: str, inputs: Mapping[str, Any], signature: str = PREDICT) -> bytes:
    """A serialized ``PredictionLog`` of a Predict call."""
    log = prediction_log_pb2.PredictionLog()
    asked: predict_pb2.PredictRequest = log.predict_log.request
    asked.model_spec.name = servable
    asked.model_spec.signature_name = signature
    for name, value in inputs.items():
        asked.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()  # type: ignore[no-any-return]


def write(path: Path, records: Iterable[bytes]) -> None:
    """Writes a TFRecord file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
