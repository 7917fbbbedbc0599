"""The command line, against a real server that echoes; the client has tests of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client.cli import main
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
