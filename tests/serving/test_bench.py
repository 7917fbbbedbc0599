"""``python -m serving.client bench``, against a server whose latencies are known."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client.command.cli import main
from serving.protos import serving_pb2
from tests.running import Process, wait_until
from tests.serving.scripted_server import Server, echo, refusal, signatures

FIRST_CALLS = 10  # are not counted


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.answers = {"Predict": echo, "GetModelMetadata": signatures(x=1, s=7)}
    yield server
    server.stop()


def bench(server: Server, *arguments: str) -> int:
    try:
        return main(["bench", "--target", server.target, "--model", "m", *arguments])
    except SystemExit as exit_:  # argparse's way
        assert isinstance(exit_.code, int)
        return exit_.code


def test_quantiles_are_those_of_a_server_with_known_latencies(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sleeps_s = [0.12 if i % 20 == 0 else 0.06 if i % 10 == 5 else 0.02 for i in range(100)]
    lock, left_s = threading.Lock(), [0.0] * FIRST_CALLS + sleeps_s

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        with lock:
            sleep_s = left_s.pop(0)
        time.sleep(sleep_s)
        return echo(data, context)

    server.answers["Predict"] = predict
    path = tmp_path / "figures.json"
    assert bench(server, "--rate=50", "--seconds=2", f"--output={path}") == 0
    assert not left_s
    figures = json.loads(path.read_text())
    (point,) = figures["points"]
    assert (figures["model"], figures["targets"]) == ("m", [server.target])
    assert (point["calls"], point["failed"], point["statuses"]) == (100, 0, {"OK": 100})
    assert point["answered_per_s"] == pytest.approx(50, rel=0.1)
    for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        expected_ms = 1000 * np.quantile(sleeps_s, fraction, method="inverted_cdf")
        assert expected_ms <= point[f"{name}_ms"] < expected_ms + 35
    printed = capsys.readouterr()
    assert f"{point['p99_ms']:.2f}" in printed.out
    assert "50/s: 2 of 2 s, 100 answered, 0 failed" in printed.err


def test_without_inputs_zeros_and_empty_strings_are_sent(server: Server):
    requests: list[bytes] = []

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        requests.append(data)
        return echo(data, context)

    server.answers["Predict"] = predict
    assert bench(server, "--rate=20", "--seconds=0.1", "--rows=2", "--version=3") == 0
    sent = [serving_pb2.PredictRequest.FromString(request) for request in requests]
    assert all(request == sent[0] for request in sent)
    assert sent[0].model_spec.version.value == 3
    assert [dim.size for dim in sent[0].inputs["x"].tensor_shape.dim] == [2, 3]
    assert sent[0].inputs["x"].tensor_content == bytes(2 * 3 * 4)
    assert list(sent[0].inputs["s"].string_val) == [b""] * 6
    requests.clear()
    inputs = ["--input=x=[[1, 2, 3]]", '--input=s=[["a", "b", "c"]]']
    assert bench(server, "--rate=20", "--seconds=0.1", *inputs) == 0
    first = serving_pb2.PredictRequest.FromString(requests[0])
    assert list(first.inputs["s"].string_val) == [b"a", b"b", b"c"]


def test_failures_are_counted_by_status(server: Server, capsys: pytest.CaptureFixture[str]):
    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        number = server.calls.count("Predict") - FIRST_CALLS
        if number > 0 and number % 10 == 1:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full of calls")
        if number > 0 and number % 20 == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return echo(data, context)

    server.answers["Predict"] = predict
    assert bench(server, "--rate=100", "--seconds=0.4", "--output=-") == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert point["statuses"] == {"OK": 34, "RESOURCE_EXHAUSTED": 4, "UNAVAILABLE": 2}
    assert server.calls.count("Predict") == FIRST_CALLS + 40  # no call is repeated
    assert "full of calls" in point["first_error"]


def test_a_server_that_fails_all_calls(server: Server, capsys: pytest.CaptureFixture[str]):
    server.answers["Predict"] = refusal(grpc.StatusCode.INVALID_ARGUMENT, "not like this")
    assert bench(server, "--rate=40,80", "--seconds=0.5", "--for_rate=9", "--p99_ms=9") == 1
    row, *notes = capsys.readouterr().out.splitlines()[1:]
    assert row.split()[:7] == ["40", "0.0", "20", "-", "-", "-", "-"]
    assert "failed at 40/s: 20 INVALID_ARGUMENT; the first one: " in notes[0]
    assert "not like this" in notes[0]
    assert "80/s" not in "".join(notes)
    assert notes[-1].startswith("no number of replicas: no call")


def test_higher_rates_end_when_the_server_cant_keep_up(
    server: Server, capsys: pytest.CaptureFixture[str]
):
    lock = threading.Lock()

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        with lock:  # 50 in a second
            time.sleep(0.02)
        return echo(data, context)

    server.answers["Predict"] = predict
    arguments = ["--rate=400,10,150", "--seconds=0.6", "--for_rate=200", "--p99_ms=10000"]
    assert bench(server, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["10", "150"]
    assert 35 < float(lines[2].split()[1]) < 51
    assert "at 150/s the server can't keep up" in lines[3]
    assert " replicas for 200/s with a p99 of 10000 ms" in lines[4]
    assert int(lines[4].split()[0]) in (7, 8, 9)  # 200 / (0.7 x 50) is 5.7, and a spare one


def test_a_late_generator_is_told_from_a_slow_server(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from serving.client.aio import AsyncClient

    async def predict(self: AsyncClient, *args: object, **kwargs: object) -> None:
        time.sleep(0.02)  # blocks the event loop, as a busy machine does

    monkeypatch.setattr(AsyncClient, "predict", predict)
    assert bench(server, "--rate=400", "--seconds=0.2") == 0
    printed = capsys.readouterr().out
    assert "at 400/s this generator was late itself" in printed
    assert "the server can't keep up" not in printed


def test_ctrl_c_shows_what_was_measured_until_then(server: Server):
    command = ["python", "-m", "serving.client", "bench", "--model=m", "--seconds=100"]
    with Process([*command, f"--target={server.target}", "--rate=50,60"], limit_s=60) as process:
        wait_until(lambda: server.calls.count("Predict") >= 30, 30, "calls are made")
        process.signal(signal.SIGINT)
        output = process.wait(130)
    assert "interrupted: these are the calls until then" in output
    assert "Traceback" not in output
    row = next(line for line in output.splitlines() if line.split()[:1] == ["50"])
    assert float(row.split()[3]) > 0  # p50


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--rate=0"], ["--rate=-5"], ["--rate=nan"], ["--rate=inf"], ["--rate=x"], ["--rate="]),
        *(["--rate=5,"], ["--seconds=0"], ["--seconds=x"], ["--rows=0"], ["--rows=1.5"]),
        *(["--timeout_s=0"], ["--for_rate=5"], ["--p99_ms=5"], ["--for_rate=0", "--p99_ms=1"]),
        *(["--output=out.csv"], ["--signature=none"], ["--output_filter=none"]),
        ["--input=x=[[1, 2]]"],
        ["--for_rate=5", "--p99_ms=1", "--target=127.0.0.1:1"],
        ["--input=x=[[1, 2, 3]]", "--rows=1"],
    ],
    ids=" ".join,
)
def test_nonsense_exits_with_2_before_any_call(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    assert bench(server, *arguments) == 2
    assert capsys.readouterr().err
    assert "Predict" not in server.calls
