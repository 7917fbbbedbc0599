"""The models of a server by name, and the version of them that a ModelSpec selects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import model_pb2

from serving.server.errors import ServableNotFound, StatusError, invalid_argument
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import Servable, Version, VersionState


@dataclass(frozen=True)
class Snapshot:
    """The contents of a registry at one moment.

    Attributes:
        servables: the models by name.
        labels: version numbers by label, by model name.
        dropped: models that were served before; requests for their status are still answered.
    """

    servables: Mapping[str, Servable[SavedModel]]
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: Mapping[str, Servable[SavedModel]] = field(default_factory=dict)


class VersionChoice(NamedTuple):
    """The version of a model that a ModelSpec selects; without number and label, the newest."""

    name: str
    number: int | None
    label: str | None

    @classmethod
    def of(cls, spec: model_pb2.ModelSpec) -> VersionChoice:
        """Returns the choice in ``spec``."""
        if spec.WhichOneof("version_choice") == "version_label":
            return cls(spec.name, None, spec.version_label)
        return cls(spec.name, spec.version.value if spec.HasField("version") else None, None)


class ModelRegistry:
    """Finds the version that a ModelSpec selects; safe to share between threads.

    Args:
        servables: the models by name.
    """

    def __init__(self, servables: Mapping[str, Servable[SavedModel]]) -> None:
        self._snapshot = Snapshot(servables)  # replaced, never changed

    def __contains__(self, name: object) -> bool:
        return name in self._snapshot.servables

    @contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[tuple[int, SavedModel]]:
        """Gives the number and model of the selected version, loaded until the block ends.

        Raises:
            StatusError: the spec has no name, or a label that does not exist.
            ServableNotFound: the model does not exist, or the version isn't available.
        """
        servable, version = self.acquire(VersionChoice.of(spec))
        try:
            assert version.model is not None
            yield version.number, version.model
        finally:
            servable.release(version)

    def acquire(self, choice: VersionChoice) -> tuple[Servable[SavedModel], Version[SavedModel]]:
        """Does what ``use`` does, but the caller has to ``release`` the version."""
        if not choice.name:
            raise invalid_argument("ModelSpec has no name specified.")
        while True:
            snapshot = self._snapshot
            number = choice.number if choice.label is None else _version_of_label(snapshot, choice)
            try:
                servable = snapshot.servables.get(choice.name)
                if servable is None:
                    raise ServableNotFound(choice.name, number)
                return servable, servable.acquire(number)
            except ServableNotFound:
                if snapshot is self._snapshot:
                    raise
                # The snapshot was replaced meanwhile, and the label may have moved: try again.

    def states(self, spec: model_pb2.ModelSpec) -> list[VersionState]:
        """Returns the states of the versions that ``spec`` selects, newest first; at least one.

        As in TF Serving, a label selects nothing: the answer has all versions.

        Raises:
            StatusError: no such version exists.
        """
        snapshot, number = self._snapshot, VersionChoice.of(spec).number
        servable = snapshot.servables.get(spec.name) or snapshot.dropped.get(spec.name)
        states = servable.states() if servable else []
        if number is not None:
            states = [state for state in states if state.number == number]
        if not states:
            what = "any versions" if number is None else f"version {number}"
            text = f"Could not find {what} of model {spec.name}"
            raise StatusError(grpc.StatusCode.NOT_FOUND, text)
        return states


def _version_of_label(snapshot: Snapshot, choice: VersionChoice) -> int:
    number = snapshot.labels.get(choice.name, {}).get(choice.label or "")
    if number is None:
        raise invalid_argument(f"Unrecognized servable version label: {choice.label}")
    return number
