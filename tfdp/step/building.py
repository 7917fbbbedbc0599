"""Creating the variables of a model, its metrics and its optimizers before the first step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data.replica_batch import count_rows
from tfdp.errors import BadInput, reason_of
from tfdp.step import keras_private
from tfdp.step.optimizers import optimizers
from tfdp.step.per_compile import keep, kept
from tfdp.step.stage import EXAMPLES, eagerly_and_quietly, in_threads, values_kept

_VARIABLE_OPTIONS = (
    *("initial_value", "trainable", "dtype", "name"),
    *("synchronization", "aggregation", "shape"),
)


def build(
    model: keras.Model,
    batch_spec: Any,
    *,
    step: str = "train_step",
    sample: Callable[[], Any] | None = None,
    share: Callable[[], Any] | None = None,
) -> None:
    """Creates all variables that a step needs, of the model, its metrics and its optimizers.

    Those that were made outside of the strategy's scope are moved into it. Where there is something
    to create or move, it is a collective.

    If the model has a step of its own, that step is run on a few examples, because nothing else
    shows which layers and optimizers it uses; a ``call`` may be missing, or be for other inputs.

    Args:
        model: a compiled model.
        batch_spec: a batch as ``tf.TensorSpec``, batch dimension first.
        step: ``"train_step"`` or ``"test_step"``.
        sample: returns a few examples; by default they are made up from ``batch_spec``.
        share: returns what a replica gets of a batch, for a step that fails on a few examples.

    Raises:
        BadInput: if a step of the model's own fails on that too, on several replicas.
    """
    keras_private.move_into_scope(model, optimizers(model))
    if has_own_logs(model, step):
        _build_by_running(model, batch_spec, step, sample, share)
    else:
        has_labels = isinstance(batch_spec, tuple) and len(batch_spec) > 1
        keras_private.build(model, batch_spec, has_labels)
    keras_private.move_into_scope(model, optimizers(model))


def build_by_call(model: keras.Model, batch_spec: Any) -> None:
    """Builds a model that was not built yet, for prediction; it is a collective then.

    By its first share, the model would know that batch size.
    """
    if model.built or overrides(model, "predict_step"):
        return
    x = batch_spec[0] if isinstance(batch_spec, tuple) else batch_spec
    if not all(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(x)):
        return
    with model.distribute_strategy.scope():
        model(
            tf.nest.map_structure(
                lambda leaf: keras.KerasTensor([None, *leaf.shape[1:]], leaf.dtype.name), x
            )
        )


def _build_by_running(
    model: keras.Model,
    batch_spec: Any,
    step: str,
    sample: Callable[[], Any] | None,
    share: Callable[[], Any] | None,
) -> None:
    if kept(model, f"returned.{step}") is not None:
        return
    batch = made_up(batch_spec) if sample is None else sample()
    try:
        returned = _run_to_make_variables(model, getattr(model, step), batch)
    except (ValueError, tf.errors.OpError):
        if share is None:
            raise
        returned = run_on_share(model, step, share())
    keep(model, f"returned.{step}", numbers_in(returned))


def run_on_share(model: keras.Model, step: str, rows: Any) -> Any:
    """Runs a step on what a replica gets of a batch, without effect, and returns its result.

    Raises:
        BadInput: if it fails, on several replicas.
    """
    try:
        return _run_to_make_variables(model, getattr(model, step), rows)
    except (ValueError, tf.errors.OpError) as error:
        replicas = model.distribute_strategy.num_replicas_in_sync
        if replicas == 1:
            raise
        raise BadInput(
            f"{step} fails on {int(count_rows(rows))} examples, which is what one of {replicas} "
            f"replicas gets of a global batch: {reason_of(error)}. If it needs a batch of a "
            "certain size, let it take the size from the batch (tf.shape(x)[0]); the first "
            "dimension of all data has to count examples"
        ) from error


def _run_to_make_variables(model: keras.Model, step: Callable[[Any], Any], batch: Any) -> Any:
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
        values_kept(model),
        eagerly_and_quietly(),
        keras_private.seeds_drawn_from(tf.constant(0, tf.int64)),
        keras_private.reduced_first(build_optimizer),
        keras_private.assignments_left_out(),
    ):
        return in_threads(run, 1, lambda: None)[0]


def returned_numbers(model: keras.Model, step: str) -> dict[str, tf.DType]:
    """Returns the dtypes of the numbers that a model's own step returned to ``build``, by name."""
    return kept(model, f"returned.{step}")  # type: ignore[no-any-return]


def has_own_logs(model: keras.Model, step: str) -> bool:
    """Returns whether a step may return something else than the results of the model's metrics."""
    return overrides(model, step, "compute_metrics")


def numbers_in(returned: Any) -> dict[str, Any]:
    """Returns the dtypes of the numbers in what a step returned, by name; others are left out."""
    return {
        name: tf.convert_to_tensor(value).dtype
        for name, value in flat(returned).items()
        if np.ndim(value) == 0
    }


def flat(returned: Any) -> dict[str, Any]:
    """Returns the values that a step returned by name; those of nested dicts too, as in Keras."""
    values: dict[str, Any] = {}
    for name, value in returned.items() if isinstance(returned, Mapping) else ():
        values |= flat(value) if isinstance(value, Mapping) else {name: value}
    return values


def traceable_step(model: keras.Model, step: str) -> Callable[[Any], Any]:
    """Returns a model's step, without a ``tf.function`` that the user put around it.

    Within a function of its own, a replica can't exchange anything with the others.
    """
    decorated = getattr(type(model), step)
    function = getattr(decorated, "python_function", None)
    if function is None:
        return getattr(model, step)  # type: ignore[no-any-return]
    # What the decorator would do: translate conditions and loops over tensors.
    return functools.partial(tf.autograph.to_graph(function), model)


def overrides(model: keras.Model, *names: str) -> bool:
    """Returns whether a model has one of these methods of its own, in place of Keras's."""
    return any(
        not str(getattr(getattr(type(model), name), "__module__", "")).startswith("keras.")
        or name in vars(model)
        for name in names
    )


def made_up(batch_spec: Any) -> Any:
    """Returns a few examples that fit a spec: small random numbers, empty strings."""
    random = np.random.default_rng(0)

    def leaf(spec: tf.TensorSpec) -> tf.Tensor:
        shape = [EXAMPLES, *(1 if size is None else size for size in spec.shape[1:])]
        if spec.dtype.is_floating:
            return tf.cast(random.uniform(0.1, 0.9, shape), spec.dtype)
        if spec.dtype == tf.string:
            return tf.fill(shape, "")
        return tf.cast(random.integers(0, 2, shape), spec.dtype)

    return tf.nest.map_structure(leaf, batch_spec)
