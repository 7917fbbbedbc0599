"""The models that a server has, and which of them a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from tensorflow_serving.apis import model_pb2

from serving.server.servables import NotServed, Servable, Version, VersionState

if TYPE_CHECKING:  # without TensorFlow, this module can check a configuration before it is imported
    from serving.server.savedmodel import SavedModel

# Says how many seconds a caller still waits, or None. Asking gRPC takes time, so it is only done
# where it matters.
TimeLeft = Callable[[], float | None]


class Refused(Exception):  # noqa: N818 - the name says what happened
    """A request that gets an error for an answer."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def invalid(text: str) -> Refused:
    """A request that is wrong whatever the server's state is."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def model_name(request: Any) -> str:
    """The name in a request's ModelSpec; raises Refused if it has none."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    name: str = request.model_spec.name
    return name


@dataclass(frozen=True)
class Table:
    """What a server has at one moment.

    Attributes:
        servables: the models by name.
        labels: for each model, the version that a label stands for.
        dropped: models that were served once, for who asks what became of them.
    """

    servables: Mapping[str, Servable[SavedModel]]
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: Mapping[str, Servable[SavedModel]] = field(default_factory=dict)


class Asked(NamedTuple):
    """Which version of which model a ModelSpec asks for; neither number nor label: the newest."""

    name: str
    number: int | None
    label: str | None

    @classmethod
    def by(cls, spec: model_pb2.ModelSpec) -> Asked:
        """What ``spec`` asks for."""
        if spec.WhichOneof("version_choice") == "version_label":
            return cls(spec.name, None, spec.version_label)
        return cls(spec.name, spec.version.value if spec.HasField("version") else None, None)


class Models:
    """Finds the version that a ModelSpec means; safe to share between threads.

    Args:
        servables: the models by name.
    """

    def __init__(self, servables: Mapping[str, Servable[SavedModel]]) -> None:
        self._table = Table(servables)  # only ever replaced whole

    def __contains__(self, name: object) -> bool:
        return name in self._table.servables

    @contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[tuple[int, SavedModel]]:
        """The version that ``spec`` means, and its number; it stays loaded until the end.

        Raises:
            Refused: the spec has no name, or a label that nobody set.
            NotServed: there is no such model, or the version isn't available.
        """
        servable, version = self.take(Asked.by(spec))
        try:
            assert version.model is not None
            yield version.number, version.model
        finally:
            servable.give_back(version)

    def take(self, asked: Asked) -> tuple[Servable[SavedModel], Version[SavedModel]]:
        """As ``use``, for callers who promise to ``give_back`` the version to its servable."""
        if not asked.name:
            raise invalid("ModelSpec has no name specified.")
        while True:
            table = self._table
            number = asked.number if asked.label is None else _labelled(table, asked)
            try:
                servable = table.servables.get(asked.name)
                if servable is None:
                    raise NotServed(asked.name, number)
                return servable, servable.take(number)
            except NotServed:
                if table is self._table:
                    raise
                # Another table has come meanwhile: where a label pointed is not where it points.

    def states(self, spec: model_pb2.ModelSpec) -> list[VersionState]:
        """What became of the versions that ``spec`` means, newest first; at least one.

        Raises:
            Refused: there is none.
        """
        table, asked = self._table, Asked.by(spec)
        number = asked.number if asked.label is None else _labelled(table, asked)
        servable = table.servables.get(spec.name) or table.dropped.get(spec.name)
        states = servable.states() if servable else []
        if number is not None:
            states = [state for state in states if state.number == number]
        if not states:
            what = "any versions" if number is None else f"version {number}"
            text = f"Could not find {what} of model {spec.name}"
            raise Refused(grpc.StatusCode.NOT_FOUND, text)
        return states


def _labelled(table: Table, asked: Asked) -> int:
    """The version that a label stands for."""
    number = table.labels.get(asked.name, {}).get(asked.label or "")
    if number is None:
        raise invalid(f"Unrecognized servable version label: {asked.label}")
    return number
