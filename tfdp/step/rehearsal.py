"""The rehearsal of a step on a few examples, before the first one is run on several replicas.

A user's ``train_step``, layers and losses may compute anything. The rehearsal runs the step on a
small batch as one process does, and on two parts of that batch as two replicas do. Where the parts'
results make the whole's, it finds out how: as a mean, as a sum, and so on. These are the rules by
which the real step combines the replicas' results. Where they don't, the rehearsal says so.

``stage.py`` runs the step, and ``comparison.py`` compares what it computed. All workers come to the
same rules from the same examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfdp.step import keras_private
from tfdp.step.comparison import Arrays, Comparison, weighted_sums
from tfdp.step.rules import Rules, State
from tfdp.step.share import Combination
from tfdp.step.stage import Outcome, Stage, States, values_kept


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """The rules that a rehearsal found, and what it found no rule for.

    Args:
        rules: how the results of replicas combine.
        wrong_updates: names of optimizers whose gradients replicas can't compute from their shares.
        wrong_terms: names of such loss terms.
        wrong_logs: names of such numbers that the step returns, metrics' results aside.
        derived_logs: names of numbers that the step computes from metrics' results.
        wrong_scalars: names of metrics that are updated with numbers which have no rule.
        wrong_states: variables whose values have no rule.
        unseen_states: paths of variables that are assigned past Keras.
        wrong_metrics: names of metrics whose states are not sums over examples.
    """

    rules: Rules
    wrong_updates: tuple[str, ...] = ()
    wrong_terms: tuple[str, ...] = ()
    wrong_logs: tuple[str, ...] = ()
    derived_logs: tuple[str, ...] = ()
    wrong_scalars: tuple[str, ...] = ()
    wrong_states: tuple[keras.Variable, ...] = ()
    unseen_states: tuple[str, ...] = ()
    wrong_metrics: tuple[str, ...] = ()


def rehearse(model: keras.Model, step: Callable[[Any], Any], batch: Any) -> Rehearsal:
    """Rehearses a step, and returns how the results of replicas combine.

    Args:
        model: a built and compiled model. It stays as it is, but its metrics are reset.
        step: ``model.train_step`` or ``model.test_step``.
        batch: 2 or more examples, as the step takes them; ``stage.EXAMPLES`` are best.
    """
    with values_kept(model) as assigned_past_keras:
        found = _Rules(model, step, batch).found()
    return dataclasses.replace(found, unseen_states=tuple(assigned_past_keras))


class _Rules:
    """The way from a step to its rules."""

    def __init__(self, model: keras.Model, step: Callable[[Any], Any], batch: Any) -> None:
        self._model = model
        self._is_step_of_keras = step.__module__.startswith("keras.")
        self._has_16_bits = any("16" in each.compute_dtype for each in keras_private.layers(model))
        self._stage = Stage(model, step, batch)

    def found(self) -> Rehearsal:
        """Runs the step as often as needed, and returns what was found."""
        stage = self._stage
        first = whole = self._whole()
        if assigned := stage.states_of(whole):
            # A state that has just been made may be all zeros, which fits any rule. Variables that
            # a tape has to watch keep their values.
            stage.states = {
                key: each for key, each in assigned.items() if not whole.assigned[key].trainable
            }
            whole = self._whole()
        parts = stage.run(stage.parts)
        terms = self._rules_of("terms", whole, parts)
        rules = Rules(is_rehearsed=True, gathers=whole.gathers, terms=_or_mean(terms))
        if {*terms} & {"sum", "divided"}:
            parts = stage.run(stage.parts, rules)
        are_updates_right, rules, parts = self._rules_of_gradients(rules, whole, parts)
        scalars = self._rules_of("scalars", whole, parts)
        logs = {
            name: self._comparison.rule([value], [[part.logs[name]] for part in parts])
            for name, value in whole.logs.items()
        }
        states = self._state_rules(whole, parts)
        # By chance, parts may be alike in what matters, as in how many positions of theirs are
        # valid.
        stage.cut_otherwise()
        others = stage.run(stage.parts, rules)
        are_updates_right &= self._are_updates_right(rules, whole, others)
        other_terms = self._rules_of("terms", whole, others)
        terms = [a and b for a, b in zip(terms, other_terms, strict=True)]
        if any(each.kind == "same" for each in states):
            # What has seen these examples before, a maximum for example, may not change any more.
            later, stage.states = stage.states, {}
            others = stage.run(stage.parts, rules)
            states = tuple(self._confirmed(each, first, others) for each in states)
            are_updates_right &= self._are_updates_right(rules, first, others)
            stage.states = later
        again = self._whole_after(parts[0])
        return Rehearsal(
            rules=dataclasses.replace(
                rules,
                scalars=_or_mean(scalars),
                logs={name: rule or "mean" for name, rule in logs.items()},
                states=states,
            ),
            wrong_updates=() if are_updates_right else tuple(dict.fromkeys(whole.optimizers)),
            wrong_terms=_without_rule(whole.term_names, terms),
            wrong_logs=_without_rule(list(logs), list(logs.values())),
            derived_logs=tuple(
                name
                for name, value in whole.logs.items()
                if not self._comparison.are_near([again.logs[name]], [value])
            ),
            wrong_scalars=_without_rule(whole.scalar_names, scalars),
            wrong_states=tuple(each.variable for each in states if each.kind == "unknown"),
            wrong_metrics=tuple(self._metrics_that_do_not_add_up(whole, parts, again)),
        )

    @property
    def _comparison(self) -> Comparison:
        return Comparison(tuple(map(len, self._stage.parts)), self._has_16_bits)

    def _whole(self) -> Outcome:
        (outcome,) = self._stage.run([self._stage.whole])
        return outcome

    def _whole_after(self, part: Outcome) -> Outcome:
        """Returns what the step computes on the whole batch if metrics have seen a part of it."""
        stage = self._stage
        start = stage.metric_states
        stage.metric_states = {key: part.states.get(key, each) for key, each in start.items()}
        try:
            return self._whole()
        finally:
            stage.metric_states = start

    def _rules_of(
        self, name: str, whole: Outcome, parts: Sequence[Outcome]
    ) -> list[Combination | None]:
        return [self._comparison.rule(*each) for each in _beside(name, whole, parts)]

    def _rules_of_gradients(
        self, rules: Rules, whole: Outcome, parts: list[Outcome]
    ) -> tuple[bool, Rules, list[Outcome]]:
        """Finds rules by which the optimizers get the whole batch's gradients.

        Returns:
            Whether there are any; the rules, and what the parts computed by them.
        """
        stage = self._stage
        tapes = self._rules_of("tapes", whole, parts)
        rules = dataclasses.replace(rules, updates=_or_mean(tapes))
        if {*tapes} & {"sum", "divided"}:
            parts = stage.run(stage.parts, rules)
        adds_up = self._are_updates_right(rules, whole, parts)
        # What does not clip a dozen examples' gradients may clip others.
        if adds_up and whole.gets_tapes:
            return True, rules, parts
        if None not in tapes and whole.tapes:
            at_tape = dataclasses.replace(rules, summed_at="tape")
            again = stage.run(stage.parts, at_tape)
            if self._are_updates_right(at_tape, whole, again):
                return True, at_tape, again
        if adds_up:
            return True, rules, parts
        at_apply = dataclasses.replace(rules, weighted_at="apply")
        again = stage.run(stage.parts, at_apply)
        updates = self._rules_of("updates", whole, again)
        if None in updates:
            return False, rules, parts
        return True, dataclasses.replace(at_apply, updates=_or_mean(updates)), again

    def _are_updates_right(self, rules: Rules, whole: Outcome, parts: Sequence[Outcome]) -> bool:
        """Returns whether optimizers get the whole batch's gradients from parts, by the rules."""
        if rules.weighted_at == "apply":
            found = self._rules_of("updates", whole, parts)
            return all(rule in (rules.update(place), "mean") for place, rule in enumerate(found))
        beside, comparison = _beside("updates", whole, parts), self._comparison
        if rules.summed_at == "tape":
            return all(
                comparison.are_near(own, expected)
                for expected, of_parts in beside
                for own in of_parts
            )
        ones = [1.0] * len(parts)
        return all(
            comparison.are_near(weighted_sums(of_parts, ones), expected)
            for expected, of_parts in beside
        )

    def _state_rules(self, whole: Outcome, parts: Sequence[Outcome]) -> tuple[State, ...]:
        """Returns the rule of each variable that the step assigns, those of metrics aside."""
        stage = self._stage
        of_parts: list[States] = [stage.states_of(part) for part in parts]
        found = []
        for key, value in stage.states_of(whole).items():
            if all(key in part for part in of_parts):
                variable = whole.assigned[key]
                before = stage.states[key] if key in stage.states else stage.value_of(variable)
                values = [part[key] for part in of_parts]
                is_whole_number = "int" in variable.dtype
                rule = self._comparison.state(before, value, values, is_whole_number)
                found.append(State(variable, *rule))
        return tuple(found)

    def _confirmed(self, state: State, whole: Outcome, parts: Sequence[Outcome]) -> State:
        """Returns the rule of a state that seemed the same in all parts, from another start."""
        key = id(state.variable)
        if state.kind != "same" or not all(key in each.states for each in (whole, *parts)):
            return state
        values = [part.states[key] for part in parts]
        return State(state.variable, self._comparison.extreme(whole.states[key], values))

    def _metrics_that_do_not_add_up(
        self, whole: Outcome, parts: Sequence[Outcome], again: Outcome
    ) -> Iterator[str]:
        """Yields the names of metrics whose states are not sums over examples.

        Reading a metric adds up the replicas' states.
        """
        for metric in self._model.metrics:
            for each in getattr(metric, "metrics", [metric]):
                # Keras's step updates metrics with rows; a user's may do so with anything.
                is_fine = self._is_step_of_keras or isinstance(each, keras.metrics.Mean)
                if is_metric_of_keras(each) and is_fine:
                    continue
                if not all(self._adds_up(id(own), whole, parts, again) for own in each.variables):
                    yield each.name

    def _adds_up(self, key: int, whole: Outcome, parts: Sequence[Outcome], again: Outcome) -> bool:
        before = self._stage.metric_states.get(key)
        if before is None or key not in whole.states:
            return True
        if not np.isfinite(before).all():  # the start of a minimum
            return False
        grown, *of_parts = (each.states.get(key, before) - before for each in (whole, *parts))
        # A set of what was seen grows less by what it has seen.
        grown_again = again.states[key] - parts[0].states.get(key, before)
        near = self._comparison.are_near
        return near([np.sum(of_parts, axis=0)], [grown]) and near([grown_again], [grown])


def is_metric_of_keras(metric: keras.metrics.Metric) -> bool:
    """Returns whether Keras wrote a metric's ``update_state``."""
    definer = next(each for each in type(metric).__mro__ if "update_state" in vars(each))
    return definer.__module__.startswith("keras.")


def _beside(
    name: str, whole: Outcome, parts: Sequence[Outcome]
) -> Iterator[tuple[Arrays, list[Arrays]]]:
    """Yields the arrays at each place of the whole batch's outcome beside those of the parts."""
    for place, arrays in enumerate(getattr(whole, name)):
        of_parts = [getattr(part, name) for part in parts]
        yield arrays, [each[place] if place < len(each) else [] for each in of_parts]


def _or_mean(rules: Sequence[Combination | None]) -> tuple[Combination, ...]:
    return tuple(rule or "mean" for rule in rules)


def _without_rule(names: Sequence[str], rules: Sequence[Combination | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for n, rule in zip(names, rules, strict=True) if rule is None))
