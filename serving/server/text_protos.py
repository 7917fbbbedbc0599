"""Configuration files in protobuf's text format."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

T = TypeVar("T", bound=Message)


def read(path: Path, message: T) -> T:
    """Reads a file in protobuf's text format into ``message``, and returns the message.

    Raises:
        ValueError: the file can't be read, or its text is no message of this type.
    """
    try:
        text_format.Parse(path.read_bytes(), message)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except text_format.ParseError as error:
        kind = message.DESCRIPTOR.name
        if error.GetLine() is None:  # it is not UTF-8
            raise ValueError(f"Invalid protobuf file: '{path}', no text of a {kind}") from None
        place = f"line {error.GetLine()}, column {error.GetColumn()}"
        text = str(error).partition(" : ")[2] or str(error)
        raise ValueError(f"Invalid protobuf file: '{path}', no {kind} at {place}: {text}") from None
    return message
