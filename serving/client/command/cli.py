"""``python -m serving.client``: calls a model server from a shell.

Exit codes: 0 if the call succeeded, 1 if it failed, 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.client import checks
from serving.client.command import flags, json_values, tables
from serving.client.connection import Tls
from serving.client.errors import InvalidInput, ServingError
from serving.client.results import TensorInfo
from serving.client.sync import Client
from serving.tensors import Array


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    options = flags.parser().parse_args(arguments)
    command = _COMMANDS[options.command]
    try:
        with Client(**_client_arguments(options)) as client:
            return command(client, options) or 0
    except InvalidInput as error:
        return _complain(error, 2)
    except (ServingError, OSError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130


def _client_arguments(options: argparse.Namespace) -> dict[str, Any]:
    files = (options.root_certificates, options.certificate_chain, options.private_key)
    tls: Tls | bool = options.tls
    if any(files) or options.server_name:
        tls = Tls(*files, server_name=options.server_name)
    try:
        token = Path(options.token_file).read_text().strip() if options.token_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--token_file: {error}") from None
    return {
        "target": options.target or [flags.DEFAULT_TARGET],
        "timeout_s": options.timeout_s,
        "check": not getattr(options, "no_check", False),
        "tls": tls,
        "token": token,
    }


def _complain(error: Exception, code: int) -> int:
    print(f"serving.client: {error}", file=sys.stderr)
    return code


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
        signature = metadata.signatures.get(options.signature or checks.DEFAULT_SIGNATURE)
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


def _bench(client: Client, options: argparse.Namespace) -> int:
    if (options.for_rate is None) != (options.p99_ms is None):
        raise InvalidInput("--for_rate and --p99_ms go together: give both")
    if options.for_rate is not None and len(options.target or ()) > 1:
        raise InvalidInput("--for_rate needs the figures of one replica: give one --target")
    has_inputs = bool(options.input or options.inputs)
    if has_inputs and options.rows is not None:
        raise InvalidInput("--rows is for a bench without inputs: omit it, or --input and --inputs")
    from serving.client.command import bench  # slow to import, and only needed here

    choice = {"version": options.version, "label": options.label}
    signature = checks.signature_for_predict(
        client.metadata(options.model, **choice), options.signature
    )
    if has_inputs:
        inputs = checks.arrays(signature, _predict_inputs(client, options))
    else:
        inputs = bench.zeros(signature, options.rows or 1)
    if not options.no_check:
        checks.check(signature, inputs, options.output_filter or ())
    report = bench.run(
        _client_arguments(options) | {"check": False, "retries": 0},
        {
            "model": options.model,
            "inputs": inputs,
            "signature": options.signature,
            "output_filter": options.output_filter or (),
            **choice,
        },
        options.rate,
        options.seconds,
        options.poisson,
    )
    if options.output != "-":
        print(report.to_text())
        if options.for_rate is not None:
            print(bench.sizing_line(report, options.for_rate, options.p99_ms))
    if options.output is not None:
        names = ("model", "version", "label", "signature", "seconds", "poisson")
        settings = {name: getattr(options, name) for name in names}
        targets = options.target or [flags.DEFAULT_TARGET]
        figures = bench.figures(report, **settings, targets=targets)
        if options.for_rate is not None:
            figures |= bench.sizing_figures(report, options.for_rate, options.p99_ms)
        text = json.dumps(figures, indent=1, allow_nan=False)
        if options.output == "-":
            print(text)
        else:
            Path(options.output).write_text(text + "\n")
    if report.is_interrupted:
        return 130
    return 0 if report.answered else 1


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
            return flags.read(Path(options.inputs))
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
            print(np.array2string(array))
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


_COMMANDS: dict[str, Callable[[Client, argparse.Namespace], int | None]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
    "bench": _bench,
    "metadata": _metadata,
    "status": _status,
    "wait": _wait,
    "reload": _reload,
}
