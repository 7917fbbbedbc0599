"""PredictionService: Classify, Regress and MultiInference, which take tf.Example messages.

Each works in TF Serving's order: it checks the signature, then the input, runs the model once,
checks the outputs, and puts them into lists. The texts of errors are TF Serving's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from serving.server.calls import model_specs
from serving.server.deadlines import TimeLeft
from serving.server.errors import StatusError, invalid_argument
from serving.server.models.registry import ModelRegistry
from serving.server.models.saved_model import SavedModel, Signature
from serving.tensors import Array

_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"


def classify(
    registry: ModelRegistry, request: Any, time_left_s: TimeLeft
) -> classification_pb2.ClassificationResponse:
    """Answers PredictionService/Classify."""
    with registry.use(request.model_spec) as (version, model):
        response = run_classify(model, request, time_left_s)
    model_specs.fill(response.model_spec, request.model_spec, version)
    return response


def regress(
    registry: ModelRegistry, request: Any, time_left_s: TimeLeft
) -> regression_pb2.RegressionResponse:
    """Answers PredictionService/Regress."""
    with registry.use(request.model_spec) as (version, model):
        response = run_regress(model, request, time_left_s)
    model_specs.fill(response.model_spec, request.model_spec, version)
    return response


def multi_inference(
    registry: ModelRegistry, request: Any, time_left_s: TimeLeft
) -> inference_pb2.MultiInferenceResponse:
    """Answers PredictionService/MultiInference."""
    with registry.use(_first_spec(request)) as (version, model):
        response = run_multi_inference(model, request, time_left_s)
    for task, result in zip(request.tasks, response.results, strict=True):
        model_specs.fill(result.model_spec, task.model_spec, version)
    return response


def _first_spec(request: inference_pb2.MultiInferenceRequest) -> model_pb2.ModelSpec:
    """Returns the ModelSpec that names the model of a MultiInferenceRequest."""
    return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()


def run_classify(
    model: SavedModel, request: Any, time_left_s: TimeLeft
) -> classification_pb2.ClassificationResponse:
    """Answers a ClassificationRequest by ``model``; the request's model name is not used."""
    signature = _signature(model, request.model_spec, "No signature was found with the name: ")
    fed, fetched = _classify_tensors(signature)
    count, arrays = _compute(model, request.input, [fed], fetched, time_left_s)
    response = classification_pb2.ClassificationResponse()
    _write_classes(signature, count, arrays, response.result)
    return response


def run_regress(
    model: SavedModel, request: Any, time_left_s: TimeLeft
) -> regression_pb2.RegressionResponse:
    """Answers a RegressionRequest by ``model``; the request's model name is not used."""
    signature = _signature(model, request.model_spec, "No signature was found with the name: ")
    fed, fetched = _regress_tensors(signature)
    count, arrays = _compute(model, request.input, [fed], fetched, time_left_s)
    response = regression_pb2.RegressionResponse()
    _write_values(signature, count, arrays, response.result)
    return response


def run_multi_inference(
    model: SavedModel, request: Any, time_left_s: TimeLeft
) -> inference_pb2.MultiInferenceResponse:
    """Answers a MultiInferenceRequest by ``model``; the results have no ModelSpec yet."""
    name = ""
    signatures: dict[str, Signature] = {}
    fed: set[str] = set()
    fetched: set[str] = set()
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        name = name or task.model_spec.name
        if name != task.model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        key = task.model_spec.signature_name or model_specs.DEFAULT_SIGNATURE
        if key in signatures:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        missing = "Requested signature not found in model graph: "
        signature = _signature(model, task.model_spec, missing)
        if task.method_name == _CLASSIFY:
            tensor, outputs = _classify_tensors(signature)
        elif task.method_name == _REGRESS:
            tensor, outputs = _regress_tensors(signature)
        else:
            text = f"Unsupported signature method_name: {task.method_name}"
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, text)
        signatures[key] = signature
        fed.add(tensor)
        fetched.update(outputs)

    count, arrays = _compute(model, request.input, fed, sorted(fetched), time_left_s)
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, signatures.values(), strict=True):
        result = response.results.add()
        if task.method_name == _CLASSIFY:
            _write_classes(signature, count, arrays, result.classification_result)
        else:
            _write_values(signature, count, arrays, result.regression_result)
    return response


def _signature(model: SavedModel, spec: model_pb2.ModelSpec, missing: str) -> Signature:
    key = spec.signature_name or model_specs.DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise invalid_argument(f"{missing}{key}")
    return model.signatures[key]


def _classify_tensors(signature: Signature) -> tuple[str, list[str]]:
    """Returns the names of the tensor to feed and of the tensors to fetch."""
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        count = len(signature.outputs)
        raise invalid_argument(f"Expected one or two output Tensors, found {count}")
    if "inputs" not in signature.inputs:
        raise invalid_argument(
            f"No classification inputs found in SignatureDef: {_as_text(signature)}"
        )
    fetched = [signature.outputs[n] for n in ("classes", "scores") if n in signature.outputs]
    if not fetched:
        raise invalid_argument(
            'Expected classification signature outputs to contain at least one of "classes" or '
            f'"scores". Signature was: {_as_text(signature)}'
        )
    return signature.inputs["inputs"], fetched


def _regress_tensors(signature: Signature) -> tuple[str, list[str]]:
    """Returns the names of the tensor to feed and of the tensors to fetch."""
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {_as_text(signature)}")
    if "outputs" not in signature.outputs:
        raise invalid_argument(
            f"No regression outputs found in SignatureDef: {_as_text(signature)}"
        )
    return signature.inputs["inputs"], [signature.outputs["outputs"]]


def _as_text(signature: Signature) -> str:
    return f"goo.gle/debugonly  \n{signature.definition}"  # as C++ prints messages


def _compute(
    model: SavedModel,
    message: input_pb2.Input,
    fed: Iterable[str],
    fetched: list[str],
    time_left_s: TimeLeft,
) -> tuple[int, Mapping[str, Array]]:
    """Runs the model on an Input; returns the number of examples, and arrays by tensor name."""
    examples = _serialized(message)
    if not examples:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(examples), dtype=object)
    array[:] = examples
    results = model.run(dict.fromkeys(fed, array), fetched, time_left_s)
    return len(examples), dict(zip(fetched, results, strict=True))


def _serialized(message: input_pb2.Input) -> list[bytes]:
    """Returns the serialized examples of an Input.

    The context precedes each example: in a parsed message, the last value of a feature wins.
    """
    kind = message.WhichOneof("kind")
    if kind == "example_list":
        return [example.SerializeToString() for example in message.example_list.examples]
    if kind == "example_list_with_context":
        with_context = message.example_list_with_context
        context = with_context.context.SerializeToString()
        return [context + example.SerializeToString() for example in with_context.examples]
    return []


def _write_classes(
    signature: Signature,
    count: int,
    arrays: Mapping[str, Array],
    result: classification_pb2.ClassificationResult,
) -> None:
    columns = {}
    for name, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if name in signature.outputs:
            array = columns[name] = arrays[signature.outputs[name]]
            if array.ndim != 2:
                raise invalid_argument(
                    f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
                )
            if _dtype(array) != dtype:
                raise invalid_argument(f"Expected {name} Tensor of {dtype}. Got: {_dtype(array)}")
            if len(array) != count:
                raise invalid_argument(
                    f"Expected {name} output batch size of {count}. Got: {len(array)}"
                )
    widths = [array.shape[1] for array in columns.values()]
    if len(set(widths)) > 1:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}"
        )
    labels = columns["classes"].tolist() if "classes" in columns else None
    scores = columns["scores"].tolist() if "scores" in columns else None
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(widths[0]):
            entry = classes.add()
            if labels is not None:
                entry.label = _decode(labels[row][column])
            if scores is not None:
                entry.score = scores[row][column]


def _write_values(
    signature: Signature,
    count: int,
    arrays: Mapping[str, Array],
    result: regression_pb2.RegressionResult,
) -> None:
    array = arrays[signature.outputs["outputs"]]
    if array.ndim != 1 and (array.ndim != 2 or array.shape[1] != 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(array)}"
        )
    if len(array) != count:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {count} vs. {len(array)}"
        )
    if _dtype(array) != "DT_FLOAT":
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(array)}")
    for value in array.reshape(-1).tolist():
        result.regressions.add().value = value


def _decode(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        text = f"the class label {label!r} is not UTF-8, and can't be sent"
        raise StatusError(grpc.StatusCode.INTERNAL, text) from None


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _dtype(array: Array) -> str:
    number = tf.as_dtype(array.dtype).as_datatype_enum
    name: str = types_pb2.DataType.Name(number)
    return name
