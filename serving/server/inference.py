"""PredictionService: Classify, Regress and MultiInference, all on tf.Example messages.

Each is made as TF Serving makes it: the signature is checked, then the input, then the model runs
once, then its outputs are checked and put into lists. Texts are TF Serving's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

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

from serving.server.models import Models, Refused, TimeLeft, invalid
from serving.server.prediction import DEFAULT_SIGNATURE, say_model
from serving.tensors import Array

if TYPE_CHECKING:
    from serving.server.savedmodel import SavedModel, Signature

_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"


def classify(
    models: Models, request: Any, time_left_s: TimeLeft
) -> classification_pb2.ClassificationResponse:
    """PredictionService/Classify."""
    with models.use(request.model_spec) as (version, model):
        response = run_classify(model, request, time_left_s)
    say_model(response.model_spec, request.model_spec, version)
    return response


def regress(
    models: Models, request: Any, time_left_s: TimeLeft
) -> regression_pb2.RegressionResponse:
    """PredictionService/Regress."""
    with models.use(request.model_spec) as (version, model):
        response = run_regress(model, request, time_left_s)
    say_model(response.model_spec, request.model_spec, version)
    return response


def multi_inference(
    models: Models, request: Any, time_left_s: TimeLeft
) -> inference_pb2.MultiInferenceResponse:
    """PredictionService/MultiInference."""
    with models.use(first_spec(request)) as (version, model):
        response = run_multi_inference(model, request, time_left_s)
    for task, result in zip(request.tasks, response.results, strict=True):
        say_model(result.model_spec, task.model_spec, version)
    return response


def first_spec(request: inference_pb2.MultiInferenceRequest) -> model_pb2.ModelSpec:
    """The spec that says which model a MultiInferenceRequest is for."""
    return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()


def run_classify(
    model: SavedModel, request: Any, time_left_s: TimeLeft
) -> classification_pb2.ClassificationResponse:
    """Answers a ClassificationRequest by ``model``, whatever model it names."""
    signature = _signature(model, request.model_spec, "No signature was found with the name: ")
    fed, fetched = _to_classify(signature)
    count, found = _compute(model, request.input, [fed], fetched, time_left_s)
    response = classification_pb2.ClassificationResponse()
    _write_classes(signature, count, found, response.result)
    return response


def run_regress(
    model: SavedModel, request: Any, time_left_s: TimeLeft
) -> regression_pb2.RegressionResponse:
    """Answers a RegressionRequest by ``model``, whatever model it names."""
    signature = _signature(model, request.model_spec, "No signature was found with the name: ")
    fed, fetched = _to_regress(signature)
    count, found = _compute(model, request.input, [fed], fetched, time_left_s)
    response = regression_pb2.RegressionResponse()
    _write_values(signature, count, found, response.result)
    return response


def run_multi_inference(
    model: SavedModel, request: Any, time_left_s: TimeLeft
) -> inference_pb2.MultiInferenceResponse:
    """Answers a MultiInferenceRequest by ``model``, whatever model it names; no model_spec yet."""
    name = ""
    signatures: dict[str, Signature] = {}
    fed: set[str] = set()
    fetched: set[str] = set()
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        name = name or task.model_spec.name
        if name != task.model_spec.name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in signatures:
            raise invalid(f"Duplicate evaluation of signature: {key}")
        what = "Requested signature not found in model graph: "
        signature = _signature(model, task.model_spec, what)
        if task.method_name == _CLASSIFY:
            tensor, outputs = _to_classify(signature)
        elif task.method_name == _REGRESS:
            tensor, outputs = _to_regress(signature)
        else:
            text = f"Unsupported signature method_name: {task.method_name}"
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, text)
        signatures[key] = signature
        fed.add(tensor)
        fetched.update(outputs)

    count, found = _compute(model, request.input, fed, sorted(fetched), time_left_s)
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, signatures.values(), strict=True):
        result = response.results.add()
        if task.method_name == _CLASSIFY:
            _write_classes(signature, count, found, result.classification_result)
        else:
            _write_values(signature, count, found, result.regression_result)
    return response


def _signature(model: SavedModel, spec: model_pb2.ModelSpec, otherwise: str) -> Signature:
    key = spec.signature_name or DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise invalid(f"{otherwise}{key}")
    return model.signatures[key]


def _to_classify(signature: Signature) -> tuple[str, list[str]]:
    """The tensor to feed and those to fetch."""
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        count = len(signature.outputs)
        raise invalid(f"Expected one or two output Tensors, found {count}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {_shown(signature)}")
    fetched = [signature.outputs[n] for n in ("classes", "scores") if n in signature.outputs]
    if not fetched:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or '
            f'"scores". Signature was: {_shown(signature)}'
        )
    return signature.inputs["inputs"], fetched


def _to_regress(signature: Signature) -> tuple[str, list[str]]:
    """The tensor to feed and those to fetch."""
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {_shown(signature)}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_shown(signature)}")
    return signature.inputs["inputs"], [signature.outputs["outputs"]]


def _shown(signature: Signature) -> str:
    return f"goo.gle/debugonly  \n{signature.definition}"  # as C++ prints messages


def _compute(
    model: SavedModel,
    message: input_pb2.Input,
    fed: Iterable[str],
    fetched: list[str],
    time_left_s: TimeLeft,
) -> tuple[int, Mapping[str, Array]]:
    """Runs the model on an Input; returns how many examples there were, and outputs by tensor."""
    examples = _serialized(message)
    if not examples:
        raise invalid("Input is empty.")
    array = np.empty(len(examples), dtype=object)
    array[:] = examples
    arrays = model.run(dict.fromkeys(fed, array), fetched, time_left_s)
    return len(examples), dict(zip(fetched, arrays, strict=True))


def _serialized(message: input_pb2.Input) -> list[bytes]:
    """The examples, each in bytes; the context goes before, so that an example's own values win."""
    kind = message.WhichOneof("kind")
    if kind == "example_list":
        return [example.SerializeToString() for example in message.example_list.examples]
    if kind == "example_list_with_context":
        both = message.example_list_with_context
        context = both.context.SerializeToString()
        return [context + example.SerializeToString() for example in both.examples]
    return []


def _write_classes(
    signature: Signature,
    count: int,
    found: Mapping[str, Array],
    result: classification_pb2.ClassificationResult,
) -> None:
    columns = {}
    for name, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if name in signature.outputs:
            array = columns[name] = found[signature.outputs[name]]
            if array.ndim != 2:
                raise invalid(
                    f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
                )
            if _dtype(array) != dtype:
                raise invalid(f"Expected {name} Tensor of {dtype}. Got: {_dtype(array)}")
            if len(array) != count:
                raise invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    widths = [array.shape[1] for array in columns.values()]
    if len(set(widths)) > 1:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}"
        )
    labels = columns["classes"].tolist() if "classes" in columns else None
    scores = columns["scores"].tolist() if "scores" in columns else None
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(widths[0]):
            entry = classes.add()
            if labels is not None:
                entry.label = _text(labels[row][column])
            if scores is not None:
                entry.score = scores[row][column]


def _write_values(
    signature: Signature,
    count: int,
    found: Mapping[str, Array],
    result: regression_pb2.RegressionResult,
) -> None:
    array = found[signature.outputs["outputs"]]
    if array.ndim != 1 and (array.ndim != 2 or array.shape[1] != 1):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(array)}"
        )
    if len(array) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if _dtype(array) != "DT_FLOAT":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(array)}")
    for value in array.reshape(-1).tolist():
        result.regressions.add().value = value


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        text = f"the class label {label!r} is not UTF-8, and can't be sent"
        raise Refused(grpc.StatusCode.INTERNAL, text) from None


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _dtype(array: Array) -> str:
    number = tf.as_dtype(array.dtype).as_datatype_enum
    name: str = types_pb2.DataType.Name(number)
    return name
