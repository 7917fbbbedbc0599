"""The rehearsal of a step on a few examples, before the first one is run on several replicas.

A user's ``train_step``, layers and losses may compute anything. The rehearsal runs the step on a
small batch as one process does, and on two parts of that batch as two replicas do. Where the parts'
results make the whole's, it finds out how: as a mean, as a sum, and so on. These are the rules by
which the real step combines the replicas' results. Where they don't, the rehearsal says so. Nothing
is updated.

The parts run in this process, in a thread each, outside of the model's strategy. So the rehearsal
needs no other worker, and all workers come to the same rules from the same examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data.replica_batch import count_rows, take_rows
from tfdp.step import all_reduce, keras_private, metrics, random_draws, tapes
from tfdp.step import share as share_module
from tfdp.step.rules import Extreme, Queue, Rules, State
from tfdp.step.share import Combination, Share

_PARTS = (7, 5)  # examples; numbers that are unlikely as the size of anything else
EXAMPLES = sum(_PARTS)
_EXCHANGE_TIMEOUT_S = 60.0  # for the other part to reach the same point
_VARIABLE_OPTIONS = (
    *("initial_value", "trainable", "dtype", "name"),
    *("synchronization", "aggregation", "shape"),
)

# Relative differences that are taken for rounding: by the largest value of a tensor, also where
# layers compute with 16 bits, and by the largest value of all tensors.
_TOLERANCE, _TOLERANCE_OF_16_BITS, _FLOOR = 2e-3, 5e-2, 1e-5


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """The rules that a rehearsal found, and what it found no rule for.

    Args:
        rules: how the results of replicas combine.
        wrong_updates: names of optimizers whose gradients replicas can't compute from their shares.
        wrong_terms: names of such loss terms.
        wrong_logs: names of such numbers that the step returns, metrics' results aside.
        wrong_scalars: names of metrics that are updated with such numbers.
        wrong_states: such variables.
        wrong_metrics: names of metrics whose states are not sums over examples.
    """

    rules: Rules
    wrong_updates: tuple[str, ...] = ()
    wrong_terms: tuple[str, ...] = ()
    wrong_logs: tuple[str, ...] = ()
    wrong_scalars: tuple[str, ...] = ()
    wrong_states: tuple[keras.Variable, ...] = ()
    wrong_metrics: tuple[str, ...] = ()


@dataclasses.dataclass
class _Outcome:
    """What a run of a step computed: arrays, by place or by name.

    ``updates`` are the gradients of each call of an optimizer, ``tapes`` those of each tape.
    """

    updates: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    optimizers: list[str] = dataclasses.field(default_factory=list)
    tapes: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    gets_tapes: bool = True  # whether optimizers got a tape's gradients as they were
    terms: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    term_names: list[str] = dataclasses.field(default_factory=list)
    scalars: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    scalar_names: list[str] = dataclasses.field(default_factory=list)
    assigned: dict[int, keras.Variable] = dataclasses.field(default_factory=dict)
    states: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    logs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def rehearse(model: keras.Model, step: Callable[[Any], Any], batch: Any) -> Rehearsal:
    """Rehearses a step, and returns how the results of replicas combine.

    Args:
        model: a built and compiled model. It stays as it is, but its metrics are reset.
        step: ``model.train_step`` or ``model.test_step``.
        batch: 2 or more examples, as the step takes them; ``EXAMPLES`` are best.
    """
    stage = _Stage(model, step, batch)
    (whole,) = stage.run([stage.whole])
    first = whole
    if stage.states_of(whole):  # one that has just been made may be all zeros, which fits any rule
        stage.before = {
            key: each
            for key, each in stage.states_of(whole).items()
            if not whole.assigned[key].trainable  # a tape has to watch these
        }
        (whole,) = stage.run([stage.whole])
    parts = stage.run(stage.parts)
    terms = [stage.rule(*each) for each in _beside("terms", whole, parts)]
    rules = Rules(is_rehearsed=True, terms=_or_mean(terms))
    if any(each in ("sum", "divided") for each in terms):
        parts = stage.run(stage.parts, rules)
    are_updates_right, rules, parts = _rules_of_gradients(stage, rules, whole, parts)
    logs = {
        name: stage.rule([value], [[part.logs[name]] for part in parts])
        for name, value in whole.logs.items()
    }
    scalars = [stage.rule(*each) for each in _beside("scalars", whole, parts)]
    rules = dataclasses.replace(
        rules,
        scalars=_or_mean(scalars),
        logs={name: rule or "mean" for name, rule in logs.items()},
    )
    states = stage.state_rules(whole, parts)
    # By chance, parts may be alike in what matters, as in how many positions of theirs are valid.
    stage.cut_otherwise()
    others = stage.run(stage.parts, rules)
    are_updates_right = are_updates_right and _are_updates_right(stage, rules, whole, others)
    terms = [
        rule and stage.rule(*each)
        for rule, each in zip(terms, _beside("terms", whole, others), strict=True)
    ]
    if any(each.kind == "same" for each in states):
        # What has seen these examples before, a maximum for example, may not change any more.
        stage.before = {}
        parts_first = stage.run(stage.parts, rules)
        states = tuple(stage.confirmed(each, first, parts_first) for each in states)
        are_updates_right &= _are_updates_right(stage, rules, first, parts_first)
    return Rehearsal(
        rules=dataclasses.replace(rules, states=states),
        wrong_updates=() if are_updates_right else tuple(dict.fromkeys(whole.optimizers)),
        wrong_terms=tuple(
            dict.fromkeys(whole.term_names[i] for i, rule in enumerate(terms) if rule is None)
        ),
        wrong_logs=tuple(name for name, rule in logs.items() if rule is None),
        wrong_scalars=tuple(
            dict.fromkeys(whole.scalar_names[i] for i, rule in enumerate(scalars) if rule is None)
        ),
        wrong_states=tuple(each.variable for each in states if each.kind == "unknown"),
        wrong_metrics=tuple(stage.metrics_that_do_not_add_up(whole, parts)),
    )


def _rules_of_gradients(
    stage: _Stage, rules: Rules, whole: _Outcome, parts: list[_Outcome]
) -> tuple[bool, Rules, list[_Outcome]]:
    """Finds rules by which the optimizers get the whole batch's gradients.

    Returns:
        Whether there are any; the rules, and what the parts computed by them.
    """
    tapes = [stage.rule(*each) for each in _beside("tapes", whole, parts)]
    rules = dataclasses.replace(rules, updates=_or_mean(tapes))
    if any(each in ("sum", "divided") for each in tapes):
        parts = stage.run(stage.parts, rules)
    adds_up = _are_updates_right(stage, rules, whole, parts)
    # What does not clip a dozen examples' gradients may clip others.
    if adds_up and whole.gets_tapes:
        return True, rules, parts
    if None not in tapes and whole.tapes:
        at_tape = dataclasses.replace(rules, summed_at="tape")
        again = stage.run(stage.parts, at_tape)
        if _are_updates_right(stage, at_tape, whole, again):
            return True, at_tape, again
    if adds_up:
        return True, rules, parts
    at_apply = dataclasses.replace(rules, weighted_at="apply")
    again = stage.run(stage.parts, at_apply)
    updates = [stage.rule(*each) for each in _beside("updates", whole, again)]
    if None in updates:
        return False, rules, parts
    return True, dataclasses.replace(at_apply, updates=_or_mean(updates)), again


def _are_updates_right(stage: _Stage, rules: Rules, whole: _Outcome, parts: list[_Outcome]) -> bool:
    """Returns whether the optimizers get the whole batch's gradients from parts, by the rules."""
    beside = list(_beside("updates", whole, parts))
    if rules.weighted_at == "apply":
        return all(
            stage.rule(*each) in (rules.update(place), "mean") for place, each in enumerate(beside)
        )
    if rules.summed_at == "tape":
        return all(
            stage.are_near(own, expected) for expected, of_parts in beside for own in of_parts
        )
    ones = [1.0] * len(parts)
    return all(
        stage.are_near(_weighted_sums(of_parts, ones), expected) for expected, of_parts in beside
    )


class _Stage:
    """Runs a step on parts of a batch, without any effect on the model."""

    def __init__(self, model: keras.Model, step: Callable[[Any], Any], batch: Any) -> None:
        self._model = model
        self._step = step
        self._batch = batch
        count = int(count_rows(batch))
        cut = max(1, round(count * _PARTS[0] / EXAMPLES))
        cut += 2 * cut == count > 2  # rules differ only for unequal parts
        self.whole = range(count)
        self.parts = [range(cut), range(cut, count)]
        model.reset_metrics()
        self._local = model.distribute_strategy.experimental_local_results
        self._variables: dict[int, keras.Variable] = {
            id(variable): variable for metric in model.metrics for variable in metric.variables
        }
        # Read here: outside of the replicas, reading the state of a metric is a collective.
        self._metric_states = {
            key: self._local(variable.value)[0].numpy() for key, variable in self._variables.items()
        }
        self.before: dict[int, np.ndarray] = {}  # what a step has assigned to other variables
        has_16_bits = any("16" in each.compute_dtype for each in keras_private.layers(model))
        self._tolerance = _TOLERANCE_OF_16_BITS if has_16_bits else _TOLERANCE

    def cut_otherwise(self) -> None:
        """Makes the first part as large as the second was, and the second as the first."""
        cut = len(self.parts[1])
        self.parts = [range(cut), range(cut, len(self.whole))]

    def run(self, parts: Sequence[range], rules: Rules | None = None) -> list[_Outcome]:
        """Returns the outcome of each part; the parts run at the same time."""
        rules = rules or Rules()
        local = threading.local()
        exchange = _Exchange(len(parts))
        policy = keras.config.dtype_policy()
        states = {
            key: tf.convert_to_tensor(value, self._variables[key].dtype)
            for key, value in (self._metric_states | self.before).items()
        }

        def run_part(index: int) -> _Outcome:
            local.rows, local.outcome, local.of_tapes = parts[index], _Outcome(), []
            local.share = Share(
                examples=tf.constant(len(parts[index])),
                total_examples=tf.constant(len(self.whole)),
                replicas=len(parts),
                may_be_empty=False,
            )
            keras.config.set_dtype_policy(policy)  # each thread has its own
            rows = take_rows(self._batch, parts[index].start, parts[index].stop)
            local.values = {**states}
            with (
                all_reduce.rehearsed(exchange.part(index)),
                share_module.computed(local.share),
            ):
                logs = self._step(rows)
            outcome: _Outcome = local.outcome
            # Updates by hand use gradients otherwise than by adding them up.
            outcome.gets_tapes &= not any(each.trainable for each in outcome.assigned.values())
            outcome.states = {key: _array(local.values[key]) for key in outcome.assigned}
            for name, value in logs.items() if isinstance(logs, Mapping) else ():
                is_number = not isinstance(value, Mapping) and np.ndim(value) == 0
                if is_number and id(value) not in results:
                    outcome.logs[name] = _array(value)
            return outcome

        def keep_update(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
            of_tapes = {id(each) for each in local.of_tapes}
            local.outcome.gets_tapes &= all(
                each is None or id(each) in of_tapes for each in gradients
            )
            local.outcome.updates.append(_arrays(gradients))
            local.outcome.optimizers.append(optimizer.name)

        def keep_tape(compute: Callable[[Any], list[Any]]) -> list[Any]:
            if rules.weighted_at == "apply":
                return compute(None)
            place = len(local.outcome.tapes)
            weight = local.share.contribution(tf.constant(1.0, tf.float64), rules.update(place))
            gradients = compute(weight)
            local.outcome.tapes.append([each / float(weight) for each in _arrays(gradients)])
            local.of_tapes += gradients
            if rules.summed_at == "apply":
                return gradients
            return [
                each if each is None else all_reduce.all_reduce_sum(tf.convert_to_tensor(each))
                for each in gradients
            ]

        def keep_term(value: Any, given: Any) -> Any:
            place = len(local.outcome.terms)
            local.outcome.terms.append([_array(value)])
            local.outcome.term_names.append(names.get(id(given), "the loss function"))
            return local.share.as_mean(value, rules.term(place))

        def keep_scalar(metric: keras.metrics.Metric, value: Any) -> tuple[Any, Any]:
            local.outcome.scalars.append([_array(value)])
            local.outcome.scalar_names.append(metric.name)
            return value, local.share.contribution(tf.ones_like(value))

        def keep_result(metric: keras.metrics.Metric, result: Any) -> None:
            for each in result.values() if isinstance(result, dict) else (result,):
                results[id(each)] = each

        names: dict[int, str] = {}  # of loss terms, by the tensor's id
        results: dict[int, Any] = {}  # of metrics, by the tensor's id

        with (
            _eagerly_and_quietly(),
            _replicas_in_sync(len(parts)),
            random_draws.of_rows(lambda: local.rows, len(self.whole)),
            keras_private.seeds_drawn_from(tf.constant(0, tf.int64)),
            keras_private.losses_by_thread(
                lambda layer, loss: names.update({id(loss): f"add_loss of layer {layer.name}"})
            ),
            keras_private.reduced_first(keep_update),
            tapes.adapted(keep_tape),
            keras_private.losses_of_shares(lambda: local.share, keep_term, lambda kind: None),
            keras_private.means_of_scalars(keep_scalar),
            keras_private.assignments_aside(lambda: local.values),
            keras_private.assignments_noted(lambda each: self._note(local.outcome, each)),
            metrics.results_noted(self._model, keep_result),
            _normalized_without_statistics(),
        ):
            return _in_threads(run_part, len(parts), exchange.barrier.abort)

    def rule(self, whole: list[np.ndarray], parts: list[list[np.ndarray]]) -> Combination | None:
        """Returns how arrays of the parts make those of the whole batch; None if they don't."""
        if any(len(part) != len(whole) for part in parts):
            return None
        combinations: tuple[Combination, ...] = ("mean", "sum", "divided")
        for combination in combinations:
            weights = {
                "mean": self._fractions,
                "sum": [1.0] * len(parts),
                "divided": [len(parts) * each for each in self._fractions],
            }[combination]
            if self.are_near(_weighted_sums(parts, weights), whole):
                return combination
        return None

    def are_near(
        self, values: Sequence[np.ndarray], expected: Sequence[np.ndarray], rounding: float = 0.0
    ) -> bool:
        """Returns whether arrays are equal but for rounding, which may have a known size."""
        if any(a.shape != b.shape for a, b in zip(values, expected, strict=True)):
            return False
        largest = max((np.abs(each).max(initial=0) for each in expected), default=0.0)
        return all(
            np.abs(a - b).max(initial=0)
            <= max(_FLOOR * largest, self._tolerance * np.abs(b).max(initial=0), rounding)
            for a, b in zip(values, expected, strict=True)
        )

    def states_of(self, outcome: _Outcome) -> dict[int, np.ndarray]:
        """Returns what a step assigned to variables, those of metrics aside."""
        return {key: each for key, each in outcome.states.items() if key not in self._metric_states}

    def state_rules(self, whole: _Outcome, parts: Sequence[_Outcome]) -> tuple[State, ...]:
        """Returns the rule of each variable that the step assigns, those of metrics aside."""
        of_parts = [self.states_of(part) for part in parts]
        return tuple(
            self._state_rule(whole.assigned[key], value, [part[key] for part in of_parts])
            for key, value in self.states_of(whole).items()
            if all(key in part for part in of_parts)
        )

    def _state_rule(
        self, variable: keras.Variable, whole: np.ndarray, parts: list[np.ndarray]
    ) -> State:
        # Changes are compared: a moving average changes by a small fraction of its value.
        before = self.before.get(id(variable))
        if before is None:
            before = _array(self._local(variable.value)[0])
        change, *changes = (each - before for each in (whole, *parts))
        rounding = 8 * np.finfo(np.float32).eps * np.abs(before).max(initial=0)

        def is_change(value: np.ndarray) -> bool:
            return self.are_near([value], [change], rounding)

        if all(map(is_change, changes)):
            return State(variable, "same")
        queues: tuple[Queue, ...] = ("rows_first", "rows_last")
        for queue in queues:
            if self._is_queue(queue, before, whole, parts):
                return State(variable, queue)
        (mean,) = _weighted_sums([[each] for each in changes], self._fractions)
        if is_change(mean):
            return State(variable, "mean")
        total = np.sum(changes, axis=0)
        # What a sum loses of its earlier value, each part has lost.
        square = (len(parts) - 1) * float((before * before).sum())
        loses = float(((change - total) * before).sum()) / square if square else 0.0
        keeps = round(1 - loses, 0 if "int" in variable.dtype else 5)  # as people write it
        if 0 <= keeps <= 1 and is_change(total + (len(parts) - 1) * (1 - keeps) * before):
            return State(variable, "sum", keeps)
        return State(variable, "unknown")

    def confirmed(self, state: State, whole: _Outcome, parts: Sequence[_Outcome]) -> State:
        """Returns the rule of a state that seemed the same in all parts, from another start."""
        key = id(state.variable)
        if state.kind != "same" or not all(key in each.states for each in (whole, *parts)):
            return state
        expected, values = whole.states[key], [part.states[key] for part in parts]
        if all(self.are_near([value], [expected]) for value in values):
            return state
        extremes: tuple[tuple[Extreme, Any], ...] = (("maximum", np.max), ("minimum", np.min))
        for kind, of_all in extremes:
            if self.are_near([of_all(values, axis=0)], [expected]):
                return State(state.variable, kind)
        return State(state.variable, "unknown")

    def _is_queue(
        self, queue: Queue, before: np.ndarray, whole: np.ndarray, parts: list[np.ndarray]
    ) -> bool:
        count = len(self.whole)
        if not before.ndim or len(before) < count:
            return False
        sizes = [len(part) for part in self.parts]
        if queue == "rows_first":
            rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
            expected = np.concatenate([*rows, before[: len(before) - count]])
        else:
            rows = [part[len(part) - size :] for part, size in zip(parts, sizes, strict=True)]
            expected = np.concatenate([before[count:], *rows])
        return self.are_near([expected], [whole])

    def metrics_that_do_not_add_up(
        self, whole: _Outcome, parts: Sequence[_Outcome]
    ) -> Iterator[str]:
        """Yields the names of users' metrics whose states are not sums over examples.

        Reading a metric adds up the replicas' states.
        """
        is_step_of_keras = self._step.__module__.startswith("keras.")
        for metric in self._model.metrics:
            for each in getattr(metric, "metrics", [metric]):
                # Keras's step updates metrics with rows; a user's may do so with anything.
                is_fine = is_step_of_keras or isinstance(each, keras.metrics.Mean)
                if is_metric_of_keras(each) and is_fine:
                    continue
                if not all(self._adds_up(variable, whole, parts) for variable in each.variables):
                    yield each.name

    def _adds_up(
        self, variable: keras.Variable, whole: _Outcome, parts: Sequence[_Outcome]
    ) -> bool:
        before = self._metric_states.get(id(variable))
        if before is None or id(variable) not in whole.states:
            return True
        if not np.isfinite(before).all():  # the start of a minimum
            return False
        grown, *of_parts = (each.states[id(variable)] - before for each in (whole, *parts))
        return self.are_near([np.sum(of_parts, axis=0)], [grown])

    @property
    def _fractions(self) -> list[float]:
        return [len(part) / len(self.whole) for part in self.parts]

    def _note(self, outcome: _Outcome, variable: keras.Variable) -> None:
        outcome.assigned[id(variable)] = variable
        self._variables[id(variable)] = variable


class _Exchange:
    """The sums over parts, each of which runs in a thread."""

    def __init__(self, parts: int) -> None:
        self.barrier = threading.Barrier(parts, timeout=_EXCHANGE_TIMEOUT_S)
        self.values: list[Any] = [None] * parts

    def part(self, index: int) -> _Part:
        """Returns the part that a thread computes."""
        return _Part(self, index)


@dataclasses.dataclass(frozen=True)
class _Part:
    exchange: _Exchange
    index: int

    def sum(self, values: Any) -> Any:
        """Returns the sum of the values that all parts give at the same point of the step."""
        exchange = self.exchange
        exchange.values[self.index] = values
        exchange.barrier.wait()
        total = tf.nest.map_structure(lambda *each: tf.add_n([*each]), *exchange.values)
        exchange.barrier.wait()
        return total


def make_variables(model: keras.Model, step: Callable[[Any], Any], batch: Any) -> Any:
    """Runs a step only to create the variables that its first run creates.

    Keras creates them where the step is traced, which several replicas can't do.

    Args:
        model: a compiled model; existing variables stay as they are.
        step: ``model.train_step`` or ``model.test_step``.
        batch: a few examples, as the step takes them.

    Returns:
        What the step returned.
    """
    strategy = model.distribute_strategy
    policy = keras.config.dtype_policy()
    is_inside = False

    @contextlib.contextmanager
    def scope() -> Iterator[None]:
        nonlocal is_inside
        is_inside = True
        try:
            with strategy.scope():
                yield
        finally:
            is_inside = False

    def in_scope(create: Callable[..., Any], **options: Any) -> Any:
        if is_inside:
            return create(**options)
        with scope():
            return tf.Variable(**{name: options[name] for name in _VARIABLE_OPTIONS})

    def build_optimizer(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
        if not optimizer.built:
            with scope():
                keras_private.move_into_scope(model, [optimizer])
                optimizer.build(variables)

    def run(_: int) -> Any:
        keras.config.set_dtype_policy(policy)
        if strategy is tf.distribute.get_strategy():
            return step(batch)
        with tf.variable_creator_scope(in_scope):
            return step(batch)

    with (
        _eagerly_and_quietly(),
        keras_private.seeds_drawn_from(tf.constant(0, tf.int64)),
        keras_private.reduced_first(build_optimizer),
        keras_private.assignments_left_out(),
    ):
        return _in_threads(run, 1, lambda: None)[0]


def is_metric_of_keras(metric: keras.metrics.Metric) -> bool:
    """Returns whether Keras wrote a metric's ``update_state``."""
    definer = next(each for each in type(metric).__mro__ if "update_state" in vars(each))
    return definer.__module__.startswith("keras.")


def _in_threads(run: Callable[[int], Any], count: int, abort: Callable[[], None]) -> list[Any]:
    """Returns the results of ``run(0)`` to ``run(count - 1)``, each in a thread of its own.

    A new thread is outside of any strategy's scope, and has thread-local states for itself.
    """
    results: list[Any] = [None] * count
    errors: list[Exception] = []

    def run_one(index: int) -> None:
        try:
            results[index] = run(index)
        except threading.BrokenBarrierError as error:
            errors.append(error)
        except Exception as error:
            errors.insert(0, error)
            abort()

    threads = [threading.Thread(target=run_one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@contextlib.contextmanager
def _eagerly_and_quietly() -> Iterator[None]:
    """Inside the block, functions decorated with ``tf.function`` run eagerly, and don't print."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with (
            keras_private.replaced(tf, "print", lambda *args, **options: None),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield
    finally:
        tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def _replicas_in_sync(count: int) -> Iterator[None]:
    """Inside the block, strategies and replicas' contexts have so many replicas."""
    name = "num_replicas_in_sync"
    with contextlib.ExitStack() as stack:
        for kind in (tf.distribute.Strategy, tf.distribute.ReplicaContext):
            definer = next(each for each in kind.__mro__ if name in vars(each))
            stack.enter_context(keras_private.replaced(definer, name, property(lambda _: count)))
        yield


@contextlib.contextmanager
def _normalized_without_statistics() -> Iterator[None]:
    """Inside the block, batch normalization does not depend on the batch.

    Each replica normalizes by its own share, as in Keras; the rehearsal is not about that.
    """
    call = keras.layers.BatchNormalization.call

    def inference(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return call(self, inputs, training=False, mask=mask)

    with keras_private.replaced(keras.layers.BatchNormalization, "call", inference):
        yield


def _beside(
    name: str, whole: _Outcome, parts: Sequence[_Outcome]
) -> Iterator[tuple[list[np.ndarray], list[list[np.ndarray]]]]:
    """Yields the arrays at each place of the whole batch's outcome beside those of the parts."""
    for place, arrays in enumerate(getattr(whole, name)):
        of_parts = [getattr(part, name) for part in parts]
        yield arrays, [each[place] if place < len(each) else [] for each in of_parts]


def _or_mean(rules: Sequence[Combination | None]) -> tuple[Combination, ...]:
    return tuple(rule or "mean" for rule in rules)


def _weighted_sums(parts: list[list[np.ndarray]], weights: list[float]) -> list[np.ndarray]:
    return [
        np.sum([weight * each for weight, each in zip(weights, column, strict=True)], axis=0)
        for column in zip(*parts, strict=True)
    ]


def _arrays(gradients: list[Any]) -> list[np.ndarray]:
    return [_array(tf.convert_to_tensor(each)) for each in gradients if each is not None]


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array if array.dtype == object else array.astype(np.float64)
