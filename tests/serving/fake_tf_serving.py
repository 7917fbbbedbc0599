"""Servers that keep TF Serving's rules for rollouts and note every moment that breaks one.

The rules are those of its ``ServerCore``: a reload replaces everything; a label moves only to a
version that is available, or the whole call fails after versions were already set going; a version
that no policy names is unloaded, whatever label points to it. Configurations are read with TF
Serving's own messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import grpc
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2
from tensorflow_serving.apis import model_management_pb2 as management_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.rollout.cli import main
from tests.serving.scripted_server import Server

OTHER = """
  config {
    name: "other" base_path: "/models/other" model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 2 } } version_labels { key: "beta" value: 4 }
    logging_config { log_collector_config { type: "x" filename_prefix: "/logs/other" }
                     sampling_config { sampling_rate: 0.5 } }
  }"""


class Serving:
    """One replica: loads what it is told, when it is asked for the ``slow``-th time."""

    def __init__(self, disk: set[int], broken: set[int], slow: int = 2, port: int = 0) -> None:
        self.disk, self.broken, self.slow = disk, broken, slow
        self.states: dict[int, str] = {}
        self.labels: dict[str, int] = {}
        self.reloads: list[model_server_config_pb2.ModelServerConfig] = []
        self.faults: list[str] = []
        self.before_reload: Callable[[], None] = lambda: None
        self._looks: dict[int, int] = {}
        self._lock = threading.Lock()
        self._server = Server(port=port)
        self._server.answers = {
            "GetModelStatus": lambda _, context: self.status(context),
            "HandleReloadConfigRequest": self.reload,
            "GetModelMetadata": self.metadata,
        }
        self.target = self._server.target

    def begin(self, text: str) -> None:
        """Starts with this file, as with --allow_version_labels_for_unavailable_models."""
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        self._take(config)
        for version in list(self.states):
            self.states[version] = "AVAILABLE"
        self.labels = dict(self._part(config).version_labels)

    def reload(self, data, context):
        request = management_pb2.ReloadConfigRequest.FromString(data)
        self.before_reload()
        with self._lock:
            self.reloads.append(request.config)
            self._take(request.config)
            self._look()  # it moves labels after that
            for version in self._part(request.config).version_labels.values():
                if self.states.get(version) != "AVAILABLE":
                    text = f"Request to assign label to version {version} of model m, which is not "
                    text += "currently available for inference"
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
            self.labels = dict(self._part(request.config).version_labels)
            self._look()
        return b""

    def status(self, context):
        with self._lock:
            response = get_model_status_pb2.GetModelStatusResponse()
            for version, state in self.states.items():
                self._looks[version] = self._looks.get(version, 0) + 1
                if state == "LOADING" and self._looks[version] > self.slow:
                    self.states[version] = "END" if version in self.broken else "AVAILABLE"
                entry = response.model_version_status.add(version=version)
                entry.state = entry.State.Value(self.states[version])
                if version in self.broken and self.states[version] == "END":
                    entry.status.error_code, entry.status.error_message = 13, "bad weights"
            self._look()
            if not self.states:
                context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model m")
        return response.SerializeToString()

    def metadata(self, data, context):
        request = get_model_metadata_pb2.GetModelMetadataRequest.FromString(data)
        with self._lock:
            label = request.model_spec.version_label
            if label not in self.labels:
                text = f"Unrecognized servable version label: {label}"
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.version.value = self.labels[label]
            response.metadata["signature_def"].Pack(get_model_metadata_pb2.SignatureDefMap())
        return response.SerializeToString()

    def stop(self) -> None:
        self._server.stop()

    @property
    def up(self) -> set[int]:
        return {version for version, state in self.states.items() if state == "AVAILABLE"}

    def _take(self, config) -> None:
        policy = self._part(config).model_version_policy
        wanted = set(policy.specific.versions) or set(sorted(self.disk)[-1:])
        for version in (wanted & self.disk) - {v for v, s in self.states.items() if s != "END"}:
            self.states[version], self._looks[version] = "LOADING", 0
        for version in set(self.states) - wanted:
            del self.states[version]

    def _part(self, config):
        parts = [part for part in config.model_config_list.config if part.name == "m"]
        return parts[0] if parts else model_server_config_pb2.ModelConfig()

    def _look(self) -> None:
        for label, version in self.labels.items():
            if self.states.get(version) != "AVAILABLE":
                self.faults.append(f"{label} leads to {version}, which is not up: {self.states}")


class Stack:
    """Two replicas and the file that they read."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "models.config"
        self.disk = {1, 2, 3, 4}
        self.broken: set[int] = set()
        self.text = self.say({"stable": 2, "canary": 2, "previous": 1}, {1, 2})
        for version in self.disk:
            (folder / "m" / str(version)).mkdir(parents=True)
        self.servers = [Serving(self.disk, self.broken) for _ in range(2)]
        self.start(self.text)

    @staticmethod
    def say(labels: dict[str, int], versions: set[int]) -> str:
        policy = " ".join(f"versions: {version}" for version in sorted(versions))
        policy = f"specific {{ {policy} }}" if versions else ""
        lines = [f'version_labels {{ key: "{k}" value: {v} }}' for k, v in labels.items()]
        part = f'name: "m" base_path: "/models/m" model_platform: "tensorflow" {" ".join(lines)}'
        part += f" model_version_policy {{ {policy} }}"
        return f"model_config_list {{ config {{ {part} }}{OTHER} }}"

    def start(self, text: str) -> None:
        self.file.write_text(text)
        for server in self.servers:
            server.begin(text)
            server.faults.clear()

    def arguments(self, *command: str) -> list[str]:
        targets = ",".join(server.target for server in self.servers)
        return [*command, "--model=m", f"--models_config={self.file}", f"--targets={targets}"]

    def run(self, *command: str) -> int:
        return main(self.arguments(*command, "--timeout_s=15"))

    def read(self) -> tuple[dict[str, int], set[int]]:
        """Labels and versions that the file says, by TF Serving's own parser."""
        config = text_format.Parse(
            self.file.read_text(), model_server_config_pb2.ModelServerConfig()
        )
        parts = {part.name: part for part in config.model_config_list.config}
        expected = f"model_config_list {{ {OTHER} }}"
        other = text_format.Parse(expected, model_server_config_pb2.ModelServerConfig())
        assert parts["other"] == other.model_config_list.config[0]
        versions = set(parts["m"].model_version_policy.specific.versions)
        return dict(parts["m"].version_labels), versions

    def settled(self, labels: dict[str, int]) -> None:
        """The file and every replica have exactly these labels, and nothing more loaded."""
        assert self.read() == (labels, set(labels.values()))
        for server in self.servers:
            assert (server.labels, server.up) == (labels, set(labels.values()))
            assert not server.faults
