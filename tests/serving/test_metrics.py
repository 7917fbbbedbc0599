"""Metrics as Prometheus's own parser reads them."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.server.frontend.metrics import Metrics
from serving.server.rest import http_server
from serving.server.rest.http_server import HttpServer

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for line in text.splitlines():
        assert line.isascii() and line
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser gives counters the suffix that Prometheus would like them to have.
            name = sample.name.removesuffix("_total")
            found[name, frozenset(sample.labels.items())] = sample.value
    return found


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairs.items())


def test_calls_are_counted_under_tf_servings_names():
    metrics = Metrics()
    observe = metrics.observer({"m", 'odd "\\\n'})
    for seconds in (5e-6, 12e-6, 0.5, 4000.0):
        observe("Predict", "m", OK, seconds)
    observe("Predict", "m", NOT_FOUND, 0.1)
    observe("Classify", 'odd "\\\n', OK, 0.1)
    observe("GetModelStatus", "m", OK, 0.1)
    for number in range(1000):
        observe("Predict", f"invented {number}", NOT_FOUND, 0.1)
    found = samples(metrics.page())
    count, latency = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency"
    counts = {key[1]: value for key, value in found.items() if key[0] == count}
    assert counts == {
        labels(model_name="m", status="OK"): 4,
        labels(model_name="m", status="NOT_FOUND"): 1,
        labels(model_name='odd "\\\n', status="OK"): 1,
        labels(model_name="", status="NOT_FOUND"): 1000,
    }
    predict = {"model_name": "m", "API": "Predict", "entrypoint": "GRPC"}
    buckets = {
        dict(key[1])["le"]: value
        for key, value in found.items()
        if key[0] == f"{latency}_bucket" and labels(**predict) < key[1]
    }
    assert len(buckets) == 34
    # 708235 is a bound that people's queries for TF Serving have.
    expected = {"10": 1, "18": 2, "393464": 2, "708235": 3, "+Inf": 4}
    assert {bound: buckets[bound] for bound in expected} == expected
    assert found[f"{latency}_count", labels(**predict)] == 4
    assert found[f"{latency}_sum", labels(**predict)] == pytest.approx(4000.5e6, abs=20)


def test_loads_are_counted_and_still_fail():
    metrics = Metrics()

    def load(folder: Path) -> str:
        if folder.name == "2":
            raise ValueError("broken")
        return "a model"

    counting = metrics.counting(load)
    assert counting(Path("/m/1")) == "a model"
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            counting(Path("/m/2"))
    found = samples(metrics.page())
    attempts = ":tensorflow:cc:saved_model:load_attempt_count"
    assert found[attempts, labels(model_path="/m/1", status="success")] == 1
    assert found[attempts, labels(model_path="/m/2", status="fail")] == 2
    assert (":tensorflow:cc:saved_model:load_latency", labels(model_path="/m/1")) in found


def test_batches_are_counted_by_their_rows():
    metrics = Metrics()
    for rows in (1, 3, 64):
        metrics.observe_batch(rows)
    found = samples(metrics.page())
    name = ":tensorflow:serving:batching_session:processed_batch_size"
    pool = {"thread_pool_name": "model_server_batch_threads"}
    buckets = [found[f"{name}_bucket", labels(**pool, le=le)] for le in ("1", "2", "4", "+Inf")]
    assert buckets == [1, 1, 2, 3]
    assert found[f"{name}_sum", labels(**pool)] == 68


def test_rest_calls_have_their_own_entrypoint():
    metrics = Metrics()
    metrics.observer({"m"}, "REST")("predict", "m", OK, 1e-6)
    found = samples(metrics.page())
    rest = labels(model_name="m", API="predict", entrypoint="REST")
    assert found[":tensorflow:serving:request_latency_count", rest] == 1
    assert found[":tensorflow:serving:request_count", labels(model_name="m", status="OK")] == 1


@pytest.fixture
def pages() -> Iterator[HttpServer]:
    pages = HttpServer("127.0.0.1", 0)
    pages.start("/metrics", lambda: "all is well\n")
    yield pages
    pages.stop(1.0)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_page_also_before_models_are_loaded(pages: HttpServer):
    assert get(f"{pages.url}/metrics") == (200, "all is well\n")
    assert get(f"{pages.url}/metrics?some=thing") == (200, "all is well\n")
    code, text = get(f"{pages.url}/")
    assert (code, text) == (404, '{"error": "only /v1/models and /metrics can be found here"}')
    code, text = get(f"{pages.url}/v1/models/m")
    assert (code, text) == (503, '{"error": "the models are not loaded yet"}')


def test_a_taken_port_is_said(pages: HttpServer):
    with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{pages.port} for REST"):
        HttpServer("127.0.0.1", pages.port)


def test_who_dawdles_is_cut_off(pages: HttpServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_server, "_HEADERS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(http_server, "_BODY_TIMEOUT_S", 0.2)
    for begin in (b"GET /metrics HT", b""):
        with socket.create_connection(("127.0.0.1", pages.port), timeout=10) as slow:
            slow.sendall(begin)
            assert get(f"{pages.url}/metrics")[0] == 200
            assert slow.recv(100) == b""
    with socket.create_connection(("127.0.0.1", pages.port), timeout=10) as slow:
        slow.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
