"""Checks before training: losses, metrics and states that several replicas compute otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.replica_batch import count_rows
from tfdp.errors import BadInput, reason_of
from tfdp.log import say_on_chief
from tfdp.step import keras_private, metrics
from tfdp.step.building import overrides, run_on_share
from tfdp.step.optimizers import optimizers
from tfdp.step.rehearsal import Rehearsal, is_metric_of_keras, rehearse
from tfdp.step.rules import Rules, keep_rules, kept_rules

# Losses that are not sums over examples, but over sets of pixels or over pairs within a batch.
_OF_SETS = (keras.losses.Dice, keras.losses.Tversky)
_OF_BATCHES = (keras.losses.dice, keras.losses.tversky, keras.losses.circle)  # as functions


def check_losses(model: keras.Model) -> None:
    """Checks the compiled losses of a model that will run on several replicas.

    Raises:
        BadInput: if one is a loss of Keras over a whole batch, which no replica has.
    """
    for loss in _losses(model.loss):
        is_of_sets = isinstance(loss, _OF_SETS) and (loss.axis is None or 0 in _axes(loss.axis))
        if is_of_sets or isinstance(loss, keras.losses.Circle) or loss in _OF_BATCHES:
            name = getattr(loss, "__name__", type(loss).__name__)
            is_for_images = is_of_sets or loss in (keras.losses.dice, keras.losses.tversky)
            raise BadInput(
                f"the loss is {name}, which is computed over a whole batch, and a replica has only "
                "a share of it: use a loss that has a value for each example, or one replica."
                + (" Keras's Dice and Tversky take axis=(1, 2, 3), for images." * is_for_images)
            )


def find_rules(
    model: keras.Model,
    step: str,
    sample: Callable[[], Any],
    share: Callable[[], Any],
    *,
    accumulate_steps: int = 1,
) -> None:
    """Finds out how replicas' results of a step combine, and warns of those that can't.

    A model of Keras's own parts needs no rehearsal. The rules are kept with the model until it is
    compiled again.

    Args:
        model: built and compiled, for several replicas.
        step: ``"train_step"`` or ``"test_step"``.
        sample: returns a few examples.
        share: returns what a replica gets of a batch, for a step that fails on a few examples.
        accumulate_steps: number of micro-batches in which a replica computes its share.

    Raises:
        BadInput: if the step assigns an integer variable in a way that replicas can't combine, or
            does what micro-batches can't, or fails on a share of a batch.
    """
    rules = kept_rules(model, step)
    if rules is None:
        rules = _found_rules(model, step, sample, share)
        keep_rules(model, step, rules)
    if accumulate_steps > 1:
        _check_micro_batches(rules, accumulate_steps)


def _found_rules(
    model: keras.Model, step: str, sample: Callable[[], Any], share: Callable[[], Any]
) -> Rules:
    if step == "train_step":
        _report_layers(model)
    if not _needs_rehearsal(model, step):
        return Rules()
    batch = sample()
    examples = int(count_rows(batch))
    if examples < 2:
        return Rules()
    try:
        found = rehearse(model, getattr(model, step), batch)
    except Exception as error:
        if isinstance(error, (ValueError, tf.errors.OpError)):
            run_on_share(model, step, share())  # it may depend on the number of examples
        say_on_chief(
            f"{step} could not be tried on {examples} examples "
            f"({reason_of(error)}): it is not known whether replicas compute what one process "
            "does. Its gradients, losses and logs are treated as means over examples"
        )
        # Summed at the tape, means are right whatever the step does with their gradients.
        return Rules(summed_at="tape" if overrides(model, step) else "apply")
    finally:
        model.reset_metrics()
    _report(model, found, step)
    for variable in found.wrong_states:
        if not _is_float(variable):
            raise BadInput(
                f"{step} assigns {variable.path}, of dtype {variable.dtype}, and the value for a "
                "whole batch is neither the mean nor the sum of those of its parts: compute it "
                "from rows gathered by tfdp.all_gather, or use one replica"
            )
    return found.rules


def _check_micro_batches(rules: Rules, accumulate_steps: int) -> None:
    """Raises BadInput if a step does what micro-batches can't do one after the other."""
    if rules.summed_at == "tape":
        raise BadInput(
            f"accumulate_steps is {accumulate_steps}, but train_step does more than adding with "
            "gradients before the optimizer gets them (it clips them, for example), which needs "
            "those of all micro-batches: use clipnorm, global_clipnorm or clipvalue of the "
            "optimizer, or leave accumulate_steps out"
        )
    if rules.gathers:
        raise BadInput(
            f"accumulate_steps is {accumulate_steps}, but tfdp.all_gather gathers the whole batch, "
            "of which a replica has one micro-batch at a time: leave accumulate_steps out"
        )
    for state in rules.states:
        if state.kind == "rows_first" or (state.kind == "sum" and state.keeps < 1):
            raise BadInput(
                f"accumulate_steps is {accumulate_steps}, but train_step assigns "
                f"{state.variable.path} once for each batch: micro-batches would assign it several "
                "times. Leave accumulate_steps out"
            )


def _report_layers(model: keras.Model) -> None:
    """Tells people of layers that replicas compute otherwise, or can't combine."""
    layers = keras_private.layers(model)
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1 and any(
        isinstance(each, keras.layers.BatchNormalization)
        and each.trainable
        and not each.synchronized
        for each in layers
    ):
        say_on_chief(
            "batch normalization: each replica normalizes by its own share of a batch, as in "
            "Keras; with synchronized=True, by the whole batch, as one process does"
        )
    for layer in layers:
        for name, value in vars(layer).items():
            if isinstance(value, tf.Variable):
                say_on_chief(
                    f"{layer.name}.{name} is a tf.Variable, which Keras does not know: replicas "
                    "don't combine what they assign to it, and it is not saved. Use add_weight"
                )


def _report(model: keras.Model, found: Rehearsal, step: str) -> None:
    remedy = (
        "Compute it from rows gathered by tfdp.all_gather, which are those of the whole batch, or "
        "use one replica"
    )
    if found.wrong_terms:
        say_on_chief(
            f"{' and '.join(found.wrong_terms)}: a whole batch's value is neither the mean nor "
            f"the sum of those of its parts, so replicas compute another loss than one "
            f"process. {remedy}"
        )
    if found.wrong_updates and not found.wrong_terms:
        say_on_chief(
            f"{step}: the gradients for {' and '.join(found.wrong_updates)} from a whole "
            "batch are neither the mean nor the sum of those from its parts, so replicas compute "
            "others than one process. If a loss compares examples or multiplies means over the "
            f"batch, or divides by a count of it: {remedy[0].lower()}{remedy[1:]}. If it adds sums "
            "to means: use means"
        )
    elif (wrong := {*found.wrong_logs} - {*metrics.names(model)}) and not found.wrong_terms:
        say_on_chief(
            f"{step} returns {' and '.join(sorted(wrong))}, whose value for a whole batch is "
            "neither the mean nor the sum of those of its parts: the mean of the replicas' values "
            "is shown. Use a metric of Keras for it"
        )
    elif found.wrong_scalars and not found.wrong_terms:
        say_on_chief(
            f"{step} updates metric {' and '.join(found.wrong_scalars)} with a number whose value "
            "for a whole batch is neither the mean nor the sum of those of its parts: the metric "
            f"is the mean of the replicas'. {remedy}"
        )
    if derived := {*found.derived_logs} - {*metrics.names(model)}:
        say_on_chief(
            f"{step} computes {' and '.join(sorted(derived))} from metrics' results, and a replica "
            "has results of its own shares only: the mean of the replicas' values is shown. Return "
            "the metrics' results as they are, or write a keras.metrics.Metric for it"
        )
    if found.wrong_metrics:
        say_on_chief(
            f"metric {' and '.join(found.wrong_metrics)} keeps states that are not sums over "
            "examples: the replicas' states are added up, so its value differs from that of one "
            "replica"
        )
    if found.unseen_states:
        say_on_chief(
            f"{step} assigns {' and '.join(found.unseen_states)} by way of its value, past Keras: "
            "replicas don't combine that. Use assign or assign_add of the variable itself"
        )
    averaged = [each.path for each in found.wrong_states if _is_float(each)]
    if averaged:
        say_on_chief(
            f"{step} assigns {' and '.join(averaged)}, whose value for a whole batch is neither "
            "the mean nor the sum of those of its parts: replicas' values are averaged, which "
            f"differs from one process. {remedy}"
        )


def _needs_rehearsal(model: keras.Model, step: str) -> bool:
    """Returns whether a step runs code that Keras did not write."""
    parts = [
        *keras_private.layers(model),
        *(each for each in _losses(model.loss) if each is not None),
        *optimizers(model),
    ]
    own_metrics = (
        each for metric in model.metrics for each in getattr(metric, "metrics", [metric])
    )
    return (
        overrides(model, step, "compute_loss", "call", "compute_metrics")
        or any(not _is_of_keras(each) or isinstance(each, keras.layers.Lambda) for each in parts)
        or any(not is_metric_of_keras(each) for each in own_metrics)
    )


def _is_of_keras(part: Any) -> bool:
    kind = part if hasattr(part, "__name__") else type(part)
    return str(kind.__module__).startswith("keras.")


def _is_float(variable: keras.Variable) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


def _losses(given: Any) -> Iterator[Any]:
    """Yields the losses that ``compile`` got, with names resolved."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _losses(each)
    else:
        try:
            yield keras.losses.get(given) if isinstance(given, str) else given
        except ValueError as error:
            raise BadInput(f"the loss is {given!r}, which Keras does not know: {error}") from None


def _axes(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
