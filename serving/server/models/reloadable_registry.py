"""A model registry whose configuration can be replaced while calls are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.server import text_protos
from serving.server.errors import StatusError
from serving.server.models.model_config import (
    ModelConfig,
    check_first_labels,
    label_not_available,
    model_configs,
)
from serving.server.models.registry import ModelRegistry, Snapshot
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import AVAILABLE, Servable

_MAX_RELOAD_S = 600.0  # longest wait for new models, also if the caller sets no deadline


class ReloadableRegistry(ModelRegistry):
    """The models of a configuration; safe to share between threads.

    The constructor does not wait for models; ``wait`` does.

    Args:
        config: the first configuration.
        start: makes the servable of a model and starts to watch its folder.
        labels_for_unavailable: whether a new label may point to a version that isn't available. No
            version is available at the start.

    Raises:
        StatusError: the configuration is wrong.
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        start: Callable[[ModelConfig], Servable[SavedModel]],
        labels_for_unavailable: bool = False,
    ) -> None:
        self._start = start
        self._labels_for_unavailable = labels_for_unavailable
        self._reload_lock = threading.Lock()
        models = model_configs(config)
        check_first_labels(models, labels_for_unavailable)
        labels = {model.name: model.labels for model in models}
        super().__init__({})
        self._snapshot = Snapshot({model.name: start(model) for model in models}, labels)

    def wait(self, timeout_s: float) -> bool:
        """Waits until every model has an available version; returns whether all have one."""
        deadline_s = time.monotonic() + timeout_s
        return all(
            servable.wait(max(0.0, deadline_s - time.monotonic()))
            for servable in self._snapshot.servables.values()
        )

    def stop(self) -> None:
        """Stops watching folders; available versions stay available."""
        for servable in self._snapshot.servables.values():
            servable.stop()

    def describe(self) -> str:
        """Returns the models and their available versions as a text for the operator."""
        described = []
        for name, servable in self._snapshot.servables.items():
            numbers = sorted(s.number for s in servable.states() if s.state == AVAILABLE)
            plural = "s" if len(numbers) > 1 else ""
            described.append(f"model {name} version{plural} {' '.join(map(str, numbers))}")
        return ", ".join(described) or "no models"

    def reload(
        self, config: model_server_config_pb2.ModelServerConfig, timeout_s: float | None
    ) -> None:
        """Replaces the whole configuration, or changes nothing and raises.

        It loads new models and waits for them, then moves the labels, then unloads the versions
        that no policy selects any more, each after its last call.

        Args:
            config: the new configuration.
            timeout_s: seconds that new models may take to become available.

        Raises:
            StatusError: the configuration is wrong, a label would point to a version that isn't
                available, a new model can't be loaded, or the time is up.
        """
        limit_s = _MAX_RELOAD_S if timeout_s is None else min(timeout_s, _MAX_RELOAD_S)
        deadline_s = time.monotonic() + limit_s
        if not self._reload_lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise _deadline_exceeded("another reload is under way")
        try:
            self._reload(config, deadline_s)
        finally:
            self._reload_lock.release()

    def _reload(self, config: model_server_config_pb2.ModelServerConfig, deadline_s: float) -> None:
        old = self._snapshot
        models = model_configs(config, old.servables)
        kept = [model for model in models if model.name in old.servables]
        self._check_labels(kept, old.servables)  # before anything is loaded
        added: dict[str, Servable[SavedModel]] = {}
        try:
            for model in models:
                if model.name not in old.servables:
                    added[model.name] = self._start(model)
            _wait_until_available(added, deadline_s)
            servables = {m.name: added.get(m.name) or old.servables[m.name] for m in models}
            dropped = {n: s for n, s in old.servables.items() if n not in servables}
            snapshot = Snapshot(
                servables,
                {model.name: model.labels for model in models},
                {n: s for n, s in {**old.dropped, **dropped}.items() if n not in servables},
            )
            # Between the check and the move of a label, no poll may retire its version.
            with ExitStack() as locks:
                for servable in servables.values():
                    locks.enter_context(servable.locked())
                self._check_labels(models, servables)
                self._snapshot = snapshot
                for model in kept:
                    servables[model.name].set_source(model.base_path, model.policy)
        except BaseException:
            for servable in added.values():
                servable.drop()
            raise
        for servable in dropped.values():
            servable.drop()

    def _check_labels(
        self, models: list[ModelConfig], servables: Mapping[str, Servable[SavedModel]]
    ) -> None:
        for model in models:
            states = servables[model.name].states()
            available = {state.number for state in states if state.state == AVAILABLE}
            current = self._snapshot.labels.get(model.name, {})
            for label, number in model.labels.items():
                is_moved = current.get(label, number) != number
                if number not in available and (is_moved or not self._labels_for_unavailable):
                    raise label_not_available(model.name, number)


def watch_config_file(
    registry: ReloadableRegistry, path: Path, every_s: float, report: Callable[[str], None]
) -> threading.Event:
    """Starts a thread that reloads a file every ``every_s`` seconds.

    As in TF Serving, the file also replaces a configuration that a caller has set meanwhile. An
    error in the file is reported once.

    Returns:
        An event that ends the thread when it is set.
    """
    stopped = threading.Event()

    def watch() -> None:
        last_error = ""
        while not stopped.wait(every_s):
            try:
                config = text_protos.read(path, model_server_config_pb2.ModelServerConfig())
                registry.reload(config, None)
                error_text = ""
            except (ValueError, StatusError) as error:
                error_text = f"{path} is not applied: {error}"
            if error_text and error_text != last_error:
                report(error_text)
            last_error = error_text

    threading.Thread(target=watch, name=f"watch {path}", daemon=True).start()
    return stopped


def _wait_until_available(servables: Mapping[str, Servable[SavedModel]], deadline_s: float) -> None:
    """Waits until each servable has an available version; raises StatusError otherwise."""
    for name, servable in servables.items():
        if not servable.wait_for_first_loads(max(0.0, deadline_s - time.monotonic())):
            where = f"{servable.base_path} has no version of model {name} to serve"
            raise _deadline_exceeded(f"{where}, or it is not loaded yet")
    failed = [
        f"{{{{name: {name} version: {state.number}}} due to error: {state.error}}}, "
        for name, servable in servables.items()
        if not servable.wait(0)
        for state in servable.states()
    ]
    if failed:
        text = f"{len(failed)} model(s) did not become available: {{{''.join(failed)}}}"
        raise StatusError(grpc.StatusCode.UNKNOWN, text)


def _deadline_exceeded(why: str) -> StatusError:
    return StatusError(
        grpc.StatusCode.DEADLINE_EXCEEDED, f"Deadline exceeded: {why}; nothing was changed"
    )
