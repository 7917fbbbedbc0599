"""Writes TF Serving's response messages as the bodies of REST answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2

from serving import element_types, tensors
from serving.server.errors import invalid_argument
from serving.server.rest.json_text import (
    ENCODING_ERRORS,
    decimals,
    list_of,
    nest,
    object_of,
    quote,
)
from serving.tensors import Array


def error_body(text: str) -> bytes:
    """Returns the body of an answer that is an error."""
    return _encode(object_of([("error", quote(text.encode(errors="replace")))]))


def predict_body(response: Any, is_row_format: bool) -> bytes:
    """Returns a PredictResponse as JSON: row by row, or output by output.

    A single output is written without its name.

    Raises:
        StatusError: an output has no rows, or their numbers differ; or JSON lacks its type.
    """
    arrays = {name: tensors.read(response.outputs[name]) for name in sorted(response.outputs)}
    if not arrays:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if not is_row_format:
        outputs = {
            name: nest(_elements(name, array), array.shape) for name, array in arrays.items()
        }
        (first, *others) = outputs.values()
        text = object_of(outputs.items()) if others else first
        return _encode(object_of([("outputs", text)]))
    count = _count_rows(arrays)
    columns = [_rows(name, array) for name, array in arrays.items()]
    if len(arrays) == 1:
        rows = columns[0]
    else:
        rows = [
            object_of((name, column[row]) for name, column in zip(arrays, columns, strict=True))
            for row in range(count)
        ]
    return _encode(object_of([("predictions", list_of(rows))]))


def classify_body(response: Any) -> bytes:
    """Returns a ClassificationResponse as JSON: a list of [label, score] for each example."""
    classifications = response.result.classifications
    if not classifications:
        raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
    results = []
    for classification in classifications:
        classes = classification.classes
        scores = decimals(np.array([entry.score for entry in classes], np.float32))
        pairs = zip(classes, scores, strict=True)
        results.append(list_of(list_of((quote(c.label.encode()), score)) for c, score in pairs))
    return _encode(object_of([("results", list_of(results))]))


def regress_body(response: Any) -> bytes:
    """Returns a RegressionResponse as JSON: a number for each example."""
    regressions = response.result.regressions
    if not regressions:
        raise invalid_argument("Cannot convert empty RegressionResults to JSON")
    values = decimals(np.array([entry.value for entry in regressions], np.float32))
    return _encode(object_of([("results", list_of(values))]))


def status_body(response: Any) -> bytes:
    """Returns a GetModelStatusResponse as JSON."""
    return _dump(_as_dict(response))


def metadata_body(response: Any) -> bytes:
    """Returns a GetModelMetadataResponse as JSON, with the signatures unpacked."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    metadata = {"signature_def": _as_dict(signatures)}
    return _dump({"model_spec": _as_dict(response.model_spec), "metadata": metadata})


def _count_rows(arrays: dict[str, Array]) -> int:
    count = -1
    for name, array in arrays.items():
        if not array.ndim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if count not in (-1, len(array)):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {count}"
            )
        count = len(array)
    return count


def _rows(name: str, array: Array) -> list[str]:
    size, texts = int(np.prod(array.shape[1:])), _elements(name, array)
    return [
        nest(texts[row * size : (row + 1) * size], array.shape[1:]) for row in range(len(array))
    ]


def _elements(name: str, array: Array) -> list[str]:
    """Returns the elements of an output as JSON."""
    values = array.reshape(-1).tolist()
    if array.dtype.kind == "O":
        if not name.endswith("_bytes"):
            return [quote(value) for value in values]
        return [object_of([("b64", f'"{base64.b64encode(v).decode()}"')]) for v in values]
    if array.dtype.kind == "b":
        return ["true" if value else "false" for value in values]
    if array.dtype.kind in "iu":
        return [str(value) for value in values]
    element_type = element_types.element_type(array)
    if element_type in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    elif element_type not in ("float32", "float64"):
        raise invalid_argument(f"Failed to write JSON value for tensor type: {element_type}")
    return decimals(array)


def _as_dict(message: Any) -> dict[str, Any]:
    fields: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _encode(text: str) -> bytes:
    return text.encode(errors=ENCODING_ERRORS)
