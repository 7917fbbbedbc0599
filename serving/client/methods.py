"""The methods of TF Serving's gRPC services that the client calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from serving.client import wire
from serving.protos import serving_pb2


@dataclass(frozen=True, eq=False)
class Method:
    """A method of TF Serving's gRPC services.

    Attributes:
        path: its name on the wire.
        request_type: the message that it takes.
        read: what makes a message, or something nearer to what callers want, of an answer; it may
            raise InvalidAnswer.
        repeatable: whether a call may be made again when it can't be known how far it got.
    """

    path: str
    request_type: type[Any]
    read: Callable[[bytes], Any]
    repeatable: bool = True

    @property
    def name(self) -> str:
        """Its name, without the service's."""
        return self.path.rpartition("/")[2]


_PREDICTION: Final = "/tensorflow.serving.PredictionService/"
_MODELS: Final = "/tensorflow.serving.ModelService/"
PREDICT: Final = Method(_PREDICTION + "Predict", serving_pb2.PredictRequest, wire.predicted)
CLASSIFY: Final = Method(
    _PREDICTION + "Classify",
    serving_pb2.ClassificationRequest,
    partial(wire.parsed, serving_pb2.ClassificationResponse),
)
REGRESS: Final = Method(
    _PREDICTION + "Regress",
    serving_pb2.RegressionRequest,
    partial(wire.parsed, serving_pb2.RegressionResponse),
)
METADATA: Final = Method(
    _PREDICTION + "GetModelMetadata",
    serving_pb2.GetModelMetadataRequest,
    partial(wire.parsed, serving_pb2.GetModelMetadataResponse),
)
STATUS: Final = Method(
    _MODELS + "GetModelStatus",
    serving_pb2.GetModelStatusRequest,
    partial(wire.parsed, serving_pb2.GetModelStatusResponse),
)
RELOAD: Final = Method(
    _MODELS + "HandleReloadConfigRequest",
    serving_pb2.ReloadConfigRequest,
    partial(wire.parsed, serving_pb2.ReloadConfigResponse),
    repeatable=False,
)
ALL: Final = (PREDICT, CLASSIFY, REGRESS, METADATA, STATUS, RELOAD)
