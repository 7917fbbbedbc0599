"""What the serving benchmarks share: a tiny model, and a caller of one or several servers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # it would speak up at every child

import grpc
import numpy as np

from serving import tensors
from serving.protos import serving_pb2
from tests.running import run

MODEL = "m"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
WIDTH = 32
_TIMEOUT_S = 10.0
# As serving.client has it: each call to the next replica, and again where nobody worked on it.
_CHANNEL = (
    (
        "grpc.service_config",
        """{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}],
        "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s",
        "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}""",
    ),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_SAVE = f"""
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        self.hidden = tf.Variable(tf.random.normal([{WIDTH}, 64]))
        self.out = tf.Variable(tf.random.normal([64, 10]))

    @tf.function(input_signature=[tf.TensorSpec([None, {WIDTH}], name="x")])
    def answer(self, x):
        return {{"y": tf.nn.relu(x @ self.hidden) @ self.out}}

model = Model()
tf.saved_model.save(model, sys.argv[1], signatures={{"serving_default": model.answer}})
"""


def write_model(folder: Path) -> None:
    """Writes a SavedModel, in a process of its own: the caller's has no TensorFlow."""
    run(["python", "-c", _SAVE, str(folder)])


def server(base_path: Path, port: int = 0) -> list[str]:
    """The command that serves a folder of versions."""
    flags = [f"--model_name={MODEL}", f"--model_base_path={base_path}", f"--port={port}"]
    return ["python", "-m", "serving.server", *flags]


@contextlib.asynccontextmanager
async def caller(ports: list[int]) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Gives a function that asks one of the servers, and returns the version that answered."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    spec = serving_pb2.ModelSpec(name=MODEL)
    request = serving_pb2.PredictRequest(model_spec=spec)
    tensors.write(np.ones((1, WIDTH), np.float32), request.inputs["x"])
    data = request.SerializeToString()
    async with grpc.aio.insecure_channel(target, options=_CHANNEL) as channel:
        method = channel.unary_unary(PREDICT)

        async def call() -> int:
            try:
                answer = await method(data, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                raise RuntimeError(f"{error.code().name}: {error.details()}") from None
            response = serving_pb2.PredictResponse.FromString(answer)
            return response.model_spec.version.value

        yield call
