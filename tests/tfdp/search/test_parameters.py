"""The flag ``--search``, beside what Optuna's users write for it."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest

from tests.tfdp.search.spaces import ask, load, rehearsed
from tfdp.errors import BadInput
from tfdp.search import parameters
from tfdp.search.space import Space

__all__ = ["load"]  # a fixture

BY_HAND = {  # what Optuna's users write for a value of --search
    "rate=1e-4..1e-1:log": lambda trial: trial.suggest_float("rate", 1e-4, 1e-1, log=True),
    "rate=-1..0": lambda trial: trial.suggest_float("rate", -1.0, 0.0),
    "rate=0..0.3:step=0.1": lambda trial: trial.suggest_float("rate", 0.0, 0.3, step=0.1),
    "rate=1e-3|1|0.1": lambda trial: trial.suggest_categorical("rate", [0.001, 1.0, 0.1]),
    "clip=0.5..2": lambda trial: trial.suggest_float("clip", 0.5, 2.0),
    "clip=null|0.5": lambda trial: trial.suggest_categorical("clip", [None, 0.5]),
    "width=1..5": lambda trial: trial.suggest_int("width", 1, 5),
    "width=-3..-1": lambda trial: trial.suggest_int("width", -3, -1),
    "width=32..256:step=32": lambda trial: trial.suggest_int("width", 32, 256, step=32),
    "width=1..1000:log": lambda trial: trial.suggest_int("width", 1, 1000, log=True),
    "width=32|64|128": lambda trial: trial.suggest_categorical("width", [32, 64, 128]),
    "use_bias=true|False": lambda trial: trial.suggest_categorical("use_bias", [True, False]),
    "optimizer=adam|a=b|1..2|3": lambda trial: trial.suggest_categorical(
        "optimizer", ["adam", "a=b", "1..2", "3"]
    ),
    "sizes=[]|[32]|[64, 64]": lambda trial: tuple(
        json.loads(trial.suggest_categorical("sizes", ["[]", "[32]", "[64, 64]"]))
    ),
}


@pytest.mark.parametrize("search", BY_HAND)
def test_a_flag_suggests_what_the_same_line_by_hand_does(search: str, load: Any) -> None:
    space = rehearsed(load(), search)
    name = search.partition("=")[0]
    values = set()
    for seed in range(12):
        expected = BY_HAND[search](by_hand := ask(seed))
        drawn = space.draw(by_flag := ask(seed))
        value = getattr(drawn, name)
        assert (value, type(value)) == (expected, type(expected))
        assert by_flag.params == by_hand.params
        assert by_flag.distributions == by_hand.distributions
        values.add(value)
    assert len(values) > 1
    (description,) = space.describe().values()
    assert (
        optuna.distributions.json_to_distribution(json.dumps(description))
        == (by_hand.distributions[name])
    )


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (["rate"], r"--search=rate: it has to be NAME=LOW\.\.HIGH, .* or NAME=A\|B\|C"),
        (["rate="], "it has to be NAME="),
        (["=1..2"], "it has to be NAME="),
        (["rate=1.."], "it has to be NAME="),
        (["rate=..1"], "it has to be NAME="),
        (["rate=1..2:sqrt"], r"it has to be NAME=LOW\.\.HIGH"),
        (["rate=1..2:log:step=1"], r"it has to be NAME=LOW\.\.HIGH"),
        (["rate=1..2:step="], r"it has to be NAME=LOW\.\.HIGH"),
        (["speed=1..2"], "no such hyperparameter; it has rate, width, use_bias"),
        (["rate=2..1"], r"2\.0 is larger than 1\.0: write the smaller number first"),
        (["rate=1..1"], "single value: use --hparam=rate=1"),
        (["rate=0..1:log"], "with :log, the smaller number has to be positive"),
        (["width=-1..1:log"], "with :log, the smaller number has to be positive"),
        (["rate=0..Infinity"], "have to be finite"),
        (["rate=NaN..1"], "have to be finite"),
        (["rate=low..high"], r"--search=rate=low\.\.high: the value has to be of type float"),
        (["rate=0..1:step=small"], "the value has to be of type float"),
        (["width=1..2.5"], "of type int"),
        (["width=0..4:step=0.5"], "of type int"),
        (["width=0..4:step=0"], "the step has to be positive"),
        (["width=32..250:step=32"], "do not lead to 250: the last number below it is 224"),
        (["rate=0..1:step=0.3"], r"do not lead to 1\.0: .* is 0\.9"),
        (["width=1|2.5"], "of type int"),
        (["width=1..2|3"], "of type int"),
        (["use_bias=yes|no"], "of type bool"),
        (["use_bias=0..1"], "a range is for a field of type int or float"),
        (["optimizer=a..b"], "a range is for a field of type int or float"),
        (["optimizer=adam"], "single value: use --hparam=optimizer=adam"),
        (["optimizer=adam||sgd"], r"separated by \| alone, and none may be empty"),
        (["optimizer=adam|"], "none may be empty"),
        (["optimizer=adam | sgd"], r"separated by \| alone"),
        (["width=1|2|1"], "1 is there twice"),
        (["rate=1|2|1.0"], r"1\.0 is there twice"),
        (["sizes=[1]|[1 ]"], r"\[1 \] is there twice"),
        (["other=1|true"], "true is there twice"),  # as 1 == True, Optuna can't tell them apart
        (["width=1..2", "rate=1..2", "width=3..4"], "there is another --search=width"),
    ],
)
def test_wrong_flags_are_refused(search: list[str], message: str, load: Any) -> None:
    with pytest.raises(BadInput, match=message):
        Space.of(load(), search, [])


def test_the_last_number_of_a_range_is_that_of_optuna() -> None:
    for low, high, step in [(0, 1, 0.1), (0.1, 0.7, 0.2), (1e-3, 1, 1e-3), (-1, 1, 0.3)]:
        with pytest.warns() if (low, high) == (-1, 1) else pytest.MonkeyPatch.context():
            theirs = optuna.distributions.FloatDistribution(low, high, step=step).high
        assert parameters.last_number(float(low), float(high), step) == theirs
