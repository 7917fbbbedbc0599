"""Numbers and strings as TF Serving's writer has them."""

from __future__ import annotations

import numpy as np
import pytest

from serving.server.rest import json_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.2), "0.2"),
        (np.float32(1), "1.0"),
        (np.float32(9000000), "9e+06"),
        (np.float32(0.00003), "3e-05"),
        (np.float32(1 / 3), "0.333333343"),
        (np.float32(16777216), "16777216.0"),
        (np.float64(1 / 3), "0.33333333333333331"),
        (np.float64(0.1), "0.1"),
        (np.float32("nan"), "NaN"),
        (np.float32("inf"), "Infinity"),
        (np.float64("-inf"), "-Infinity"),
        (np.float32(-0.0), "-0.0"),
    ],
)
def test_decimals(value: np.floating, text: str):
    assert json_text.decimals(np.array([value])) == [text]


def test_what_python_reads_differently():
    assert json_text.parse_object(b'\xef\xbb\xbf{"a": 1, "a": 2}') == {"a": 1}
    value = json_text.parse_object(b'{"a": [18446744073709551616, 18446744073709551615]}')["a"]
    assert value == [2.0**64, 2**64 - 1] and isinstance(value[0], float)
    raw = json_text.parse_object(b'{"a": "\xff\\u00fc"}')["a"]
    assert json_text.encode_text(raw) == b"\xff\xc3\xbc"
    assert json_text.quote(b'\xff"\n').encode(errors="surrogateescape") == b'"\xff\\"\\n"'
    assert json_text.nest([], (2, 0, 3)) == "[[], []]"


def test_only_the_beginning_of_a_large_value_is_described():
    assert (
        json_text.describe([1, {"a": "\u00fc"}])
        == '[\n    1,\n    {\n        "a": "\u00fc"\n    }\n]'
    )
    for large in (["abc"] * 10**6, "x" * 10**6, {"x" * 10**6: 1}):
        text = json_text.describe(large)
        assert len(text) == 1001 and text.endswith("\u2026")
