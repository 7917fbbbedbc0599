"""What callers may do to the embedded server: it answers still, and its memory is bounded."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

from tests.running import ROOT, Process, wait_until

RECORDED = ROOT / "tests" / "serving" / "recorded"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
EXCHANGES = [e for e in json.loads((RECORDED / "exchanges.json").read_text()) if e["request"]]
ROUNDS = 5000  # mutated requests; by hand, HOSTILE_ROUNDS=1000000
MAX_GROWTH_MB = 300

# What a caller may be told: never UNKNOWN, which would be an exception that nothing caught.
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
}


class Server:
    """A server of the recorded models."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.address = process.wait_for(r"ready on ([^,]+),")[1]
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(self.address, options)

    def call(self, method: str, request: bytes) -> grpc.StatusCode:
        """The code that the server answers; fails if it takes too long."""
        try:
            self.channel.unary_unary(method)(request, timeout=30)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def assert_well(self) -> None:
        """It still gives the right answer."""
        message = request(np.array([[1.0], [2.0]], np.float32))
        answer = self.channel.unary_unary(PREDICT)(message.SerializeToString(), timeout=30)
        outputs = predict_pb2.PredictResponse.FromString(answer).outputs
        assert list(outputs["y"].float_val) == [2.5, 3.0]
        assert self.process.popen.poll() is None
        assert "Traceback" not in self.process.output


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("config") / "models.config"
    models = "".join(
        f'config {{ name: "{name}" base_path: "{RECORDED / "models" / name}" '
        'model_platform: "tensorflow" }'
        for name in ("kitchen", "half_plus")
    )
    config.write_text(f"model_config_list {{ {models} }}")
    command = ["python", "-m", "serving.server", "--port=0", f"--model_config_file={config}"]
    with Process(command) as process:
        yield Server(process)


def request(array: Any = None) -> predict_pb2.PredictRequest:
    """For half_plus."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "half_plus"
    if array is not None:
        message.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
    return message


def echo(dtype: int, kind: str, shape: list[int], **values: Any) -> bytes:
    """For a signature of kitchen that gives back what it gets."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "kitchen"
    message.model_spec.signature_name = f"echo_{kind}"
    shape_proto = {"dim": [{"size": size} for size in shape]}
    tensor = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=shape_proto, **values)
    message.inputs["x"].CopyFrom(tensor)
    return message.SerializeToString()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes cut, flipped, doubled or filled at random, a few times over."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case 2:
                changed[at:at] = draw.randbytes(draw.choice((1, 2, 8, 300)))
            case 3:
                changed[at:at] = changed[draw.randrange(len(changed) + 1) :][:50]
            case 4:
                changed[at : at + draw.randint(1, 8)] = b""
            case 5:
                changed[at : at + 1] = b"\xff\xff\xff\xff\x07"  # a huge length or size
    return bytes(changed)


def test_mutated_requests_are_all_answered(server: Server):
    rounds = int(os.environ.get("HOSTILE_ROUNDS", ROUNDS))
    draw = random.Random(5)
    before_mb = 0.0
    with ThreadPoolExecutor(8) as pool:
        for done in range(0, rounds, 500):
            calls = []
            for _ in range(min(500, rounds - done)):
                exchange = draw.choice(EXCHANGES)
                data = mutated(base64.b64decode(exchange["request"]), draw)
                calls.append((exchange["method"], data))
            for (method, data), code in zip(
                calls, pool.map(lambda call: server.call(*call), calls), strict=True
            ):
                assert code in CODES, (code, method, base64.b64encode(data))
            server.assert_well()
            before_mb = before_mb or server.rss_mb()  # once the first have been answered
    assert server.rss_mb() - before_mb < MAX_GROWTH_MB


HOSTILE = {
    "bytes for gigabytes": echo(1, "float", [1 << 30], float_val=[1]),
    "more than there are numbers for": echo(1, "float", [1 << 62, 1 << 62], float_val=[1]),
    "no values for gigabytes": echo(1, "float", [1 << 33]),
    "a long string, repeated": echo(7, "string", [1 << 20], string_val=[b"a" * 100_000]),
    "content too short": echo(1, "float", [1 << 30], tensor_content=b"abcd"),
    "strings in too short a content": echo(7, "string", [1 << 40], tensor_content=b"\x01" * 9),
    "a string longer than all": echo(7, "string", [1], tensor_content=b"\xff" * 9 + b"\x01a"),
    "a negative size": echo(1, "float", [-3], float_val=[1]),
    "empty, with a huge size": echo(1, "float", [0, 1 << 62]),
    "rank 300": echo(1, "float", [1] * 300, float_val=[1]),
    "rank 100,000": echo(1, "float", [1] * 100_000, float_val=[1]),
    "a dtype that isn't": echo(12345, "float", [1], float_val=[1]),
    "a resource": echo(20, "float", [1]),
    "a reference": echo(101, "float", [1], float_val=[1]),
    "100,000 inputs": request().SerializeToString() + b"\x12\x03\x0a\x01b" * 100_000,
    "a name that isn't UTF-8": b"\x0a\x04\x0a\x02\xff\xfe",
    "a length that isn't": b"\x0a\xff\xff\xff\xff\x0f",
    "groups, deeply": b"\x0b" * 100_000,
    "megabytes of nothing": b"\x82\x01\x80\x80\x80\x08" + b"\0" * (1 << 24),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_claims_are_refused_before_they_cost(server: Server, name: str):
    before_mb = server.rss_mb()
    with ThreadPoolExecutor(4) as pool:
        codes = set(pool.map(lambda _: server.call(PREDICT, HOSTILE[name]), range(4)))
    assert codes <= CODES - {grpc.StatusCode.OK} or name == "empty, with a huge size", codes
    server.assert_well()
    assert server.rss_mb() - before_mb < MAX_GROWTH_MB


def test_cancelled_calls_leave_room_for_others(server: Server):
    call = server.channel.unary_unary(PREDICT)
    data = request(np.ones((100, 1), np.float32)).SerializeToString()
    for _ in range(300):
        call.future(data, timeout=30).cancel()
    server.assert_well()


def test_thousands_of_connections_that_say_nothing_or_half(server: Server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    host, _, port = server.address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    says = [b"", preface[:10], preface, preface + b"\0\xff\xff\x01\x04\0\0\0\x01half", b"\0" * 100]
    before_mb = server.rss_mb()
    try:
        with ExitStack() as open_ones:
            for number in range(2000):
                connection = socket.create_connection((host, int(port)), timeout=20)
                open_ones.enter_context(connection)
                with contextlib.suppress(OSError):  # hung up on already
                    connection.sendall(says[number % len(says)])
            server.assert_well()
        wait_until(lambda: server.call(PREDICT, b"") is not None, 20, "it answers")
        with grpc.insecure_channel(server.address) as another:
            grpc.channel_ready_future(another).result(20)
        server.assert_well()
        assert server.rss_mb() - before_mb < MAX_GROWTH_MB
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
