"""JSON as TF Serving reads and writes it.

TF Serving uses RapidJSON: ``NaN`` and infinities are bare words, integers of more than 64 bits are
decimals, the first of two members with one name counts, and text may be any bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from serving.server.errors import invalid_argument
from serving.tensors import Array

# How a byte that is not UTF-8 passes through Python's strings.
ENCODING_ERRORS = "surrogateescape"

_MAX_FLOAT = float(np.finfo(np.float32).max)
_MAX_DESCRIBED = 1000  # characters; a body may be large, and an error is short
_TOO_BIG = "Number too big to be stored in double."
# Python's messages of syntax errors, and RapidJSON's. The first that begins a message counts.
_MESSAGES = {
    "Expecting property name": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\u": "Incorrect hex digit after \\u escape in string.",
    "Extra data": "The document root must not be followed by other values.",
    "": "Invalid value.",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        StatusError: the body is not JSON, or its value is not an object.
    """
    text = body.removeprefix(b"\xef\xbb\xbf").decode(errors=ENCODING_ERRORS)
    if not text.strip(" \t\r\n"):
        raise _parse_error("The document is empty.", len(body))
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_decimal, object_pairs_hook=_first_of_each
        )
        if _SURROGATE.search(text):
            # Python accepts half a pair, which then looks like a byte that is not UTF-8.
            json.dumps(json.loads(body.decode("utf-8-sig", "replace")), ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        before = text[: error.pos].encode(errors=ENCODING_ERRORS)
        raise _parse_error(_message(error), len(before)) from None
    except UnicodeEncodeError:
        raise _parse_error("The surrogate pair in string is invalid.") from None
    except OverflowError:
        raise _parse_error(_TOO_BIG) from None
    except RecursionError:
        raise _parse_error("Values are nested too deeply.") from None
    if not isinstance(value, dict):
        raise invalid_argument(f"JSON Value: {describe(value)} Is not object")
    return value


def encode_text(text: str) -> bytes:
    """Returns the bytes of a parsed string."""
    return text.encode(errors=ENCODING_ERRORS)


def quote(data: bytes) -> str:
    """Returns a JSON string with the same bytes."""
    return json.dumps(data.decode(errors=ENCODING_ERRORS), ensure_ascii=False)


def decimals(array: Array) -> list[str]:
    """Returns the elements of an array of float32 or float64 as JSON numbers.

    As in TF Serving, a number has 6 digits if these are exact, else 9 (float32) or 17 (float64).
    """
    values: list[float] = array.reshape(-1).tolist()
    texts = [f"{value:g}" for value in values]
    is_exact = np.array(texts, np.float64).astype(array.dtype) == array.reshape(-1)
    digits = 9 if array.dtype == np.float32 else 17
    return [
        _mark_decimal(text if exact else f"{value:.{digits}g}", value)
        for value, text, exact in zip(values, texts, is_exact.tolist(), strict=True)
    ]


def nest(texts: Sequence[str], shape: Sequence[int]) -> str:
    """Returns the JSON of an array from the JSON of its elements."""
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        texts = [
            list_of(texts[row * size : (row + 1) * size]) for row in range(math.prod(shape[:axis]))
        ]
    (text,) = texts
    return text


def list_of(texts: Iterable[str]) -> str:
    """Returns a JSON array from the JSON of its elements."""
    return f"[{', '.join(texts)}]"


def object_of(members: Iterable[tuple[str, str]]) -> str:
    """Returns a JSON object from its names and the JSON of its values."""
    return "{" + ", ".join(f"{quote(name.encode())}: {text}" for name, text in members) + "}"


def describe(value: Any) -> str:
    """Returns a parsed value as JSON, for messages; only the beginning of a large one."""
    if isinstance(value, float):
        is_float = not math.isfinite(value) or abs(value) <= _MAX_FLOAT
        return decimals(np.array(value, np.float32 if is_float else np.float64))[0]
    text = ""
    for part in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
        text += part[: _MAX_DESCRIBED + 1]
        if len(text) > _MAX_DESCRIBED:
            return f"{text[:_MAX_DESCRIBED]}…"
    return text


def kind(value: Any) -> str:
    """Returns RapidJSON's name of a parsed value's type."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return names.get(type(value), "Null")


def _integer(text: str) -> int | float:
    if len(text) <= 20:  # the length of the lowest and of the highest
        value = int(text)
        if -(2**63) <= value < 2**64:
            return value
    return _decimal(text)


def _decimal(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise OverflowError
    return value


def _first_of_each(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        value.update(reversed(members))
    return value


def _message(error: json.JSONDecodeError) -> str:
    if error.msg.startswith("Expecting ','"):
        opened: list[str] = []
        for token in _STRING_OR_BRACKET.findall(error.doc[: error.pos]):
            if token in "[{":
                opened.append(token)
            elif token in "]}":
                opened.pop()
        if opened[-1] == "[":
            return "Missing a comma or ] after an array element."
        return "Missing a comma or } after an object member."
    return next(text for begin, text in _MESSAGES.items() if error.msg.startswith(begin))


def _parse_error(message: str, offset: int | None = None) -> Exception:
    where = "" if offset is None else f" at offset: {offset}"
    return invalid_argument(f"JSON Parse error: {message}{where}")


def _mark_decimal(text: str, value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return text if "." in text or "e" in text else f"{text}.0"
