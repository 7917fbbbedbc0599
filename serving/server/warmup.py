"""Runs the requests that a version brings with it, so that the first caller does not wait."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.server import inference, prediction
from serving.server.models import Refused, invalid

if TYPE_CHECKING:
    from serving.server.savedmodel import SavedModel

_MAX_RECORDS = 1000

# Who answers a record, by the field that it is in.
_RUNS: dict[str, Any] = {
    "predict_log": prediction.run,
    "classify_log": inference.run_classify,
    "regress_log": inference.run_regress,
    "multi_inference_log": inference.run_multi_inference,
}


def run(model: SavedModel, path: Path) -> None:
    """Answers the requests of ``assets.extra/tf_serving_warmup_requests`` in ``path``, if any.

    Raises:
        Refused: a record is malformed, there are more than 1,000, or a request is wrong.
        tf.errors.OpError: a request failed, or the file is no TFRecord file.
    """
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    if not file.exists():
        return
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(str(file)), 1):
            _answer(model, record.numpy(), file)
            if count > _MAX_RECORDS:
                raise invalid(
                    f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {file}"
                )
    except tf.errors.DataLossError as error:
        text = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise tf.errors.DataLossError(None, None, text) from None


def _answer(model: SavedModel, record: bytes, file: Path) -> None:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid(f"Failed to parse warmup record: {record!r} from {file}") from None
    kind = log.WhichOneof("log_type")
    if kind in _RUNS:
        _RUNS[kind](model, getattr(log, kind).request, lambda: None)
    elif kind == "session_run_log":
        number = log.DESCRIPTOR.fields_by_name[kind].number
        text = f"Unsupported log_type for warmup: {number}"
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, text)
