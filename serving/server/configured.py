"""Models by a configuration that can be replaced while they are in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.server import configs
from serving.server.configs import ModelConfig
from serving.server.models import Models, Refused, Table
from serving.server.servables import AVAILABLE, Servable

if TYPE_CHECKING:
    from serving.server.savedmodel import SavedModel

_LONGEST_RELOAD_S = 600.0  # for new models, where the caller sets no deadline

Servables = dict[str, Servable["SavedModel"]]


class ConfiguredModels(Models):
    """The models of a configuration; safe to share between threads.

    At the start nothing is waited for: a model is there once a version of it could be loaded.

    Args:
        config: what to serve at first.
        start: makes a model's servable, watched already.
        labels_for_unavailable: whether a label that isn't in use may point to a version that isn't
            available. At the start none is.

    Raises:
        Refused: something is wrong with the configuration.
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        start: Callable[[ModelConfig], Servable[SavedModel]],
        labels_for_unavailable: bool = False,
    ) -> None:
        self._start = start
        self._labels_for_unavailable = labels_for_unavailable
        self._reloading = threading.Lock()
        wanted = configs.model_configs(config)
        check_first_labels(wanted, labels_for_unavailable)
        labels = {model.name: model.labels for model in wanted}
        super().__init__({})
        self._table = Table({model.name: start(model) for model in wanted}, labels)

    def wait(self, timeout_s: float) -> bool:
        """Waits until every model has a version; tells whether all have."""
        deadline_s = time.monotonic() + timeout_s
        return all(
            servable.wait(max(0.0, deadline_s - time.monotonic()))
            for servable in self._table.servables.values()
        )

    def stop(self) -> None:
        """Ends watching folders; what is up stays up."""
        for servable in self._table.servables.values():
            servable.stop()

    def describe(self) -> str:
        """The models and their available versions, for a person."""
        described = []
        for name, servable in self._table.servables.items():
            numbers = sorted(s.number for s in servable.states() if s.state == AVAILABLE)
            plural = "s" if len(numbers) > 1 else ""
            described.append(f"model {name} version{plural} {' '.join(map(str, numbers))}")
        return ", ".join(described) or "no models"

    def reload(
        self, config: model_server_config_pb2.ModelServerConfig, timeout_s: float | None
    ) -> None:
        """Replaces the configuration, all of it or nothing.

        New models are loaded first, and waited for. Then labels move, and then versions that the
        policies don't want any more go, each after its last call.

        Args:
            config: what to serve from now on.
            timeout_s: time for new models to come up.

        Raises:
            Refused: something is wrong with it, a label would point to a version that isn't
                available, a new model can't be loaded, or the time is up.
        """
        limit_s = _LONGEST_RELOAD_S if timeout_s is None else min(timeout_s, _LONGEST_RELOAD_S)
        deadline_s = time.monotonic() + limit_s
        if not self._reloading.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise _too_late("another reload is under way")
        try:
            self._reload(config, deadline_s)
        finally:
            self._reloading.release()

    def _reload(self, config: model_server_config_pb2.ModelServerConfig, deadline_s: float) -> None:
        old = self._table
        wanted = configs.model_configs(config, old.servables)
        kept = [model for model in wanted if model.name in old.servables]
        self._check_labels(kept, old.servables)  # before anything is loaded
        added: Servables = {}
        try:
            for model in wanted:
                if model.name not in old.servables:
                    added[model.name] = self._start(model)
            _wait(added, deadline_s)
            servables = {m.name: added.get(m.name) or old.servables[m.name] for m in wanted}
            dropped = {n: s for n, s in old.servables.items() if n not in servables}
            table = Table(
                servables,
                {model.name: model.labels for model in wanted},
                {n: s for n, s in {**old.dropped, **dropped}.items() if n not in servables},
            )
            # A version that an old policy lets go must not get a label meanwhile.
            with ExitStack() as held:
                for servable in servables.values():
                    held.enter_context(servable.held())
                self._check_labels(wanted, servables)
                self._table = table
                for model in kept:
                    servables[model.name].follow(model.base_path, model.policy)
        except BaseException:
            for servable in added.values():
                servable.drop()
            raise
        for servable in dropped.values():
            servable.drop()

    def _check_labels(
        self, wanted: list[ModelConfig], servables: Mapping[str, Servable[SavedModel]]
    ) -> None:
        for model in wanted:
            states = servables[model.name].states()
            available = {state.number for state in states if state.state == AVAILABLE}
            in_use = self._table.labels.get(model.name, {})
            for label, number in model.labels.items():
                moves = in_use.get(label, number) != number
                if number not in available and (moves or not self._labels_for_unavailable):
                    raise _not_available(model.name, number)


def check_first_labels(wanted: list[ModelConfig], labels_for_unavailable: bool) -> None:
    """Raises Refused if there are labels: no version is available at the start."""
    for model in wanted:
        if not labels_for_unavailable:
            for number in model.labels.values():
                raise _not_available(model.name, number)


def follow(
    models: ConfiguredModels, path: Path, every_s: float, report: Callable[[str], None]
) -> threading.Event:
    """Reloads a file in a thread of its own until the event is set that it returns.

    What is wrong with the file is said once. As in TF Serving, what it says holds again at the next
    look, whatever a caller asked for meanwhile.
    """
    stopped = threading.Event()

    def watch() -> None:
        said = ""
        while not stopped.wait(every_s):
            try:
                config = configs.read(path, model_server_config_pb2.ModelServerConfig())
                models.reload(config, None)
                trouble = ""
            except (ValueError, Refused) as error:
                trouble = f"{path} is not taken over: {error}"
            if trouble and trouble != said:
                report(trouble)
            said = trouble

    threading.Thread(target=watch, name=f"watch {path}", daemon=True).start()
    return stopped


def _wait(added: Servables, deadline_s: float) -> None:
    for name, servable in added.items():
        if not servable.wait_until_tried(max(0.0, deadline_s - time.monotonic())):
            where = f"{servable.base_path} has no version of model {name} to serve"
            raise _too_late(f"{where}, or it is not loaded yet")
    failed = [
        f"{{{{name: {name} version: {state.number}}} due to error: {state.error}}}, "
        for name, servable in added.items()
        if not servable.wait(0)
        for state in servable.states()
    ]
    if failed:
        text = f"{len(failed)} model(s) did not become available: {{{''.join(failed)}}}"
        raise Refused(grpc.StatusCode.UNKNOWN, text)


def _not_available(name: str, number: int) -> Refused:
    return Refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Request to assign label to version {number} of model {name}, "
        "which is not currently available for inference",
    )


def _too_late(why: str) -> Refused:
    return Refused(
        grpc.StatusCode.DEADLINE_EXCEEDED, f"Deadline exceeded: {why}; nothing was changed"
    )
