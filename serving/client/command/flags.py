"""The flags of ``python -m serving.client``, and how their values are parsed."""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from serving.client.command import json_values

DEFAULT_TARGET: Final = "127.0.0.1:8500"
_EXAMPLES: Final = """examples:
  python -m serving.client wait --target 127.0.0.1:8500 --model digits
  python -m serving.client predict --model digits --input features=@images.npy --output answers.npz
  python -m serving.client predict --model half --input 'x=[[1.0], [2.0]]' --output -
  echo '{"x": [[1.0], [2.0]]}' | python -m serving.client predict --model half --inputs -
  python -m serving.client classify --model half --inputs examples.json
  python -m serving.client bench --model digits --rate 50,100,200 --seconds 10
  python -m serving.client metadata --model digits
  python -m serving.client reload --config models.config

JSON, in both directions: NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"
(an input of floats may have the bare words, too), bytes that are not UTF-8 are {"b64": "…"}, and
a complex number is [real, imaginary]. The output can be read again by --inputs.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser; ``command`` of what it parses is the name of the command."""
    parser_ = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Call TF Serving or serving.server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser_.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, timeout_s: float) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=name)
        sub.add_argument(
            "--target",
            action="append",
            help=f"host:port of the gRPC service ({DEFAULT_TARGET}); once for each replica",
        )
        sub.add_argument(
            "--timeout_s", type=float, default=timeout_s, help="time limit in seconds (%(default)g)"
        )
        sub.add_argument(
            "--tls", action="store_true", help="encrypt; the four flags below imply it"
        )
        sub.add_argument(
            "--root_certificates", metavar="FILE", help="authorities of its certificate"
        )
        sub.add_argument("--certificate_chain", metavar="FILE", help="the client's certificate")
        sub.add_argument("--private_key", metavar="FILE", help="the key of the certificate")
        sub.add_argument("--server_name", help="the name in the server's certificate")
        sub.add_argument("--token_file", metavar="FILE", help="a bearer token to send, over TLS")
        return sub

    def add_model(sub: Any, with_label: bool = True) -> None:
        sub.add_argument("--model", required=True, help="the model's name")
        sub.add_argument("--version", type=int, help="a version's number; by default the newest")
        if with_label:
            sub.add_argument("--label", help="a version's label instead of its number")

    def add_inputs(sub: Any, unit: str) -> None:
        sub.add_argument(
            "--input",
            action="append",
            default=[],
            type=_input,
            metavar="[NAME=]VALUE",
            help=f"JSON, or @FILE with a .npy or .json file; once for each {unit}; a single "
            "input needs no name; JSON numbers get the model's dtype, and "
            '{"b64": "…"} is bytes',
        )
        sub.add_argument(
            "--inputs",
            metavar="FILE",
            help=f"all of them: a .npz file, or JSON with values by {unit}"
            + (" or a list of examples" if unit == "feature" else "")
            + "; - reads JSON from standard input",
        )
        sub.add_argument("--no_check", action="store_true", help="leave all checks to the server")

    for name, text, unit in (
        ("predict", "Send inputs, get outputs.", "input"),
        ("classify", "Send examples, get labels and scores.", "feature"),
        ("regress", "Send examples, get a number for each.", "feature"),
    ):
        sub = add(name, text, 10)
        add_model(sub)
        sub.add_argument("--signature", help="by default the only one for this command")
        add_inputs(sub, unit)
        sub.add_argument("--max_batch_size", type=int, help="largest number of rows in one request")
        sub.add_argument(
            "--output",
            type=_output,
            metavar="FILE",
            help="write the answer to a .json, .npz or .csv file; - prints JSON, and table a "
            "table, which is the default on a terminal",
        )
        if name == "predict":
            sub.add_argument("--output_filter", action="append", help="name of an output to return")
        else:
            sub.add_argument("--context", type=_value, help="features of all examples, as JSON")
    sub = add("bench", "Measure the latency of predict at given rates.", 10)
    add_model(sub)
    sub.add_argument("--signature", help="by default serving_default")
    add_inputs(sub, "input")
    sub.add_argument(
        "--rows", type=_count, help="without inputs: rows of zeros and empty strings (1)"
    )
    sub.add_argument("--output_filter", action="append", help="name of an output to return")
    sub.add_argument(
        "--rate",
        type=_rates,
        default=[50.0],
        metavar="R[,R…]",
        help="calls in a second (50); with several rates, from the lowest on until the server "
        "answers less than 0.9 of the calls",
    )
    sub.add_argument(
        "--seconds", type=_positive, default=10.0, help="time for each rate (%(default)g)"
    )
    sub.add_argument(
        "--poisson",
        action="store_true",
        help="calls at random times, as independent callers make them, instead of evenly spaced",
    )
    sub.add_argument(
        "--for_rate", type=_positive, help="print the replicas that this rate needs; see --p99_ms"
    )
    sub.add_argument(
        "--p99_ms", type=_positive, help="the limit of the 0.99 quantile for --for_rate"
    )
    sub.add_argument(
        "--output", type=_json_output, metavar="FILE", help="write a .json file; - prints JSON"
    )
    add_model(add("metadata", "Show a model's signatures.", 10))
    add_model(add("status", "Show the states of a model's versions.", 10), False)
    add_model(add("wait", "Wait until a model is available.", 60), False)
    reload = add("reload", "Replace a server's configuration.", 60)
    reload.add_argument(
        "--config", required=True, metavar="FILE", help="a ModelServerConfig, as text"
    )
    return parser_


def read(path: Path) -> Any:
    """Returns the values in a .npy, .npz or .json file; raises ValueError if they can't be read."""
    if path.suffix in (".npy", ".npz"):
        try:
            loaded = np.load(path, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
        except (ValueError, EOFError, zipfile.BadZipFile):  # numpy advises to allow pickles
            raise ValueError(f"{path} has no arrays of numbers or strings, or is damaged") from None
    if path.suffix == ".json":
        return json_values.parse(path.read_text("utf-8"))
    raise ValueError("a file has to end in .npy, .npz or .json")


def _input(text: str) -> tuple[str | None, Any]:
    """Parses ``name=value`` or ``value``; a text that starts like JSON or ``@`` has no name."""
    match = re.match(r'([^\[{"@=\s]+)=', text)
    name, value = (match[1], text[match.end() :]) if match else (None, text)
    return name, _value(value)


def _value(text: str) -> Any:
    try:
        return read(Path(text[1:])) if text.startswith("@") else json_values.parse(text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _output(text: str) -> str:
    if text not in ("-", "table") and Path(text).suffix not in (".json", ".npz", ".csv"):
        raise argparse.ArgumentTypeError(
            f"{text!r} has to end in .json, .npz or .csv, or be table or -"
        )
    return text


def _json_output(text: str) -> str:
    if text != "-" and Path(text).suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text!r} has to end in .json, or be -")
    return text


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} has to be a number above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has to be 1 or more")
    return value


def _rates(text: str) -> list[float]:
    return [_positive(part) for part in text.split(",")]


# argparse names them in messages: "invalid number value: 'x'"
_positive.__name__ = "number"
_count.__name__ = "whole number"
_rates.__name__ = "list of numbers"
