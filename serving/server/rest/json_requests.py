"""Reads the bodies of REST calls into TF Serving's request messages.

The rules and the texts of errors are TF Serving's.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2

from serving.element_types import dtype_name
from serving.server.errors import StatusError, invalid_argument
from serving.server.rest.json_text import describe, encode_text, kind, parse_object

_DT_STRING = types_pb2.DT_STRING
# For each integer type that JSON can be read as: the repeated field and the range. As in TF
# Serving, the narrow types take 32 bits.
_INTEGERS = {
    **dict.fromkeys(
        (types_pb2.DT_INT32, types_pb2.DT_INT16, types_pb2.DT_INT8, types_pb2.DT_UINT8),
        ("int_val", -(2**31), 2**31),
    ),
    types_pb2.DT_INT64: ("int64_val", -(2**63), 2**63),
    types_pb2.DT_UINT32: ("uint32_val", 0, 2**32),
    types_pb2.DT_UINT64: ("uint64_val", 0, 2**64),
}
_DECIMALS = {
    types_pb2.DT_FLOAT: ("float_val", "float"),
    types_pb2.DT_DOUBLE: ("double_val", "double"),
}
_FLOATS = {  # the largest integer that is surely exact, and the largest number
    "float": (2**24 - 1, float(np.finfo(np.float32).max)),
    "double": (2**53 - 1, float(np.finfo(np.float64).max)),
}
# TensorFlow's C++ names of types where dtype_name has others.
_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


def read_predict(body: bytes, request: Any, inputs_of: Callable[[str], Mapping[str, Any]]) -> bool:
    """Reads the body of a ``:predict`` call into a PredictRequest that has a ModelSpec.

    Args:
        body: JSON.
        request: the PredictRequest to fill.
        inputs_of: returns the TensorInfos of a signature's inputs, by name; the signature's name
            is empty for the default one.

    Returns:
        Whether the request was in row format (``instances``).

    Raises:
        StatusError: the body does not fit the signature.
    """
    document = parse_object(body)
    signature = _read_signature(document, request)
    inputs = inputs_of(signature)
    if not inputs:
        name = signature or "DEFAULT"
        raise invalid_argument(f"Failed to get input map for signature: {name}")
    if "instances" in document:
        if "inputs" in document:
            raise _malformed(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist ",
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _malformed(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise _malformed(document, "No values in 'instances' array")
        _read_rows(instances, inputs, request)
        return True
    if "inputs" in document:
        _read_columns(document["inputs"], inputs, request)
        return False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def read_examples(body: bytes, request: Any) -> None:
    """Reads the body of a ``:classify`` or ``:regress`` call into its request.

    Args:
        body: JSON.
        request: the ClassificationRequest or RegressionRequest to fill.

    Raises:
        StatusError: the body is wrong.
    """
    document = parse_object(body)
    _read_signature(document, request)
    to_fill = request.input.example_list
    if "context" in document:
        to_fill = request.input.example_list_with_context
        _read_example(document["context"], to_fill.context)
    if "examples" not in document:
        text = "When method is classify, key 'examples' is expected and was not found"
        raise _malformed(document, text)
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _malformed(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _malformed(document, "'examples' value is an empty array")
    for example in examples:
        _read_example(example, to_fill.examples.add())


def _read_signature(document: dict[str, Any], request: Any) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        text = "not formatted correctly. 'signature_name' key must be a string value."
        raise _malformed(document, text)
    request.model_spec.signature_name = encode_text(name).decode(errors="replace")
    return name


def _malformed(document: dict[str, Any], text: str) -> StatusError:
    return invalid_argument(f"JSON Value: {describe(document)} {text}")


def _read_rows(instances: list[Any], inputs: Mapping[str, Any], request: Any) -> None:
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    are_objects = _is_named(instances[0])
    (first_input, *_) = inputs
    values: dict[str, list[Any]] = {}
    shapes: dict[str, list[int]] = {}
    for number, instance in enumerate(instances):
        if _is_named(instance) != are_objects:
            expected = "object but got list" if are_objects else "value/list but got object"
            raise invalid_argument(f"Expecting {expected} at item {number} of input list")
        for name, value in instance.items() if are_objects else [(first_input, instance)]:
            try:
                if name not in inputs:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                _add_row(value, inputs[name].dtype, name, values, shapes)
            except StatusError as error:
                key = f" key: {name}" if are_objects else ""
                raise invalid_argument(
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: {error.code.name}: {error}"
                ) from None
        if are_objects and instance.keys() != inputs.keys():
            raise invalid_argument(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{describe(instance)} keys must be equal to: {','.join(sorted(inputs))}"
            )
    for name, flat in values.items():
        shape = [len(instances), *shapes[name]]
        _write_tensor(request.inputs[name], inputs[name].dtype, shape, flat)


def _add_row(
    value: Any,
    dtype: int,
    name: str,
    values: dict[str, list[Any]],
    shapes: dict[str, list[int]],
) -> None:
    shape = _shape_of(value)
    row: list[Any] = []
    _flatten(value, 0, shape, dtype, row)
    expected = shapes.setdefault(name, shape)
    if math.prod(expected) != len(row):
        raise invalid_argument(f"Expecting tensor size: {math.prod(expected)} but got: {len(row)}")
    if expected != shape:
        raise invalid_argument(f"Expecting shape {_text(expected)} but got: {_text(shape)}")
    values.setdefault(name, []).extend(row)


def _read_columns(value: Any, inputs: Mapping[str, Any], request: Any) -> None:
    if not _is_named(value):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = dict.fromkeys(inputs, value)
    for name, info in inputs.items():
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        shape = _shape_of(value[name])
        flat: list[Any] = []
        _flatten(value[name], 0, shape, info.dtype, flat)
        _write_tensor(request.inputs[name], info.dtype, shape, flat)


def _write_tensor(tensor: Any, dtype: int, shape: list[int], values: list[Any]) -> None:
    tensor.dtype = dtype
    tensor.tensor_shape.SetInParent()
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    if values:  # a type that can't be read has none
        getattr(tensor, _field_of(dtype)).extend(values)


def _field_of(dtype: int) -> str:
    if dtype in _INTEGERS:
        return _INTEGERS[dtype][0]
    if dtype in _DECIMALS:
        return _DECIMALS[dtype][0]
    return "string_val" if dtype == _DT_STRING else "bool_val"


def _shape_of(value: Any) -> list[int]:
    """Returns the shape of nested lists, by the first element of each."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _flatten(value: Any, level: int, shape: list[int], dtype: int, flat: list[Any]) -> None:
    """Appends the elements of nested lists, which must have this shape, to ``flat``."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {describe(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid_argument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for element in value:
        _flatten(element, level + 1, shape, dtype, flat)


def _element(value: Any, dtype: int) -> Any:
    """Returns a parsed value as an element of a tensor; raises StatusError if it is none."""
    if dtype in _DECIMALS:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _decimal(value, _DECIMALS[dtype][1])
    elif dtype in _INTEGERS:
        _, low, end = _INTEGERS[dtype]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value < end:
            return value
    elif dtype == _DT_STRING:
        if isinstance(value, str):
            return encode_text(value)
        if isinstance(value, dict):
            return _decode_base64(value)
    elif dtype == types_pb2.DT_BOOL:
        if isinstance(value, bool):
            return value
    elif not isinstance(value, dict):
        text = f"Conversion of JSON Value: {describe(value)} to type: {_type_name(dtype)}"
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, text)
    raise invalid_argument(
        f"JSON Value: {describe(value)} Type: {kind(value)} is not of expected type: "
        f"{_type_name(dtype)}"
    )


def _decimal(value: float, target: str) -> float:
    """Returns ``value``; raises StatusError if the type ``target`` can't hold it."""
    largest_integer, largest = _FLOATS[target]
    limit = largest_integer if isinstance(value, int) else largest
    if abs(value) > limit and not (isinstance(value, float) and math.isinf(value)):
        raise invalid_argument(
            f"Cannot convert JSON value: {describe(value)} to {target} without loss of precision."
        )
    return value


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    """Returns whether an object holds values by name; an object of base64 is a value itself."""
    return isinstance(value, dict) and not _is_base64(value)


def _decode_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        text = f"JSON Value: {describe(value)} not formatted correctly for base64 data"
        raise invalid_argument(text)
    text = re.sub(r"\s", "", value["b64"])
    if "=" not in text:  # the padding may be missing
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _read_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {kind(value)}")
    for name, content in value.items():
        feature = example.features.feature[encode_text(name).decode(errors="replace")]
        feature.Clear()
        for element in content if isinstance(content, list) else [content]:
            _add_to_feature(element, name, feature)


def _add_to_feature(value: Any, name: str, feature: Any) -> None:
    element: Any
    if isinstance(value, bool | int):
        field, element = "int64_list", int(value)
        if value >= 2**63:
            text = f"Feature: {name} has uint64 element. Only int64 is supported."
            raise invalid_argument(text)
    elif isinstance(value, float):
        field, element = "float_list", _decimal(value, "float")
    elif isinstance(value, str):
        field, element = "bytes_list", encode_text(value)
    elif _is_base64(value):
        field, element = "bytes_list", _decode_base64(value)
    else:
        text = f"Feature: {name} has element with unexpected JSON type: {kind(value)}"
        raise invalid_argument(text)
    found = feature.WhichOneof("kind")
    if found not in (None, field):
        text = f"Unexpected element type in feature: {name} expecting type: "
        raise invalid_argument(text + found.removesuffix("_list"))
    getattr(feature, field).value.append(element)


def _type_name(dtype: int) -> str:
    name = dtype_name(dtype)
    return _NAMES.get(name, name)


def _text(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
