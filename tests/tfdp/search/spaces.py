"""A recipe with fields of every kind, and what tests do with its search space."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from tfdp import recipe
from tfdp.search.space import Space

RECIPE = """
import dataclasses, enum, math, random
import optuna

class Kind(enum.StrEnum):
    ADAM = "adam"

@dataclasses.dataclass(frozen=True)
class Inner:
    units: int = 8

@dataclasses.dataclass(frozen=True)
class HParams:
    rate: float = 0
    width: int = 64
    use_bias: bool = True
    optimizer: str = "adam"
    clip: float | None = None
    sizes: tuple = (1, 2)
    other: object = None
    inner: Inner = Inner()
    kinds: list = dataclasses.field(default_factory=lambda: [Kind.ADAM])

    def __post_init__(self):
        if self.width == -7:
            raise ValueError("-7 is unlucky")

def build_model(hparams): return "model"
def train_data(hparams): return "train"
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Any]:
    """Loads a recipe whose ``search_space`` has the given lines, from line 32 of its file on."""
    before = list(sys.path)

    def loaded(*body: str) -> recipe.Recipe:
        path = tmp_path / "mine.py"
        lines = ["def search_space(trial):", *(f"    {line}" for line in body)] if body else []
        path.write_text("\n".join([RECIPE, *lines]))
        return recipe.load(str(path))

    yield loaded
    sys.path[:] = before
    sys.modules.pop("mine", None)


def ask(seed: int = 0) -> Any:
    """A new trial of a new study."""
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()


def rehearsed(loaded: recipe.Recipe, *search: str, seed: int = 0) -> Space:
    space = Space.of(loaded, search, [])
    space.rehearse(seed)
    return space
