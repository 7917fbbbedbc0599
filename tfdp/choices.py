"""Values that flags and arguments of the same name accept."""

from __future__ import annotations

from typing import Literal

from cluster.meeting.group import Choice as Cluster

AutoShard = Literal["auto", "file", "data", "off"]
Communication = Literal["auto", "ring", "nccl"]
GradientDtype = Literal["float32", "bfloat16"]
MixedPrecision = Literal["none", "bfloat16", "float16"]
PredictionFormat = Literal["npz", "tfrecord", "jsonl"]

__all__ = [
    "AutoShard",
    "Cluster",
    "Communication",
    "GradientDtype",
    "MixedPrecision",
    "PredictionFormat",
]
