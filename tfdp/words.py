"""Words that flags and arguments share."""

from __future__ import annotations

from typing import Literal

AutoShard = Literal["auto", "file", "data", "off"]
Communication = Literal["auto", "ring", "nccl"]
MixedPrecision = Literal["none", "bfloat16", "float16"]
