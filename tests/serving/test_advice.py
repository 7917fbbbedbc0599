"""The advice of errors fits their texts: TF Serving's recorded ones, TensorFlow's, and gRPC's."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client import Client, Tls, Unavailable
from serving.client.advice import advice_for
from tests.running import free_port
from tests.serving.keys import make_keys
from tests.serving.scripted_server import Server

RECORDED = json.loads((Path(__file__).parent / "recorded" / "exchanges.json").read_text())

# A part of the advice for each recorded error, by its name; None where none is sure to help.
OF_RECORDED = {
    "label unknown": "Check the label",
    "model unknown": "Check the model's name",
    "no name": "Give a model's name",
    "no name in the empty request": "Give a model's name",
    "signature unknown": "Check the signature",
    "filter twice": "once in output_filter",
    "filter unknown": "outputs of metadata",
    "missing all": "names of the inputs",
    "extra input": "names of the inputs",
    "wrong names": "names of the inputs",
    "dtype double": "dtypes",
    "dtype int": "dtypes",
    "dtype string": "dtypes",
    "matmul mismatch": "shapes",
    "negative dim": None,
    "truncated": "server's log",
    "Classify none": "at least one example",
    "Classify too many values": "types and lengths of the features",
    "Classify default signature": "another method",
    "Classify other's signature": "another method",
    "Classify signature unknown": "Check the signature",
    "Classify version unknown": "status() lists the versions",
    "Regress no input": "at least one example",
    "Regress wrong kind": "types and lengths of the features",
    "Regress too many values": "types and lengths of the features",
    "Regress other's signature": "another method",
    "Regress signature unknown": "Check the signature",
    "Regress model unknown": "Check the model's name",
    "Regress no name": "Give a model's name",
    "metadata bogus": None,
    "metadata model unknown": "Check the model's name",
    "metadata version unknown": "status() lists the versions",
    "metadata no spec": "Give a model's name",
    "status no name": "Check the model's name",
    "status no spec": "Give a model's name",
    "method unknown": "gRPC port",
    "reload label to a version not there": "Wait until status() shows that version",
    "reload duplicate names": "each model once",
    "reload relative path": "absolute base_path",
    "reload no platform": "model_platform",
    "reload unknown platform": "keeps its model_platform",
    "reload no path": "absolute base_path",
    "reload empty": "model_config_list",
    "predict on a dropped model": "Check the model's name",
}


def errors() -> Iterator[tuple[str, str, str, str]]:
    for exchange in RECORDED:
        method = exchange["method"].rpartition("/")[2]
        if exchange["code"] != "OK" and method != "MultiInference":  # the client never calls it
            yield exchange["name"], method, exchange["code"], exchange["details"]


def check(advice: str, expected: str | None) -> None:
    assert (advice == "") if expected is None else (expected in advice), advice


def test_each_recorded_error_has_advice_that_fits():
    seen: dict[tuple[str, str], str] = {}
    for name, method, code, details in errors():
        kind = (code, re.sub(r"\d+", "N", details[:40]))
        advice = advice_for(method, grpc.StatusCode[code], details or "no message", None)
        if name in OF_RECORDED:
            check(advice, OF_RECORDED[name])
            seen[kind] = advice
    for name, _, code, details in errors():
        kind = (code, re.sub(r"\d+", "N", details[:40]))
        assert kind in seen, f"{name}: {details}"  # an error of a kind that the table leaves out


@pytest.mark.parametrize(
    ("method", "code", "details", "expected"),
    [
        ("Predict", "INVALID_ARGUMENT", "Task size 5 is larger than maximum input batch size 4",
         "max_batch_size="),
        ("Predict", "INVALID_ARGUMENT", "Incompatible shapes: [2,3] vs. [4]", "shapes"),
        ("Predict", "INVALID_ARGUMENT", "input must be 4-dimensional[2,3]", "shapes"),
        ("Predict", "INVALID_ARGUMENT", "In[0] and In[1] has different ndims: [4] vs. [4,3]",
         "shapes"),
        ("Predict", "INVALID_ARGUMENT", "Input to reshape is a tensor with 1800 values, but the "
         "requested shape has 1352", "shapes"),
        ("Predict", "UNIMPLEMENTED", "Fused conv implementation does not support grouped "
         "convolutions for now.", "shapes"),
        ("Predict", "INVALID_ARGUMENT", "indices[0,1] = 9 is not in [0, 5)", None),
        ("Predict", "INVALID_ARGUMENT", "something new", None),
        ("Predict", "NOT_FOUND", "Resource localhost/table does not exist.", None),
        ("GetModelStatus", "NOT_FOUND", "Could not find version 7 of model m", "the versions"),
        ("Predict", "UNAVAILABLE", "The batch scheduling queue to which this task was submitted "
         "is full; currently", "overloaded"),
        ("Predict", "UNAVAILABLE", "something new", None),
        ("Predict", "UNAVAILABLE", "Received http2 header with status: 503", "gateway"),
        ("Predict", "RESOURCE_EXHAUSTED", "Server Threadpool Exhausted", "--grpc_max_threads"),
        ("Predict", "RESOURCE_EXHAUSTED", "OOM when allocating tensor with shape[9,9]", "memory"),
        ("Predict", "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 4)",
         "limit of a message"),
        ("Predict", "RESOURCE_EXHAUSTED", "quota exceeded", None),
        ("Predict", "UNAUTHENTICATED", "", "credentials"),
        ("Predict", "UNIMPLEMENTED", "Cast string to int64 is not supported", None),
        ("Predict", "UNIMPLEMENTED", "Method not found!", "gRPC port"),
        ("Predict", "DEADLINE_EXCEEDED", "Deadline Exceeded", "send less"),
        ("GetModelStatus", "DEADLINE_EXCEEDED", "Deadline Exceeded", "overloaded"),
        ("HandleReloadConfigRequest", "DEADLINE_EXCEEDED", "Deadline Exceeded", "base_path"),
        ("Predict", "CANCELLED", "the client was closed", "Close"),
        ("Predict", "CANCELLED", "CANCELLED", "gateway"),
        ("Predict", "INTERNAL", "something new", "server's log"),
    ],
)  # fmt: skip
def test_texts_that_were_not_recorded(method: str, code: str, details: str, expected: str | None):
    check(advice_for(method, grpc.StatusCode[code], details, None), expected)


ALL = "connections to all backends failing; last error: UNKNOWN: ipv4:10.0.0.1:3128: "


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (ALL + "HTTP proxy returned response code 407", "Check the proxy"),
        (ALL + "Failed to connect to remote host: Connection refused", "Check the proxy"),
        (ALL + "Socket closed", "Check the proxy"),
        (ALL + "Endpoint closing", "Check the proxy"),  # it accepts and never answers
        ("errors resolving proxy:3128: [field:hostname lookup error:address lookup failed for "
         "proxy:3128: Domain name not found]", "Check the proxy"),
        (ALL + "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL "
         "routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED", "certificates"),
        (ALL + "Custom verification check failed with error: UNAUTHENTICATED: Hostname "
         "Verification Check failed.", "certificates"),
        (ALL + "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type "
         "80) (Trying to connect an http1.x server (HTTP status 400))", "one for REST"),
        ("Socket closed", "check that the server runs"),
        ("The batch scheduling queue to which this task was submitted is full", "overloaded"),
    ],
)  # fmt: skip
def test_a_proxy_is_to_blame_only_for_connections(details: str, expected: str):
    check(advice_for("Predict", grpc.StatusCode.UNAVAILABLE, details, "http://p (x)"), expected)


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server of another kind, that answers everybody with the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_advice_about_connections(tmp_path: Path):
    make_keys(tmp_path, server="DNS:server.test", client="DNS:client.test")
    pair = ((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())
    secure, plain = Server(grpc.ssl_server_credentials([pair])), Server()
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as rest, answering(b"") as silent:
        for target, tls, expected in (
            (f"127.0.0.1:{free_port()}", False, "that a server listens there"),
            ("no-such-name.invalid:8500", False, "target's name is right"),
            (secure.target, Tls(tmp_path / "ca.pem"), "certificates"),  # of another name
            (plain.target, Tls(tmp_path / "ca.pem", server_name="server.test"), "TLS"),
            (rest, False, "one for REST"),
            (silent, False, "server"),
        ):
            with (
                Client(target, tls=tls, check=False, retries=0) as client,
                pytest.raises(Unavailable) as caught,
            ):
                client.predict("m", {"x": np.zeros(1)})
            assert expected in caught.value.advice, str(caught.value)
    secure.stop()
    plain.stop()
