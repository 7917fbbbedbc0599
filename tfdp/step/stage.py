"""Runs of a user's step on a few examples, without any effect on the model.

``Stage.run`` runs it on parts of a batch, as replicas do, and returns all that the parts computed.
The parts run in this process, in a thread each, outside of the model's strategy. So a run needs no
other worker.
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
from tfdp.step import all_gather, all_reduce, keras_private, metrics, random_draws, tapes
from tfdp.step import share as share_module
from tfdp.step.rules import Rules
from tfdp.step.share import Share

_PARTS = (7, 5)  # examples; numbers that are unlikely as the size of anything else
EXAMPLES = sum(_PARTS)
_EXCHANGE_TIMEOUT_S = 60.0  # for the other part to reach the same point

States = dict[int, np.ndarray]  # values of variables, by their ids


@dataclasses.dataclass
class Outcome:
    """What a run of a step computed: arrays, by place or by name.

    Attributes:
        updates: gradients that each call of an optimizer got.
        optimizers: names of these optimizers.
        tapes: gradients with respect to variables that each tape computed, not weighted.
        gets_tapes: whether optimizers got a tape's gradients as they were.
        gathers: whether rows of the whole batch were gathered.
        terms: values of ``add_loss``, and loss functions' numbers for a whole batch.
        term_names: what these are, for people.
        scalars: numbers that ``keras.metrics.Mean`` was updated with.
        scalar_names: names of these metrics.
        assigned: variables that were assigned, by id.
        states: their values.
        logs: numbers that the step returned, metrics' results aside.
    """

    updates: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    optimizers: list[str] = dataclasses.field(default_factory=list)
    tapes: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    gets_tapes: bool = True
    gathers: bool = False
    terms: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    term_names: list[str] = dataclasses.field(default_factory=list)
    scalars: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    scalar_names: list[str] = dataclasses.field(default_factory=list)
    assigned: dict[int, keras.Variable] = dataclasses.field(default_factory=dict)
    states: States = dataclasses.field(default_factory=dict)
    logs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Stage:
    """A batch of a few examples, to run a step on.

    Args:
        model: a built and compiled model; its metrics are reset.
        step: ``model.train_step`` or ``model.test_step``.
        batch: 2 or more examples, as the step takes them; ``EXAMPLES`` are best.

    Attributes:
        whole: the rows of the batch.
        parts: the rows of two parts of it, of unequal sizes if possible.
        metric_states: what metrics' variables start with.
        states: what other variables start with that a step has assigned; others have their values.
    """

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
        self._variables: dict[int, keras.Variable] = {
            id(variable): variable for variable in metrics.metric_variables(model)
        }
        self.metric_states = {key: self.value_of(each) for key, each in self._variables.items()}
        self.states: States = {}

    def value_of(self, variable: keras.Variable) -> np.ndarray:
        """Returns a variable's value on this worker; any other way to read may be a collective."""
        strategy = self._model.distribute_strategy
        return as_array(strategy.experimental_local_results(variable.value)[0])

    def cut_otherwise(self) -> None:
        """Makes the first part as large as the second was, and the second as the first."""
        cut = len(self.parts[1])
        self.parts = [range(cut), range(cut, len(self.whole))]

    def states_of(self, outcome: Outcome) -> States:
        """Returns what a step assigned to variables, those of metrics aside."""
        return {key: each for key, each in outcome.states.items() if key not in self.metric_states}

    def run(self, parts: Sequence[range], rules: Rules | None = None) -> list[Outcome]:
        """Returns the outcome of each part; the parts run at the same time."""
        rules = rules or Rules()
        local = threading.local()
        exchange = _Exchange(len(parts))
        policy = keras.config.dtype_policy()
        states = {
            key: tf.convert_to_tensor(value, self._variables[key].dtype)
            for key, value in (self.metric_states | self.states).items()
        }

        def run_part(index: int) -> Outcome:
            local.rows, local.outcome, local.of_tapes = parts[index], Outcome(), []
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
            outcome: Outcome = local.outcome
            # Updates by hand use gradients otherwise than by adding them up.
            outcome.gets_tapes &= not any(each.trainable for each in outcome.assigned.values())
            outcome.states = {key: as_array(local.values[key]) for key in outcome.assigned}
            for name, value in logs.items() if isinstance(logs, Mapping) else ():
                is_number = not isinstance(value, Mapping) and np.ndim(value) == 0
                if is_number and id(value) not in results:
                    outcome.logs[name] = as_array(value)
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
            local.outcome.terms.append([as_array(value)])
            local.outcome.term_names.append(names.get(id(given), "the loss function"))
            return local.share.as_mean(value, rules.term(place))

        def keep_scalar(metric: keras.metrics.Metric, value: Any) -> tuple[Any, Any]:
            local.outcome.scalars.append([as_array(value)])
            local.outcome.scalar_names.append(metric.name)
            return value, local.share.contribution(tf.ones_like(value))

        def keep_gather() -> None:
            local.outcome.gathers = True

        def keep_result(metric: keras.metrics.Metric, result: Any) -> None:
            for each in result.values() if isinstance(result, dict) else (result,):
                results[id(each)] = each

        names: dict[int, str] = {}  # of loss terms, by the tensor's id
        results: dict[int, Any] = {}  # of metrics, by the tensor's id

        with (
            eagerly_and_quietly(),
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
            all_gather.noted(keep_gather),
            _normalized_without_statistics(),
        ):
            return in_threads(run_part, len(parts), exchange.barrier.abort)

    def _note(self, outcome: Outcome, variable: keras.Variable) -> None:
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


def in_threads(run: Callable[[int], Any], count: int, abort: Callable[[], None]) -> list[Any]:
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
def eagerly_and_quietly() -> Iterator[None]:
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


@contextlib.contextmanager
def values_kept(model: keras.Model) -> Iterator[list[str]]:
    """After the block, variables that it assigned past Keras have their values again.

    Those are ``tf.Variable`` attributes of layers, and Keras variables' ``value``.

    Yields:
        A list that gets the names of these Keras variables after the block.
    """
    local = model.distribute_strategy.experimental_local_results
    of_keras = {each.path: each.value for each in model.non_trainable_weights}
    of_layers = {
        f"{layer.name}.{name}": each
        for layer in keras_private.layers(model)
        for name, each in vars(layer).items()
        if isinstance(each, tf.Variable)
    }
    variables = of_keras | of_layers
    before = {name: local(each)[0].numpy() for name, each in variables.items()}
    assigned: list[str] = []
    try:
        yield assigned
    finally:
        for name, each in variables.items():
            if not np.array_equal(local(each)[0].numpy(), before[name]):
                each.assign(before[name])
                assigned += [name] if name in of_keras else []


def _arrays(gradients: list[Any]) -> list[np.ndarray]:
    return [as_array(tf.convert_to_tensor(each)) for each in gradients if each is not None]


def as_array(value: Any) -> np.ndarray:
    """Returns a number or tensor as float64, in which whole numbers are exact."""
    array = np.asarray(value)
    return array if array.dtype == object else array.astype(np.float64)
