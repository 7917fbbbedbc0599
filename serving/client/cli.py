"""``python -m serving.client``: ask a model server from a shell.

Exit codes: 0 if the call succeeded, 1 if it failed, 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.client.checks import DEFAULT_SIGNATURE
from serving.client.errors import InvalidInput, ServingError
from serving.client.sync import Client
from serving.tensors import Array

_EXAMPLES = """examples:
  python -m serving.client wait --target 127.0.0.1:8500 --model digits
  python -m serving.client predict --model digits --input features=@images.npy --output answers.npz
  python -m serving.client predict --model half --input 'x=[[1.0], [2.0]]' --output -
  python -m serving.client metadata --model digits
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[Client, argparse.Namespace], None] = options.command
    try:
        with Client(options.target, timeout_s=options.timeout_s) as client:
            command(client, options)
    except InvalidInput as error:
        return _complain(error, 2)
    except (ServingError, OSError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(error: Exception, code: int) -> int:
    print(f"serving.client: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Ask TF Serving, or serving.server, about a model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, what: str, command: Callable[..., None], timeout_s: float) -> Any:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        sub.add_argument("--target", default="127.0.0.1:8500", help="host:port of the gRPC service")
        sub.add_argument("--model", required=True, help="the model's name")
        sub.add_argument("--version", type=int, help="a version's number; by default the newest")
        sub.add_argument(
            "--timeout_s", type=float, default=timeout_s, help="seconds allowed (%(default)g)"
        )
        return sub

    predict = add("predict", "Send inputs, get outputs.", _predict, 10)
    predict.add_argument("--label", help="a version's label instead of its number")
    predict.add_argument("--signature", help=f"by default {DEFAULT_SIGNATURE}")
    predict.add_argument(
        "--input",
        action="append",
        required=True,
        type=_input,
        metavar="[NAME=]VALUE",
        help="JSON, or @FILE with a .npy or .json file; once for each input; a single input needs "
        "no name; JSON numbers get the dtype that the model wants",
    )
    predict.add_argument("--output_filter", action="append", help="an output wanted; default: all")
    predict.add_argument(
        "--output",
        type=_output,
        metavar="FILE",
        help="write the outputs to a .json or .npz file; - prints JSON",
    )
    metadata = add("metadata", "Show a model's signatures.", _metadata, 10)
    metadata.add_argument("--label", help="a version's label instead of its number")
    add("status", "Show the states of a model's versions.", _status, 10)
    add("wait", "Wait until a model can be asked.", _wait, 60)
    return parser


def _predict(client: Client, options: argparse.Namespace) -> None:
    named = dict(options.input)
    if len(named) < len(options.input):
        raise InvalidInput("an input is given twice; --input NAME=VALUE once for each")
    if None in named and len(named) > 1:
        raise InvalidInput("of several inputs each needs its name: --input NAME=VALUE")
    outputs = client.predict(
        options.model,
        named.get(None, named),
        signature=options.signature,
        version=options.version,
        label=options.label,
        output_filter=options.output_filter,
    )
    if options.output is None:
        for name, array in outputs.items():
            dtype = "string" if array.dtype == object else array.dtype
            print(f"{name}: {dtype} {list(array.shape)}")
            print(np.array2string(array, prefix="  "))
    elif options.output == "-":
        print(_as_json(outputs))
    elif options.output.endswith(".npz"):
        # Arrays of objects would be pickled: strings become numpy's own, which a reader can trust.
        plain = {name: a.astype("S") if a.dtype == object else a for name, a in outputs.items()}
        np.savez(options.output, **plain)  # type: ignore[arg-type]
    else:
        Path(options.output).write_text(_as_json(outputs) + "\n")


def _metadata(client: Client, options: argparse.Namespace) -> None:
    about = client.metadata(options.model, version=options.version, label=options.label)
    print(f"model {about.model}, version {about.version}")
    for signature in about.signatures.values():
        print(signature.name)
        for info in signature.inputs.values():
            print(f"  in   {info}")
        for info in signature.outputs.values():
            print(f"  out  {info}")


def _status(client: Client, options: argparse.Namespace) -> None:
    for status in client.status(options.model, version=options.version):
        print(f"version {status.version}  {status.state}" + f"  {status.error or ''}".rstrip())


def _wait(client: Client, options: argparse.Namespace) -> None:
    status = client.wait_until_ready(
        options.model, version=options.version, timeout_s=options.timeout_s
    )
    print(f"model {options.model} is ready, version {status.version}")


def _input(text: str) -> tuple[str | None, Any]:
    """``name=value`` or ``value``; what starts like JSON or a file has no name."""
    match = re.match(r'([^\[{"@=\s]+)=', text)
    name, value = (match[1], text[match.end() :]) if match else (None, text)
    try:
        return name, _value(value)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _value(text: str) -> Any:
    if not text.startswith("@"):
        return json.loads(text)
    path = Path(text[1:])
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    raise ValueError("a file has to end in .npy or .json")


def _output(text: str) -> str:
    if text != "-" and Path(text).suffix not in (".json", ".npz"):
        raise argparse.ArgumentTypeError(f"{text!r} has to end in .json or .npz, or be -")
    return text


def _as_json(outputs: dict[str, Array]) -> str:
    return json.dumps({name: _plain(array.tolist()) for name, array in outputs.items()})


def _plain(value: Any) -> Any:
    """What JSON can say: complex numbers as pairs, bytes as text or, failing that, as base64."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            import base64

            return {"b64": base64.b64encode(value).decode()}
    return value
