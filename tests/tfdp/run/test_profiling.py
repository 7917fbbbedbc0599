"""The sentence of ``--profile`` about a run, from the times of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfdp.run.profiling import describe_bottleneck
from tfdp.run.settings import TrainSettings
from tfdp.trainer import timing
from tfdp.trainer.timing import StepTime


def test_the_slowest_worker_says_where_time_goes() -> None:
    fast = StepTime(input_s=1.0, compute_s=3.0, peers_s=5.0, reduce_s=1.0)
    slow = StepTime(input_s=3.0, compute_s=6.0, peers_s=0.0, reduce_s=1.0)
    shares = timing.shares([[fast, slow], [fast, slow]], host_share=0.5)
    expected = {"input": 0.15, "compute": 0.3, "all-reduce": 0.05, "host": 0.5}
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bound", "flags", "is_large", "advice"),
    [
        ("input", {}, True, "--auto_shard=file"),
        ("input", {"auto_shard": "file"}, True, "less work in preprocess"),
        ("compute", {}, True, "more workers"),
        ("all-reduce", {}, True, "--gradient_dtype=bfloat16"),
        ("all-reduce", {"gradient_dtype": "bfloat16"}, True, "--global_batch_size=128"),
        ("all-reduce", {}, False, "--global_batch_size=128"),
        ("host", {}, True, "--checkpoint_every_steps=10000"),
        ("host", {"eval_every_steps": 5}, True, "--eval_every_steps=50"),
    ],
)
def test_the_flag_to_try_is_one_that_helps(
    bound: str, flags: dict[str, Any], is_large: bool, advice: str
) -> None:
    settings = TrainSettings(recipe="a.py", workdir=Path("b"), **flags)
    shares = {name: 0.1 for name in ("input", "compute", "all-reduce", "host")} | {bound: 0.7}
    message = describe_bottleneck(shares, settings, reads_dataset=True, is_bandwidth_bound=is_large)
    assert message.startswith(f"this run is limited by {bound} (") and f"{bound} 70%" in message
    assert advice in message.split(": ")[1]
