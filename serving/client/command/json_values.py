"""Reads and writes the JSON of the command line, which any JSON parser accepts.

JSON has no NaN, no bytes and no complex numbers. Here, as in protobuf's JSON mapping, NaN and
infinities are the strings ``NaN``, ``Infinity`` and ``-Infinity``. Bytes that are not UTF-8 are
``{"b64": "…"}``, as in TF Serving's REST API. A complex number is ``[real, imaginary]``. What is
written can be read again: the input's dtype decides what a string or a list means.
"""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from serving.client.errors import InvalidInput
from serving.client.results import TensorInfo
from serving.tensors import Array

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FLOATS: Final = ("float16", "float32", "float64", "bfloat16")
_COMPLEX: Final = ("complex64", "complex128")


def parse(text: str) -> Any:
    """Returns the values of a JSON text; the bare words NaN and Infinity are accepted.

    Raises:
        ValueError: it is no JSON, or bytes are not valid base64.
    """
    return json.loads(text, object_hook=_decode_base64)


def to_input(values: Any, info: TensorInfo) -> Any:
    """Returns parsed values in the form that ``predict`` takes for an input.

    Args:
        values: numbers, strings, bytes, and lists of them.
        info: the input's dtype and shape.

    Raises:
        InvalidInput: a value does not fit.
    """
    if info.dtype in _FLOATS:
        return _map(values, _to_float)
    if info.dtype in _COMPLEX:
        values = _map(values, _to_float)
        is_pairs = info.shape is None or _depth(values) > len(info.shape)
        return _join_pairs(values, info.name) if is_pairs else values
    if info.dtype == "uint64" and _has_only_ints(values):
        # Without a dtype, numpy makes floats of small numbers beside those from 2**63 on.
        try:
            return np.array(values, np.uint64)
        except (OverflowError, ValueError) as error:
            raise InvalidInput(f"input {info.name!r}: {error}") from None
    return values


def to_text(outputs: Mapping[str, Array]) -> str:
    """Returns outputs as a JSON object of nested lists, by name."""
    values = {name: _to_values(array) for name, array in outputs.items()}
    return json.dumps(values, allow_nan=False)


def to_value(value: Any) -> Any:
    """Returns the JSON value of a Python number, bool, string or bytes."""
    if isinstance(value, complex):
        return [to_value(value.real), to_value(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": binascii.b2a_base64(value, newline=False).decode()}
    return value


def _to_values(array: Array) -> Any:
    kind = array.dtype.kind
    if kind in "biu" or (kind == "f" and np.isfinite(array).all()):
        return array.tolist()
    return _map(array.tolist(), to_value)


def _decode_base64(value: dict[str, Any]) -> Any:
    """Returns the bytes of ``{"b64": "…"}``, and any other mapping unchanged."""
    if value.keys() == {"b64"}:
        if not isinstance(value["b64"], str):
            raise ValueError(f"b64 is {value['b64']!r}, and has to be a string")
        return binascii.a2b_base64(value["b64"], strict_mode=True)
    return value


def _map(values: Any, function: Callable[[Any], Any]) -> Any:
    """Applies a function to all elements of nested lists."""
    if isinstance(values, list):
        return [_map(value, function) for value in values]
    return function(values)


def _to_float(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _depth(values: Any) -> int:
    """Returns the number of dimensions of nested lists."""
    depth = 0
    while isinstance(values, list):
        depth += 1
        values = values[0] if values else None
    return depth


def _join_pairs(values: Any, name: str) -> Any:
    """Replaces each innermost list, ``[real, imaginary]``, by a complex number."""
    if not isinstance(values, list):
        return values
    if not values or any(isinstance(value, list) for value in values):
        return [_join_pairs(value, name) for value in values]
    try:
        real, imaginary = values
        return complex(real, imaginary)
    except (TypeError, ValueError):
        raise InvalidInput(
            f"input {name!r}: a complex number is [real, imaginary], and {values!r} is not"
        ) from None


def _has_only_ints(values: Any) -> bool:
    if isinstance(values, list):
        return all(map(_has_only_ints, values))
    return type(values) is int
