"""The command line, against a real server that echoes; the client has tests of its own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client.command.cli import main
from serving.protos import serving_pb2
from tests.serving.scripted_server import Server, echo, refusal, signatures, states


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.answers = {
        "Predict": echo,
        "GetModelMetadata": signatures(shape=None, x=1, s=7),
        "GetModelStatus": states((1, "END", "broken"), (2, "AVAILABLE", "")),
    }
    yield server
    server.stop()


def run(server: Server, command: str, *arguments: str) -> int:
    model = [] if command == "reload" else ["--model", "m"]
    return main([command, "--target", server.target, *model, *arguments])


def test_predict_prints_or_writes_its_outputs(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(server, "predict", "--input=x=[[1, 2, 3]]", '--input=s=["a"]') == 0
    assert capsys.readouterr().out == "s: string [1]\n[b'a']\nx: float32 [1, 3]\n[[1. 2. 3.]]\n"
    np.save(tmp_path / "x.npy", np.array([1.5, 2.5], np.float32))
    (tmp_path / "s.json").write_text('["ü", "b"]')
    inputs = [f"--input=x=@{tmp_path}/x.npy", f"--input=s=@{tmp_path}/s.json"]
    assert run(server, "predict", *inputs, "--output=-") == 0
    assert json.loads(capsys.readouterr().out) == {"s": ["ü", "b"], "x": [1.5, 2.5]}
    assert run(server, "predict", *inputs, f"--output={tmp_path}/out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["x"] == [1.5, 2.5]
    assert run(server, "predict", *inputs, f"--output={tmp_path}/out.npz") == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["s"].tolist() == ["ü".encode(), b"b"]
        assert arrays["x"].dtype == np.float32


def test_whole_inputs_from_a_file_or_standard_input(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    text = '{"x": [1.5], "s": ["a", {"b64": "/wA="}]}'
    np.savez(tmp_path / "in.npz", x=np.float32([1.5]), s=np.array([b"a", b"\xff\0z"]))
    (tmp_path / "in.json").write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    for inputs, second in (
        ("-", {"b64": "/wA="}),
        (f"{tmp_path}/in.json", {"b64": "/wA="}),
        (f"{tmp_path}/in.npz", {"b64": "/wB6"}),
    ):
        assert run(server, "predict", f"--inputs={inputs}", "--output=-") == 0
        assert json.loads(capsys.readouterr().out) == {"x": [1.5], "s": ["a", second]}


DT = serving_pb2.DataType.Value
ODD = {  # by dtype: JSON as it is written, and other JSON for the same values
    "float": ('["NaN", "Infinity", "-Infinity", 1.5]', "[NaN, Infinity, -Infinity, 1.5]"),
    "double": ('["NaN", 0.1]', '["NaN", 1e-1]'),
    "half": ('["NaN", -2.5]', "[NaN, -2.5]"),
    "bfloat16": ('["-Infinity", 0.15625]', "[-Infinity, 0.15625]"),
    "int64": ("[-9223372036854775808, 9223372036854775807, 9007199254740993]", None),
    "uint64": ("[18446744073709551615, 1]", None),
    "complex64": ('[[1.0, -2.5], ["NaN", "Infinity"]]', "[[1, -2.5], [NaN, Infinity]]"),
    "complex128": ("[[0.1, 0.0], [3.0, 0.0]]", "[[0.1, 0], [3, 0]]"),
    "string": ('["NaN", "\\u00fc", {"b64": "/wA="}]', '["NaN", "ü", {"b64": "/wA="}]'),
    "bool": ("[true, false]", None),
}


def refuse_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def test_what_is_printed_is_json_and_can_be_read_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dtypes = {name: (DT(f"DT_{name.upper()}"), [-1]) for name in ODD}
    server.answers["GetModelMetadata"] = signatures(**dtypes)
    written = {name: json.loads(text) for name, (text, _) in ODD.items()}
    for other in (False, True):
        texts = {name: (pair[1] if other else None) or pair[0] for name, pair in ODD.items()}
        inputs = [f"--input={name}={text}" for name, text in texts.items()]
        assert run(server, "predict", *inputs, f"--output={tmp_path}/out.json") == 0
        text = (tmp_path / "out.json").read_text()
        assert json.loads(text, parse_constant=refuse_constant) == written
        assert run(server, "predict", f"--inputs={tmp_path}/out.json", "--output=-") == 0
        assert capsys.readouterr().out == text
    npz = [f"--inputs={tmp_path}/out.json", f"--output={tmp_path}/o.npz"]
    assert run(server, "predict", *npz) == 2
    assert "'string' has strings that end with a zero byte" in capsys.readouterr().err
    (tmp_path / "out.json").write_text(text.replace("/wA=", "/w=="))
    assert run(server, "predict", *npz) == 0
    with np.load(tmp_path / "o.npz") as arrays:
        assert np.isnan(arrays["float"][0])
        assert arrays["float"][1:].tolist() == [np.inf, -np.inf, 1.5]
        assert arrays["bfloat16"].tolist() == [-np.inf, 0.15625]  # as float32
        assert arrays["uint64"].tolist() == [2**64 - 1, 1]
        assert arrays["complex64"][0] == 1 - 2.5j and np.isnan(arrays["complex64"][1].real)
        assert arrays["string"].tolist() == [b"NaN", "ü".encode(), b"\xff"]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("int32", '["NaN"]'),
        ("int32", "[NaN]"),
        ("string", "[NaN]"),
        ("float", '["nan"]'),
        ("uint64", "[-1]"),
        ("uint64", "[18446744073709551616]"),
        ("complex64", "[[1, 2, 3]]"),
        ("complex64", '[[1, "x"]]'),
        ("string", '[{"b64": 7}]'),
    ],
)
def test_values_of_another_dtype_are_refused(
    server: Server, capsys: pytest.CaptureFixture[str], dtype: str, text: str
):
    server.answers["GetModelMetadata"] = signatures(x=(DT(f"DT_{dtype.upper()}"), [-1]))
    try:
        code: object = run(server, "predict", f"--input=x={text}")
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert "x" in capsys.readouterr().err and "Predict" not in server.calls


def test_complex_numbers_without_an_imaginary_part_have_one_dimension_less(
    server: Server, capsys: pytest.CaptureFixture[str]
):
    server.answers["GetModelMetadata"] = signatures(x=(DT("DT_COMPLEX64"), [-1, 2]))
    assert run(server, "predict", "--input=[[1, 2]]", "--output=-") == 0
    assert json.loads(capsys.readouterr().out) == {"x": [[[1, 0], [2, 0]]]}


def test_csv_has_a_column_for_each_element(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server.answers["GetModelMetadata"] = signatures(
        label=(DT("DT_STRING"), [-1]), scores=(DT("DT_FLOAT"), [-1, 2]), z=(DT("DT_FLOAT"), None)
    )
    inputs = ['--input=label=["a, \\"b\\"", "c\\nd"]', '--input=scores=[[1, "NaN"], [3, 4]]']
    path = tmp_path / "out.csv"
    inputs.append("--input=z=[[[5, 6], [7, 8]], [[0, 0], [0, 0]]]")
    assert run(server, "predict", *inputs, f"--output={path}") == 0
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["label", *("scores[0]", "scores[1]"), "z[0][0]", "z[0][1]", "z[1][0]", "z[1][1]"],
            ['a, "b"', "1.0", "NaN", "5.0", "6.0", "7.0", "8.0"],
            ["c\nd", "3.0", "4.0", "0.0", "0.0", "0.0", "0.0"],
        ]
    inputs[-1] = "--input=z=[1]"
    assert run(server, "predict", *inputs, f"--output={path}") == 2
    assert "same number of rows ('label' [2], 'scores' [2, 2], 'z' [1])" in capsys.readouterr().err


def test_a_table_for_people(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    server.answers["GetModelMetadata"] = signatures(
        n=(DT("DT_INT64"), [-1]), s=(DT("DT_STRING"), [-1]), x=(DT("DT_FLOAT"), [-1, -1])
    )
    inputs = ["--input=n=[1, 20]", '--input=s=["a\\u001b[2J", "b"]', "--input=x=[[1, 2], [0.5, 4]]"]
    assert run(server, "predict", *inputs, "--output=table") == 0
    table = capsys.readouterr().out
    assert table == (
        " n         s       x [2]\n 1  a\\x1b[2J    [1., 2.]\n20         b  [0.5, 4. ]\n"
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run(server, "predict", *inputs) == 0
    assert capsys.readouterr().out == table
    many = json.dumps({"n": list(range(150)), "s": ["é" * 99] * 150, "x": [[0] * 999] * 150})
    monkeypatch.setattr("sys.stdin", io.StringIO(many))
    assert run(server, "predict", "--inputs=-", "--output=table") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 102 and lines[-1].startswith("… 50 more rows")
    assert "é" * 39 + "…" in lines[1] and max(map(len, lines)) < 100


def test_classify_and_regress(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sizes: list[int] = []

    def regress(data: bytes, context: grpc.ServicerContext) -> bytes:
        response = serving_pb2.RegressionResponse()
        request = serving_pb2.RegressionRequest.FromString(data).input.example_list_with_context
        assert request.context.features.feature["c"].int64_list.value == [1]
        sizes.append(len(request.examples))
        for example in request.examples:
            response.result.regressions.add(value=example.features.feature["n"].int64_list.value[0])
        return response.SerializeToString()

    answer = serving_pb2.ClassificationResponse()
    answer.result.classifications.add().classes.add(label="ü", score=0.5)
    server.answers |= {
        "Regress": regress,
        "Classify": lambda data, context: answer.SerializeToString(),
    }
    (tmp_path / "rows.json").write_text('[{"n": 1}, {"n": 2}, {"n": 3}]')
    server.answers["GetModelMetadata"] = signatures(method="regress", inputs=(7, None))
    context = ['--context={"c": 1}', "--max_batch_size=2", "--output=-"]
    assert run(server, "regress", f"--inputs={tmp_path}/rows.json", *context) == 0
    assert json.loads(capsys.readouterr().out) == {"values": [1, 2, 3]}
    assert sizes == [2, 1]  # and joined
    server.answers["GetModelMetadata"] = signatures(method="classify", inputs=(7, None))
    assert run(server, "classify", "--input=n=[1]", f"--output={tmp_path}/out.npz") == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert (arrays["labels"].tolist(), arrays["scores"].tolist()) == ([["ü"]], [[0.5]])


def test_reload_sends_a_file(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        config = serving_pb2.ReloadConfigRequest.FromString(data).config
        names.extend(model.name for model in config.model_config_list.config)
        return b""

    server.answers["HandleReloadConfigRequest"] = answer
    (tmp_path / "models.config").write_text('model_config_list { config { name: "m" } }')
    assert run(server, "reload", f"--config={tmp_path}/models.config") == 0
    assert names == ["m"]
    (tmp_path / "models.config").write_text("models: 7")
    assert run(server, "reload", f"--config={tmp_path}/models.config") == 2
    assert run(server, "reload", f"--config={tmp_path}/none") == 2
    server.answers["HandleReloadConfigRequest"] = refusal(grpc.StatusCode.UNAVAILABLE, "no")
    (tmp_path / "models.config").write_text("")
    assert run(server, "reload", f"--config={tmp_path}/models.config") == 1
    capsys.readouterr()


def test_a_single_input_needs_no_name_and_checks_can_be_left_to_the_server(
    server: Server, capsys: pytest.CaptureFixture[str]
):
    assert run(server, "predict", "--input=x=[1]") == 2
    assert "'s' is missing" in capsys.readouterr().err
    assert run(server, "predict", "--input=x=[1]", "--no_check") == 0
    server.answers["GetModelMetadata"] = signatures(pixels=(4, None))
    capsys.readouterr()
    assert run(server, "predict", "--input=[1, 2]", "--output=-") == 0
    assert json.loads(capsys.readouterr().out) == {"pixels": [1, 2]}


def test_metadata_status_and_wait(server: Server, capsys: pytest.CaptureFixture[str]):
    server.answers["GetModelMetadata"] = signatures(x=14)
    assert run(server, "metadata") == 0
    assert capsys.readouterr().out == (  # the initializer is no signature
        "model m, version 3\nserving_default\n"
        "  in   x: bfloat16 [any, 3]\n"
        "  out  x: bfloat16 [any, 3]\n  out  y: string of any shape\n"
    )
    assert run(server, "status") == 0
    assert capsys.readouterr().out == "version 2  AVAILABLE\nversion 1  END  broken\n"
    assert run(server, "wait", "--timeout_s=5") == 0
    assert capsys.readouterr().out == "model m is ready, version 2\n"


def test_a_failed_call_exits_with_1(server: Server, capsys: pytest.CaptureFixture[str]):
    server.answers["GetModelStatus"] = refusal(grpc.StatusCode.NOT_FOUND, "no m here")
    assert run(server, "status") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no m here" in printed.err and printed.err.count("\n") == 1
    assert run(server, "wait", "--timeout_s=0.2") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--input=x=[1"],
        ["--input=x=@/no/such/file.npy"],
        ["--input=x=@pyproject.toml"],
        ["--input=x=[1]", "--input=x=[2]"],
        ["--input=x=[1]", "--input=[2]"],
        ["--input=[1]"],
        ["--input=x=[1]", "--output=out.txt"],
        ["--input=x=[1]", "--inputs=-"],
        ["--inputs=/no/such/file.json"],
        ["--input=x=[1]", "--timeout_s=0"],
        ["--input=x=[1]", "--max_batch_size=0"],
        ["--input=x=[1]", "--token_file=/no/such/file"],
        ["--input=x=[1]", "--token_file=pyproject.toml"],
        ["--input=x=[1]", "--private_key=pyproject.toml"],
        ["--input=x=[1]", "--root_certificates=/no/such/file"],
        ["--input=x=[1]", "--version=1", "--label=stable"],
        ["--nonsense"],
        [],
    ],
)
def test_bad_arguments_exit_with_2(
    server: Server, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    try:
        code: object = run(server, "predict", *arguments)
    except SystemExit as exit_:  # argparse's way
        code = exit_.code
    assert code == 2
    assert capsys.readouterr().err
    assert "Predict" not in server.calls


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_damaged_file_is_said(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    for content in (b"", b"text", b"PK\3\4 cut off"):
        (tmp_path / name).write_bytes(content)
        assert run(server, "predict", f"--inputs={tmp_path}/{name}") == 2
        said = capsys.readouterr().err
        assert f"{tmp_path}/{name} has no arrays" in said and said.count("\n") == 1


def test_pickles_are_never_opened(server: Server, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(SystemExit) as caught:
        run(server, "predict", f"--input=x=@{tmp_path}/trap.npy")
    assert caught.value.code == 2
    assert not (tmp_path / "sprung").exists()
