"""The methods of TF Serving's gRPC services that the client calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from serving.client import encoding
from serving.protos import serving_pb2


@dataclass(frozen=True, eq=False)
class Method:
    """A method of TF Serving's gRPC services.

    Attributes:
        path: its full name, ``/service/method``.
        request_type: its request message.
        read: decodes an answer, into a message or a PredictResult; may raise InvalidAnswer.
        is_repeatable: whether a call may be repeated without knowing whether it took effect.
    """

    path: str
    request_type: type[Any]
    read: Callable[[bytes], Any]
    is_repeatable: bool = True

    @property
    def name(self) -> str:
        """The name without the service."""
        return self.path.rpartition("/")[2]


_PREDICTION: Final = "/tensorflow.serving.PredictionService/"
_MODELS: Final = "/tensorflow.serving.ModelService/"
PREDICT: Final = Method(
    _PREDICTION + "Predict", serving_pb2.PredictRequest, encoding.decode_predict_response
)
CLASSIFY: Final = Method(
    _PREDICTION + "Classify",
    serving_pb2.ClassificationRequest,
    partial(encoding.parse, serving_pb2.ClassificationResponse),
)
REGRESS: Final = Method(
    _PREDICTION + "Regress",
    serving_pb2.RegressionRequest,
    partial(encoding.parse, serving_pb2.RegressionResponse),
)
METADATA: Final = Method(
    _PREDICTION + "GetModelMetadata",
    serving_pb2.GetModelMetadataRequest,
    partial(encoding.parse, serving_pb2.GetModelMetadataResponse),
)
STATUS: Final = Method(
    _MODELS + "GetModelStatus",
    serving_pb2.GetModelStatusRequest,
    partial(encoding.parse, serving_pb2.GetModelStatusResponse),
)
RELOAD: Final = Method(
    _MODELS + "HandleReloadConfigRequest",
    serving_pb2.ReloadConfigRequest,
    partial(encoding.parse, serving_pb2.ReloadConfigResponse),
    is_repeatable=False,
)
ALL: Final = (PREDICT, CLASSIFY, REGRESS, METADATA, STATUS, RELOAD)
