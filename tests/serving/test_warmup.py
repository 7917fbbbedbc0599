"""Requests that a version brings are run before it is available."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.server.calls import warmup
from serving.server.calls.grpc_status import status_of
from serving.server.models import loading
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import Servable
from tests.serving.test_servables import used


class Counting(tf.Module):
    """Says how often it was run; examples have a float ``x``."""

    def __init__(self) -> None:
        self.runs = tf.Variable(0)
        spec = tf.TensorSpec([None], tf.string, name="inputs")
        one = tf.function(self._score, input_signature=[spec])
        numbers = tf.TensorSpec([None], name="x")
        self.functions = {
            "serving_default": tf.function(self._count, input_signature=[numbers]),
            "classify": one,
            "regress": tf.function(self._regress, input_signature=[spec]),
        }

    def _count(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"runs": tf.fill(tf.shape(x), self.runs.assign_add(1))}

    def _score(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        self.runs.assign_add(1)
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})
        return {"scores": parsed["x"]}

    def _regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self._score(inputs)["scores"][:, :1]}


def log(kind: str, **fields: Any) -> bytes:
    message = prediction_log_pb2.PredictionLog()
    request = getattr(message, kind).request
    if kind == "predict_log":
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(fields.get("x", [1.0, 2.0])))
        return message.SerializeToString()
    request.input.example_list.examples.add().features.feature["x"].float_list.value[:] = [1, 2]
    if kind == "multi_inference_log":
        for method in ("classify", "regress"):
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.name, task.model_spec.signature_name = "any", method
    else:
        request.model_spec.signature_name = kind.partition("_")[0]
    return message.SerializeToString()


KINDS = ("predict_log", "classify_log", "regress_log", "multi_inference_log")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("counting")
    module = Counting()
    tf.saved_model.save(module, str(base / "1"), signatures=module.functions)
    return base


def with_records(folder: Path, records: Sequence[bytes]) -> Servable[SavedModel]:
    file = folder / "1" / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)
    return polled(folder)


def polled(folder: Path, **options: Any) -> Servable[SavedModel]:
    servable = Servable("counting", folder, loading.loader(warmup.run, **options))
    servable.poll()
    return servable


def runs(servable: Servable[SavedModel]) -> int:
    """How often the model was run, this time included."""
    with used(servable) as version:
        model = version.model
        assert model is not None
        signature = model.signatures["serving_default"]
        feeds = {signature.inputs["x"]: tf.constant([1.0]).numpy()}
        (counts,) = model.run(feeds, [signature.outputs["runs"]])
    return int(counts[0])


def test_each_kind_of_request_is_run_before_the_first_caller(folder: Path):
    assert runs(with_records(folder, [log(kind) for kind in KINDS])) > 4
    assert runs(polled(folder, batching=BatchingParameters(4))) > 4
    records = [log(kind) for kind in KINDS]
    assert runs(with_records(folder, [*records, records[0]])) == 1 + runs(
        with_records(folder, records)
    )
    (folder / "1" / "assets.extra" / "tf_serving_warmup_requests").unlink()
    assert runs(polled(folder)) == 1


@pytest.mark.parametrize(
    ("records", "code", "text"),
    [
        (
            [log("predict_log")] * 1001,
            grpc.StatusCode.INVALID_ARGUMENT,
            "exceeds the maximum (1000)",
        ),
        ([b"\xff"], grpc.StatusCode.INVALID_ARGUMENT, "Failed to parse warmup record: "),
        (
            [log("predict_log", x=[1])],
            grpc.StatusCode.INVALID_ARGUMENT,
            "Expects arg[0] to be float but int32 is provided",
        ),
        (
            [prediction_log_pb2.PredictionLog(classify_log={}).SerializeToString()],
            grpc.StatusCode.INVALID_ARGUMENT,
            "No classification inputs found in SignatureDef",
        ),
        (
            [prediction_log_pb2.PredictionLog(session_run_log={}).SerializeToString()],
            grpc.StatusCode.UNIMPLEMENTED,
            "Unsupported log_type for warmup: 5",
        ),
    ],
)
def test_a_bad_record_fails_the_load(
    folder: Path, records: Sequence[bytes], code: grpc.StatusCode, text: str
):
    (state,) = with_records(folder, records).states()
    assert state.state == "END" and state.error is not None
    assert status_of(state.error)[0] is code
    assert text in status_of(state.error)[1]


def test_a_file_that_is_no_tfrecord_file_fails_the_load(folder: Path):
    (folder / "1" / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records" * 9)
    (state,) = polled(folder).states()
    assert state.error is not None
    code, text = status_of(state.error)
    assert code is grpc.StatusCode.DATA_LOSS
    assert text.endswith("Please verify your warmup data is in TFRecord format.")


def test_a_thousand_records_are_allowed(folder: Path):
    assert runs(with_records(folder, [log("predict_log")] * 1000)) == 1001
