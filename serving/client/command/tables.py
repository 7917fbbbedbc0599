"""Writes outputs as tables: CSV for programs, aligned columns for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from serving.client.command import json_values
from serving.client.errors import InvalidInput
from serving.tensors import Array

_MAX_ROWS: Final = 100  # shown to people
_MAX_WIDTH: Final = 40  # of a cell


def has_rows(outputs: Mapping[str, Array]) -> bool:
    """Returns whether all outputs have the same number of rows."""
    return all(array.ndim for array in outputs.values()) and (
        len({len(array) for array in outputs.values()}) <= 1
    )


def to_csv(outputs: Mapping[str, Array]) -> str:
    """Returns CSV with a row for each row of the outputs, and a column for each element.

    The columns of ``scores`` [n, 10] are ``scores[0]`` to ``scores[9]``. Values are written as in
    JSON, complex numbers as ``1.0+2.0j``.

    Raises:
        InvalidInput: the outputs have different numbers of rows.
    """
    _require_rows(outputs)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        name + "".join(f"[{i}]" for i in index)
        for name, array in outputs.items()
        for index in np.ndindex(array.shape[1:])
    )
    columns = [
        column
        for array in outputs.values()
        for column in array.reshape(len(array), _row_size(array)).T.tolist()
    ]
    writer.writerows(map(_plain, row) for row in zip(*columns, strict=True))
    return file.getvalue()


def to_text(outputs: Mapping[str, Array]) -> str:
    """Returns a table for people, in which long cells and many rows are cut.

    Raises:
        InvalidInput: the outputs have different numbers of rows.
    """
    _require_rows(outputs)
    header = [
        f"{name} {list(array.shape[1:])}" if array.ndim > 1 else name
        for name, array in outputs.items()
    ]
    shown = [[_cell(row) for row in array[:_MAX_ROWS]] for array in outputs.values()]
    text = align(header, zip(*shown, strict=True))
    more = max(map(len, outputs.values()), default=0) - _MAX_ROWS
    return f"{text}\n… {more} more rows; --output=FILE writes all" if more > 0 else text


def align(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns lines with the columns aligned to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _require_rows(outputs: Mapping[str, Array]) -> None:
    if not has_rows(outputs):
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in outputs.items())
        raise InvalidInput(
            f"a table needs outputs with the same number of rows ({shapes}): "
            "select some by --output_filter, or write .json or .npz"
        )


def _row_size(array: Array) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64))


def _plain(value: Any) -> Any:
    """Returns a value for a cell of CSV."""
    if isinstance(value, complex):
        return str(value).strip("()")
    value = json_values.to_value(value)
    return value if isinstance(value, str) else json.dumps(value)


def _cell(row: Any) -> str:
    """Returns the text of one row of an output."""
    if np.ndim(row):
        text = np.array2string(
            row,
            max_line_width=10**6,
            threshold=6,
            precision=4,
            separator=", ",
            formatter={"object": _plain},
        )
        text = " ".join(text.split())
    elif isinstance(row, np.generic) and not isinstance(row, np.integer | np.bool_):
        text = f"{row.item():.6g}"
    else:
        text = str(_plain(row.item() if isinstance(row, np.generic) else row))
    if not text.isprintable():  # a line end, or a terminal's commands
        text = repr(text)[1:-1]
    return text if len(text) <= _MAX_WIDTH else text[: _MAX_WIDTH - 1] + "…"
