"""``python -m tfdp.train`` with real workers: finishing, dying, stopping, going on."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tests.processes.workers import Workers, run_places, tf_configs
from tests.running import Process, run, wait_until

RECIPE = Path(__file__).parent / "recipes" / "small.py"
STEPS = 40  # of 12 in an epoch, so that runs end in the middle of one
BATCH_SIZE = 17  # 8 + 9 examples on two workers


def command(workdir: Path, *flags: str) -> list[str]:
    """A worker's command line; ``flags`` come last and override the others."""
    return [
        *("python", "-m", "tfdp.train", f"--recipe={RECIPE}", f"--workdir={workdir}"),
        *(f"--steps={STEPS}", f"--global_batch_size={BATCH_SIZE}"),
        *("--checkpoint_every_steps=4", "--keep_checkpoints=100", *flags),
    ]


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())  # type: ignore[no-any-return]


def checkpoints(workdir: Path) -> dict[int, str]:
    """The sha256 of the state at each step that has a checkpoint."""
    return {
        int(path.parent.name): json.loads(path.read_text())["sha256"]
        for path in workdir.glob("checkpoints/*/manifest.json")
    }


def versions(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "model").iterdir())


def finish(workdir: Path, *flags: str) -> list[str]:
    """Runs two workers to their end; they may print nothing but messages of tfdp."""
    with Workers([command(workdir, *flags)] * 2, env=csv_of(workdir)) as workers:
        outputs = workers.wait(0, 0)
    assert_only_own_words(*outputs)
    return outputs


def csv_of(workdir: Path) -> dict[str, str]:
    return {"CSV": f"{workdir}.csv"}


def assert_only_own_words(*outputs: str) -> None:
    for output in outputs:
        assert re.fullmatch(r"(tfdp: .+\n)*", output), output


class Hold:
    """Lets workers do about eleven updates and then wait until ``end`` is called."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hold"
        self._path.touch()
        self.env: Mapping[str, str] = {"HOLD": f"{self._path}:11"}

    def end(self) -> None:
        self._path.unlink()


def ended_by(process: Process, number: int) -> bool:
    process.signal(number)
    return process.popen.poll() is not None


def wait_for_checkpoint(workdir: Path, step: int) -> None:
    path = workdir / "checkpoints" / str(step)
    wait_until(path.exists, 80, f"{path} is there")


def test_a_run_leaves_what_was_promised(undisturbed: Path) -> None:
    found = summary(undisturbed)
    assert {name: type(value) for name, value in found.items()} == {
        "steps": int,
        "examples": int,
        "workers": int,
        "replicas": int,
        "seed": int,
        "metrics": dict,
        "eval_metrics": dict,
        "history": dict,
        "best": type(None),
        "examples_per_s": float,
        "restarts": int,
        "weights_sha256": str,
        "export_path": str,
        "tensorflow": str,
        "keras": str,
        "tfdp": str,
    }
    assert (found["steps"], found["workers"], found["replicas"], found["seed"]) == (STEPS, 2, 2, 0)
    assert found["examples"] == 3 * 200 + 4 * BATCH_SIZE
    assert found["restarts"] == 0
    assert found["metrics"].keys() == found["eval_metrics"].keys() == {"loss", "mae"}
    assert found["export_path"] == str(undisturbed / "model" / "1")
    assert sorted(checkpoints(undisturbed)) == list(range(4, STEPS + 1, 4))
    assert versions(undisturbed) == ["1"]
    assert sorted(path.name for path in (undisturbed / "logs").iterdir()) == [
        "worker-0.log",
        "worker-1.log",
    ]
    assert "finished at step" in (undisturbed / "logs" / "worker-0.log").read_text()
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(undisturbed.rglob(".*[0-9]")), "something was left half done"


def test_workers_that_know_the_chief_their_number_and_a_rank_compute_the_same(
    undisturbed: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    chief, other = run_places([command(workdir)] * 2, 0, 0, env=csv_of(workdir))
    assert_only_own_words(chief, other)
    found = "tfdp: worker 0 of 2 by the environment (RANK, WORLD_SIZE, MASTER_ADDR)\n"
    assert chief.startswith(found), "one line says what was found"
    assert other == ""
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]


def test_the_published_model_answers_raw_features_with_the_saved_weights(undisturbed: Path) -> None:
    state = safetensors.numpy.load_file(
        undisturbed / "checkpoints" / str(STEPS) / "state.safetensors"
    )
    weights = [array for name, array in sorted(state.items()) if name.startswith("model/")]
    kernel, bias, last_kernel, last_bias = (each for each in weights if each.dtype == np.float32)
    raw = np.random.default_rng(4).integers(-100, 100, (5, 6), np.int32)
    expected = np.maximum(raw / 100.0 @ kernel + bias, 0) @ last_kernel + last_bias

    model = tf.saved_model.load(str(undisturbed / "model" / "1"))
    signature = model.signatures["serving_default"]
    features = signature.structured_input_signature[1]["features"]
    assert (features.dtype, features.shape.as_list()) == (tf.int32, [None, 6])
    answer = signature(features=tf.constant(raw))
    assert answer.keys() == {"outputs"}
    np.testing.assert_allclose(answer["outputs"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(480)  # five starts one after the other
def test_an_end_kills_and_a_stop_leave_no_trace_in_the_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Every checkpoint has to be that of the undisturbed run, however the run before it ended."""
    workdir = tmp_path / "run"

    # The run ends early, and is started again: once after it summed up, once as if killed before.
    finish(workdir, "--steps=6")
    early, before = summary(workdir), files_of(workdir)
    output = run(command(workdir, "--steps=6"), env=csv_of(workdir))
    assert output == f"tfdp: {workdir} is finished at step 6: nothing to do\n"
    assert files_of(workdir) == before
    (workdir / "summary.json").unlink()
    assert_only_own_words(run(command(workdir, "--steps=6"), env=csv_of(workdir)))
    again = summary(workdir)
    for name in ("steps", "weights_sha256", "export_path"):
        assert again[name] == early[name], name
    assert versions(workdir) == ["1"]

    # It is extended.
    with held(workdir, at_step=12) as (workers, hold):
        workers[0].signal(signal.SIGKILL)
        hold.end()
        _, other = workers.wait(-signal.SIGKILL, 138)
        assert re.search(r"tfdp: worker 0 \(127.*\) was lost: its process has ended", other)
        assert_only_own_words(other)
    with held(workdir, at_step=20) as (workers, hold):
        workers[1].signal(signal.SIGTERM)
        workers[1].wait_for("got SIGTERM")
        hold.end()
        chief, other = workers.wait(138, 143)
        stopped = re.search(r"stopped at step (\d+): worker 1 got a signal to stop", chief)
        assert stopped and stopped[0] in other
        assert max(checkpoints(workdir)) == int(stopped[1]) < STEPS
        assert_only_own_words(chief, other)
    assert summary(workdir)["steps"] == 6

    chief, _ = finish(workdir)
    assert f"going on from step {stopped[1]} of {STEPS}" in chief
    reached = checkpoints(workdir)
    assert {step: reached[step] for step in checkpoints(undisturbed)} == checkpoints(undisturbed)
    found, expected = summary(workdir), summary(undisturbed)
    for name in ("weights_sha256", "steps", "examples", "metrics", "eval_metrics", "history"):
        assert found[name] == expected[name], name
    assert found["restarts"] == 2
    assert found["history"]["epoch"] == [0, 1, 2, 3]
    assert Path(f"{workdir}.csv").read_text() == Path(f"{undisturbed}.csv").read_text()
    assert found["export_path"] == str(workdir / "model" / "2")
    assert versions(workdir) == ["1", "2"]


@contextlib.contextmanager
def held(workdir: Path, at_step: int) -> Iterator[tuple[Workers, Hold]]:
    """Two workers that have saved ``at_step`` and wait."""
    hold = Hold(workdir.parent)
    env = {**hold.env, **csv_of(workdir)}
    with Workers([command(workdir)] * 2, env=env) as workers:
        wait_for_checkpoint(workdir, at_step)
        yield workers, hold


def files_of(workdir: Path) -> dict[str, int]:
    """When each file of a run was changed, but for logs and the workdir's owner."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in workdir.rglob("*")
        if path.is_file() and path.parent.name != "logs" and path.name != ".owner"
    }


def summary_is_missing(workdir: Path) -> bool:
    return not (workdir / "summary.json").exists()


def test_sigint_to_all_saves_and_ends_all(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with held(workdir, at_step=4) as (workers, hold):
        workers.signal(signal.SIGINT)
        for worker in workers.all:
            worker.wait_for("got SIGINT")
        hold.end()
        outputs = workers.wait(130, 130)
    stopped = re.search(r"stopped at step (\d+)", outputs[0])
    assert stopped and max(checkpoints(workdir)) == int(stopped[1])
    assert_only_own_words(*outputs)


def test_one_process_keeps_its_workdir_from_others_and_ends_at_a_second_signal(
    tmp_path: Path,
) -> None:
    workdir, hold = tmp_path / "run", Hold(tmp_path)
    with Process(command(workdir), env=hold.env) as first:
        wait_for_checkpoint(workdir, 8)
        output = run(command(workdir), expect=2, limit_s=20)
        assert f"another run uses --workdir={workdir}" in output
        assert first.popen.poll() is None
        first.signal(signal.SIGTERM)
        first.wait_for("got SIGTERM")
        # One signal right after the first may be the terminal's and the launcher's: send more.
        wait_until(lambda: ended_by(first, signal.SIGTERM), 20, "it ends")
        first.wait(143)  # though its data is held, so that nothing could be saved
    assert summary_is_missing(workdir)


def test_a_plain_dataset_trains_hparams_arrive_and_checkpoints_are_counted(tmp_path: Path) -> None:
    hparams = ("--hparam=data=dataset", "--hparam=units=3")
    flags = ("--keep_checkpoints=2", "--export_dir=none", "--notensorboard")
    once = [part for part in command(tmp_path) if not part.startswith("--steps")]
    each = [*once, "--epochs=2", "--eval_every_steps=10", *hparams, *flags]
    with Workers([each] * 2) as workers:
        chief, other = workers.wait(0, 0)
    assert "train_data is a tf.data.Dataset" in chief
    assert other == ""
    assert_only_own_words(chief)
    assert summary(tmp_path)["steps"] == 24
    assert summary(tmp_path)["export_path"] is None
    assert sorted(checkpoints(tmp_path)) == [20, 24]
    state = safetensors.numpy.load_file(tmp_path / "checkpoints" / "24" / "state.safetensors")
    assert (16, 3) in {array.shape for array in state.values()}
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_a_loss_that_is_no_number_ends_all_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    with Workers([command(tmp_path, "--hparam=learning_rate=1e30")] * 2) as workers:
        outputs = workers.wait(1, 1)
    assert re.search(r"tfdp: the loss is (inf|nan) at step \d", outputs[0])
    assert_only_own_words(*outputs)
    assert checkpoints(tmp_path) == {}
    assert list((tmp_path / "model").iterdir()) == []
    assert summary_is_missing(tmp_path)


def test_workers_of_different_flags_all_say_so(tmp_path: Path) -> None:
    commands = [command(tmp_path, f"--seed={seed}") for seed in (1, 2)]
    with Workers(commands) as workers:
        for output in workers.wait(2, 2):
            assert "workers differ: --seed is 1 on worker 0 and 2 on worker 1" in output
            assert_only_own_words(output)
    assert checkpoints(tmp_path) == {}


def test_a_worker_that_never_comes_is_named(tmp_path: Path) -> None:
    config = tf_configs(2)[0]
    missing = json.loads(config)["cluster"]["worker"][1]
    environ = {"TF_CONFIG": config}
    output = run(command(tmp_path, "--startup_timeout_s=3"), expect=138, env=environ)
    assert f"waited 3 s for worker 1 ({missing})" in output
    assert_only_own_words(output)
