"""The embedded server's outside: TLS, a UNIX socket, health, metrics, reloads, REST; then its end.

One server for all of it, with models from a file, and the tests in the order in which it lives.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import json
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.protos import server_config_pb2
from tests.running import ROOT, Process, wait_until
from tests.serving.keys import make_keys

RECORDED = ROOT / "tests" / "serving" / "recorded"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CONFIG = """
model_config_list {
  config { name: "kitchen" base_path: "%(folder)s/kitchen" model_platform: "tensorflow"
           model_version_policy { all {} } version_labels { key: "stable" value: 1 } }
  config { name: "%(name)s" base_path: "%(folder)s/%(path)s" model_platform: "tensorflow" } }
"""


@dataclass
class Server:
    process: Process
    folder: Path
    tls: dict[str, bytes]

    @property
    def socket(self) -> str:
        return f"unix:{self.folder}/grpc.sock"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    address = "IP:127.0.0.1"
    pem = make_keys(tmp_path_factory.mktemp("pem"), server=address, client=address)
    ssl_config = server_config_pb2.SSLConfig(
        server_key=pem["server.key"], server_cert=pem["server.pem"], custom_ca=pem["ca.pem"]
    )
    ssl_config.client_verify = True
    (folder / "ssl.config").write_text(text_format.MessageToString(ssl_config))
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    (folder / "kitchen").symlink_to(RECORDED / "models" / "kitchen")
    (folder / "models.config").write_text(
        CONFIG % {"folder": folder, "name": "half_plus", "path": "half_plus"}
    )
    command = [
        *("python", "-m", "serving.server", "--port=0"),
        *(f"--model_config_file={folder}/models.config", "--file_system_poll_wait_seconds=0.05"),
        "--allow_version_labels_for_unavailable_models",
        f"--ssl_config_file={folder}/ssl.config",
        f"--grpc_socket_path={folder}/grpc.sock",
        *("--enable_grpc_healthcheck_service", "--enable_batching"),
        *("--rest_api_port=0", f"--monitoring_config_file={folder}/monitoring.config"),
    ]
    with Process(command) as process:
        yield Server(process, folder, pem)


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.socket) as channel:
        yield channel


def check(channel: grpc.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()
    return int(stub.Check(request, timeout=20, wait_for_ready=True).status)


def predict(channel: grpc.Channel, name: str) -> predict_pb2.PredictResponse:
    """Makes a recorded call of kitchen again."""
    exchanges = json.loads((RECORDED / "exchanges.json").read_text())
    (request,) = (base64.b64decode(e["request"]) for e in exchanges if e["name"] == name)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(predict_pb2.PredictRequest.FromString(request), timeout=20)


def states(channel: grpc.Channel, name: str) -> list[tuple[int, str]]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=20)
    name_of = get_model_status_pb2.ModelVersionStatus.State.Name
    return [(entry.version, name_of(entry.state)) for entry in response.model_version_status]


def reload(channel: grpc.Channel, config: str, timeout_s: float) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(config, request.config)
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    stub.HandleReloadConfigRequest(request, timeout=timeout_s)


def test_ready_and_serving_once_every_model_has_a_version(server: Server, channel: grpc.Channel):
    server.process.wait_for("no version of model half_plus to serve")
    with pytest.raises(grpc.RpcError) as caught:
        states(channel, "kitchen")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "ready" not in server.process.output
    (server.folder / "half_plus").symlink_to(RECORDED / "models" / "half_plus")
    server.process.wait_for(
        r"ready on 127\.0\.0\.1:\d+, model kitchen versions 1 2, model half_plus version 5, "
        rf"also on {server.socket}, REST on http://127\.0\.0\.1:\d+, metrics on http://127\.0\.0\.1:\d+/monitoring/prometheus/metrics\n"
    )
    assert check(channel) == SERVING


def test_tls_demands_a_certificate_of_the_authority(server: Server):
    target = server.process.wait_for(r"ready on (\S+),")[1]
    mine = {"private_key": server.tls["client.key"], "certificate_chain": server.tls["client.pem"]}
    authority = {"root_certificates": server.tls["ca.pem"]}
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(**authority, **mine)) as known:
        assert predict(known, "both").model_spec.version.value == 2
        assert predict(known, "both stable").model_spec.version.value == 1
    for stranger in (
        grpc.secure_channel(target, grpc.ssl_channel_credentials(**authority)),
        grpc.secure_channel(target, grpc.ssl_channel_credentials(**mine)),
        grpc.insecure_channel(target),
    ):
        with stranger, pytest.raises(grpc.RpcError) as caught:
            predict(stranger, "both")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_deadline_bounds_the_wait_for_a_new_model(server: Server, channel: grpc.Channel):
    config = {"folder": server.folder, "name": "other", "path": "nowhere"}
    with pytest.raises(grpc.RpcError) as caught:
        reload(channel, CONFIG % config, timeout_s=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert states(channel, "half_plus") == [(5, "AVAILABLE")]
    reload(channel, CONFIG % (config | {"path": "half_plus"}), timeout_s=30)
    assert states(channel, "other") == [(5, "AVAILABLE")]
    wait_until(lambda: states(channel, "half_plus") == [(5, "END")], 20, "the old name is gone")


def test_metrics_count_all_that(server: Server):
    url = server.process.wait_for(r"metrics on (\S+)")[1]
    with urllib.request.urlopen(url, timeout=20) as answer:
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    attempts = {
        Path(sample.labels["model_path"]).relative_to(server.folder): sample.value
        for sample in families[":tensorflow:cc:saved_model:load_attempt_count"].samples
        if sample.labels["status"] == "success"
    }
    loaded = {Path("kitchen/1"): 1, Path("kitchen/2"): 1, Path("half_plus/5"): 2}
    assert attempts == loaded  # half_plus under two names
    (calls,) = families[":tensorflow:serving:request_count"].samples
    assert calls.labels == {"model_name": "kitchen", "status": "OK"} and calls.value == 2
    latency = families[":tensorflow:serving:request_latency"].samples
    (count,) = [sample.value for sample in latency if sample.name.endswith("_count")]
    assert count == calls.value
    batches = families[":tensorflow:serving:batching_session:processed_batch_size"].samples
    (count,) = [sample.value for sample in batches if sample.name.endswith("_count")]
    assert 0 < count <= calls.value


def test_rest_with_gzip_and_keep_alive(server: Server):
    port = int(server.process.wait_for(r"REST on http://127\.0\.0\.1:(\d+)")[1])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as rest:
        rest.connect()
        first_socket = rest.sock
        values = [float(value) for value in range(1000)]
        body = gzip.compress(json.dumps({"instances": values}).encode())
        headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip, deflate"}
        headers["Content-Type"] = "text/nonsense"
        for _ in range(2):
            rest.request("POST", "/v1/models/other:predict", body, headers)
            response = rest.getresponse()
            assert response.status == 200
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.headers["Content-Type"] == "application/json"
            answer = json.loads(gzip.decompress(response.read()))
            step = answer["predictions"][2] - answer["predictions"][0]
            assert (len(answer["predictions"]), step) == (1000, 1.0)
        rest.request("POST", "/v1/models/none:predict", '{"instances": [1]}')
        response = rest.getresponse()
        text = "Servable not found for request: Latest(none)"
        assert (response.status, json.loads(response.read())) == (404, {"error": text})
        rest.request("HEAD", "/v1/models/other")
        response = rest.getresponse()
        assert (response.status, response.read()) == (400, b"")
        rest.request("GET", "/monitoring/prometheus/metrics")
        page = rest.getresponse().read().decode()
        assert 'request_count{model_name="other",status="OK"} 2' in page
        assert 'model_name="other",API="predict",entrypoint="REST"' in page
        assert rest.sock is first_socket  # it was never closed


def test_it_ends_at_once_tells_watchers_and_leaves_no_socket(server: Server, channel: grpc.Channel):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    server.process.signal(signal.SIGTERM)
    seen = []
    with contextlib.suppress(grpc.RpcError):  # the connection may close before the stream's end
        for response in watch:
            seen.append(response.status)
    assert seen == [NOT_SERVING]
    server.process.wait(0)
    assert not (server.folder / "grpc.sock").exists()
