from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import optuna
import pytest

from tests.running import ROOT, run
from tests.tfdp.search.spaces import RECIPE, ask, load, rehearsed
from tfdp import recipe
from tfdp.cli import flags
from tfdp.errors import BadInput
from tfdp.run.settings import TrainSettings
from tfdp.search.space import Space, differences, hparam_flags

__all__ = ["load"]  # a fixture


def test_there_is_one_way_to_a_space(load: Any) -> None:
    with pytest.raises(BadInput, match=r"nothing to search: define search_space.*or add --search="):
        Space.of(load(), [], [])
    by_recipe = load("return HParams(trial.suggest_float('rate', 0, 1))")
    with pytest.raises(BadInput, match="defines search_space: keep one of both"):
        Space.of(by_recipe, ["width=1|2"], [])


def test_fields_of_hparam_are_fixed(load: Any) -> None:
    space = Space.of(load(), ["rate=1e-4|1e-2"], ["width=7", "optimizer=sgd"])
    space.rehearse(0)
    drawn = space.draw(ask())
    assert (drawn.width, drawn.optimizer, drawn.use_bias) == (7, "sgd", True)
    assert drawn.rate in (1e-4, 1e-2)
    by_recipe = load("return HParams(trial.suggest_float('rate', 0, 1), width=3)")
    drawn = Space.of(by_recipe, [], ["width=7"]).draw(ask())
    assert drawn.width == 7 and drawn.rate == ask().suggest_float("rate", 0, 1)
    with pytest.raises(BadInput, match="it chooses rate, and --hparam=rate fixes it: keep one"):
        Space.of(by_recipe, [], ["rate=0.5"]).rehearse(0)
    with pytest.raises(BadInput, match="--search=width and --hparam=width: keep one of both"):
        Space.of(load(), ["width=1|2"], ["width=7"])
    with pytest.raises(BadInput, match=r"--hparam=speed=1: .* no such hyperparameter"):
        Space.of(load(), ["width=1|2"], ["speed=1"])


def test_a_recipe_that_searches_as_users_of_optuna_write_it(load: Any) -> None:
    loaded = load(
        "rate = trial.suggest_float('rate', 1e-4, 1e-1, log=True)",
        "optimizer = trial.suggest_categorical('optimizer', ['adam', 'sgd'])",
        "if optimizer == 'adam':",
        "    return HParams(rate, optimizer=optimizer)",
        "layers = trial.suggest_int('layers', 1, 3)",
        "sizes = [trial.suggest_int(f'size_{i}', 8, 64, step=8) for i in range(layers)]",
        "return HParams(rate, optimizer=optimizer, sizes=tuple(sizes))",
    )
    space = rehearsed(loaded)
    assert list(space.describe()) == [
        *("layers", "optimizer", "rate", "size_0", "size_1", "size_2"),
    ]
    optimizers = set()
    for seed in range(8):
        by_hand = ask(seed)
        assert loaded.search_space is not None
        expected = loaded.search_space(by_hand)  # Optuna's trial itself
        drawn = space.draw(trial := ask(seed))
        assert drawn == expected
        assert trial.params == by_hand.params
        optimizers.add(drawn.optimizer)
    assert optimizers == {"adam", "sgd"}


RATE = "rate = trial.suggest_float('rate', 0, 1)"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            ["return 1 / 0"],
            r"mine.py: search_space fails in line 32 \(return 1 / 0\): ZeroDivisionError",
        ),
        (
            [RATE, "if rate > 0.95:", "    rate = missing", "return HParams(rate)"],
            r"in line 34 \(rate = missing\), after rate=0\.9\d+: NameError: name 'missing'",
        ),
        (
            ["width = trial.suggest_int('width', -7, 5)", "return HParams(width=width)"],
            r"in line 26 \(.*\), after width=-7: ValueError: -7 is unlucky",
        ),
        ([RATE], "search_space returned None: it has to be an instance of .* HParams"),
        ([RATE, "return {'rate': rate}"], r"returned \{'rate': .*: it has to be an instance"),
        ([RATE, "return HParams"], "it has to be an instance"),
        ([RATE, "return Inner()"], "it has to be an instance"),
        (["return HParams(0.1)"], "search_space leaves nothing to search"),
        (["return HParams(trial.suggest_float('rate', 1, 1))"], "leaves nothing to search"),
        ([RATE, "return HParams(random.random())"], r"it returned rate=.*, then rate=.* alone"),
        ([RATE, "raise optuna.TrialPruned()"], "TrialPruned: a trial that has not started"),
        ([RATE, "trial.report(1.0, 1)", "return HParams(rate)"], r"trial\.report is not for a"),
        ([RATE, "trial.should_prune()", "return HParams(rate)"], "trial.should_prune is not for"),
        ([RATE, "trial.study.best_value", "return HParams(rate)"], "trial.study is not for a"),
        ([RATE, "return HParams(trial.suggest_uniform('r', 0, 1))"], "may use suggest_float"),
        # Distributions: Optuna refuses the first two, and takes the first range of the others.
        (
            [
                RATE,
                "choices = [1, 2] if rate < 0.5 else [1, 2, 3]",
                "return HParams(width=trial.suggest_categorical('width', choices))",
            ],
            r"line 34 .*, after rate=.*: width was 1\|2.* and is 1\|2.*one distribution in all",
        ),
        (
            [
                RATE,
                "if rate < 0.5: return HParams(trial.suggest_float('x', 1, 9))",
                "return HParams(trial.suggest_float('x', 1, 9, log=True))",
            ],
            r"x was 1\.0\.\.9\.0.* and is 1\.0\.\.9\.0.*",
        ),
        (
            [
                "top = trial.suggest_int('top', 1, 9)",
                "return HParams(width=trial.suggest_int('width', 0, top))",
            ],
            r"width was 0\.\.\d and is 0\.\.\d: a name has one distribution in all trials",
        ),
        (
            [
                "trial.suggest_int('width', 0, 9)",
                "return HParams(width=trial.suggest_int('width', 0, 99))",
            ],
            r"after width=\d: width was 0\.\.9 and is 0\.\.99",
        ),
        (
            ["return HParams(trial.suggest_float('rate', 0, 1, step=0.3))"],
            r"rate is from 0 to 1 in steps of 0\.3, and the last one below 1 is 0",
        ),
        (
            ["return HParams(width=trial.suggest_int('width', 32, 250, step=32))"],
            "the last one below 250 is 224",
        ),
        (
            ["return HParams(sizes=trial.suggest_categorical('sizes', [(1,), (2,)]))"],
            r"a choice of sizes is \(1,\): choices have to be of type bool, int, float, str",
        ),
        (["return HParams(trial.suggest_float('rate', 2, 1))"], "ValueError: `low <= high`"),
        (["return HParams(trial.suggest_float('rate', 0, 1, log=True))"], "ValueError: `low > 0`"),
        # Values that a trial's run would not get.
        (
            [RATE, "return HParams(math.nan)"],
            "after rate=.*: rate is nan .float., which --hparam=rate=…",
        ),
        (
            [RATE, "return HParams(width=rate)"],
            r"width is 0\.\d+ \(float\), which --hparam=width=…",
        ),
        ([RATE, "return HParams(width=True)"], "width is True .*, which"),
        ([RATE, "return HParams(use_bias=1)"], "use_bias is 1 .*, which"),
        ([RATE, "return HParams(optimizer=None)"], "optimizer is None .*, which"),
        ([RATE, "return HParams(optimizer=Kind.ADAM)"], r"optimizer is 'adam' \(Kind\), which"),
        ([RATE, "return HParams(optimizer='a\\0b')"], "optimizer is 'a.x00b' .*, which"),
        ([RATE, "return HParams(optimizer='\\ud800')"], "optimizer is '.ud800' .*, which"),
        ([RATE, "return HParams(sizes=((1, 2), (3, 4)))"], r"sizes is \(\(1, 2\), .*, which"),
        ([RATE, "return HParams(sizes=[1, 2])"], r"sizes is \[1, 2\] .*, which"),
        ([RATE, "return HParams(other=Kind.ADAM)"], r"other is 'adam' \(Kind\), which"),
        (
            [RATE, "return HParams(sizes=(1, Kind.ADAM))"],
            r"sizes is \(1, <Kind.*\) \(tuple\), which",
        ),
        ([RATE, "return HParams(other=object())"], "other is <object .*, which"),
        ([RATE, "return HParams(other={1: 2})"], r"other is \{1: 2\} .*, which"),
        ([RATE, "return HParams(inner=Inner(9))"], r"inner is Inner\(units=9\) .*, which"),
        ([RATE, "return HParams(kinds=[])"], r"kinds is \[\] .*, which"),
    ],
)
def test_rehearsal_finds_what_is_wrong(body: list[str], message: str, load: Any) -> None:
    space = Space.of(load(*body), [], [])
    with pytest.raises(BadInput, match=message):
        space.rehearse(0)


def test_rehearsal_finds_values_of_flags_that_a_recipe_refuses(load: Any) -> None:
    with pytest.raises(
        BadInput, match=r"--search fails in line 26 .*, after width=-7: ValueError: -7 is unlucky"
    ):
        rehearsed(load(), "width=12|-7")


def test_a_space_that_fails_later_is_refused_then(load: Any) -> None:
    space = rehearsed(
        load(
            "width = trial.suggest_int('width', 0, 10**9)",
            "if width == 5: trial.suggest_int('other', 0, 2)",
            "top = 2 if width == 7 else 1",
            "if width == 6: raise KeyError('six')",
            "return HParams(rate=trial.suggest_float('rate', 0, top), width=width)",
        )
    )

    def draw(width: int) -> Any:
        study = optuna.create_study()
        study.enqueue_trial({"width": width})
        return space.draw(study.ask())

    assert draw(4).width == 4
    assert draw(5).width == 5, "a branch that rehearsal has not met"
    with pytest.raises(BadInput, match=r"in line 35 .*after width=6: KeyError: 'six'"):
        draw(6)
    with pytest.raises(BadInput, match=r"rate was 0\.0\.\.1\.0 and is 0\.0\.\.2\.0"):
        draw(7)
    assert list(space.describe()) == ["rate", "width"], "as rehearsed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rate", value) for value in (1e-4, 0.1 + 0.2, 1e22, -0.0, 5e-324, float("inf"))),
        *(("width", value) for value in (0, -3, 2**60 + 1)),
        *(("use_bias", value) for value in (True, False)),
        *(("optimizer", value) for value in ("", "a b ", "a=b", 'it\'s "so"', "3", "null", "é")),
        *(("optimizer", value) for value in ("--x", "a\nb", "a,b", "[1]", "\\", "$HOME `ls`")),
        *(("clip", value) for value in (None, 0.5)),
        *(("sizes", value) for value in ((), (1,), (1, 2.0, True, None, "a", "é"))),
        *(("other", value) for value in ("null", "1", 'say "x"', 1, 1.0, True, {"a": [1, "b"]})),
    ],
)
def test_flags_give_back_the_same_hyperparameters(field: str, value: Any, load: Any) -> None:
    loaded = load()
    hparams = type(loaded.hparams)(**{"rate": 0.5, field: value})
    given = hparam_flags(hparams)
    # On the command line of a real process, by the command's own flags, into the recipe.
    arguments = ["--recipe=r", "--workdir=w", *(f"--hparam={each}" for each in given)]
    program = "import json, sys; print(json.dumps(sys.argv))"
    argv = json.loads(run([sys.executable, "-c", program, *arguments]))
    again = recipe.load(loaded.name, flags.parse(TrainSettings, argv).hparam).hparams
    assert repr(again) == repr(hparams)
    assert [each.partition("=")[0] for each in given] == [
        *("rate", "width", "use_bias", "optimizer", "clip", "sizes", "other"),
    ], "all but the defaults that no flag can give"


def test_a_whole_number_for_a_float_is_drawn_as_the_run_gets_it(load: Any) -> None:
    space = rehearsed(load("return HParams(trial.suggest_int('rate', 1, 9))"))
    assert type(space.draw(ask()).rate) is float


def test_a_number_of_numpy_is_drawn_as_the_run_gets_it(load: Any) -> None:
    space = rehearsed(
        load("import numpy", "return HParams(numpy.exp(trial.suggest_int('i', 1, 9)))")
    )
    drawn = space.draw(trial := ask())
    assert type(drawn.rate) is float
    assert drawn.rate == numpy.exp(trial.params["i"])


def test_rehearsal_draws_as_optuna_does_with_this_seed(load: Any) -> None:
    loaded = load(
        "number = trial.suggest_int('number', 0, 10**9)",
        "trial.suggest_float(f'of_{number}', 0, 1)",
        "return HParams(width=number)",
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(3))
    assert loaded.search_space is not None
    by_hand = {
        name for _ in range(100) if loaded.search_space(t := study.ask()) for name in t.params
    }
    assert rehearsed(loaded, seed=3).describe().keys() == by_hand
    assert rehearsed(loaded, seed=4).describe().keys() != by_hand


def test_a_field_that_a_recipe_changes_is_refused(load: Any, tmp_path: Path) -> None:
    text = RECIPE.replace("if self.width == -7:", "if self.width < 8:").replace(
        'raise ValueError("-7 is unlucky")', "object.__setattr__(self, 'width', self.width * 2)"
    )
    (tmp_path / "doubling.py").write_text(text)
    loaded = recipe.load(str(tmp_path / "doubling.py"))
    with pytest.raises(BadInput, match=r"after width=2: width is 4 .int., which --hparam=width=…"):
        rehearsed(loaded, "width=2|16")


def test_descriptions_of_equal_spaces_are_equal(load: Any) -> None:
    by_flags = rehearsed(load(), "rate=1e-4..0.1:log", "width=1|2", seed=1).describe()
    by_recipe = rehearsed(
        load(
            "width = trial.suggest_categorical('width', [1, 2])",
            "return HParams(trial.suggest_float('rate', 1e-4, 0.1, log=True), width)",
        )
    ).describe()
    assert json.dumps(by_flags) == json.dumps(by_recipe)
    assert differences(by_flags, json.loads(json.dumps(by_recipe))) == []


@pytest.mark.parametrize(
    ("old", "new", "phrase"),
    [
        ("rate=1e-4..0.1:log", "rate=1e-3..0.1:log", "0.0001..0.1 (log) and is 0.001..0.1 (log)"),
        ("rate=1..2:log", "rate=1..2", "1.0..2.0 (log) and is 1.0..2.0"),
        ("rate=0..2", "rate=0..2:step=1", "0.0..2.0 and is 0.0..2.0 (step 1.0)"),
        ("width=0..8", "width=0..8:step=2", "0..8 and is 0..8 (step 2)"),
        ("width=1|2", "width=2|1", "1|2 and is 2|1"),
        ("width=1|2", "width=1..2", "1|2 and is 1..2"),
        ("other=1|2", 'other="1"|"2"', '1|2 and is "1"|"2"'),
        ("other=1|0", "other=true|false", "1|0 and is true|false"),
        ("optimizer=adam|sgd", "optimizer=adam|sgd|x", '"adam"|"sgd" and is "adam"|"sgd"|"x"'),
    ],
)
def test_differences_are_told_to_people(old: str, new: str, phrase: str, load: Any) -> None:
    before, after = (rehearsed(load(), each).describe() for each in (old, new))
    assert differences(before, after) == [f"{old.partition('=')[0]} was {phrase}"]
    assert differences(before, before) == differences(after, after) == []


def test_differences_name_parameters_that_come_and_go(load: Any) -> None:
    old, new = (rehearsed(load(), each).describe() for each in ("rate=0..1", "width=1..5"))
    assert differences(old, new) == [
        "rate was 0.0..1.0 and is not searched",
        "width was not searched and is 1..5",
    ]


def test_the_examples_of_the_page_are_spaces(load: Any) -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    searches = [each.replace(r"\|", "|") for each in re.findall(r"^\| `'(.+?)'`", page, re.M)]
    example = re.search(r"```python\n(def search_space.*?)```", page, re.S)
    assert len(searches) >= 8
    assert example is not None
    fields = {
        **{"learning_rate: float": 0.1, "optimizer: str": "adam", "momentum: float": 0.0},
        **{"dropout: float": 0.0, "depth: int": 1, "units: int": 1, "width: int": 1},
        **{"use_bias: bool": True, "sizes: tuple": ()},
    }
    path = Path(load().name)
    text = RECIPE.partition("@dataclasses")[0] + "@dataclasses.dataclass\nclass HParams:\n"
    text += (
        "".join(f"    {each} = {fields[each]!r}\n" for each in fields) + "def build_model(h): ...\n"
    )
    text += "def train_data(h): ...\n"
    path.write_text(text)
    for search in searches:
        assert list(rehearsed(recipe.load(str(path)), search).describe())
    path.write_text(text + example[1])
    described = rehearsed(recipe.load(str(path))).describe()
    assert list(described) == ["learning_rate", "momentum", "optimizer"]


QUIET = """
import sys
from tfdp import recipe
from tfdp.search.space import Space, optuna
space = Space.of(recipe.load(sys.argv[1]), [], [])
space.rehearse(0)
study = optuna.create_study()
study.tell(study.ask(), 1.0)
"""
WITHOUT = """
import sys
sys.modules["optuna"] = None
import tfdp
try:
    tfdp.tune(sys.argv[1], workdir=sys.argv[2], objective="loss:min")
except tfdp.BadInput as error:
    sys.exit(str(error))
"""


def test_optuna_says_nothing(load: Any) -> None:
    name = load("return HParams(trial.suggest_float('rate', 0, 1))").name
    assert run([sys.executable, "-W", "always:::optuna", "-c", QUIET, name]) == ""


def test_without_optuna_the_extra_is_named(load: Any, tmp_path: Path) -> None:
    name = load("return HParams()").name
    words = [sys.executable, "-c", WITHOUT, name, str(tmp_path / "search")]
    assert "pip install 'tfdp[search]'" in run(words, expect=1)


def test_a_field_that_others_are_made_of_is_not_fixed(tmp_path: Path) -> None:
    path = tmp_path / "derived.py"
    path.write_text(
        RECIPE.replace(
            "if self.width == -7:", "object.__setattr__(self, 'clip', 2.0 * self.width)"
        ).replace("            raise ValueError", "        'unused'  # ")
        + "\ndef search_space(trial): return HParams(rate=trial.suggest_float('rate', 0, 1))\n"
    )
    with pytest.raises(BadInput, match="--hparam=width=7: HParams makes clip of it"):
        Space.of(recipe.load(str(path)), [], ["width=7"])
