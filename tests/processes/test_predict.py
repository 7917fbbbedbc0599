"""``python -m tfdp.predict`` with real workers: its rows, being killed, going on."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tests.processes import predict_cases
from tests.processes.recipes import predicting
from tests.processes.test_train import assert_only_own_words
from tests.processes.workers import Workers
from tests.running import ROOT, Process, run, wait_until
from tests.tfdp.predictions import parts, read_back
from tfdp.errors import BadInput
from tfdp.recipe import load
from tfdp.run.recipe_data import predict_data_of
from tfdp.run.settings import PredictSettings

RECIPE = Path(predicting.__file__).relative_to(ROOT)
PREDICT = ["python", "-m", "tfdp.predict", f"--recipe={RECIPE}"]
BATCH_SIZE = 8  # of 103 rows: 13 batches, the last one of 7, in 7 parts


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run, with a published version."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    run(["python", "-m", "tfdp.train", f"--recipe={RECIPE}", f"--workdir={folder}", "--steps=9"])
    return folder


@pytest.fixture(scope="module")
def undisturbed(workdir: Path) -> Path:
    """The predictions of one worker that nobody disturbed."""
    folder = workdir.parent / "undisturbed"
    output = run(command(workdir, folder))
    assert output == f"tfdp: finished: 103 rows in 7 parts in {folder}\n"
    return folder


def command(workdir: Path, output: Path, *flags: str) -> list[str]:
    return [
        *(*PREDICT, f"--workdir={workdir}", f"--output={output}", "--batches_per_part=2"),
        *(f"--global_batch_size={BATCH_SIZE}", "--format=jsonl", *flags),
    ]


@pytest.fixture(scope="module")
def by_keras(workdir: Path) -> dict[str, np.ndarray]:
    """What plain Keras predicts with the run's weights."""
    state = safetensors.numpy.load_file(workdir / "checkpoints" / "9" / "state.safetensors")
    model = predicting.build_model(predicting.HParams())
    model.set_weights([array for name, array in sorted(state.items()) if name[:6] == "model/"])
    features = predicting.features(predicting.ROWS).astype(np.float32) / np.float32(100)
    rows = model.predict(features, batch_size=BATCH_SIZE, verbose=0)
    return {
        "scores": rows["scores"],
        "best": rows["best"],
        "more_square": rows["more"]["square"],
    }


def assert_rows(folder: Path, expected: dict[str, np.ndarray]) -> None:
    found = read_back(folder)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_worker_predicts_what_keras_does(
    undisturbed: Path, workdir: Path, by_keras: dict[str, np.ndarray]
) -> None:
    assert_rows(undisturbed, by_keras)
    about = json.loads((undisturbed / "predictions.json").read_text())
    assert about["checkpoint"] == str(workdir / "checkpoints" / "9")
    summary = json.loads((workdir / "summary.json").read_text())
    assert about["weights_sha256"] == summary["weights_sha256"]
    assert (about["rows"], about["parts"], about["workers"]) == (103, 7, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of --workdir .* and --version"),
        ({"version": Path("version"), "step": 8}, "--step=8 is of a run's checkpoint"),
        ({"workdir": Path("run")}, "--output is missing"),
        ({"workdir": Path("run"), "output": Path("s3://a/b")}, "--output is s3:/.*remote"),
        ({"workdir": Path("run"), "output": Path("a"), "format": "csv"}, "--format is csv: .*npz"),
        ({"workdir": Path("run"), "output": Path("a"), "batches_per_part": 0}, "1 or more"),
        ({"workdir": Path("run"), "output": Path("a"), "auto_shard": "file"}, "leave it out"),
    ],
)
def test_flags_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        PredictSettings(recipe=str(RECIPE), **settings)


def test_a_recipe_needs_data_to_predict() -> None:
    recipe = load(str(RECIPE))
    assert len(predict_data_of(recipe)) == predicting.ROWS  # type: ignore[arg-type]
    recipe = dataclasses.replace(recipe, predict_data=None)
    with pytest.raises(BadInput, match="has neither predict_data nor eval_data to predict"):
        predict_data_of(recipe)
    recipe = dataclasses.replace(recipe, eval_data=predicting.train_data)
    assert len(predict_data_of(recipe)) == predicting.ROWS  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in parts(folder)}


def numbers(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("part-")) for path in parts(folder)]


def test_killed_stopped_and_gone_on_with_as_if_nothing_had_happened(
    undisturbed: Path, workdir: Path, tmp_path: Path
) -> None:
    """Two workers are killed, one goes on and is stopped, and two finish."""
    folder, hold, reads = tmp_path / "predictions", tmp_path / "hold", tmp_path / "reads"
    hold.touch()

    def is_in(part: int) -> bool:
        return any(folder.glob(f".part-{part:08}.*"))

    env = {"HOLD": f"{hold}:56"}  # in the middle of part 3: of worker 1, which has done part 1
    with Workers([command(workdir, folder)] * 2, env=env) as workers:
        wait_until(lambda: is_in(3) and numbers(folder) == [0, 1, 2], 100, "three parts are there")
        workers[1].signal(signal.SIGKILL)
        workers.wait(138, -signal.SIGKILL)
    expected = contents(undisturbed)
    assert contents(folder).items() < expected.items(), "parts are whole"
    kept = {path: path.stat().st_mtime_ns for path in parts(folder)}
    with Process(command(workdir, folder), env={"HOLD": f"{hold}:88"}) as alone:
        wait_until(lambda: is_in(5) and numbers(folder) == [0, 1, 2, 3, 4], 100, "two more are")
        alone.signal(signal.SIGTERM)
        alone.wait(143)
    assert contents(folder).items() < expected.items()
    with Workers([command(workdir, folder)] * 2, env={"READS": str(reads)}) as workers:
        chief, other = workers.wait(0, 0)
    assert other == ""
    assert chief == f"tfdp: finished: 103 rows in 7 parts in {folder}\n"
    assert contents(folder) == expected, "the same bytes on one worker and on two"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted(map(int, reads.read_text().split())) == [80, 88, 96], "nothing is computed twice"
    assert not list(folder.glob(".part-*"))


def test_a_version_and_a_dataset_of_unknown_length_on_two_workers(
    workdir: Path, tmp_path: Path, by_keras: dict[str, np.ndarray]
) -> None:
    flags = ["--format=tfrecord", f"--version={workdir / 'model' / '1'}", "--hparam=data=dataset"]
    of_version = [flag for flag in command(workdir, tmp_path) if "--workdir" not in flag]
    with Workers([[*of_version, *flags]] * 2) as workers:
        chief, other = workers.wait(0, 0)
    assert_only_own_words(chief, other)
    assert "each worker reads all of it" in chief
    assert other == ""
    assert numbers(tmp_path) == list(range(7))
    assert_rows(tmp_path, by_keras)


def test_the_library_on_two_workers(tmp_path: Path) -> None:
    script = ["python", str(Path(__file__).with_name("predict_cases.py"))]
    both, one = tmp_path / "both", tmp_path / "one"
    both.mkdir()
    one.mkdir()
    predict_cases.predict(tf.distribute.get_strategy(), one)
    with Workers([[*script, str(both)]] * 2) as workers:
        workers.wait(0, 0)
    folders = ["npz", "tfrecord", "jsonl", "generator"]
    assert [contents(both / each) for each in folders] == [contents(one / each) for each in folders]
    rows = [read_back(both / each)["output_1"] for each in folders]
    for each in rows[1:]:
        np.testing.assert_array_equal(each, rows[0])
    assert rows[0].shape == (53, 8)
    assert 0.3 < np.mean(rows[0] == 0) < 0.7, "half of the units are dropped"
    of_workers = [json.loads((both / f"refused-{i}.json").read_text()) for i in (0, 1)]
    assert of_workers[0] == of_workers[1]
    refused = of_workers[0]
    assert "worker 1: it does not see what worker 0 writes in" in refused["not_shared"]
    assert "the first batches of the dataset differ" in refused["other_datasets"]
    assert "replicas exchange something in predict_step" in refused["an_exchange"]
