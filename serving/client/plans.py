"""What a client's calls do, step by step; how they travel and who waits is not said here.

Every public method of ``Plans`` is a plan; ``Client`` and ``AsyncClient`` make a method of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc

from serving.client import checks, examples, messages, methods, wire
from serving.client.attempts import FIRST_PAUSE_S, LONGEST_PAUSE_S, Attempts, Pause, Plan, left
from serving.client.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    NotFound,
    NotReady,
    ServingError,
    Unavailable,
    call_failed,
)
from serving.client.methods import Method
from serving.client.models import Classification, ModelMetadata, VersionStatus
from serving.tensors import Array

_VERSIONS_KEPT: Final = 1000  # of all models together; a few KB each


_Asked = tuple[str, int | None, str | None]  # model, version, label


class Plans:
    """The calls of a client, and what it remembers between them; safe to share between threads.

    Args:
        targets: where the replicas listen.
        timeout_s: seconds that a call may take, unless it says otherwise.
        retries: how often a call is made again at most.
        check: whether inputs are held against the model's metadata before they are sent.
    """

    def __init__(self, targets: Sequence[str], timeout_s: float, retries: int, check: bool) -> None:
        self.attempts = Attempts(targets, retries)
        self.timeout_s = checks.positive("timeout_s", timeout_s)
        self.check = check
        # Which version answered last, and what each version says of itself.
        self._newest: dict[_Asked, int] = {}
        self._metadata: dict[tuple[str, int], ModelMetadata] = {}
        self._frames = wire.Frames()

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        output_filter: Iterable[str] = (),
        max_batch_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Plan[dict[str, Array]]:
        """Asks a model.

        Arrays are sent as they are. Where something is left open (a list has no dtype, a single
        array no name), the model's metadata decides; it is asked for once and kept.

        Args:
            model: the model's name.
            inputs: a mapping of input names to arrays (batch first, as a rule), or a single array
                if the signature has one input. Lists and numbers get the signature's dtype.
            signature: its key, by default ``serving_default``.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            output_filter: names of the outputs wanted, by default all.
            max_batch_size: rows in one request at most; more are sent one batch after the other.
                While versions change they may be answered by different ones.
            timeout_s: seconds allowed for all of it, by default the client's.

        Returns:
            Arrays by output name; strings as arrays of ``bytes`` objects.

        Raises:
            InvalidInput: nothing could be sent, or it is not what the model takes.
            CallFailed: the server did not answer as wished; the kind says how.
            InvalidAnswer: the answer can't be read.
        """
        wanted = (output_filter,) if isinstance(output_filter, str) else tuple(output_filter or ())
        head = messages.predict_head(model, version, label, signature, wanted)

        look = wire.look(inputs) if max_batch_size is None else None

        def prepare(about: ModelMetadata | None) -> list[bytes]:
            request = self._frames.fill(head, look, inputs, about)
            if request is not None:
                return [request]
            known = checks.signature_for_predict(about, signature) if about else None
            arrays = checks.arrays(known, inputs)
            if known and self.check:
                checks.check(known, arrays, wanted)
            requests = messages.predict_requests(head, arrays, max_batch_size)
            self._frames.keep(head, look, arrays, about)
            return requests

        asked = (model, version, label)
        asks = self.check or checks.is_open(inputs)
        answers = yield from self._ask(methods.PREDICT, asked, asks, prepare, self._ends(timeout_s))
        self._note_version(asked, answers[-1].version)
        if len(answers) == 1:
            outputs: dict[str, Array] = answers[0].outputs
            return outputs
        parts = [answer.outputs for answer in answers]
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        return messages.joined_outputs(parts, len(first))

    def classify(
        self,
        model: str,
        features: Any,
        *,
        context: Mapping[str, Any] | None = None,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        max_batch_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Plan[Classification]:
        """Asks which class each example belongs to.

        Args:
            model: the model's name.
            features: a mapping of names to arrays or lists (examples first), or a list with a
                mapping for each example. They travel as tf.Example: floats as float32, integers
                and booleans as int64, text as bytes, all of them flat.
            context: features that all examples have, a value for each name.
            signature: its key, by default the model's one signature for classification.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            max_batch_size: examples in one request at most; more are sent one batch after the
                other.
            timeout_s: seconds allowed for all of it, by default the client's.

        Returns:
            Labels and scores, [examples, classes] each.

        Raises:
            InvalidInput: nothing could be sent, or the model has no such signature.
            CallFailed: the server did not answer as wished; the kind says how.
            InvalidAnswer: the answer can't be read.
        """
        answers = yield from self._ask_examples(
            methods.CLASSIFY,
            features,
            context,
            signature,
            (model, version, label),
            max_batch_size,
            self._ends(timeout_s),
        )
        return messages.read_classification(answers)

    def regress(
        self,
        model: str,
        features: Any,
        *,
        context: Mapping[str, Any] | None = None,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        max_batch_size: int | None = None,
        timeout_s: float | None = None,
    ) -> Plan[Array]:
        """Asks for a number for each example.

        Args:
            model: the model's name.
            features: a mapping of names to arrays or lists (examples first), or a list with a
                mapping for each example. They travel as tf.Example: floats as float32, integers
                and booleans as int64, text as bytes, all of them flat.
            context: features that all examples have, a value for each name.
            signature: its key, by default the model's one signature for regression.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            max_batch_size: examples in one request at most; more are sent one batch after the
                other.
            timeout_s: seconds allowed for all of it, by default the client's.

        Returns:
            float32 [examples].

        Raises:
            InvalidInput: nothing could be sent, or the model has no such signature.
            CallFailed: the server did not answer as wished; the kind says how.
            InvalidAnswer: the answer can't be read.
        """
        answers = yield from self._ask_examples(
            methods.REGRESS,
            features,
            context,
            signature,
            (model, version, label),
            max_batch_size,
            self._ends(timeout_s),
        )
        return messages.read_regression(answers)

    def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> Plan[ModelMetadata]:
        """The signatures of a model: names, dtypes and shapes of what goes in and comes out.

        Args:
            model: the model's name.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            timeout_s: seconds allowed, by default the client's.

        Raises:
            CallFailed: the server did not answer as wished; the kind says how.
            InvalidAnswer: the answer can't be read.
        """
        request = messages.metadata_request(messages.model_spec(model, version, label))
        response = yield from self._call(methods.METADATA, model, request, self._ends(timeout_s))
        return messages.read_metadata(response)

    def status(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Plan[list[VersionStatus]]:
        """The states of a model's versions, newest first; of one only, if ``version`` is given.

        Args:
            model: the model's name.
            version: a version's number.
            timeout_s: seconds allowed, by default the client's.

        Raises:
            CallFailed: the server did not answer as wished; the kind says how.
        """
        request = messages.status_request(messages.model_spec(model, version))
        response = yield from self._call(methods.STATUS, model, request, self._ends(timeout_s))
        return messages.read_status(response)

    def reload(self, config: str | Any, *, timeout_s: float | None = None) -> Plan[None]:
        """Has the server serve what ``config`` says, and nothing else; returns when it does.

        Not made again when it fails: whether the server has begun can't be known then. A client of
        several targets would reload one of them at random, so it refuses.

        Args:
            config: a ModelServerConfig: its text, as in a models.config, or the message (ours or
                tensorflow-serving-api's).
            timeout_s: seconds allowed, by default the client's. TF Serving waits for new models to
                load, and without limit for one whose ``base_path`` is not there.

        Raises:
            InvalidInput: it is no ModelServerConfig, or the client has several targets.
            CallFailed: the server did not answer as wished; the kind says how.
        """
        if len(self.attempts.targets) > 1:
            raise InvalidInput(
                f"a reload is for one server, and the client has {len(self.attempts.targets)} "
                "targets: make a client for each"
            )
        request = messages.reload_request(config)
        ends = self._ends(timeout_s)
        response = yield from self._call(methods.RELOAD, "*", request, ends)
        if response.status.error_code:
            codes = {code.value[0]: code for code in grpc.StatusCode}
            code = codes.get(response.status.error_code, grpc.StatusCode.UNKNOWN)
            said = response.status.error_message
            raise call_failed(self.attempts.targets[0], "*", methods.RELOAD.name, code, said)

    def wait_until_ready(
        self, model: str, *, version: int | None = None, timeout_s: float = 60.0
    ) -> Plan[VersionStatus]:
        """Waits until a model can be asked; a server that is not up yet is waited for too.

        Args:
            model: the model's name.
            version: the version to wait for, by default any.
            timeout_s: seconds to wait at most.

        Returns:
            The state of the newest version that is available; of several targets, the first one's
            that has it.

        Raises:
            NotReady: the time is up, or the server failed to load what is waited for. The message
                says what was seen last.
            CallFailed: the server refuses to say.
        """
        ends = self._ends(timeout_s)
        what = f"model {model!r}" if version is None else f"version {version} of model {model!r}"
        where = ", ".join(self.attempts.targets)
        request = messages.status_request(messages.model_spec(model, version))
        seen, pause_s = "", FIRST_PAUSE_S
        while True:
            try:
                tries_end = min(ends, time.monotonic() + self.timeout_s)
                response = yield from self.attempts.make_once(
                    methods.STATUS, model, request.SerializeToString(), tries_end
                )
            except (NotFound, Unavailable, DeadlineExceeded) as error:
                if not (seen and isinstance(error, DeadlineExceeded)):  # the last try is cut short
                    seen = str(error)
            else:
                statuses = messages.read_status(response)
                for status in statuses:
                    if status.state == "AVAILABLE":
                        return status
                seen = "; ".join(map(str, statuses)) or "the server names no version"
                if statuses and all(status.state == "END" for status in statuses):
                    raise NotReady(f"{what} at {where} won't get ready: {seen}")
            if left(ends) <= pause_s:
                raise NotReady(f"{what} at {where} was not ready after {timeout_s:g} s: {seen}")
            yield Pause(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)

    def _ends(self, timeout_s: float | None) -> float:
        allowed_s = self.timeout_s if timeout_s is None else checks.positive("timeout_s", timeout_s)
        return time.monotonic() + allowed_s

    def _ask_examples(
        self,
        method: Method,
        features: Any,
        context: Mapping[str, Any] | None,
        signature: str | None,
        asked: _Asked,
        max_batch_size: int | None,
        ends: float,
    ) -> Plan[list[Any]]:
        encoded = examples.encode(features)
        shared = None if context is None else examples.encode_one(context)

        def prepare(about: ModelMetadata | None) -> list[bytes]:
            name = signature
            if about:
                name = checks.signature_for_examples(about, signature, method).name
            spec = messages.model_spec(*asked, name)
            return messages.example_requests(method, spec, encoded, shared, max_batch_size)

        asks = self.check or signature is None
        answers = yield from self._ask(method, asked, asks, prepare, ends)
        self._note_version(asked, answers[-1].model_spec.version.value)
        return answers

    def _ask(
        self,
        method: Method,
        asked: _Asked,
        asks_metadata: bool,
        prepare: Callable[[ModelMetadata | None], list[bytes]],
        ends: float,
    ) -> Plan[list[Any]]:
        """Makes requests of what is known about the model, and calls.

        What was known for a while may be out of date. Before it makes a call fail, it is asked for
        again, and if it has changed the call is made anew.
        """
        about, fresh = None, not asks_metadata
        if asks_metadata:
            about = self._known(asked)
            if about is None:
                about, fresh = (yield from self._ask_about(asked, ends)), True
        while True:
            try:
                responses = []
                for request in prepare(about):
                    response = yield from self.attempts.make(method, asked[0], request, ends)
                    responses.append(response)
                return responses
            except (InvalidInput, InvalidRequest) as error:
                self._newest.pop(asked, None)
                if fresh or about is None:
                    raise
                try:
                    newer, fresh = (yield from self._ask_about(asked, ends)), True
                except ServingError:
                    raise error from None
                if newer.signatures == about.signatures:
                    raise
                about = newer

    def _note_version(self, asked: _Asked, version: int) -> None:
        if version:
            self._newest[asked] = version

    def _known(self, asked: _Asked) -> ModelMetadata | None:
        """What the version that answered last says of itself."""
        return self._metadata.get((asked[0], self._newest.get(asked, -1)))

    def _ask_about(self, asked: _Asked, ends: float) -> Plan[ModelMetadata]:
        model, version, label = asked
        about = yield from self.metadata(model, version=version, label=label, timeout_s=left(ends))
        while len(self._metadata) >= _VERSIONS_KEPT:
            self._metadata.pop(list(self._metadata)[0], None)  # noqa: RUF015 (other threads add)
        self._metadata[model, about.version] = about
        self._newest[asked] = about.version
        return about

    def _call(self, method: Method, model: str, request: Any, ends: float) -> Plan[Any]:
        return (yield from self.attempts.make(method, model, request.SerializeToString(), ends))
