"""Requests that a version brings are run before it is available."""

from __future__ import annotations

import shutil
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
from tests.serving.test_classify_regress import RECORDED


def log(kind: str, x: object = ((1.0,),)) -> bytes:
    message = prediction_log_pb2.PredictionLog()
    request = getattr(message, kind).request
    if kind == "predict_log":
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
        return message.SerializeToString()
    request.input.example_list.examples.add().features.feature["x"].float_list.value[:] = [1]
    if kind == "multi_inference_log":
        for method in ("classify", "regress"):
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.name, task.model_spec.signature_name = "any", method
    else:
        request.model_spec.signature_name = kind.partition("_")[0]
    return message.SerializeToString()


KINDS = ("predict_log", "classify_log", "regress_log", "multi_inference_log")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model without warm-up requests."""
    shutil.copytree(RECORDED / "models" / "half_plus", tmp_path / "m")
    (tmp_path / "m" / "5" / "assets.extra").mkdir()
    return tmp_path / "m"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The names of the inputs of each run of a model."""
    runs: list[object] = []
    run = SavedModel.run

    def note(model: SavedModel, feeds: dict[str, Any], *arguments: Any) -> Any:
        results = run(model, feeds, *arguments)
        runs.append(sorted(feeds))
        return results

    monkeypatch.setattr(SavedModel, "run", note)
    return runs


FILE = "5/assets.extra/tf_serving_warmup_requests"


def with_records(folder: Path, records: Sequence[bytes], **options: Any) -> Servable[SavedModel]:
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for record in records:
            writer.write(record)
    return polled(folder, **options)


def polled(folder: Path, **options: Any) -> Servable[SavedModel]:
    servable = Servable("m", folder, loading.loader(warmup.run, **options))
    servable.poll()
    return servable


@pytest.mark.parametrize("batching", [None, BatchingParameters(4)], ids=["alone", "batching"])
def test_each_kind_of_request_is_run_before_the_first_caller(
    folder: Path, runs: list[object], batching: BatchingParameters | None
):
    assert polled(folder, batching=batching).wait(0)
    assert runs == []
    assert with_records(folder, [log(kind) for kind in KINDS], batching=batching).wait(0)
    classify, regress = "classify_inputs:0", "regress_inputs:0"
    assert runs == [["serving_default_x:0"], [classify], [regress], [classify, regress]]


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
    (folder / FILE).write_bytes(b"no records" * 9)
    (state,) = polled(folder).states()
    assert state.error is not None
    code, text = status_of(state.error)
    assert code is grpc.StatusCode.DATA_LOSS
    assert text.endswith("Please verify your warmup data is in TFRecord format.")


def test_a_thousand_records_are_allowed(folder: Path, runs: list[object]):
    assert with_records(folder, [log("predict_log")] * 1000).wait(0)
    assert len(runs) == 1000
