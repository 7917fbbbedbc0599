"""Latency that the client adds to a bare gRPC stub's, at 600 KB.

    python benchmarks/client_overhead.py [rounds]

The server answers at once with prepared bytes, so the rest of the latency is gRPC's. Each round
makes a call in each way. The latency of two equal connections may differ by a tenth as long as they
exist, so the rounds are divided among twenty sets of connections, and medians are over these sets.
Freed memory is kept: glibc's limit for returning it to the kernel is near 600 KB, and returning it
would add half a millisecond to some calls of each way, more than the difference to measure.

The client is compared with two stubs. One takes the request as a message and returns the answer as
one; the other only sends and receives prepared bytes. Only the client makes numpy arrays.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import tensors
from serving.client import Client
from serving.protos import serving_pb2

CONNECTIONS = 20
FLOATS = {"600 KB": 150_000, "2.5 KB": 640}
SERVICE = "tensorflow.serving.PredictionService"
PATH = f"/{SERVICE}/Predict"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# A connection that two ways share would be used twice as often, and be faster because of this.
OWN_CONNECTION = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]


def keep_memory() -> None:
    """Sets what MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ set; glibc only."""
    for parameter, size in ((-1, 64 << 20), (-3, 32 << 20)):
        ctypes.CDLL(None).mallopt(parameter, size)


def array(size: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, FLOATS[size] // 64), dtype=np.float32)


def answer(size: str) -> bytes:
    """Returns an answer in TF Serving's form, with numbers in ``float_val``."""
    response = serving_pb2.PredictResponse()
    tensors.write(array(size), response.outputs["outputs"], as_content=False)
    return response.SerializeToString()


def metadata() -> bytes:
    """Returns metadata of a model with an input ``features`` and an output ``outputs``."""
    definitions = serving_pb2.SignatureDefMap()
    definition = definitions.signature_def["serving_default"]
    for infos, name in ((definition.inputs, "features"), (definition.outputs, "outputs")):
        infos[name].dtype = serving_pb2.DT_FLOAT
        infos[name].tensor_shape.dim.add(size=-1)
        infos[name].tensor_shape.dim.add(size=-1)
    response = serving_pb2.GetModelMetadataResponse(model_spec=serving_pb2.ModelSpec(name="m"))
    response.metadata["signature_def"].value = definitions.SerializeToString()
    return response.SerializeToString()


def serve() -> None:
    """Answers with the number of floats that the header ``size`` specifies."""
    answers = {size: answer(size) for size in FLOATS}

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        return answers[dict(context.invocation_metadata())["size"]]

    server = grpc.server(ThreadPoolExecutor(2), options=UNLIMITED)
    methods = {"Predict": predict, "GetModelMetadata": lambda data, context: metadata()}
    handlers = {name: grpc.unary_unary_rpc_method_handler(f) for name, f in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median milliseconds of each way; they take turns, so noise affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 20):
        names = list(ways)[:: 1 if round_ % 2 else -1]
        for name in names:
            start = time.perf_counter()
            ways[name]()
            if round_ >= 20:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(samples) for name, samples in seconds.items()}


def compare(target: str, sent: str, received: str, rounds: int) -> dict[str, float]:
    """Returns milliseconds of the stubs and the client, each over a connection of its own."""
    inputs, metadata = {"features": array(sent)}, {"size": received}
    request = serving_pb2.PredictRequest(model_spec=serving_pb2.ModelSpec(name="m"))
    tensors.write(inputs["features"], request.inputs["features"])
    prepared, headers = request.SerializeToString(), tuple(metadata.items())
    with (
        grpc.insecure_channel(target, OWN_CONNECTION) as for_stub,
        grpc.insecure_channel(target, OWN_CONNECTION) as for_bytes,
        Client(target, metadata=metadata) as client,
    ):
        bare = for_bytes.unary_unary(PATH)
        stub = for_stub.unary_unary(
            PATH,
            serving_pb2.PredictRequest.SerializeToString,
            serving_pb2.PredictResponse.FromString,
        )
        return measure(
            {
                "stub": lambda: stub(request, timeout=10, metadata=headers),
                "bytes": lambda: bare(prepared, timeout=10, metadata=headers),
                "client": lambda: client.predict("m", inputs),
            },
            rounds,
        )


def main(rounds: int) -> None:
    """Prints medians, and the percentages that the client adds to each stub."""
    keep_memory()
    command = [sys.executable, __file__, "serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout
        target = f"127.0.0.1:{int(server.stdout.readline())}"
        for sent, received in (("600 KB", "2.5 KB"), ("2.5 KB", "600 KB"), ("600 KB", "600 KB")):
            found = [
                compare(target, sent, received, rounds // CONNECTIONS) for _ in range(CONNECTIONS)
            ]
            ms = {name: statistics.median(each[name] for each in found) for name in found[0]}
            more = {
                name: sorted(100 * (each["client"] / each[name] - 1) for each in found)
                for name in ("stub", "bytes")
            }
            print(
                f"{sent} there, {received} back: stub {ms['stub']:.3f} ms, prepared bytes "
                f"{ms['bytes']:.3f} ms, client {ms['client']:.3f} ms: "
                + " and ".join(
                    f"{statistics.median(each):+.1f} % ({each[0]:+.1f} to {each[-1]:+.1f})"
                    for each in more.values()
                )
            )
        server.stdin.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
