"""The best evaluation of a run so far, whose checkpoint stays: ``--keep_best=NAME:min|max``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def metric_of(keep_best: str) -> str:
    """The name of the metric; empty if none was asked for."""
    return keep_best.rpartition(":")[0]


def is_best(keep_best: str, scores: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """Whether an evaluation is better than the best one before.

    Args:
        keep_best: the flag.
        scores: of the evaluation, by name.
        before: ``{"by": the flag, "step": …, "value": …}``; another flag's does not count.
    """
    name, _, which = keep_best.rpartition(":")
    if not name or math.isnan(scores[name]):
        return False
    if before is None or before["by"] != keep_best:
        return True
    value, least = scores[name], before["value"]
    return bool(value > least if which == "max" else value < least)
