"""Plain datasets of files on two real workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import exit_codes
from tests.processes.workers import Workers
from tests.running import ROOT
from tests.tfdp.records import write

UNEVEN = (6, 6, 13)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, counts in (("one", (6,)), ("even", (6, 6)), ("uneven", UNEVEN)):
        write(folder / name, counts)
    return folder


@pytest.fixture(scope="module")
def outcomes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case gave, training before evaluation; the same on both workers."""
    results = tmp_path_factory.mktemp("results")
    script = str(ROOT / "tests" / "processes" / "shard_cases.py")
    with Workers([["python", script, str(data), str(results)]] * 2, limit_s=120) as workers:
        outputs = workers.wait(0, 0)
    first, second = (json.loads((results / f"{i}.json").read_text()) for i in range(2))
    assert first == second
    assert "reads and preprocesses all" in outputs[0]
    assert "reads and preprocesses all" not in outputs[1]
    return first


def mean(counts: tuple[int, ...]) -> float:
    return (sum(counts) - 1) / 2  # of the numbers from 0 on


def test_too_few_files_are_refused_or_shared(outcomes: dict[str, Any]) -> None:
    for said in outcomes["one FILE"]:
        assert "1 file(s) for 2 workers" in said
        assert "part-000.tfrecord" in said
        assert "tfdp.from_tfrecords" in said
    assert outcomes["one AUTO"] == [mean((6,))] * 2


def test_unequal_files_are_refused_in_training_or_shared(outcomes: dict[str, Any]) -> None:
    said, evaluated = outcomes["uneven FILE"]
    assert "[19, 6] records" in said
    assert "part-002.tfrecord (13)" in said
    assert evaluated == mean(UNEVEN)
    assert outcomes["uneven AUTO"] == [mean(UNEVEN)] * 2


def test_equal_files_are_divided(outcomes: dict[str, Any]) -> None:
    assert outcomes["even FILE"] == [mean((6, 6))] * 2


def test_sources_of_different_lengths_are_refused(outcomes: dict[str, Any]) -> None:
    assert "the workers' sources have [9, 8] examples" in outcomes["another length"]


RECIPE = """
import keras, tensorflow as tf

def build_model(hparams):
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model

def parse(record):
    number = tf.reshape(tf.strings.to_number(tf.strings.split(record, " ")[0]), [1])
    return number, number

def train_data(hparams):
    return tf.data.TFRecordDataset({paths}).map(parse)
"""


def test_the_flag_ends_a_run_that_would_be_unbalanced(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    paths = sorted(map(str, (data / "uneven").glob("part-*")))
    recipe.write_text(RECIPE.format(paths=paths))
    command = ["python", "-m", "tfdp.train", f"--recipe={recipe}", "--auto_shard=file"]
    commands = [[*command, f"--workdir={tmp_path / str(i)}"] for i in range(2)]
    with Workers(commands, limit_s=90) as workers:
        for output in workers.wait(exit_codes.BAD_INPUT, exit_codes.BAD_INPUT):
            assert "[19, 6] records" in output
            assert f"{paths[2]} (13)" in output
            assert "use --auto_shard=data" in output
            assert "Traceback" not in output
