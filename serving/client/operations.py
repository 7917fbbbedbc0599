"""The operations of a client, as generators of steps: see ``retries``.

``Client`` and ``AsyncClient`` have a method for every public method of ``Operations``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from serving.client import checks, encoding, examples, messages, methods
from serving.client.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotReady,
    Unavailable,
)
from serving.client.known_models import KnownModels, VersionChoice
from serving.client.methods import Method
from serving.client.results import Classification, ModelMetadata, VersionStatus
from serving.client.retries import (
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    Pause,
    RetryingCaller,
    Steps,
    remaining_s,
)
from serving.tensors import Array


class Operations:
    """The operations of a client, with cached metadata; safe to share between threads.

    Args:
        targets: addresses of the replicas.
        proxies: by target, for errors; None if calls go directly.
        timeout_s: default number of seconds that a call may take.
        retries: largest number of repetitions of a call.
        check: whether inputs are checked against the model's metadata before they are sent.
    """

    def __init__(
        self,
        targets: Sequence[str],
        proxies: Mapping[str, str | None],
        timeout_s: float,
        retries: int,
        check: bool,
    ) -> None:
        self.caller = RetryingCaller(targets, proxies, retries)
        self.timeout_s = checks.positive("timeout_s", timeout_s)
        self.check = check
        self._known_models = KnownModels(self.caller)
        self._templates = encoding.RequestTemplates()

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
    ) -> Steps[dict[str, Array]]:
        """Sends inputs to a model, and returns its outputs.

        Arrays are sent unchanged. A list has no dtype, and a single array no name: the model's
        metadata provides them. The metadata is requested once and kept.

        Args:
            model: the model's name.
            inputs: a mapping of input names to arrays (mostly with a batch dimension first), or a
                single array if the signature has one input. Lists and numbers get the signature's
                dtype.
            signature: its key, by default ``serving_default``.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            output_filter: names of the outputs to return, by default all.
            max_batch_size: largest number of rows in one request; more rows are sent in several
                requests, one after the other. While versions change, different versions may answer
                them.
            timeout_s: seconds for the whole operation, by default the client's.

        Returns:
            Arrays by output name; strings as arrays of ``bytes`` objects.

        Raises:
            InvalidInput: the inputs can't be sent, or do not match the signature.
            CallFailed: the server did not answer, or answered with an error.
            InvalidAnswer: the answer can't be decoded.
        """
        names = (output_filter,) if isinstance(output_filter, str) else tuple(output_filter or ())
        head = messages.predict_head(model, version, label, signature, names)
        specs = encoding.input_specs(inputs) if max_batch_size is None else None

        def make_requests(metadata: ModelMetadata | None) -> list[bytes]:
            request = self._templates.fill(head, specs, inputs, metadata)
            if request is not None:
                return [request]
            known = checks.signature_for_predict(metadata, signature) if metadata else None
            arrays = checks.arrays(known, inputs)
            if known and self.check:
                checks.check(known, arrays, names)
            requests = messages.predict_requests(head, arrays, max_batch_size)
            self._templates.add(head, specs, arrays, metadata)
            return requests

        choice = (model, version, label)
        needs_metadata = self.check or checks.needs_metadata(inputs)
        answers = yield from self._known_models.call(
            methods.PREDICT, choice, needs_metadata, make_requests, self._deadline_s(timeout_s)
        )
        self._known_models.note_version(choice, answers[-1].version)
        if len(answers) == 1:
            outputs: dict[str, Array] = answers[0].outputs
            return outputs
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        return messages.join_outputs([answer.outputs for answer in answers], len(first))

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
    ) -> Steps[Classification]:
        """Returns the classes of each example and their scores.

        Args:
            model: the model's name.
            features: a mapping of names to arrays or lists, whose first dimension is the examples,
                or a list with a mapping for each example. They are sent as tf.Example: floats as
                float32, integers and booleans as int64, text as bytes, all of them flat.
            context: features that all examples have, a value for each name.
            signature: its key, by default the model's only signature for classification.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            max_batch_size: largest number of examples in one request; more examples are sent in
                several requests, one after the other.
            timeout_s: seconds for the whole operation, by default the client's.

        Returns:
            Labels and scores, [examples, classes] each.

        Raises:
            InvalidInput: the features can't be sent, or the model has no such signature.
            CallFailed: the server did not answer, or answered with an error.
            InvalidAnswer: the answer can't be decoded.
        """
        answers = yield from self._call_with_examples(
            methods.CLASSIFY,
            features,
            context,
            signature,
            (model, version, label),
            max_batch_size,
            self._deadline_s(timeout_s),
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
    ) -> Steps[Array]:
        """Returns a number for each example.

        Args:
            model: the model's name.
            features: a mapping of names to arrays or lists, whose first dimension is the examples,
                or a list with a mapping for each example. They are sent as tf.Example: floats as
                float32, integers and booleans as int64, text as bytes, all of them flat.
            context: features that all examples have, a value for each name.
            signature: its key, by default the model's only signature for regression.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            max_batch_size: largest number of examples in one request; more examples are sent in
                several requests, one after the other.
            timeout_s: seconds for the whole operation, by default the client's.

        Returns:
            float32 [examples].

        Raises:
            InvalidInput: the features can't be sent, or the model has no such signature.
            CallFailed: the server did not answer, or answered with an error.
            InvalidAnswer: the answer can't be decoded.
        """
        answers = yield from self._call_with_examples(
            methods.REGRESS,
            features,
            context,
            signature,
            (model, version, label),
            max_batch_size,
            self._deadline_s(timeout_s),
        )
        return messages.read_regression(answers)

    def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> Steps[ModelMetadata]:
        """Returns a model's signatures: names, dtypes and shapes of inputs and outputs.

        Args:
            model: the model's name.
            version: a version's number, by default the newest.
            label: a version's label instead of its number.
            timeout_s: seconds for the call, by default the client's.

        Raises:
            CallFailed: the server did not answer, or answered with an error.
            InvalidAnswer: the answer can't be decoded.
        """
        deadline_s = self._deadline_s(timeout_s)
        return (yield from self._known_models.request((model, version, label), deadline_s))

    def status(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Steps[list[VersionStatus]]:
        """Returns the states of a model's versions, newest first.

        Args:
            model: the model's name.
            version: a version's number, to return only its state.
            timeout_s: seconds for the call, by default the client's.

        Raises:
            CallFailed: the server did not answer, or answered with an error.
        """
        request = messages.status_request(messages.model_spec(model, version))
        response = yield from self._call(
            methods.STATUS, model, request, self._deadline_s(timeout_s)
        )
        return messages.read_status(response)

    def reload(self, config: str | Any, *, timeout_s: float | None = None) -> Steps[None]:
        """Replaces the server's configuration; returns when the server has taken it over.

        A failed call is not repeated, because the server may have begun. A client with several
        targets would reload one of them at random, so it refuses.

        Args:
            config: a ModelServerConfig: its text, as in a models.config, or the message (ours or
                tensorflow-serving-api's).
            timeout_s: seconds for the call, by default the client's. TF Serving waits until new
                models are loaded, and without limit for one whose ``base_path`` does not exist.

        Raises:
            InvalidInput: it is no ModelServerConfig, or the client has several targets.
            CallFailed: the server did not answer, or answered with an error.
        """
        if len(self.caller.targets) > 1:
            raise InvalidInput(
                f"a reload is for one server, and the client has {len(self.caller.targets)} "
                "targets: make a client for each"
            )
        request = messages.reload_request(config)
        deadline_s = self._deadline_s(timeout_s)
        response = yield from self._call(methods.RELOAD, "*", request, deadline_s)
        if response.status.error_code:
            codes = {code.value[0]: code for code in grpc.StatusCode}
            code = codes.get(response.status.error_code, grpc.StatusCode.UNKNOWN)
            details = response.status.error_message
            raise self.caller.failure(0, methods.RELOAD, "*", code, details)

    def wait_until_ready(
        self, model: str, *, version: int | None = None, timeout_s: float = 60.0
    ) -> Steps[VersionStatus]:
        """Waits until a version of a model is available, also for a server that does not run yet.

        Args:
            model: the model's name.
            version: the version to wait for, by default any.
            timeout_s: seconds to wait at most.

        Returns:
            The state of the newest available version; with several targets, on the first target
            that has one.

        Raises:
            NotReady: the time is up, or all versions have failed to load. The message contains the
                last state.
            CallFailed: the server refuses the request.
        """
        deadline_s = self._deadline_s(timeout_s)
        what = f"model {model!r}" if version is None else f"version {version} of model {model!r}"
        where = ", ".join(self.caller.targets)
        request = messages.status_request(messages.model_spec(model, version))
        last_state, pause_s = "", FIRST_PAUSE_S
        while True:
            try:
                attempt_deadline_s = min(deadline_s, time.monotonic() + self.timeout_s)
                response = yield from self.caller.call_once(
                    methods.STATUS, model, request.SerializeToString(), attempt_deadline_s
                )
            except (NotFound, Unavailable, DeadlineExceeded) as error:
                # The last attempt is cut short, and its DeadlineExceeded would explain nothing.
                if not (last_state and isinstance(error, DeadlineExceeded)):
                    last_state = str(error)
            else:
                statuses = messages.read_status(response)
                for status in statuses:
                    if status.state == "AVAILABLE":
                        return status
                last_state = "; ".join(map(str, statuses)) or "the server names no version"
                if statuses and all(status.state == "END" for status in statuses):
                    raise NotReady(f"{what} at {where} won't get ready: {last_state}")
            if remaining_s(deadline_s) <= pause_s:
                raise NotReady(
                    f"{what} at {where} was not ready after {timeout_s:g} s: {last_state}"
                )
            yield Pause(pause_s)
            pause_s = min(MAX_PAUSE_S, pause_s * 1.5)

    def _deadline_s(self, timeout_s: float | None) -> float:
        allowed_s = self.timeout_s if timeout_s is None else checks.positive("timeout_s", timeout_s)
        return time.monotonic() + allowed_s

    def _call_with_examples(
        self,
        method: Method,
        features: Any,
        context: Mapping[str, Any] | None,
        signature: str | None,
        choice: VersionChoice,
        max_batch_size: int | None,
        deadline_s: float,
    ) -> Steps[list[Any]]:
        encoded = examples.encode(features)
        encoded_context = None if context is None else examples.encode_one(context)

        def make_requests(metadata: ModelMetadata | None) -> list[bytes]:
            name = signature
            if metadata:
                name = checks.signature_for_examples(metadata, signature, method).name
            spec = messages.model_spec(*choice, name)
            return messages.example_requests(method, spec, encoded, encoded_context, max_batch_size)

        needs_metadata = self.check or signature is None
        answers = yield from self._known_models.call(
            method, choice, needs_metadata, make_requests, deadline_s
        )
        self._known_models.note_version(choice, answers[-1].model_spec.version.value)
        return answers

    def _call(self, method: Method, model: str, request: Any, deadline_s: float) -> Steps[Any]:
        return (yield from self.caller.call(method, model, request.SerializeToString(), deadline_s))
