"""A real gRPC server in this process whose answers each test scripts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from serving.protos import serving_pb2

Answer = Callable[[bytes, grpc.ServicerContext], bytes]
ANY_BY_3 = [-1, 3]
METHODS = {
    "Predict": "PredictionService",
    "Classify": "PredictionService",
    "Regress": "PredictionService",
    "GetModelMetadata": "PredictionService",
    "GetModelStatus": "ModelService",
    "HandleReloadConfigRequest": "ModelService",
}


class Server:
    """Answers what ``answers`` says, and remembers the names of the methods called.

    Args:
        credentials: for TLS.
        port: by default one that is free.
        host: the address to listen at.
    """

    def __init__(
        self,
        credentials: grpc.ServerCredentials | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[str] = []
        self.metadata: dict[str, str | bytes] = {}  # of the last call
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(4), options=limits)
        for method, service in METHODS.items():
            handler = grpc.unary_unary_rpc_method_handler(self._answering(method))
            generic = grpc.method_handlers_generic_handler(
                f"tensorflow.serving.{service}", {method: handler}
            )
            self._server.add_generic_rpc_handlers((generic,))
        if credentials is None:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        else:
            self.port = self._server.add_secure_port(f"{host}:{port}", credentials)
        self.target = f"{host}:{self.port}"
        self._server.start()

    def _answering(self, method: str) -> Answer:
        def handler(data: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append(method)
            self.metadata = dict(context.invocation_metadata())
            return self.answers[method](data, context)

        return handler

    def wait(self) -> None:
        self._server.wait_for_termination()

    def stop(self) -> None:
        self._server.stop(0).wait()


def echo(data: bytes, context: grpc.ServicerContext) -> bytes:
    request = serving_pb2.PredictRequest.FromString(data)
    return serving_pb2.PredictResponse(
        outputs=request.inputs, model_spec=request.model_spec
    ).SerializeToString()


def signatures(
    *,
    version: int = 3,
    method: str = "predict",
    key: str = "serving_default",
    optional: str = "",
    shape: list[int] | None = ANY_BY_3,
    **inputs: int | tuple[int, list[int] | None],
) -> Answer:
    """Metadata of a model with one signature, whose outputs are its inputs and a string ``y``.

    Args:
        version: the model's.
        method: what the signature is for.
        key: the signature's.
        optional: the input that has a default.
        shape: of inputs that are given without one; None is any.
        inputs: the number of each one's dtype, or the number and the shape.
    """
    definitions = serving_pb2.SignatureDefMap()
    definitions.signature_def["__saved_model_init_op"].outputs["op"].name = "NoOp"
    definition = definitions.signature_def[key]
    definition.method_name = f"tensorflow/serving/{method}"
    for infos in (definition.inputs, definition.outputs):
        for name, given in inputs.items():
            dtype, sizes = given if isinstance(given, tuple) else (given, shape)
            infos[name].dtype = dtype
            infos[name].tensor_shape.unknown_rank = sizes is None
            for size in sizes or ():
                infos[name].tensor_shape.dim.add(size=size)
    definition.outputs["y"].dtype = serving_pb2.DT_STRING
    definition.outputs["y"].tensor_shape.unknown_rank = True
    if optional:
        definition.defaults[optional].dtype = serving_pb2.DT_FLOAT
    response = serving_pb2.GetModelMetadataResponse()
    response.model_spec.name = "m"
    response.model_spec.version.value = version
    response.metadata["signature_def"].value = definitions.SerializeToString()
    return lambda data, context: response.SerializeToString()


def states(*entries: tuple[int, str, str]) -> Answer:
    response = serving_pb2.GetModelStatusResponse()
    for version, state, error in entries:
        entry = response.model_version_status.add(version=version)
        entry.state = serving_pb2.ModelVersionStatus.State.Value(state)
        entry.status.error_code = 13 if error else 0
        entry.status.error_message = error
    return lambda data, context: response.SerializeToString()


def refusal(code: grpc.StatusCode, details: str) -> Answer:
    return lambda data, context: context.abort(code, details)  # type: ignore[return-value]
