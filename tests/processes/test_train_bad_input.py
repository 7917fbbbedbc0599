"""``python -m tfdp.train`` refuses what is wrong before it trains, says why, and exits with 2."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.running import run

SMALL = Path(__file__).parent / "recipes" / "small.py"
GOOD = f"--recipe={SMALL}"


def tf_config(workers: list[str], job: str = "worker", index: int = 0, **jobs: list[str]) -> str:
    cluster = {"worker": workers, **jobs}
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


@dataclasses.dataclass(frozen=True)
class Bad:
    """A wrong start.

    Args:
        flags: beside --workdir, which "{workdir}" stands for.
        words: what the message has to have.
        env: variables.
        recipe: source of the recipe, if it is about that.
    """

    flags: tuple[str, ...]
    words: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recipe: str | None = None


TWO = ["127.0.0.1:2001", "127.0.0.1:2002"]
# Said without importing TensorFlow, and without leaving anything behind.
AT_ONCE = {
    "TF_CONFIG is no JSON": Bad(
        (GOOD,), ("TF_CONFIG", "{cluster", "not JSON"), {"TF_CONFIG": "{cluster"}
    ),
    "an index outside of the cluster": Bad(
        (GOOD,), ("TF_CONFIG", "worker 2", "lists 2"), {"TF_CONFIG": tf_config(TWO, index=2)}
    ),
    "one address for two": Bad(
        (GOOD,),
        ("TF_CONFIG", "127.0.0.1:2001", "worker 0", "worker 1", "address of its own"),
        {"TF_CONFIG": tf_config([TWO[0], TWO[0]])},
    ),
    "a parameter server": Bad(
        (GOOD,), ("TF_CONFIG", "'ps'"), {"TF_CONFIG": tf_config(TWO, ps=["127.0.0.1:2003"])}
    ),
    "another backend": Bad(
        (GOOD,), ("KERAS_BACKEND is jax", "tensorflow"), {"KERAS_BACKEND": "jax"}
    ),
    "an unknown flag": Bad((GOOD, "--stepz=3"), ("stepz", "--help")),
    "no flag at all": Bad((GOOD, "steps=3"), ("'steps=3' is not a flag",)),
    "a flag of another type": Bad((GOOD, "--steps=many"), ("steps", "many")),
    "no steps": Bad((GOOD, "--steps=0"), ("--steps is 0", "1 or more")),
    "no batch": Bad((GOOD, "--global_batch_size=0"), ("--global_batch_size is 0", "1 or more")),
    "an unknown word": Bad(
        (GOOD, "--communication=mpi"), ("--communication is mpi", "auto, ring, nccl")
    ),
    "steps and epochs": Bad(
        (GOOD, "--steps=3", "--epochs=2"), ("--steps=3 and --epochs=2", "one of them")
    ),
    "no recipe named": Bad((), ("--recipe is missing",)),
    "no workdir": Bad((GOOD, "--workdir="), ("--workdir is missing",)),
    "a remote workdir": Bad((GOOD, "--workdir=gs://b/run"), ("--workdir is gs:", "mounted")),
    "a workdir that is a file": Bad((GOOD, f"--workdir={SMALL}"), (f"--workdir={SMALL}",)),
}

MODEL = """
import keras
def train_data(hparams):
    import numpy as np, tfdp
    return tfdp.from_arrays(np.zeros((8, 2)), np.zeros((8, 1)))
def build_model(hparams):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model
"""
# Said once TensorFlow is there, but before training.
ONCE_LOADED = {
    "no such file": Bad(("--recipe=nowhere/mine.py",), ("nowhere/mine.py", "no such file")),
    "a recipe that can't be imported": Bad((), ("could not be imported", "1 / 0"), recipe="1 / 0"),
    "no train_data": Bad(
        (), ("has no function train_data(hparams)",), recipe=MODEL.replace("train_data", "data")
    ),
    "a model that is none": Bad(
        (), ("builtins.str", "keras.Model"), recipe=MODEL.replace("return model", "return 'model'")
    ),
    "a model that is not compiled": Bad(
        (),
        ("not compiled", "model.compile"),
        recipe=MODEL.replace('model.compile("sgd", "mse")', "pass"),
    ),
    "data that is a list": Bad(
        (),
        ("train_data gave a list", "tfdp.Source"),
        recipe=MODEL.replace("return tfdp", "return [1, 2]; tfdp"),
    ),
    "an unknown hyperparameter": Bad(
        (GOOD, "--hparam=unit=3"), ("--hparam=unit=3", "data, units, learning_rate")
    ),
    "a hyperparameter of another type": Bad(
        (GOOD, "--hparam=units=few"), ("--hparam=units=few", "of type int")
    ),
    "NCCL without a GPU": Bad(
        (GOOD, "--communication=nccl"),
        ("nccl", "GPU", "ring or auto"),
        {"CUDA_VISIBLE_DEVICES": ""},
    ),
}


def said(bad: Bad, folder: Path) -> str:
    """Starts it, and gives what it printed."""
    flags = list(bad.flags)
    if bad.recipe is not None:
        (folder / "bad.py").write_text(bad.recipe)
        flags.append(f"--recipe={folder / 'bad.py'}")
    command = ["python", "-m", "tfdp.train", f"--workdir={folder / 'run'}", *flags]
    return run(command, expect=2, env=bad.env, limit_s=60)


def assert_told(output: str, words: tuple[str, ...]) -> None:
    assert output.startswith("tfdp: "), output
    assert all(word in output for word in words), output
    assert "tfdp: step" not in output


@pytest.mark.parametrize("bad", AT_ONCE.values(), ids=AT_ONCE.keys())
def test_it_is_refused_at_once(bad: Bad, tmp_path: Path) -> None:
    output = said(bad, tmp_path)
    assert_told(output, bad.words)
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def in_pairs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, concurrent.futures.Future[str]]]:
    """What those print that have to load TensorFlow, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(said, bad, tmp_path_factory.mktemp("bad"))
            for name, bad in ONCE_LOADED.items()
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", ONCE_LOADED)
def test_it_is_refused_before_training(
    name: str, in_pairs: dict[str, concurrent.futures.Future[str]]
) -> None:
    assert_told(in_pairs[name].result(), ONCE_LOADED[name].words)
