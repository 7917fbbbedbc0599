"""The command line, against a real server that echoes; the client has tests of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client.cli import main
from tests.serving.scripted import Server, echo, refusal, signatures, states


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.answers = {
        "Predict": echo,
        "GetModelMetadata": signatures(x=1, s=7),
        "GetModelStatus": states((2, "AVAILABLE", ""), (1, "END", "broken")),
    }
    yield server
    server.stop()


def run(server: Server, command: str, *arguments: str) -> int:
    return main([command, "--target", server.target, "--model", "m", *arguments])


def test_predict_prints_dtypes_shapes_and_values(
    server: Server, capsys: pytest.CaptureFixture[str]
):
    assert run(server, "predict", "--input=x=[[1, 2, 3]]", '--input=s=["a"]') == 0
    assert capsys.readouterr().out == "s: string [1]\n[b'a']\nx: float32 [1, 3]\n[[1. 2. 3.]]\n"


def test_arrays_from_files_and_json_out(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.save(tmp_path / "x.npy", np.array([1.5, 2.5]))
    (tmp_path / "s.json").write_text('["ü", "b"]')
    inputs = [f"--input=x=@{tmp_path}/x.npy", f"--input=s=@{tmp_path}/s.json"]
    assert run(server, "predict", *inputs, "--output=-") == 0
    assert json.loads(capsys.readouterr().out) == {"s": ["ü", "b"], "x": [1.5, 2.5]}
    assert run(server, "predict", *inputs, f"--output={tmp_path}/out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["x"] == [1.5, 2.5]


def test_npz_out_can_be_read_without_pickle(server: Server, tmp_path: Path):
    out = tmp_path / "out.npz"
    assert run(server, "predict", "--input=x=[1]", '--input=s=["ab"]', f"--output={out}") == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["s"].tolist() == [b"ab"]
        assert arrays["x"].dtype == np.float32


def test_a_single_input_needs_no_name(server: Server, capsys: pytest.CaptureFixture[str]):
    server.answers["GetModelMetadata"] = signatures(pixels=4)
    assert run(server, "predict", "--input=[1, 2]", "--output=-") == 0
    assert json.loads(capsys.readouterr().out) == {"pixels": [1, 2]}


def test_metadata_status_and_wait(server: Server, capsys: pytest.CaptureFixture[str]):
    assert run(server, "metadata") == 0
    printed = capsys.readouterr().out
    assert "model m, version 3\nserving_default\n" in printed
    assert "  in   x: float32 [any, 3]\n" in printed
    assert "  out  y: string of any shape\n" in printed
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
        ["--input=x=[1]", "--timeout_s=0"],
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


def test_pickles_are_never_opened(server: Server, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(SystemExit) as caught:
        run(server, "predict", f"--input=x=@{tmp_path}/trap.npy")
    assert caught.value.code == 2
    assert not (tmp_path / "sprung").exists()
