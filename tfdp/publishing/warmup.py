"""Warm-up requests: TF Serving runs them before it serves a version, so no client waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfdp.publishing.features import LENGTH_SUFFIX, Features, example_dtype, to_inputs
from tfdp.publishing.signatures import PREDICT

PATH = Path("assets.extra", "tf_serving_warmup_requests")

Inputs = dict[str, np.ndarray]  # of a signature, by name


def make_inputs(features: Features, size: int) -> Inputs:
    """Returns inputs of ``size`` real examples, or of zeros if only specs are known.

    Zeros have one element in each dimension of unknown size.
    """
    if features.read is not None:
        inputs = to_inputs(features.read(size))
        return {name: value.numpy() for name, value in inputs.items()}
    zeros = {}
    for name, spec in features.input_specs().items():
        shape = [size, *(1 if dimension is None else dimension for dimension in spec.shape[1:])]
        zeros[name] = tf.zeros(shape, spec.dtype).numpy()
    return zeros


def to_examples(inputs: Inputs, features: Features) -> list[bytes]:
    """Returns inputs as serialized ``tf.train.Example``, for Classify and Regress."""
    examples = []
    for row in range(len(next(iter(inputs.values())))):
        example = tf.train.Example()
        for name, spec in features.specs.items():
            value = inputs[name][row]
            if isinstance(spec, tf.RaggedTensorSpec):
                value = value[: inputs[name + LENGTH_SUFFIX][row]]
            flat = np.asarray(value).reshape(-1)
            feature = example.features.feature[name]
            dtype = example_dtype(spec.dtype)
            if dtype == tf.string:
                feature.bytes_list.value.extend(flat.tolist())
            elif dtype == tf.int64:
                feature.int64_list.value.extend(flat.astype(np.int64).tolist())
            else:
                feature.float_list.value.extend(flat.astype(np.float32).tolist())
        examples.append(example.SerializeToString())
    return examples


def make_request(servable: str, inputs: Mapping[str, Any], signature: str = PREDICT) -> bytes:
    """Returns a Predict request as a serialized ``PredictionLog``."""
    log = prediction_log_pb2.PredictionLog()
    request: predict_pb2.PredictRequest = log.predict_log.request
    request.model_spec.name = servable
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()  # type: ignore[no-any-return]


def write(path: Path, requests: Iterable[bytes]) -> None:
    """Writes a TFRecord file of requests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            writer.write(request)
