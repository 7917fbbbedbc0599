"""TensorFlow's element types: their numbers, their names, and the numpy dtypes of their arrays.

Types that numpy lacks are those of ml_dtypes (bfloat16, float8, 4 and 2 bits; the package is
imported when such a tensor occurs) and, as in ``tf.make_ndarray``, structures of one field for the
quantized types: ``array["qint8"]`` has the numbers.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

STRING = 7
BOOL = 10
# For each element type: its name, its repeated field, and the numpy dtype of that field. The field
# float8_val is not repeated: it has one byte for each element.
TYPES = {
    1: ("float32", "float_val", "float32"),
    2: ("float64", "double_val", "float64"),
    3: ("int32", "int_val", "int32"),
    4: ("uint8", "int_val", "int32"),
    5: ("int16", "int_val", "int32"),
    6: ("int8", "int_val", "int32"),
    STRING: ("string", "string_val", "object"),
    8: ("complex64", "scomplex_val", "float32"),
    9: ("int64", "int64_val", "int64"),
    BOOL: ("bool", "bool_val", "bool"),
    11: ("qint8", "int_val", "int32"),
    12: ("quint8", "int_val", "int32"),
    13: ("qint32", "int_val", "int32"),
    14: ("bfloat16", "half_val", "int32"),
    15: ("qint16", "int_val", "int32"),
    16: ("quint16", "int_val", "int32"),
    17: ("uint16", "int_val", "int32"),
    18: ("complex128", "dcomplex_val", "float64"),
    19: ("float16", "half_val", "int32"),
    22: ("uint32", "uint32_val", "uint32"),
    23: ("uint64", "uint64_val", "uint64"),
    24: ("float8_e5m2", "float8_val", "uint8"),
    25: ("float8_e4m3fn", "float8_val", "uint8"),
    26: ("float8_e4m3fnuz", "float8_val", "uint8"),
    27: ("float8_e4m3b11fnuz", "float8_val", "uint8"),
    28: ("float8_e5m2fnuz", "float8_val", "uint8"),
    29: ("int4", "int_val", "int32"),
    30: ("uint4", "int_val", "int32"),
    31: ("int2", "int_val", "int32"),
    32: ("uint2", "int_val", "int32"),
    33: ("float4_e2m1fn", "float8_val", "uint8"),
}
_NO_ARRAYS = {20: "resource", 21: "variant"}  # types whose values can't be in an array
# The numpy dtypes of the numbers in quantized types.
QUANTIZED = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint16": "int16",
    "quint16": "uint16",
    "qint32": "int32",
}
_OF_ML_DTYPES = {"bfloat16", "int4", "uint4", "int2", "uint2"} | {
    name for name, field, _ in TYPES.values() if field == "float8_val"
}
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
NUMERIC = {  # the dtypes that numpy itself has
    number: np.dtype(name)
    for number, (name, _, _) in TYPES.items()
    if name != "string" and name not in QUANTIZED and name not in _OF_ML_DTYPES
}
TEXT_KINDS = "SUTO"  # the kinds of numpy dtypes that hold strings
_QUANTIZED_FIELDS = {(name,) for name in QUANTIZED}  # of the numpy dtypes of quantized types


def dtype_name(number: int) -> str:
    """Returns TensorFlow's name of the element type ``number``, for example ``float32``."""
    if number in TYPES:
        return TYPES[number][0]
    return _NO_ARRAYS.get(number, f"dtype {number}")


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """Returns the numpy dtype of the element type ``name``; it is object for strings.

    Raises:
        ValueError: the type does not exist, or it is a type of ml_dtypes, and that package is not
            installed or lacks it.
    """
    if name not in NUMBERS:
        raise ValueError(f"element type {name!r} is none of {', '.join(NUMBERS)}")
    if name == "string":
        return np.dtype(object)
    if name in QUANTIZED:
        return np.dtype([(name, QUANTIZED[name])])
    if name not in _OF_ML_DTYPES:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        message = f"{name} needs the package ml_dtypes: pip install ml_dtypes"
        raise ValueError(message) from None
    if not hasattr(ml_dtypes, name):
        message = f"ml_dtypes {ml_dtypes.__version__} lacks {name}: pip install -U ml_dtypes"
        raise ValueError(message)
    return cast("np.dtype[Any]", np.dtype(getattr(ml_dtypes, name)))


def element_type(array: NDArray[Any]) -> str:
    """Returns TensorFlow's name of an array's element type; numpy's, if TensorFlow lacks it."""
    return name_of(array.dtype)


@functools.lru_cache
def name_of(dtype: np.dtype[Any]) -> str:
    """Returns TensorFlow's name of a numpy dtype; numpy's, if TensorFlow lacks it."""
    if dtype.kind in TEXT_KINDS:
        return "string"
    return dtype.names[0] if dtype.names in _QUANTIZED_FIELDS else dtype.name
