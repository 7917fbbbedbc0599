"""Reloads: all or nothing, and never a moment without an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.server.errors import ServableNotFound, StatusError
from serving.server.models import reloadable_registry
from serving.server.models.model_config import ModelConfig
from serving.server.models.reloadable_registry import ReloadableRegistry
from serving.server.models.servables import Servable
from tests.running import wait_until
from tests.serving.test_servables import Model, publish


class Server:
    """Models in a folder, and the configuration that says which are served."""

    def __init__(self, folder: Path, *, labels_for_unavailable: bool = False) -> None:
        self.folder = folder
        self.labels_for_unavailable = labels_for_unavailable
        self.started: list[Servable[Any]] = []

    def begin(self, *models: str) -> None:
        config = self.config(*models)
        self.models = ReloadableRegistry(config, self.start, self.labels_for_unavailable)

    def start(self, config: ModelConfig) -> Servable[Any]:
        servable = Servable(config.name, config.base_path, Model, policy=config.policy)
        servable.watch(every_s=0.02)
        self.started.append(servable)
        return servable

    def config(self, *models: str) -> model_server_config_pb2.ModelServerConfig:
        """Each model is a name, and what else its configuration says."""
        config = model_server_config_pb2.ModelServerConfig()
        config.model_config_list.SetInParent()
        for model in models:
            name, _, more = model.partition(" ")
            text = f'name: "{name}" base_path: "{self.folder}/{name}" {more}'
            text_format.Parse(
                f'{text} model_platform: "tensorflow"', config.model_config_list.config.add()
            )
        return config

    def reload(self, *models: str, timeout_s: float | None = 10) -> None:
        self.models.reload(self.config(*models), timeout_s)

    def ask(self, name: str, label: str = "", version: int = 0) -> str:
        spec = model_pb2.ModelSpec(name=name)
        if label:
            spec.version_label = label
        elif version:
            spec.version.value = version
        with self.models.use(spec) as (_, model):
            return model.answer

    def states(self, name: str) -> list[tuple[int, str]]:
        states = self.models.states(model_pb2.ModelSpec(name=name))
        return [(state.number, state.state) for state in states]


def label(name: str, number: int) -> str:
    return f'version_labels {{ key: "{name}" value: {number} }}'


def specific(*numbers: int) -> str:
    versions = " ".join(f"versions: {number}" for number in numbers)
    return f"model_version_policy {{ specific {{ {versions} }} }}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    for name in ("a", "b"):
        for number in ("1", "2"):
            publish(tmp_path / name, number, f"{name}{number}")
    publish(tmp_path / "bad", "1", "broken")
    yield server
    for servable in server.started:
        servable.stop()


def refused(server: Server, *models: str, timeout_s: float | None = 10) -> tuple[str, str]:
    with pytest.raises(StatusError) as caught:
        server.reload(*models, timeout_s=timeout_s)
    return caught.value.code.name, str(caught.value)


def test_a_reload_brings_models_and_takes_models(server: Server):
    server.begin(f"a {specific(1)}")
    assert server.models.wait(10)
    assert server.models.describe() == "model a version 1"
    every = f"b model_version_policy {{ all {{}} }} {label('stable', 1)}"
    server.reload(every, f"a {specific(1)} {label('stable', 1)}")
    assert [server.ask("a"), server.ask("b"), server.ask("b", version=1)] == ["a1", "b2", "b1"]
    assert [server.ask(name, "stable") for name in ("a", "b")] == ["a1", "b1"]
    server.reload("b model_version_policy { all {} }")
    with pytest.raises(StatusError, match="Unrecognized servable version label: stable"):
        server.ask("b", "stable")
    with pytest.raises(ServableNotFound, match=r"Latest\(a\)"):
        server.ask("a")
    assert server.states("a") == [(1, "END")]
    server.reload("a")  # back, and b gone
    assert server.ask("a") == "a2"
    assert server.states("a") == [(2, "AVAILABLE")]
    assert server.states("b") == [(2, "END"), (1, "END")]
    server.reload()
    assert server.models.describe() == "no models"


def test_an_error_in_a_call_still_releases_the_version(server: Server):
    server.begin(f"a {specific(1)}")
    assert server.models.wait(10)
    with pytest.raises(ZeroDivisionError), server.models.use(model_pb2.ModelSpec(name="a")):
        raise ZeroDivisionError
    server.reload(f"a {specific(2)}")
    wait_until(lambda: server.states("a")[-1] == (1, "END"), 10, "version 1 is unloaded")


@pytest.mark.parametrize(
    ("models", "code", "text", "started"),
    [
        (
            [f"a {specific(1)}", "bad", "b"],
            "UNKNOWN",
            "1 model(s) did not become available: "
            "{{{name: bad version: 1} due to error: this one is broken}, }",
            ["bad", "b"],
        ),
        # Labels of models that are up are checked before others are loaded.
        (
            [f"a {specific(2)} {label('stable', 2)}", "b"],
            "FAILED_PRECONDITION",
            "to version 2",
            [],
        ),
        (
            ["a", f"b {label('stable', 7)}"],
            "FAILED_PRECONDITION",
            "to version 7 of model b",
            ["b"],
        ),
    ],
)
def test_a_reload_that_fails_changes_nothing(
    server: Server, models: list[str], code: str, text: str, started: list[str]
):
    server.begin(f"a {specific(1)}")
    assert server.models.wait(10)
    server.reload(f"a {specific(1)} {label('stable', 1)}")
    said = refused(server, *models)
    assert said[0] == code and text in said[1]
    time.sleep(0.1)  # what should not happen would take some polls
    assert [server.ask("a"), server.ask("a", "stable")] == ["a1", "a1"]
    assert server.states("a") == [(1, "AVAILABLE")]
    for name in ("b", "bad"):
        with pytest.raises(StatusError, match="Could not find any versions"):
            server.states(name)
    assert [servable.name for servable in server.started[1:]] == started
    for servable in server.started[1:]:
        wait_until(
            lambda s=servable: all(state.state == "END" for state in s.states()), 10, "it is gone"
        )


def test_a_label_in_use_moves_to_available_versions_only_whatever_is_allowed(server: Server):
    server.labels_for_unavailable = True
    server.begin(f"a {specific(1)} {label('stable', 2)}")
    assert server.models.wait(10)
    with pytest.raises(ServableNotFound, match=r"Specific\(a, 2\)"):
        server.ask("a", "stable")
    server.reload(f"a {specific(1)} {label('stable', 2)} {label('canary', 9)}")  # new, or the same
    assert refused(server, f"a {specific(1)} {label('canary', 8)}")[0] == "FAILED_PRECONDITION"
    server.reload(f"a {specific(1)} {label('canary', 1)}")
    assert server.ask("a", "canary") == "a1"


def test_models_that_cant_be_started_leave_nothing_behind(server: Server):
    server.begin("a")
    assert server.models.wait(10)
    start = server.models._start

    def no_more_threads(config: ModelConfig) -> Servable[Any]:
        if config.name == "never":
            raise RuntimeError("can't start new thread")
        return start(config)

    server.models._start = no_more_threads
    with pytest.raises(RuntimeError, match="new thread"):
        server.reload("a", "b", "never")
    servable = server.started[-1]
    assert servable.name == "b"
    wait_until(lambda: servable._stopped, 10, "b is not watched any more")


def test_no_version_goes_between_the_check_of_labels_and_their_move(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    server.begin(f"a {specific(1)}")
    assert server.models.wait(10)
    (servable,) = server.started
    looked = threading.Event()
    set_source = servable.set_source

    def look() -> None:
        servable.poll()
        looked.set()

    def late(*source: Any) -> None:  # labels have moved by now, the policy has not
        threading.Thread(target=look).start()
        assert not looked.wait(0.2)
        set_source(*source)

    monkeypatch.setattr(servable, "set_source", late)
    server.reload(f"a {specific(1)} {label('stable', 1)}")
    assert looked.wait(10)
    assert server.ask("a", "stable") == "a1"


def test_a_new_model_without_versions_is_waited_for_until_the_deadline(server: Server):
    server.begin("a")
    code, text = refused(server, "a", "later", timeout_s=0.2)
    assert code == "DEADLINE_EXCEEDED"
    assert f"{server.folder}/later has no version of model later" in text
    coming = threading.Timer(0.2, publish, (server.folder / "later", "1", "there"))
    coming.start()
    server.reload("a", "later", timeout_s=10)
    coming.join()
    assert server.ask("later") == "there"
    assert refused(server, "a", "never", timeout_s=0)[0] == "DEADLINE_EXCEEDED"


def test_a_file_that_changes_is_taken_over_and_a_bad_one_said_once(server: Server, tmp_path: Path):
    path, reports = tmp_path / "models.config", []
    server.begin("a")
    assert server.models.wait(10)
    path.write_text("nonsense")
    stop = reloadable_registry.watch_config_file(server.models, path, 0.02, reports.append)
    wait_until(lambda: reports, 10, "it is said")
    whole = tmp_path / "whole"
    whole.write_text(text_format.MessageToString(server.config("b")))
    whole.rename(path)
    wait_until(lambda: "b" in server.models, 10, "the file is taken over")
    assert "a" not in server.models and len(reports) == 1
    assert "no ModelServerConfig at line" in reports[0]
    stop.set()


def test_the_table_is_asked_again_if_it_changed_meanwhile(server: Server):
    """A call has read where a label points; before it takes the version, a roll-out ends."""
    server.begin(f"a {specific(1)}")
    assert server.models.wait(10)
    server.reload(f"a {specific(1)} {label('stable', 1)}")
    (servable,) = server.started
    acquire, reloaded = servable.acquire, []

    def late(number: int | None) -> Any:
        if not reloaded:
            reloaded.append(number)
            server.reload(f"a {specific(1, 2)} {label('stable', 1)}")
            wait_until(lambda: (2, "AVAILABLE") in server.states("a"), 10, "both are up")
            server.reload(f"a {specific(2)} {label('stable', 2)}")
            wait_until(lambda: (1, "END") in server.states("a"), 10, "the old one is gone")
        return acquire(number)

    servable.acquire = late  # type: ignore[method-assign]
    assert server.ask("a", "stable") == "a2"
    assert reloaded == [1]
