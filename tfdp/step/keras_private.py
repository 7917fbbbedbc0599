"""The one file that uses private names of Keras. Tested with Keras 3.15.

Keras 3 has no public way to (1) create a compiled model's metric and optimizer variables without
training, (2) give an optimizer gradients that are already summed over the replicas, (3) make a
replica's loss a share of the global batch's loss, (4) decide outside of a replica whether an
optimizer's periodic work is due, (5) find the statistics that layers update, (6) choose the
seeds of random layers, or (7) move a model's variables into a strategy's scope or out of it. Each
function below lists the names that it relies on;
``tests/tfdp/step/test_keras_private.py`` fails if a version of Keras moves one.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.variables import Variable as KerasVariable
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.losses import loss as loss_module
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.trainers import compile_utils
from tensorflow.python.distribute.values import DistributedVariable

from tfdp.log import say_on_chief
from tfdp.step.all_reduce import all_reduce_sum
from tfdp.step.share import Share

Gradients = list[Any]  # tensors, IndexedSlices or None

_NOTES = {
    "denominator": (
        "a loss divides by a number that depends on the data (a mask, or mean_with_sample_weight), "
        "and gradients are accumulated: each micro-batch divides by its own number, so the sum "
        "differs slightly from that of the undivided batch"
    ),
    "scalar": (
        "a loss function returns one number for the whole batch, not one for each example: on "
        "several replicas it is treated as a mean over the examples, and is wrong if it isn't one"
    ),
    "unknown": (
        "train_step uses no loss of Keras (self.compute_loss, or an object of keras.losses): on "
        "several replicas its gradients are treated as those of a mean over the examples, and are "
        "wrong if they aren't"
    ),
}


def build(model: keras.Model, batch_spec: Any) -> None:
    """Creates all variables of a compiled model, its metrics and its optimizer.

    Relies on ``Trainer._symbolic_build(data_batch=…)``. ``Model.fit`` calls it through a function
    that fails under MultiWorkerMirroredStrategy; this one calls it directly.

    Args:
        model: a model that was compiled in its strategy's scope.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch_spec)


def compilation(model: keras.Model) -> Any:
    """Returns an object that each ``compile`` creates; None before the first.

    Relies on ``Trainer._compile_config``. The public ``metrics`` won't do: a model may override it,
    and a loss of None keeps the earlier one.
    """
    return getattr(model, "_compile_config", None)


def is_built(model: keras.Model) -> bool:
    """Returns whether a compiled model has its weights and the variables of losses and metrics.

    Relies on ``Trainer._compile_metrics`` and ``Trainer._compile_loss``.
    """
    parts = (model, model._compile_metrics, model._compile_loss)
    return all(part.built for part in parts if part is not None)


def move_into_scope(model: keras.Model, optimizers: Iterable[Any]) -> None:
    """Moves variables that were made outside of the strategy's scope into it, in place.

    That is: of a ``compile`` outside of the scope, or of single layers. Without it, replicas could
    not sum metrics, and an optimizer would apply to one replica. Call it before ``build``, and once
    more after it, which completes the list of metrics. Where there is something to move, it is a
    collective; all workers get the chief's values.

    Relies on ``TFOptimizer._distribution_strategy``, and on ``Variable._initialize`` making the
    variable of TensorFlow as it does for a new ``keras.Variable``.
    """
    strategy = model.distribute_strategy
    if strategy is not model._distribute_strategy:
        return  # the model belongs to no scope
    variables = [variable for metric in model.metrics for variable in metric.variables]
    variables += model.variables
    for optimizer in optimizers:
        for each in {id(each): each for each in (optimizer, _inner(optimizer))}.values():
            each._distribution_strategy = strategy
            variables += each.variables
    with strategy.scope():
        for variable in variables:
            if not strategy.extended.variable_created_in_scope(variable.value):
                variable._initialize(variable.numpy())


@contextlib.contextmanager
def on_this_worker(model: keras.Model) -> Iterator[None]:
    """Inside the block, a model of a strategy is one of this process alone.

    Its variables are those of this worker's first replica, without the strategy. So Keras computes
    what it computes in one process, and needs no other worker. Afterwards, the metrics have the
    states of before.

    A new ``compile`` may precede the functions that build its metrics, in the scope; until then it
    is evaluated with metrics that are made anew for each call.

    Relies on ``Variable._value``, on ``TensorFlowTrainer._distribute_strategy``, and on the names
    of the functions that a model caches; those for one process are kept until the next ``compile``.
    """
    strategy = model.distribute_strategy
    metrics = [*model.metrics, *_given_metrics(model)]
    of_metrics = {id(each): each for metric in metrics for each in metric.variables}
    variables = of_metrics | {id(each): each for each in model.variables}
    kept = vars(model).setdefault("tfdp.on_this_worker", {})
    if kept.get("of") is not compilation(model) or not is_built(model):
        kept.clear()
        kept["of"] = compilation(model)
    with contextlib.ExitStack() as stack:
        for variable in variables.values():
            own = strategy.experimental_local_results(variable._value)[0]
            stack.enter_context(replaced(variable, "_value", own))
        for variable in of_metrics.values():
            stack.callback(variable.assign, variable.numpy())
        stack.enter_context(replaced(model, "_distribute_strategy", None))
        if not is_built(model):
            stack.callback(kept.clear)
            stack.enter_context(_with_metrics_anew(model))
        for name in ("test_function", "predict_function"):
            stack.enter_context(replaced(model, name, kept.get(name)))
            stack.callback(_keep, kept, model, name)
        yield


def _given_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the metrics among the arguments of ``compile``.

    Relies on ``Trainer._compile_config``, which holds the arguments.
    """
    arguments = getattr(compilation(model), "config", {})
    given = [arguments.get("metrics"), arguments.get("weighted_metrics")]
    return [each for each in keras.tree.flatten(given) if isinstance(each, keras.metrics.Metric)]


@contextlib.contextmanager
def _with_metrics_anew(model: keras.Model) -> Iterator[None]:
    """Inside the block, a model has other objects for losses and metrics, not built yet.

    Relies on ``CompileLoss`` and ``CompileMetrics``, which ``compile`` makes of its arguments.
    """
    arguments = getattr(compilation(model), "config", {})
    names = {"output_names": getattr(model, "output_names", None)}
    parts = {
        "_compile_loss": (compile_utils.CompileLoss, "loss", "loss_weights"),
        "_compile_metrics": (compile_utils.CompileMetrics, "metrics", "weighted_metrics"),
    }
    before = {name: vars(model)[name] for name in parts}
    for name, (kind, *of_compile) in parts.items():
        if before[name] is not None and not before[name].built:
            vars(model)[name] = kind(*(arguments[each] for each in of_compile), **names)
    try:
        yield
    finally:
        vars(model).update(before)


def let_distributed_variables_be_numbers() -> None:
    """Makes ``float(…)`` and ``int(…)`` work for variables of a strategy, as for all others.

    Relies on ``DistributedVariable`` of TensorFlow, which lacks these two conversions of
    ``tf.Variable``, and on ``keras.Variable`` passing them on.
    """
    DistributedVariable.__float__ = lambda self: float(self.numpy())
    DistributedVariable.__int__ = lambda self: int(self.numpy())


def names_in_order(model: keras.Model, scores: dict[str, Any]) -> list[str]:
    """Returns the names of scores in the order of the list that ``Model.evaluate`` returns.

    Relies on ``Trainer._flatten_metrics_in_order``.
    """
    names = model._flatten_metrics_in_order({name: name for name in scores})
    return [names] if isinstance(names, str) else list(names)


def asks_for_xla(model: keras.Model) -> bool:
    """Returns whether ``compile`` got ``jit_compile=True`` where ``"auto"`` would mean False.

    Relies on ``Trainer._resolve_auto_jit_compile``.
    """
    return bool(model.jit_compile) and not model._resolve_auto_jit_compile()


def restored_epoch(model: keras.Model, backup: keras.callbacks.BackupAndRestore) -> int | None:
    """Restores a model, and returns the epoch to go on with; None if nothing is saved.

    Relies on ``Trainer._initial_epoch``, by which the callback passes the epoch on. It is reset, or
    every later ``fit`` would begin there, too.
    """
    backup.set_model(model)
    backup.on_train_begin()
    epoch, model._initial_epoch = model._initial_epoch, None
    return epoch  # type: ignore[no-any-return]


def trainable_of_layers(model: keras.Model) -> list[tuple[keras.Layer, bool]]:
    """Returns every layer of a model, outer ones first, and whether it is trainable.

    Relies on ``Layer._flatten_layers``.
    """
    return [(layer, layer.trainable) for layer in model._flatten_layers()]


@contextlib.contextmanager
def reduced_first(reduce: Callable[[Gradients], Gradients | None]) -> Iterator[None]:
    """Inside the block, ``optimizer.apply`` starts with ``reduce(gradients)``.

    Keras clips, checks and unscales a replica's own gradients and only then sums them over the
    replicas. That is another computation than on one replica. Here ``apply`` works on gradients
    that ``reduce`` has summed, and Keras's own reduction does nothing. If ``reduce`` returns None,
    nothing is applied.

    Relies on ``apply`` of ``BaseOptimizer`` and ``LossScaleOptimizer`` being the outermost call
    that gets the gradients, on ``LossScaleOptimizer._stateful_handle_finite_grads`` calling the
    wrapped optimizer's ``apply``, and on ``TFOptimizer._all_reduce_sum_gradients`` being the only
    reduction.
    """
    inside = threading.local()  # MirroredStrategy traces each replica in a thread of its own

    def reducing(apply: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
            if getattr(inside, "apply", False):  # an optimizer that wraps another
                return apply(self, grads, trainable_variables)
            reduced = reduce(list(grads))
            if reduced is not None:
                as_inside(apply)(self, reduced, trainable_variables)

        return wrapper

    def as_inside(apply: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            inside.apply = True
            try:
                return apply(*args)
            finally:
                inside.apply = False

        return wrapper

    scaled = keras.optimizers.LossScaleOptimizer
    finish = "_stateful_handle_finite_grads"  # in a new thread on several replicas
    with contextlib.ExitStack() as stack:
        for optimizer in (BaseOptimizer, scaled):
            stack.enter_context(replaced(optimizer, "apply", reducing(optimizer.apply)))
        stack.enter_context(replaced(scaled, finish, as_inside(getattr(scaled, finish))))
        stack.enter_context(
            replaced(TFOptimizer, "_all_reduce_sum_gradients", lambda _, pairs: list(pairs))
        )
        yield


def loss_trackers(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the metrics that track the losses of single outputs of a model with several.

    Relies on ``CompileLoss.metrics``.
    """
    return list(getattr(model._compile_loss, "metrics", ()))


class TracedLosses:
    """Notes about a model's losses, made while a step is traced; equal on all replicas.

    Attributes:
        are_shares: whether Keras computed the loss, so that it is a share of the global batch's.
    """

    def __init__(self) -> None:
        self.are_shares = False
        self._notes: set[str] = set()
        self._reported: set[str] = set()

    def note(self, kind: str) -> None:
        """Notes a warning for people: a key of ``_NOTES``."""
        self._notes.add(kind)

    def report(self, accumulates: bool) -> None:
        """Prints each noted warning once."""
        if not self.are_shares:
            self._notes.add("unknown")
        if not accumulates:
            self._notes.discard("denominator")
        for kind in sorted(self._notes - self._reported):
            say_on_chief(_NOTES[kind])
            self._reported.add(kind)


@contextlib.contextmanager
def losses_as_shares(losses: TracedLosses, share: Callable[[], Share]) -> Iterator[None]:
    """Inside the block, a replica's losses are its share of the global batch's losses.

    Keras divides a mean loss by the number of replicas. That is right if all replicas have equally
    many examples, and the loss averages over examples only: not over the valid positions of a mask,
    nor over sample weights. Here a mean is weighted by the replica's fraction of the examples, and
    those denominators are summed over all replicas.

    Relies on ``keras.src.losses.loss``: every mean passes ``scale_loss_for_distribution``, every
    compiled loss passes ``reduce_values``, and every mask passes ``apply_mask``. Also on trackers
    getting the result of ``unscale_loss_for_distribution``: from the trainer for the whole loss,
    weighted by examples, and from ``CompileLoss`` for the loss of each output, not weighted.

    Args:
        losses: receives notes.
        share: returns the share of the replica that is being traced.
    """
    apply_mask, reduce_values = loss_module.apply_mask, loss_module.reduce_values
    means = ("mean", "sum_over_batch_size", "mean_with_sample_weight")

    def scale(value: Any) -> Any:
        losses.are_shares = True
        return share().scale_mean(value)

    def unscale(value: Any) -> Any:
        return share().unscale_mean(value) if losses.are_shares else value

    def unscale_of_output(value: Any) -> Any:
        return value * tf.cast(share().shares, value.dtype)

    def masked(sample_weight: Any, mask: Any, dtype: Any, reduction: Any) -> Any:
        if mask is None or reduction not in means[:2]:
            return apply_mask(sample_weight, mask, dtype, reduction)
        losses.note("denominator")
        # Keras multiplies valid positions by positions / valid positions of one replica; here both
        # are counted over all replicas.
        valid = tf.cast(mask, tf.float32 if dtype != "float64" else tf.float64)
        of_all = all_reduce_sum(
            share().zero_if_empty(
                tf.stack([tf.cast(tf.size(valid), valid.dtype), tf.reduce_sum(valid)])
            )
        )
        weights = apply_mask(sample_weight, mask, dtype, "sum")
        return weights * tf.cast(tf.math.divide_no_nan(of_all[0], of_all[1]), weights.dtype)

    def reduced(values: Any, sample_weight: Any = None, reduction: Any = means[1]) -> Any:
        losses.are_shares = True
        own = share()
        values = own.zero_if_empty(values)
        if tuple(values.shape) == () and reduction in means:
            losses.note("scalar")
            return own.scale_mean(values)
        if reduction == means[2] and sample_weight is not None:
            losses.note("denominator")
            weight = all_reduce_sum(own.zero_if_empty(tf.reduce_sum(sample_weight)))
            return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(weight, values.dtype))
        return reduce_values(values, sample_weight, reduction)

    class OfOutputs:
        unscale_loss_for_distribution = staticmethod(unscale_of_output)

    with contextlib.ExitStack() as stack:
        for name, value in (
            ("scale_loss_for_distribution", scale),
            ("unscale_loss_for_distribution", unscale),
            ("apply_mask", masked),
            ("reduce_values", reduced),
        ):
            stack.enter_context(replaced(loss_module, name, value))
        stack.enter_context(replaced(compile_utils, "loss_module", OfOutputs))
        yield


def periods(optimizer: Any) -> tuple[int, int]:
    """Returns the numbers of calls per update, and of updates per overwrite of weights (0: never).

    The second number is ``ema_overwrite_frequency``. An optimizer that neither accumulates
    gradients nor overwrites weights gives (1, 0).
    """
    optimizer = _inner(optimizer)
    overwrites = getattr(optimizer, "use_ema", False) and optimizer.ema_overwrite_frequency
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1, overwrites or 0


def batches_seen(optimizer: Any) -> int:
    """Returns how many batches an optimizer has seen; 0 without an optimizer.

    Relies on ``BaseOptimizer._iterations``: the public count is that of updates.
    """
    counter = getattr(_inner(optimizer), "_iterations", None)
    return 0 if counter is None else int(counter.numpy())


def due(optimizer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether an optimizer's next call updates, and whether it then overwrites weights.

    Relies on ``BaseOptimizer._iterations``, the count of calls; the public one counts updates.
    """
    update_every, overwrite_every = periods(optimizer)
    optimizer = _inner(optimizer)
    calls = tf.cast(optimizer._iterations.value, tf.int64)
    updates = tf.cast(optimizer.iterations, tf.int64)
    return (calls + 1) % update_every == 0, (updates + 1) % max(1, overwrite_every) == 0


@contextlib.contextmanager
def periods_decided(is_update: bool, overwrites: bool) -> Iterator[None]:
    """Inside the block, an optimizer does or omits its periodic work without a branch in the graph.

    Keras branches within a replica, where replicas can't all-reduce.

    Relies on ``BaseOptimizer._backend_apply_gradients``, whose parts are called here in its order.

    Args:
        is_update: whether gradients that ``gradient_accumulation_steps`` accumulated are applied.
        overwrites: whether averages overwrite the weights (``ema_overwrite_frequency``).
    """
    together = tf.__internal__.distribute.interim.maybe_merge_call

    def decided(self: Any, grads: Any, trainable_variables: Any) -> None:
        steps, strategy = self.gradient_accumulation_steps, self._distribution_strategy
        accumulated = [
            self._accumulated_gradients[self._get_variable_index(variable)]
            for variable in (trainable_variables if steps else ())
        ]
        if is_update:
            if steps:
                grads = [(g + a) / steps for g, a in zip(grads, accumulated, strict=True)]
            grads = self._clip_gradients(grads)
            self._apply_weight_decay(trainable_variables)
            self._backend_update_step(grads, trainable_variables, self.learning_rate)
            together(_zero, strategy, [each.value for each in accumulated])
        else:
            self._backend_increment_gradient_accumulators(grads, accumulated)
        if self.use_ema:
            self._update_model_variables_moving_average(self._trainable_variables)
        if overwrites:
            together(
                lambda _, weights: self._overwrite_model_variables_with_average_value(weights),
                strategy,
                self._trainable_variables,
            )

    with replaced(BaseOptimizer, "_backend_apply_gradients", decided):
        yield


@contextlib.contextmanager
def assignments_noted(note: Callable[[keras.Variable], Any]) -> Iterator[None]:
    """Inside the block, ``note`` is called with every Keras variable that is assigned.

    Relies on layers calling ``Variable.assign``, also by way of ``assign_add``.
    """
    assign = KerasVariable.assign

    def noting(self: keras.Variable, value: Any) -> Any:
        note(self)
        return assign(self, value)

    with replaced(KerasVariable, "assign", noting):
        yield


@contextlib.contextmanager
def seeds_drawn_from(step: tf.Tensor) -> Iterator[None]:
    """Inside the block, random layers draw from (their own seed, ``step``, replica).

    Keras counts draws in a variable. All replicas advance it equally, so they would drop the same
    units, and a checkpoint would have to contain it. A function of the step avoids both.

    Relies on every random layer calling ``SeedGenerator.next``, and on the first word of its
    ``state`` being the seed, which drawing does not change.

    Args:
        step: int64 scalar, number of earlier updates.
    """
    draws: Counter[tuple[int, int]] = Counter()

    def next_seed(self: keras.random.SeedGenerator, ordered: bool = True) -> tf.Tensor:
        draw = (threading.get_ident(), id(self))  # MirroredStrategy has a thread for each replica
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.stack([tf.cast(self.state.value[0], tf.int32), draws[draw]])
        for number in (tf.cast(step, tf.int32), tf.cast(replica, tf.int32)):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        draws[draw] += 1
        return tf.cast(seed, self.state.dtype)

    with replaced(keras.random.SeedGenerator, "next", next_seed):
        yield


def _keep(kept: dict[str, Any], model: keras.Model, name: str) -> None:
    kept[name] = getattr(model, name)


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _assign_zeros(variable: tf.Variable) -> None:
    variable.assign(tf.zeros_like(variable))


def _zero(distribution: tf.distribute.Strategy, variables: list[tf.Variable]) -> None:
    for variable in variables:
        distribution.extended.update(variable, _assign_zeros, group=False)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block, ``owner`` has another attribute of this name."""
    original = vars(owner)[name]  # a KeyError here: Keras has moved it
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
