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
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer as TFTrainer
from keras.src.losses import loss as loss_module
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.trainers import compile_utils
from tensorflow.python.distribute.values import DistributedVariable

from tfdp.step.all_reduce import all_reduce_sum
from tfdp.step.share import Share

Gradients = list[Any]  # tensors, IndexedSlices or None

NOTES = {
    "denominator": (
        "a loss divides by a number that depends on the data (a mask, or mean_with_sample_weight), "
        "and gradients are accumulated: each micro-batch divides by its own number, so the sum "
        "differs slightly from that of the undivided batch"
    ),
}


def build(model: keras.Model, batch_spec: Any, has_labels: bool = True) -> None:
    """Creates all variables of a compiled model, its metrics and its optimizer.

    Relies on ``Trainer._symbolic_build(data_batch=…)``. ``Model.fit`` calls it through a function
    that fails under MultiWorkerMirroredStrategy; this one calls it directly. Also on
    ``Trainer._compile_loss`` being kept by a ``compile`` without a loss: it can't be computed
    without labels, and is dropped then.

    Args:
        model: a model that was compiled in its strategy's scope.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
        has_labels: whether a batch has ``y``.
    """
    if not has_labels and compilation(model).config.get("loss") is None:
        model._compile_loss = None
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch_spec)


def layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model and all layers in it, at any depth, outer ones first.

    Relies on ``Layer._flatten_layers``.
    """
    return list(model._flatten_layers())


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


@contextlib.contextmanager
def reduced_first(
    reduce: Callable[[Any, Gradients, list[Any]], Gradients | None],
) -> Iterator[None]:
    """Inside the block, an optimizer starts with ``reduce(optimizer, gradients, variables)``.

    Keras clips, checks and unscales a replica's own gradients and only then sums them over the
    replicas. That is another computation than on one replica. Here ``apply`` works on gradients
    that ``reduce`` has summed, and Keras's own reduction does nothing. If ``reduce`` returns None,
    nothing is applied. This includes ``apply`` and ``apply_gradients`` of users' optimizers, which
    may clip before they call Keras's.

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
            variables = trainable_variables
            variables = list(self._trainable_variables if variables is None else variables)
            reduced = reduce(self, list(grads), variables)
            if reduced is not None:
                as_inside(apply)(self, reduced, trainable_variables)

        return wrapper

    def reducing_pairs(apply_gradients: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, grads_and_vars: Any, *args: Any, **options: Any) -> Any:
            gradients, variables = zip(*grads_and_vars, strict=True)
            reduced = reduce(self, list(gradients), list(variables))
            if reduced is not None:
                pairs = list(zip(reduced, variables, strict=True))
                as_inside(apply_gradients)(self, pairs, *args, **options)

        return wrapper

    def as_inside(apply: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            inside.apply = True
            try:
                return apply(*args, **options)
            finally:
                inside.apply = False

        return wrapper

    finish = "_stateful_handle_finite_grads"  # in a new thread on several replicas
    with contextlib.ExitStack() as stack:
        for optimizer in _with_subclasses(BaseOptimizer):
            if "apply" in vars(optimizer):
                stack.enter_context(replaced(optimizer, "apply", reducing(optimizer.apply)))
            if "apply_gradients" in vars(optimizer) and optimizer is not BaseOptimizer:
                wrapper = reducing_pairs(optimizer.apply_gradients)
                stack.enter_context(replaced(optimizer, "apply_gradients", wrapper))
            if finish in vars(optimizer):
                wrapper = as_inside(getattr(optimizer, finish))
                stack.enter_context(replaced(optimizer, finish, wrapper))
        stack.enter_context(
            replaced(TFOptimizer, "_all_reduce_sum_gradients", lambda _, pairs: list(pairs))
        )
        yield


def _with_subclasses(kind: Any) -> set[Any]:
    return {kind}.union(*(_with_subclasses(each) for each in kind.__subclasses__()))


@contextlib.contextmanager
def losses_of_shares(
    share: Callable[[], Share], term: Callable[[Any, Any], Any], note: Callable[[str], Any]
) -> Iterator[None]:
    """Inside the block, replicas' losses are means whose weights are their fractions of examples.

    Keras divides a mean loss by the number of replicas. That is right if all replicas have equally
    many examples, and the loss averages over examples only: not over the valid positions of a mask,
    nor over sample weights. Here a mean is left as it is, for ``Share.contribution`` to weight;
    other losses are such that the same weights make them right. Denominators that depend on the
    data are summed over all replicas. So a loss of Keras and a mean of the user's own may be added.

    Relies on ``keras.src.losses.loss``: every mean passes ``scale_loss_for_distribution``, every
    compiled loss passes ``reduce_values``, every mask passes ``apply_mask``, and trackers get the
    result of ``unscale_loss_for_distribution``. Also on ``Trainer._aggregate_additional_loss``
    getting each value of ``add_loss``.

    Args:
        share: returns the share of the replica that is being traced.
        term: converts a loss that may be a mean or a sum: a number that a loss function returns for
            the whole batch (then the second argument is None), or the sum of a value of
            ``add_loss`` (the second argument).
        note: called with a key of ``NOTES``.
    """
    apply_mask, reduce_values = loss_module.apply_mask, loss_module.reduce_values
    aggregate = TFTrainer._aggregate_additional_loss
    means = ("mean", "sum_over_batch_size", "mean_with_sample_weight")

    def masked(sample_weight: Any, mask: Any, dtype: Any, reduction: Any) -> Any:
        if mask is None or reduction not in means[:2]:
            return apply_mask(sample_weight, mask, dtype, reduction)
        note("denominator")
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
        own = share()
        if reduction in (None, "none"):
            return values
        if tuple(values.shape) == ():
            return term(values, None)
        if reduction == means[2] and sample_weight is not None:
            note("denominator")
            weight = all_reduce_sum(own.zero_if_empty(tf.reduce_sum(sample_weight)))
            mean = tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(weight, values.dtype))
            return own.as_mean(mean, "sum")
        reduced_values = reduce_values(values, sample_weight, reduction)
        return reduced_values if reduction in means else own.as_mean(reduced_values, "sum")

    def aggregated(self: Any, loss: Any) -> Any:
        return term(aggregate(self, loss), loss)

    def unchanged(value: Any) -> Any:
        return value

    with contextlib.ExitStack() as stack:
        for name, value in (
            ("scale_loss_for_distribution", unchanged),
            ("unscale_loss_for_distribution", unchanged),
            ("apply_mask", masked),
            ("reduce_values", reduced),
        ):
            stack.enter_context(replaced(loss_module, name, value))
        stack.enter_context(replaced(TFTrainer, "_aggregate_additional_loss", aggregated))
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
def assignments_aside(of_thread: Callable[[], dict[int, Any]]) -> Iterator[None]:
    """Inside the block, values that are assigned to Keras variables are kept elsewhere.

    Variables keep theirs; reading one gives what was kept, if anything was.
    ``keras.StatelessScope`` does that for all variables or none: it loses weights' regularizers.

    Relies on ``Variable.assign`` and ``value``, ``_convert_to_tensor`` and ``_maybe_autocast``.

    Args:
        of_thread: returns the values that this thread keeps, by variables' ids.
    """
    value = KerasVariable.value

    def assign(self: keras.Variable, given: Any) -> Any:
        tensor = self._convert_to_tensor(given, dtype=self._dtype)
        if not self.shape.is_compatible_with(tensor.shape):
            raise ValueError(f"{self.path} has shape {self.shape} and is assigned {tensor.shape}")
        of_thread()[id(self)] = tensor
        return tensor

    def current(self: keras.Variable) -> Any:
        kept = of_thread().get(id(self))
        return value.fget(self) if kept is None else self._maybe_autocast(kept)

    with (
        replaced(KerasVariable, "assign", assign),
        replaced(KerasVariable, "value", property(current)),
    ):
        yield


@contextlib.contextmanager
def losses_by_thread(note: Callable[[keras.Layer, Any], Any]) -> Iterator[None]:
    """Inside the block, each thread has values of ``add_loss`` of its own.

    Relies on ``Layer._get_own_losses`` and ``Layer._clear_losses`` being all that reads and clears
    them, and on ``Layer._layers``.

    Args:
        note: called with each layer and value.
    """
    of_thread = threading.local()

    def kept() -> dict[int, list[Any]]:
        if not hasattr(of_thread, "losses"):
            of_thread.losses = {}
        return of_thread.losses  # type: ignore[no-any-return]

    def add_loss(self: keras.Layer, loss: Any) -> None:
        for each in tf.nest.flatten(loss):
            kept().setdefault(id(self), []).append(each)
            note(self, each)

    def clear(self: keras.Layer) -> None:
        kept().pop(id(self), None)
        for layer in self._layers:
            clear(layer)

    with (
        replaced(keras.Layer, "add_loss", add_loss),
        replaced(keras.Layer, "_get_own_losses", lambda self: list(kept().get(id(self), ()))),
        replaced(keras.Layer, "_clear_losses", clear),
    ):
        yield


@contextlib.contextmanager
def assignments_left_out() -> Iterator[None]:
    """Inside the block, assigning to a Keras variable has no effect; see ``assignments_noted``."""
    with replaced(KerasVariable, "assign", lambda self, value: value):
        yield


@contextlib.contextmanager
def means_of_scalars(convert: Callable[[Any, Any], tuple[Any, Any]]) -> Iterator[None]:
    """Inside the block, single numbers given to ``keras.metrics.Mean`` pass ``convert``.

    Keras counts such a number as one, as it is one for each batch. On several replicas, each has a
    number of its own.

    Relies on subclasses of ``Mean`` calling its ``update_state``.

    Args:
        convert: returns the number to add and its weight, for a metric and a number.
    """
    update_state = keras.metrics.Mean.update_state

    def converting(self: keras.metrics.Mean, values: Any, sample_weight: Any = None) -> Any:
        values = tf.convert_to_tensor(values)
        if sample_weight is None and values.shape.rank == 0:
            values, sample_weight = convert(self, tf.cast(values, self.dtype))
        return update_state(self, values, sample_weight)

    with replaced(keras.metrics.Mean, "update_state", converting):
        yield


@contextlib.contextmanager
def seeds_drawn_from(step: tf.Tensor, local_replicas: int | None = None) -> Iterator[None]:
    """Inside the block, random layers draw from (their own seed, ``step``, replica).

    Keras counts draws in a variable. All replicas advance it equally, so they would drop the same
    units, and a checkpoint would have to contain it. A function of the step avoids both.

    Relies on every random layer calling ``SeedGenerator.next``, and on the first word of its
    ``state`` being the seed, which drawing does not change.

    Args:
        step: int64 scalar, number of earlier updates.
        local_replicas: number of replicas of each worker, if a worker computes alone: all workers
            then draw alike. None if they compute together.
    """
    draws: Counter[tuple[int, int]] = Counter()

    def next_seed(self: keras.random.SeedGenerator, ordered: bool = True) -> tf.Tensor:
        draw = (threading.get_ident(), id(self))  # MirroredStrategy has a thread for each replica
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        if local_replicas is not None:
            replica = replica % local_replicas
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
