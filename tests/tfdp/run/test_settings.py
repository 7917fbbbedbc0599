from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tfdp.errors import BadInput
from tfdp.run.settings import TrainSettings

MINIMAL = {"recipe": "recipe.py", "workdir": Path("runs/one")}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**MINIMAL | changes)


def test_recipe_and_workdir_suffice() -> None:
    assert settings().global_batch_size == 64
    assert settings().publish_dir == Path("runs/one/model")


@pytest.mark.parametrize(
    "good",
    [
        {"steps": 1},
        {"epochs": 1},
        {"global_batch_size": 1},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"checkpoint_every_steps": 1, "keep_checkpoints": 1, "eval_every_steps": 0},
        {"communication": "ring"},
        {"communication": "nccl"},
        {"auto_shard": "file"},
        {"auto_shard": "off"},
        {"startup_timeout_s": 0.5},
        {"workdir": Path("/somewhere/else")},
        {"gradient_dtype": "bfloat16", "bytes_per_pack": 1},
    ],
)
def test_values_in_range_are_taken(good: dict[str, Any]) -> None:
    made = settings(**good)
    assert all(getattr(made, name) == value for name, value in good.items())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"recipe": ""}, "--recipe is missing"),
        ({"workdir": Path()}, "--workdir is missing"),
        ({"workdir": Path("gs://bucket/run")}, "--workdir is gs:/.*remote"),
        ({"export_dir": Path("s3://bucket/model")}, "--export_dir is s3:/.*remote"),
        ({"steps": 1, "epochs": 1}, "--steps=1 and --epochs=1: give one"),
        ({"steps": 0}, "--steps is 0: it has to be 1 or more"),
        ({"epochs": -1}, "--epochs is -1: it has to be 1 or more"),
        ({"global_batch_size": 0}, "--global_batch_size is 0"),
        ({"checkpoint_every_steps": 0}, "--checkpoint_every_steps is 0"),
        ({"keep_checkpoints": 0}, "--keep_checkpoints is 0"),
        ({"eval_every_steps": -1}, "--eval_every_steps is -1: it has to be 0 or more"),
        ({"keep_best": "loss"}, "--keep_best is loss: it has to be NAME:min or NAME:max"),
        ({"keep_best": ":min", "eval_every_steps": 1}, "--keep_best is :min"),
        ({"keep_best": "loss:min"}, "--keep_best is loss:min.*--eval_every_steps"),
        ({"seed": 2**63}, "--seed is 9223372036854775808.*64 bits"),
        ({"seed": -(2**63) - 1}, "--seed is -9223372036854775809.*64 bits"),
        ({"startup_timeout_s": 0.0}, "--startup_timeout_s is 0.0: it has to be positive"),
        ({"startup_timeout_s": float("nan")}, "--startup_timeout_s is nan"),
        ({"hang_timeout_s": 0.0}, "--hang_timeout_s is 0.0: it has to be positive"),
        ({"hang_timeout_s": float("nan")}, "--hang_timeout_s is nan"),
        ({"communication": "mpi"}, "--communication is mpi: .*auto, ring, nccl"),
        ({"gradient_dtype": "float16"}, "--gradient_dtype is float16: .*float32, bfloat16"),
        ({"bytes_per_pack": 0}, "--bytes_per_pack is 0: it has to be 1 or more"),
        ({"auto_shard": "Data"}, "--auto_shard is Data: .*auto, file, data, off"),
    ],
)
def test_values_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        settings(**bad)


@pytest.mark.parametrize(
    ("export_dir", "publishes"),
    [(None, Path("runs/one/model")), (Path("models/a"), Path("models/a")), (Path("none"), None)],
)
def test_where_versions_are_published(export_dir: Path | None, publishes: Path | None) -> None:
    assert settings(export_dir=export_dir).publish_dir == publishes


def test_what_workers_compare_is_json_without_what_is_local() -> None:
    one, other = settings(hparam=("a=1",)), settings(workdir=Path("b"), startup_timeout_s=1.0)
    assert json.loads(json.dumps(one.shared()))["--global_batch_size"] == 64
    assert one.shared() != other.shared()
    differing = {name for name in one.shared() if one.shared()[name] != other.shared()[name]}
    assert differing == {"--hparam"}
    assert not {"--workdir", "--startup_timeout_s"} & one.shared().keys()


def test_workers_compare_whether_to_publish_but_not_where() -> None:
    nowhere, here, there = (settings(export_dir=Path(name)) for name in ("none", "a", "b"))
    assert here.shared() == there.shared()
    assert here.shared() != nowhere.shared()
