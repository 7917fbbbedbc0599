"""Which hyperparameters a search may choose, checked before any trial starts."""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from tfdp.errors import BadInput, reason_of, shortened
from tfdp.recipe import Recipe, hparam_types, make_hparams, parse_hparams, parse_value
from tfdp.search import parameters

optuna.logging.set_verbosity(optuna.logging.ERROR)  # the terminal is for the search's own lines

_REHEARSALS = 100  # they meet a branch of one draw in twenty with a probability of 99.4 %
_ATTRIBUTES = ("number", "params", "distributions")  # of a trial, that a space may read


class Space:
    """The hyperparameters that a search chooses from.

    Args:
        recipe: the recipe.
        where: what chooses, for messages: ``search_space`` or ``--search``.
        make: returns an ``HParams`` of the recipe from ``Suggestions``.
    """

    def __init__(self, recipe: Recipe, where: str, make: Callable[[Any], Any]) -> None:
        self._recipe = recipe
        self._where = f"recipe {recipe.name}: {where}"
        self._make = make
        self._distributions: dict[str, Any] = {}

    @classmethod
    def of(cls, recipe: Recipe, search: Sequence[str], fixed: Sequence[str]) -> Space:
        """Returns the space of a recipe's ``search_space``, or of ``--search``.

        Args:
            recipe: the recipe.
            search: values of ``--search``.
            fixed: values of ``--hparam``, for all trials.

        Raises:
            BadInput: if there are both or neither, or one of them is wrong.
        """
        kind = type(recipe.hparams)
        if recipe.search_space is not None:
            if search:
                raise BadInput(
                    f"--search={search[0]}: recipe {recipe.name} defines search_space: keep one "
                    "of both"
                )
            return cls(recipe, "search_space", _with_fixed(recipe, fixed))
        if not search:
            raise BadInput(
                f"there is nothing to search: define search_space(trial) in recipe {recipe.name}, "
                "or add --search='NAME=LOW..HIGH' or --search='NAME=A|B|C' for fields of HParams"
            )
        searched = parameters.parse(recipe.name, hparam_types(kind), search)
        values = parse_hparams(recipe.name, kind, fixed)
        for each in searched:
            if each.name in values:
                raise BadInput(f"--search={each.name} and --hparam={each.name}: keep one of both")
        return cls(
            recipe,
            "--search",
            lambda trial: kind(**values, **{each.name: each.suggest(trial) for each in searched}),
        )

    def draw(self, trial: Any) -> Any:
        """Returns the ``HParams`` that an ``optuna.Trial`` gets; suggestions happen in here.

        It is as ``--hparam`` gives it to the trial's run.

        Raises:
            BadInput: if the space is wrong for this trial.
        """
        return self._draw(Suggestions(trial, dict(self._distributions)))

    def rehearse(self, seed: int) -> None:
        """Draws hyperparameters at random, to find errors before any trial starts.

        Args:
            seed: of the draws.

        Raises:
            BadInput: if a draw fails, can't be repeated, or there is nothing to choose.
        """
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        for _ in range(_REHEARSALS):
            suggestions = Suggestions(study.ask(), self._distributions)
            # Optuna returns the same suggestions for the same trial.
            first, second = (hparam_flags(self._draw(suggestions)) for _ in range(2))
            if first != second:
                raise BadInput(
                    f"{self._where}{_listed(suggestions.params)}: it returned "
                    f"{', '.join(first)}, then {', '.join(second)} for the same suggestions: it "
                    "may depend on the trial alone"
                )
        if all(distribution.single() for distribution in self._distributions.values()):
            raise BadInput(
                f"{self._where} leaves nothing to search: let the trial suggest a value, as in "
                'trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)'
            )

    def describe(self) -> dict[str, Any]:
        """Returns the distribution of each parameter that was met in rehearsal, as JSON, by name.

        Equal spaces have equal descriptions.
        """
        return {
            name: json.loads(optuna.distributions.distribution_to_json(distribution))
            for name, distribution in sorted(self._distributions.items())
        }

    def _draw(self, suggestions: Suggestions) -> Any:
        try:
            hparams = self._make(suggestions)
        except Exception as error:
            reason = reason_of(error)
            if isinstance(error, optuna.TrialPruned):
                reason = "TrialPruned: a trial that has not started can't be pruned"
            elif not isinstance(error, _Refused):
                reason = f"{type(error).__name__}: {reason}"
            line = _line_of(error, self._recipe.name)
            raise BadInput(
                f"{self._where} fails{line}{_listed(suggestions.params)}: {reason}"
            ) from error
        kind = type(self._recipe.hparams)
        if type(hparams) is not kind:
            raise BadInput(
                f"{self._where} returned {shortened(hparams)}: it has to be an instance of the "
                f"recipe's {kind.__name__}"
            )
        try:
            return make_hparams(self._recipe.name, kind, hparam_flags(hparams))
        except BadInput as error:
            raise BadInput(f"{self._where}{_listed(suggestions.params)}: {error}") from error


def _with_fixed(recipe: Recipe, fixed: Sequence[str]) -> Callable[[Any], Any]:
    """Returns ``search_space``, with the fields of ``--hparam`` on top of what it returns."""
    kind, search_space = type(recipe.hparams), recipe.search_space
    assert search_space is not None
    values = parse_hparams(recipe.name, kind, fixed)
    plain, changed = kind(), kind(**values)
    for name in hparam_types(kind):
        if name not in values and not _is_equal(getattr(plain, name), getattr(changed, name)):
            raise BadInput(
                f"--hparam={fixed[0]}: {kind.__name__} makes {name} of it, which search_space "
                "would have made before: let search_space give both"
            )
    returned: dict[str, Any] = {}

    def make(trial: Any) -> Any:
        hparams = search_space(trial)
        if type(hparams) is not kind:
            return hparams  # which is an error that others find
        for name in values:
            value = getattr(hparams, name)
            if not _is_equal(returned.setdefault(name, value), value):
                raise _Refused(f"it chooses {name}, and --hparam={name} fixes it: keep one of both")
        return dataclasses.replace(hparams, **values)

    return make


class _Refused(Exception):  # noqa: N818
    """A suggestion that Optuna would accept, or warn of, and a search can't."""


class Suggestions:
    """What a search space may use of an ``optuna.Trial``.

    Args:
        trial: the trial.
        distributions: of each parameter's name so far, which other suggestions have to be from; new
            ones are added.
    """

    def __init__(self, trial: Any, distributions: dict[str, Any]) -> None:
        self._trial = trial
        self._distributions = distributions

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Returns a number from ``low`` to ``high``."""
        if step is not None:
            _check_step(name, low, high, step)
        self._check(name, optuna.distributions.FloatDistribution(low, high, log, step))
        return float(self._trial.suggest_float(name, low, high, step=step, log=log))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Returns a whole number from ``low`` to ``high``."""
        _check_step(name, low, high, step)
        self._check(name, optuna.distributions.IntDistribution(low, high, log, step))
        return int(self._trial.suggest_int(name, low, high, step=step, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Returns one of the choices."""
        for choice in choices:
            if choice is not None and not isinstance(choice, (bool, int, float, str)):
                raise _Refused(
                    f"a choice of {name} is {shortened(choice)}: choices have to be of type bool, "
                    "int, float, str or None; let the trial choose a name for each"
                )
        self._check(name, optuna.distributions.CategoricalDistribution(choices))
        return self._trial.suggest_categorical(name, choices)

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES:
            return getattr(self._trial, name)
        raise AttributeError(
            f"trial.{name} is not for a search space, which may use suggest_float, suggest_int, "
            f"suggest_categorical, {', '.join(_ATTRIBUTES)}"
        )

    def _check(self, name: str, distribution: Any) -> None:
        known = self._distributions.setdefault(name, distribution)
        if known != distribution:
            raise _Refused(
                f"{name} was {_for_people(known)} and is {_for_people(distribution)}: a name has "
                "one distribution in all trials; give another one another name"
            )


def hparam_flags(hparams: Any) -> list[str]:
    """Returns the values of ``--hparam`` that make an equal instance.

    All fields are there, except those that can't be given so and have their default.

    Args:
        hparams: an instance of ``HParams``.

    Raises:
        BadInput: if a field has a value that ``--hparam`` can't give exactly.
    """
    kind = type(hparams)
    types = hparam_types(kind)
    flags = []
    for field in dataclasses.fields(kind):
        value = getattr(hparams, field.name)
        text = _text_of(value, types[field.name])
        if text is not None and field.init:
            flags.append(f"{field.name}={text}")
        elif field.init and not _is_default(field, value):
            raise _not_a_flag(field.name, value)
    again = make_hparams(kind.__name__, kind, flags)
    for name in types:
        if not _is_equal(getattr(again, name), getattr(hparams, name)):
            raise _not_a_flag(name, getattr(hparams, name))
    return flags


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each difference between two descriptions of a space."""
    before, after = (
        {
            name: _for_people(optuna.distributions.json_to_distribution(json.dumps(description)))
            for name, description in descriptions.items()
        }
        for descriptions in (old, new)
    )
    phrases = []
    for name in sorted(before | after):
        if name not in after:
            phrases.append(f"{name} was {before[name]} and is not searched")
        elif name not in before:
            phrases.append(f"{name} was not searched and is {after[name]}")
        elif before[name] != after[name]:
            phrases.append(f"{name} was {before[name]} and is {after[name]}")
    return phrases


def _for_people(distribution: Any) -> str:
    """Returns a distribution in a few words; other words for another distribution."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return "|".join(json.dumps(choice) for choice in distribution.choices)
    text = f"{distribution.low}..{distribution.high}"
    if distribution.log:
        return f"{text} (log)"
    is_whole = isinstance(distribution, optuna.distributions.IntDistribution)
    all_numbers = 1 if is_whole else None
    return text if distribution.step == all_numbers else f"{text} (step {distribution.step})"


def _check_step(name: str, low: float, high: float, step: float) -> None:
    """Refuses a range that does not end with a step: Optuna would make it smaller."""
    if step > 0 and low <= high and (last := parameters.last_number(low, high, step)) != high:
        raise _Refused(
            f"{name} is from {low} to {high} in steps of {step}, and the last one below {high} "
            f"is {last}: write this number"
        )


def _text_of(value: Any, kind: Any) -> str | None:
    """Returns what ``--hparam`` parses as the same value for a field; None if nothing is."""
    try:
        text = value if type(value) is str and kind is str else json.dumps(value)
        if os.fsdecode(os.fsencode(text)) != text or "\0" in text:  # it passes a command line
            return None
        return text if _is_same(value, parse_value("", text, kind)) else None
    except (TypeError, ValueError, RecursionError):  # BadInput and UnicodeError are ValueErrors
        return None


def _is_same(value: Any, parsed: Any) -> bool:
    """Returns whether a parsed value stands for another one; whole floats may have been ints."""
    if type(value) is tuple and type(parsed) is tuple and len(value) == len(parsed):
        return all(map(_is_same, value, parsed))
    return type(parsed) in (type(value), float) and _is_equal(value, parsed)


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return type(default) is type(value) and _is_equal(default, value)


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays, for one, have no single answer
        return False


def _not_a_flag(name: str, value: Any) -> BadInput:
    return BadInput(
        f"{name} is {shortened(value)} ({type(value).__name__}), which --hparam={name}=… can't "
        "give exactly to a trial's run: it has to be a number, bool, string or None, as the "
        "field's type says, or a tuple of them"
    )


def _line_of(error: Exception, recipe: str) -> str:
    """Returns the line of the user's file that an error comes from; empty without one."""
    ours = (Path(__file__).parent, Path(optuna.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and not any(map(Path(frame.filename).is_relative_to, ours))
    ]
    if not frames:
        return ""
    last = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    file = "" if Path(last.filename) == Path(recipe) else f" of {last.filename}"
    return f" in line {last.lineno}{file} ({last.line})"


def _listed(params: Mapping[str, Any]) -> str:
    """Returns the suggestions so far."""
    if not params:
        return ""
    return ", after " + ", ".join(f"{name}={shortened(value)}" for name, value in params.items())
