"""``python -m serving.client``: calls a model server from a shell.

Exit codes: 0 if the call succeeded, 1 if it failed, 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.client import json_values, tables
from serving.client.checks import DEFAULT_SIGNATURE
from serving.client.connection import Tls
from serving.client.errors import InvalidInput, ServingError
from serving.client.results import TensorInfo
from serving.client.sync import Client
from serving.tensors import Array

_EXAMPLES = """examples:
  python -m serving.client wait --target 127.0.0.1:8500 --model digits
  python -m serving.client predict --model digits --input features=@images.npy --output answers.npz
  python -m serving.client predict --model half --input 'x=[[1.0], [2.0]]' --output -
  echo '{"x": [[1.0], [2.0]]}' | python -m serving.client predict --model half --inputs -
  python -m serving.client classify --model half --inputs examples.json
  python -m serving.client metadata --model digits
  python -m serving.client reload --config models.config

JSON, in both directions: NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"
(an input of floats may have the bare words, too), bytes that are not UTF-8 are {"b64": "…"}, and
a complex number is [real, imaginary]. The output can be read again by --inputs.
"""
_DEFAULT_TARGET = "127.0.0.1:8500"


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[Client, argparse.Namespace], None] = options.command
    try:
        with _client(options) as client:
            command(client, options)
    except InvalidInput as error:
        return _complain(error, 2)
    except (ServingError, OSError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _client(options: argparse.Namespace) -> Client:
    files = (options.root_certificates, options.certificate_chain, options.private_key)
    tls: Tls | bool = options.tls
    if any(files) or options.server_name:
        tls = Tls(*files, server_name=options.server_name)
    try:
        token = Path(options.token_file).read_text().strip() if options.token_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--token_file: {error}") from None
    return Client(
        options.target or [_DEFAULT_TARGET],
        timeout_s=options.timeout_s,
        check=not getattr(options, "no_check", False),
        tls=tls,
        token=token,
    )


def _complain(error: Exception, code: int) -> int:
    print(f"serving.client: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Call TF Serving or serving.server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, command: Callable[..., None], timeout_s: float) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--target",
            action="append",
            help=f"host:port of the gRPC service ({_DEFAULT_TARGET}); once for each replica",
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

    for name, text, command, unit in (
        ("predict", "Send inputs, get outputs.", _predict, "input"),
        ("classify", "Send examples, get labels and scores.", _classify, "feature"),
        ("regress", "Send examples, get a number for each.", _regress, "feature"),
    ):
        sub = add(name, text, command, 10)
        add_model(sub)
        sub.add_argument("--signature", help="by default the only one for this command")
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
        sub.add_argument("--max_batch_size", type=int, help="largest number of rows in one request")
        sub.add_argument("--no_check", action="store_true", help="leave all checks to the server")
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
    add_model(add("metadata", "Show a model's signatures.", _metadata, 10))
    add_model(add("status", "Show the states of a model's versions.", _status, 10), False)
    add_model(add("wait", "Wait until a model is available.", _wait, 60), False)
    reload = add("reload", "Replace a server's configuration.", _reload, 60)
    reload.add_argument(
        "--config", required=True, metavar="FILE", help="a ModelServerConfig, as text"
    )
    return parser


def _predict(client: Client, options: argparse.Namespace) -> None:
    outputs = client.predict(
        options.model,
        _predict_inputs(client, options),
        signature=options.signature,
        version=options.version,
        label=options.label,
        output_filter=options.output_filter or (),
        max_batch_size=options.max_batch_size,
    )
    _write_outputs(outputs, options.output)


def _predict_inputs(client: Client, options: argparse.Namespace) -> Any:
    """Returns the inputs by name, or a single one; JSON values in the form of their dtype."""
    given = _read_inputs(options)
    inputs = given if isinstance(given, dict) else {None: given}
    if not all(isinstance(values, np.ndarray) for values in inputs.values()):
        metadata = client.metadata(options.model, version=options.version, label=options.label)
        signature = metadata.signatures.get(options.signature or DEFAULT_SIGNATURE)
        infos: dict[str | None, TensorInfo] = dict(signature.inputs.items() if signature else ())
        if len(infos) == 1:
            infos[None] = next(iter(infos.values()))
        for name in inputs.keys() & infos.keys():
            if not isinstance(inputs[name], np.ndarray):
                inputs[name] = json_values.to_input(inputs[name], infos[name])
    return inputs.get(None, inputs)


def _classify(client: Client, options: argparse.Namespace) -> None:
    result = client.classify(
        options.model, _read_inputs(options), **_arguments_for_examples(options)
    )
    _write_outputs({"labels": result.labels, "scores": result.scores}, options.output)


def _regress(client: Client, options: argparse.Namespace) -> None:
    values = client.regress(
        options.model, _read_inputs(options), **_arguments_for_examples(options)
    )
    _write_outputs({"values": values}, options.output)


def _arguments_for_examples(options: argparse.Namespace) -> dict[str, Any]:
    names = ("context", "signature", "version", "label", "max_batch_size")
    return {name: getattr(options, name) for name in names}


def _read_inputs(options: argparse.Namespace) -> Any:
    """Returns all inputs, from ``--inputs`` or from each ``--input``."""
    if bool(options.input) == bool(options.inputs):
        raise InvalidInput("give --inputs FILE, or --input NAME=VALUE once for each")
    if options.inputs:
        try:
            if options.inputs == "-":
                return json_values.parse(sys.stdin.read())
            return _read(Path(options.inputs))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"--inputs {options.inputs}: {error}") from None
    named = dict(options.input)
    if len(named) < len(options.input):
        raise InvalidInput("an input is given twice: give --input NAME=VALUE once for each")
    if None in named and len(named) > 1:
        raise InvalidInput("several inputs need names: --input NAME=VALUE")
    return named


def _write_outputs(outputs: dict[str, Array], output: str | None) -> None:
    if output is None and not (sys.stdout.isatty() and tables.has_rows(outputs)):
        for name, array in outputs.items():
            dtype = "string" if array.dtype == object else array.dtype
            print(f"{name}: {dtype} {list(array.shape)}")
            print(np.array2string(array, prefix="  "))
    elif output is None or output == "table":
        print(tables.to_text(outputs))
    elif output == "-":
        print(json_values.to_text(outputs))
    elif output.endswith(".csv"):
        Path(output).write_text(tables.to_csv(outputs), "utf-8")
    elif output.endswith(".npz"):
        plain = {name: _storable(name, array) for name, array in outputs.items()}
        with zipfile.ZipFile(output, "w") as archive:  # np.savez does not accept every name
            for name, array in plain.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    else:
        Path(output).write_text(json_values.to_text(outputs) + "\n")


def _storable(name: str, array: Array) -> Array:
    """Returns an array in a dtype that a .npz file has: numpy would pickle objects."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype != object:
        return array
    strings = array.ravel().tolist()
    if any(string[-1:] in ("\0", b"\0") for string in strings):
        raise InvalidInput(
            f"output {name!r} has strings that end with a zero byte, which a .npz file would lose: "
            "write .json"
        )
    return array.astype("U" if all(isinstance(string, str) for string in strings) else "S")


def _metadata(client: Client, options: argparse.Namespace) -> None:
    metadata = client.metadata(options.model, version=options.version, label=options.label)
    print(f"model {metadata.model}, version {metadata.version}")
    for signature in metadata.signatures.values():
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


def _reload(client: Client, options: argparse.Namespace) -> None:
    try:
        config = Path(options.config).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--config {options.config}: {error}") from None
    client.reload(config)
    print("the server has applied the configuration")


def _input(text: str) -> tuple[str | None, Any]:
    """Parses ``name=value`` or ``value``; a text that starts like JSON or ``@`` has no name."""
    match = re.match(r'([^\[{"@=\s]+)=', text)
    name, value = (match[1], text[match.end() :]) if match else (None, text)
    return name, _value(value)


def _value(text: str) -> Any:
    try:
        return _read(Path(text[1:])) if text.startswith("@") else json_values.parse(text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _read(path: Path) -> Any:
    if path.suffix in (".npy", ".npz"):
        try:
            loaded = np.load(path, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
        except (ValueError, EOFError, zipfile.BadZipFile):  # numpy advises to allow pickles
            raise ValueError(f"{path} has no arrays of numbers or strings, or is damaged") from None
    if path.suffix == ".json":
        return json_values.parse(path.read_text("utf-8"))
    raise ValueError("a file has to end in .npy, .npz or .json")


def _output(text: str) -> str:
    if text not in ("-", "table") and Path(text).suffix not in (".json", ".npz", ".csv"):
        raise argparse.ArgumentTypeError(
            f"{text!r} has to end in .json, .npz or .csv, or be table or -"
        )
    return text
