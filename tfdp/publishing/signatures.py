"""The signatures of a version: functions that answer Predict, Classify and Regress requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.preprocessing import Preprocess, make_batch_preprocess
from tfdp.errors import BadInput
from tfdp.outputs import by_name
from tfdp.publishing.features import Features, to_inputs
from tfdp.publishing.heads import find_head

PREDICT = "serving_default"


def make_signatures(
    model: keras.Model,
    preprocess: Preprocess | None,
    features: Features,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns the functions to export, by signature: each a ``tf.function`` with its input specs.

    Raises:
        BadInput: if the model can't be called with the features, its outputs can't be served, or
            ``class_names`` are given and do not match the outputs.
    """
    call = _make_call(model, preprocess, features)

    @tf.function(input_signature=[features.input_specs()], autograph=False)
    def predict(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = call(inputs)
        return {name: tf.identity(value) for name, value in outputs.items()}

    signatures = {PREDICT: predict}
    try:
        outputs = predict.get_concrete_function().structured_outputs
    except BadInput:
        raise
    except Exception as error:  # whatever the model's or preprocess's code raises
        raise BadInput(
            f"the model, after preprocess, can't be called with a batch of the features "
            f"{features.specs}: {error}"
        ) from error
    head = find_head(model, outputs, class_names)
    example_specs = features.example_specs()
    if head is None or example_specs is None:
        return signatures

    examples_spec = tf.TensorSpec([features.batch_size], tf.string, name="inputs")

    @tf.function(input_signature=[examples_spec], autograph=False)
    def answer_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, example_specs)
        cast = {name: tf.cast(parsed[name], spec.dtype) for name, spec in features.specs.items()}
        (output,) = call(to_inputs(cast)).values()  # a model with a head has a single one
        return head.answer(output)

    return signatures | {head.signature: answer_examples}


def _make_call(
    model: keras.Model, preprocess: Preprocess | None, features: Features
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Returns a function from a signature's inputs to the model's outputs by name."""
    preprocess_batch = preprocess and tf.function(  # with AutoGraph, as tf.data calls it
        make_batch_preprocess(preprocess, training=False)
    )

    def call(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        model_inputs = features.from_inputs(inputs)
        if preprocess_batch is not None:
            model_inputs = preprocess_batch(model_inputs, _zero_seeds(inputs))
        outputs = by_name(model, model(model_inputs, training=False))
        return {name: _as_tensor(name, value) for name, value in outputs.items()}

    return call


def _as_tensor(name: str, value: Any) -> tf.Tensor:
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor)) or value is None:
        raise BadInput(
            f"the model's output {name!r} is a {type(value).__name__}: TF Serving returns dense "
            "tensors only, so return one, as to_tensor() of a ragged tensor gives it"
        )
    return tf.convert_to_tensor(value)


def check_has_call(model: Any) -> None:
    """Raises BadInput, with the parts that can be published instead, if a model has no call()."""
    if type(model).call not in (keras.Model.call, keras.layers.Layer.call):
        return
    parts = [name for name, each in vars(model).items() if isinstance(each, keras.layers.Layer)]
    ways = [f"tfdp.export(model.{name}, …)" for name in parts if not name.startswith("_")]
    raise BadInput(
        f"the model, a {type(model).__name__}, has no call(), so no request can be answered: "
        f"publish a part of it by {' or '.join(ways) or 'tfdp.export(model.part, …)'}, or write a "
        "call() that takes the features. A recipe's model needs a call(), or --export_dir=none"
    )


def _zero_seeds(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns a seed of zeros for each example, because ``preprocess`` takes one."""
    examples = tf.shape(next(iter(inputs.values())))[0]
    return tf.zeros([examples, 2], tf.int32)
