from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfdp import recipe
from tfdp.errors import BadInput

RECIPE = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class HParams:
    rate: float = 0.1
    units: int = 8
    name: str = "relu"
    deep: bool = False
    sizes: tuple = (1, 2)

def build_model(hparams): return "model"
def train_data(hparams): return "train"
"""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Any]:
    """Writes a recipe file and returns its path."""
    before = list(sys.path)

    def written(text: str, name: str = "my_recipe.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    yield written
    sys.path[:] = before
    for name in ("my_recipe", "beside_it"):
        sys.modules.pop(name, None)


def test_the_smallest_recipe(write: Any) -> None:
    loaded = recipe.load(
        write("def build_model(hparams): return 1\ndef train_data(hparams): return 2")
    )
    assert (loaded.build_model(None), loaded.train_data(None)) == (1, 2)
    assert loaded.eval_data is None
    assert loaded.preprocess is None
    assert loaded.callbacks is None
    assert dataclasses.asdict(loaded.hparams) == {}


def test_a_recipe_is_a_file_or_a_module() -> None:
    by_file = recipe.load(str(Path(recipe.__file__).parent / "recipes" / "digits.py"))
    by_module = recipe.load("tfdp.recipes.digits")
    assert by_file.digest == by_module.digest
    assert by_module.preprocess is not None
    assert by_module.eval_data is not None


def test_a_file_may_import_modules_beside_it(write: Any) -> None:
    write("VALUE = 7", "beside_it.py")
    text = "import beside_it\ndef build_model(h): return beside_it.VALUE\ndef train_data(h): ..."
    assert recipe.load(write(text)).build_model(None) == 7


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("rate=0.5", "rate", 0.5),
        ("rate=1e-3", "rate", 0.001),
        ("rate=2", "rate", 2.0),
        ("units=-3", "units", -3),
        ("name=tanh", "name", "tanh"),
        ("name=12", "name", "12"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("deep=true", "deep", True),
        ("deep=False", "deep", False),
        ("sizes=[3, 4]", "sizes", (3, 4)),
    ],
)
def test_hyperparameters_are_overridden(override: str, name: str, value: Any, write: Any) -> None:
    hparams = recipe.load(write(RECIPE), [override]).hparams
    assert getattr(hparams, name) == value
    assert type(getattr(hparams, name)) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rate", "--hparam=rate: it has to be NAME=VALUE"),
        ("speed=1", "no such hyperparameter; it has rate, units, name, deep, sizes"),
        ("rate=fast", "--hparam=rate=fast: the value has to be of type float"),
        ("rate=true", "of type float"),
        ("units=1.5", "of type int"),
        ("units=true", "of type int"),
        ("deep=1", "of type bool"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str, write: Any) -> None:
    with pytest.raises(BadInput, match=message):
        recipe.load(write(RECIPE), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def train_data(h): ...", r"no function build_model\(hparams\)"),
        ("def build_model(h): ...", r"no function train_data\(hparams\)"),
        (RECIPE + "\ntrain_data = 3", r"train_data has to be a function that takes \(hparams\)"),
        (RECIPE + "\ndef build_model(): ...", r"build_model has to be a function that takes"),
        (
            RECIPE + "\ndef preprocess(features): ...",
            r"preprocess has to be .* \(features, training, seed\)",
        ),
        (RECIPE + "\ndef callbacks(): ...", r"callbacks has to be .* \(hparams\)"),
        (RECIPE + "\nclass HParams: ...", "HParams has to be a dataclass"),
        (RECIPE + "\nHParams = 3", "HParams has to be a dataclass"),
        ("import no_such_package_anywhere", "no_such_package_anywhere, which is not installed"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", r"ended the process: sys\.exit\(0\)"),
        ("def broken(:", "SyntaxError"),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass HParams:\n    needed: int\n"
            "def build_model(h): ...\ndef train_data(h): ...",
            "HParams can't be created: .*needed",
        ),
    ],
)
def test_wrong_recipes_are_refused(text: str, message: str, write: Any) -> None:
    with pytest.raises(BadInput, match=message):
        recipe.load(write(text))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/file.py", "--recipe is no/such/file.py: there is no such file"),
        ("no_such_module.anywhere", r"no_such_module\.anywhere: there is no such module"),
    ],
)
def test_a_missing_recipe_is_refused(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        recipe.load(name)


def test_the_digest_covers_source_and_values(write: Any) -> None:
    plain = recipe.load(write(RECIPE)).digest
    assert recipe.load(write(RECIPE)).digest == plain
    assert recipe.load(write(RECIPE), ["rate=0.1"]).digest == plain, "the explicit default"
    assert recipe.load(write(RECIPE), ["rate=0.2"]).digest != plain
    assert recipe.load(write(RECIPE + "\n# changed")).digest != plain
