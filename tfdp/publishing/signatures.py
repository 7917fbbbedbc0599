"""The signatures of a version: functions that answer Predict, Classify and Regress requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.preprocessing import Preprocess, make_batch_preprocess
from tfdp.errors import BadInput
from tfdp.publishing.features import Features, to_inputs
from tfdp.publishing.heads import find_head

PREDICT = "serving_default"
METHODS = {  # TF Serving's method name for each other signature
    "classify": tf.saved_model.CLASSIFY_METHOD_NAME,
    "regress": tf.saved_model.REGRESS_METHOD_NAME,
}


def make_signatures(
    model: keras.Model,
    preprocess: Preprocess | None,
    features: Features,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns the functions to export, by signature: each a ``tf.function`` with its input specs.

    Raises:
        BadInput: if ``class_names`` are given, and do not match the model's outputs.
    """
    call = _make_call(model, preprocess, features)

    @tf.function(input_signature=[features.input_specs()])
    def predict(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = call(inputs)
        return {name: tf.identity(value) for name, value in outputs.items()}

    signatures = {PREDICT: predict}
    outputs = predict.get_concrete_function().structured_outputs
    head = find_head(model, outputs, class_names)
    example_specs = features.example_specs()
    if head is None or example_specs is None:
        return signatures

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def answer_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, example_specs)
        cast = {name: tf.cast(parsed[name], spec.dtype) for name, spec in features.specs.items()}
        return head.answer(call(to_inputs(cast))["outputs"])

    return signatures | {head.signature: answer_examples}


def check_preprocess(preprocess: Preprocess | None, features: Features) -> None:
    """Raises BadInput if preprocess uses a table or variable, which a version would not contain."""
    if preprocess is None:
        return
    preprocess_batch = make_batch_preprocess(preprocess, training=False)

    @tf.function(input_signature=[features.input_specs()])
    def preprocess_inputs(inputs: dict[str, tf.Tensor]) -> Any:
        return preprocess_batch(features.from_inputs(inputs), _zero_seeds(inputs))

    captured = preprocess_inputs.get_concrete_function().captured_inputs
    if any(tensor.dtype == tf.resource for tensor in captured):
        raise BadInput(
            "preprocess uses a table or a variable from outside, for example of a StringLookup "
            "layer, which a SavedModel would not contain: make such layers part of the model, in "
            "build_model, or use --export_dir=none"
        )


def _make_call(
    model: keras.Model, preprocess: Preprocess | None, features: Features
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Returns a function from a signature's inputs to the model's outputs by name."""
    preprocess_batch = preprocess and make_batch_preprocess(preprocess, training=False)

    def call(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        model_inputs = features.from_inputs(inputs)
        if preprocess_batch is not None:
            model_inputs = preprocess_batch(model_inputs, _zero_seeds(inputs))
        outputs = model(model_inputs, training=False)
        if isinstance(outputs, Mapping):
            return dict(outputs)
        if isinstance(outputs, (list, tuple)):
            return {f"output_{i}": value for i, value in enumerate(outputs)}
        return {"outputs": outputs}

    return call


def _zero_seeds(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns a seed of zeros for each example, because ``preprocess`` takes one."""
    examples = tf.shape(next(iter(inputs.values())))[0]
    return tf.zeros([examples, 2], tf.int32)
