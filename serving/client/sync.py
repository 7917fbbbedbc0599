"""The client that waits for its answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final

import grpc

from serving import tensors
from serving.client import messages
from serving.client.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    NotFound,
    NotReady,
    Unavailable,
    call_failed,
)
from serving.client.messages import Method
from serving.client.models import ModelMetadata, Signature, VersionStatus
from serving.tensors import Array

DEFAULT_SIGNATURE: Final = "serving_default"

_Key = tuple[str, str | None, int | None, str | None]  # model, signature, version, label

# UNAVAILABLE means that no server worked on the call, and every call here may be made twice anyway.
# gRPC draws each pause at random around these values, and never goes on past the deadline. States
# are asked for to learn whether a server is there at all: the first answer counts, and
# wait_until_ready asks again by itself.
_SERVICE_CONFIG: Final = """{
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{
        "name": [{"service": "tensorflow.serving.PredictionService"}],
        "retryPolicy": {
            "maxAttempts": 5,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"]
        }
    }]
}"""
_CHANNEL_OPTIONS: Final = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),  # gRPC's own limit is 4 MB
    ("grpc.per_rpc_retry_buffer_size", 1 << 26),  # larger requests than this are not retried
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Servers answer pings more often than every five minutes with GOAWAY too_many_pings.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class Client:
    """Calls one target; safe to share between threads; closes its channel at the end of ``with``.

    Args:
        target: where the server listens, as gRPC writes it: ``host:port``, ``dns:///name:port``,
            ``unix:/path``.
        timeout_s: how long a call may take at most, all its attempts included, unless the call
            says otherwise.

    Every call raises an error of ``serving.client.errors``: InvalidInput if nothing could be sent,
    one of CallFailed's kinds if the server did not answer as wished, InvalidAnswer if what it
    answered can't be read.
    """

    def __init__(self, target: str, *, timeout_s: float = 10.0) -> None:
        self.target = target
        self.timeout_s = _positive(timeout_s)
        self._signatures: dict[_Key, Signature] = {}
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._calls = {
            method: self._channel.unary_unary(
                method.path,
                request_serializer=method.request_type.SerializeToString,
                response_deserializer=method.answer_type.FromString,
            )
            for method in messages.METHODS
        }

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        output_filter: Iterable[str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
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
            timeout_s: seconds allowed, by default the client's.

        Returns:
            Arrays by output name; strings as arrays of ``bytes`` objects.
        """
        spec = messages.model_spec(model, version, label, signature)
        ends = time.monotonic() + self._allowed(timeout_s)
        key = (model, signature, version, label)
        arrays = self._arrays(key, inputs, ends)
        request = messages.predict_request(spec, arrays, output_filter)
        try:
            response = self._call(messages.PREDICT, request, model, _left(ends))
        except InvalidRequest:
            self._signatures.pop(key, None)  # a new version may have come with another signature
            raise
        return messages.read_outputs(response)

    def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float | None = None,
    ) -> ModelMetadata:
        """The signatures of a model: names, dtypes and shapes of what goes in and comes out."""
        request = messages.metadata_request(messages.model_spec(model, version, label))
        response = self._call(messages.METADATA, request, model, self._allowed(timeout_s))
        return messages.read_metadata(response)

    def status(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> list[VersionStatus]:
        """The states of a model's versions, newest first; of one only, if ``version`` is given."""
        request = messages.status_request(messages.model_spec(model, version))
        response = self._call(messages.STATUS, request, model, self._allowed(timeout_s))
        return messages.read_status(response)

    def reload(self, config: str | Any, *, timeout_s: float | None = None) -> None:
        """Has the server serve what ``config`` says, and nothing else; returns when it does.

        Not made again when it fails: whether the server has begun can't be known then.

        Args:
            config: a ModelServerConfig: its text, as in a models.config, or the message (ours or
                tensorflow-serving-api's).
            timeout_s: seconds allowed, by default the client's. TF Serving waits for new models to
                load, and without limit for one whose ``base_path`` is not there.
        """
        request = messages.reload_request(config)
        response = self._call(messages.RELOAD, request, "*", self._allowed(timeout_s))
        if response.status.error_code:
            codes = {code.value[0]: code for code in grpc.StatusCode}
            code = codes.get(response.status.error_code, grpc.StatusCode.UNKNOWN)
            name = messages.RELOAD.path.rpartition("/")[2]
            raise call_failed(self.target, "*", name, code, response.status.error_message)

    def wait_until_ready(
        self, model: str, *, version: int | None = None, timeout_s: float = 60.0
    ) -> VersionStatus:
        """Waits until a model can be asked; a server that is not up yet is waited for too.

        Args:
            model: the model's name.
            version: the version to wait for, by default any.
            timeout_s: seconds to wait at most.

        Returns:
            The state of the newest version that is available.

        Raises:
            NotReady: the time is up, or the server failed to load what is waited for. The message
                says what was seen last.
        """
        ends = time.monotonic() + _positive(timeout_s)
        what = f"model {model!r}" if version is None else f"version {version} of model {model!r}"
        seen = ""
        pause_s = 0.05
        while True:
            try:
                allowed = min(self.timeout_s, max(0.05, _left(ends)))
                statuses = self.status(model, version=version, timeout_s=allowed)
            except (NotFound, Unavailable, DeadlineExceeded) as error:
                if not (seen and isinstance(error, DeadlineExceeded)):  # the last try is cut short
                    seen = str(error)
            else:
                for status in statuses:
                    if status.state == "AVAILABLE":
                        return status
                seen = "; ".join(map(_describe, statuses)) or "the server names no version"
                if statuses and all(status.state == "END" for status in statuses):
                    raise NotReady(f"{what} at {self.target} won't get ready: {seen}")
            if _left(ends) <= pause_s:
                message = f"{what} at {self.target} was not ready after {timeout_s:g} s: {seen}"
                raise NotReady(message)
            time.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.5)

    def close(self) -> None:
        """Ends calls under way (they raise Cancelled) and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _arrays(self, key: _Key, inputs: Any, ends: float) -> dict[str, Array]:
        """Inputs by name, as arrays; asks for the signature only if something is left open."""
        if not isinstance(inputs, Mapping):
            infos = self._signature(key, ends).inputs
            if len(infos) != 1:
                names = ", ".join(map(repr, infos))
                raise InvalidInput(
                    f"{key[0]!r} has {len(infos)} inputs; give them by name: {names}"
                )
            inputs = {next(iter(infos)): inputs}
        arrays = {}
        for name, values in inputs.items():
            dtype = None
            if not tensors.has_dtype(values):
                info = self._signature(key, ends).inputs.get(name)
                dtype = info.dtype if info else None  # an unknown name is the server's to refuse
            try:
                arrays[name] = tensors.as_array(values, dtype)
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"input {name!r}: {error}") from None
        return arrays

    def _signature(self, key: _Key, ends: float) -> Signature:
        if key not in self._signatures:
            model, name, version, label = key
            name = name or DEFAULT_SIGNATURE
            left_s = _left(ends)
            about = self.metadata(model, version=version, label=label, timeout_s=left_s)
            signatures = about.signatures
            if name not in signatures:
                names = ", ".join(map(repr, signatures))
                raise InvalidInput(f"{model!r} has no signature {name!r}; it has {names}")
            self._signatures[key] = signatures[name]
        return self._signatures[key]

    def _call(self, method: Method, request: Any, model: str, timeout_s: float) -> Any:
        """The one place that makes a call."""
        try:
            return self._calls[method](request, timeout=timeout_s)
        except grpc.RpcError as error:
            name = method.path.rpartition("/")[2]
            raise call_failed(self.target, model, name, error.code(), error.details()) from None
        except ValueError as error:  # gRPC's way to say that the channel is closed
            raise InvalidInput(f"the client of {self.target}: {error}") from None

    def _allowed(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else _positive(timeout_s)


def _positive(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise InvalidInput(f"timeout_s={timeout_s} has to be above 0")
    return timeout_s


def _left(ends: float) -> float:
    """Seconds until ``ends``, at least one millisecond: the server then says that it's too late."""
    return max(0.001, ends - time.monotonic())


def _describe(status: VersionStatus) -> str:
    return f"version {status.version} is {status.state}" + (
        f" ({status.error})" if status.error else ""
    )
