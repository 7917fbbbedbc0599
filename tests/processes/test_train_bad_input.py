"""``python -m tfdp.train`` refuses bad input before it trains, says why, and exits with 2.

Here is one of each kind; the tests of cluster.spec, tfdp.recipe and tfdp.run have all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.running import run

SMALL = Path(__file__).parent / "recipes" / "small.py"
JAX = {"KERAS_BACKEND": "jax"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def refusal(flags: list[str], env: Mapping[str, str], workdir: Path) -> str:
    """Starts it, and returns the message."""
    command = ["python", "-m", "tfdp.train", f"--workdir={workdir}", f"--recipe={SMALL}", *flags]
    output = run(command, expect=2, env=env, limit_s=60)
    assert output.startswith("tfdp: "), output
    assert "tfdp: step" not in output
    return output


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        ([], {"TF_CONFIG": "{cluster"}, ["TF_CONFIG", "{cluster", "not JSON"]),
        ([], JAX, ["KERAS_BACKEND is jax", "tensorflow"]),
        (["--stepz=3"], {}, ["stepz", "--help"]),
        (["steps=3"], {}, ["'steps=3' is not a flag"]),
        (["--steps=many"], {}, ["steps", "many"]),
        (["--steps=0"], {}, ["--steps is 0", "1 or more"]),
        ([f"--workdir={SMALL}"], {}, [f"--workdir={SMALL}"]),
    ],
)
def test_it_is_refused_without_tensorflow_and_leaves_nothing(
    flags: list[str], env: Mapping[str, str], words: list[str], tmp_path: Path
) -> None:
    output = refusal(flags, env, tmp_path / "run")
    assert all(word in output for word in words), output
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (["--recipe={folder}/bad.py"], {}, ["could not be imported", "1 / 0"]),
        (["--communication=nccl"], NO_GPU, ["nccl", "GPU", "ring or auto"]),
    ],
)
def test_it_is_refused_before_training(
    flags: list[str], env: Mapping[str, str], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    output = refusal([flag.format(folder=tmp_path) for flag in flags], env, tmp_path / "run")
    assert all(word in output for word in words), output
