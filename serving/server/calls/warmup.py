"""Runs the warm-up requests of a version, so that its first caller does not wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.server.calls import classify_regress, predict
from serving.server.errors import StatusError, invalid_argument
from serving.server.models.saved_model import SavedModel

_MAX_RECORDS = 1000

# Functions that answer a record's request, by the field of PredictionLog that contains it.
_ANSWER: dict[str, Any] = {
    "predict_log": predict.run,
    "classify_log": classify_regress.run_classify,
    "regress_log": classify_regress.run_regress,
    "multi_inference_log": classify_regress.run_multi_inference,
}


def run(model: SavedModel, path: Path) -> None:
    """Answers the requests in ``assets.extra/tf_serving_warmup_requests``, if the file exists.

    Args:
        model: the loaded model.
        path: its folder.

    Raises:
        StatusError: a record is malformed, a request is wrong, or the file has more than 1,000.
        tf.errors.OpError: a request failed, or the file is no TFRecord file.
    """
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    if not file.exists():
        return
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(str(file)), 1):
            _answer(model, record.numpy(), file)
            if count > _MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {file}"
                )
    except tf.errors.DataLossError as error:
        text = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise tf.errors.DataLossError(None, None, text) from None


def _answer(model: SavedModel, record: bytes, file: Path) -> None:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid_argument(f"Failed to parse warmup record: {record!r} from {file}") from None
    kind = log.WhichOneof("log_type")
    if kind in _ANSWER:
        _ANSWER[kind](model, getattr(log, kind).request, lambda: None)
    elif kind == "session_run_log":
        number = log.DESCRIPTOR.fields_by_name[kind].number
        text = f"Unsupported log_type for warmup: {number}"
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, text)
