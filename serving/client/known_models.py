"""Calls that need a model's metadata, which is requested once for each version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from serving.client import messages, methods
from serving.client.errors import InvalidInput, InvalidRequest, ServingError
from serving.client.methods import Method
from serving.client.results import ModelMetadata
from serving.client.retries import RetryingCaller, Steps

_MAX_VERSIONS: Final = 1000  # whose metadata is kept, of all models together; a few KB each

VersionChoice = tuple[str, int | None, str | None]  # model, version, label


class KnownModels:
    """Keeps the metadata of versions that have answered; safe to share between threads.

    Args:
        caller: makes the calls.
    """

    def __init__(self, caller: RetryingCaller) -> None:
        self._caller = caller
        self._last_version: dict[VersionChoice, int] = {}  # that answered
        self._metadata: dict[tuple[str, int], ModelMetadata] = {}

    def call(
        self,
        method: Method,
        choice: VersionChoice,
        needs_metadata: bool,
        make_requests: Callable[[ModelMetadata | None], list[bytes]],
        deadline_s: float,
    ) -> Steps[list[Any]]:
        """Makes requests from the model's metadata, and calls.

        Kept metadata may be out of date. Before it makes the operation fail, it is requested again,
        and if it has changed the operation is repeated.
        """
        metadata, is_fresh = None, not needs_metadata
        if needs_metadata:
            metadata = self._metadata.get((choice[0], self._last_version.get(choice, -1)))
            if metadata is None:
                metadata = yield from self._renew(choice, deadline_s)
                is_fresh = True
        while True:
            try:
                answers = []
                for request in make_requests(metadata):
                    answer = yield from self._caller.call(method, choice[0], request, deadline_s)
                    answers.append(answer)
                return answers
            except (InvalidInput, InvalidRequest) as error:
                self._last_version.pop(choice, None)
                if is_fresh or metadata is None:
                    raise
                try:
                    newer = yield from self._renew(choice, deadline_s)
                    is_fresh = True
                except ServingError:
                    raise error from None
                if newer.signatures == metadata.signatures:
                    raise
                metadata = newer

    def note_version(self, choice: VersionChoice, version: int) -> None:
        """Notes which version has answered."""
        if version:
            self._last_version[choice] = version

    def request(self, choice: VersionChoice, deadline_s: float) -> Steps[ModelMetadata]:
        """Returns the server's metadata, whatever is kept."""
        request = messages.metadata_request(messages.model_spec(*choice)).SerializeToString()
        answer = yield from self._caller.call(methods.METADATA, choice[0], request, deadline_s)
        return messages.read_metadata(answer)

    def _renew(self, choice: VersionChoice, deadline_s: float) -> Steps[ModelMetadata]:
        metadata = yield from self.request(choice, deadline_s)
        while len(self._metadata) >= _MAX_VERSIONS:
            self._metadata.pop(list(self._metadata)[0], None)  # noqa: RUF015 (other threads add)
        self._metadata[choice[0], metadata.version] = metadata
        self._last_version[choice] = metadata.version
        return metadata
