"""What a version can be asked: the functions behind its signatures, and what they take."""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data.pipeline import Preprocess, as_tuple, make_batch_preprocess
from tfdp.data.sources import Source
from tfdp.errors import BadInput

PREDICT = "serving_default"
METHODS = {  # TF Serving's names for what a signature is for
    "classify": tf.saved_model.CLASSIFY_METHOD_NAME,
    "regress": tf.saved_model.REGRESS_METHOD_NAME,
}
LENGTH = "_length"  # after a ragged feature's name: how long each example's is

_SOFTMAX = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)
_SIGMOID = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_OF_SCORES = {  # losses that are functions: without arguments, they take no logits
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
}


@dataclasses.dataclass(frozen=True)
class Features:
    """The features that a recipe's source gives, as callers send them.

    Args:
        specs: of a batch, by name.
        is_single: whether they are one tensor, which is called ``features``.
        read: gives some real examples, by name, as a batch of that size; None if there are none.
    """

    specs: dict[str, tf.TensorSpec | tf.RaggedTensorSpec]
    is_single: bool
    read: Callable[[int], dict[str, Any]] | None

    def inputs(self) -> dict[str, tf.TensorSpec]:
        """Specs of what a signature takes: dense tensors, as TF Serving batches no others."""
        specs = {}
        for name, spec in self.specs.items():
            specs[name] = tf.TensorSpec(spec.shape, spec.dtype, name=name)
            if _is_ragged(spec):
                specs[name + LENGTH] = tf.TensorSpec([None], tf.int64, name=name + LENGTH)
        return specs

    def of(self, inputs: Mapping[str, tf.Tensor]) -> Any:
        """Features as the source gives them, of what a signature was sent."""
        found = {
            name: tf.RaggedTensor.from_tensor(inputs[name], lengths=inputs[name + LENGTH])
            if _is_ragged(spec)
            else inputs[name]
            for name, spec in self.specs.items()
        }
        return found["features"] if self.is_single else found


def features_of(model: keras.Model, features: Any, preprocess: Preprocess | None) -> Features:
    """The features that a model is served with.

    Args:
        model: built.
        features: a source, a dataset of single examples, specs of one example, or None for the
            model's inputs.
        preprocess: of the recipe, or None.

    Raises:
        BadInput: if a feature's name is not an identifier, or the features can't be told.
    """
    read = None
    if isinstance(features, Source):
        spec = _batch_spec(features)
        read = _reader(features)
    elif isinstance(features, tf.data.Dataset):
        spec = tf.nest.map_structure(_batched, as_tuple(features.element_spec)[0])
        read = _reader_of_dataset(features)
    elif features is not None:
        spec = tf.nest.map_structure(_batched, features)
    elif preprocess is not None or not getattr(model, "inputs", None):
        raise BadInput(
            "the features can't be told from the model: give features=, a source or tf.TensorSpec "
            "of one example"
        )
    else:
        spec = {tensor.name: _spec_of_input(tensor) for tensor in model.inputs}
        spec = next(iter(spec.values())) if len(spec) == 1 else spec
    specs = named(spec)
    for name, each in specs.items():
        if not isinstance(each, (tf.TensorSpec, tf.RaggedTensorSpec)):
            raise BadInput(f"feature {name!r} is {each}: it has to be a tensor, dense or ragged")
        if _is_ragged(each) and (each.ragged_rank > 1 or name + LENGTH in specs):
            raise BadInput(
                f"feature {name!r} is ragged in several dimensions, or there is a feature "
                f"{name + LENGTH!r}, as its lengths would be called: it can't be served so"
            )
    return Features(specs, not isinstance(spec, Mapping), read)


def named(features: Any) -> dict[str, Any]:
    """Features by the names that a signature calls them.

    Raises:
        BadInput: if they have none, or one that can't be an argument's.
    """
    if isinstance(features, (list, tuple)):
        raise BadInput(
            "features are a tuple or list, and a signature's inputs have names: use a dict, "
            "or --export_dir=none"
        )
    if not isinstance(features, Mapping):
        return {"features": features}
    for name in features:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise BadInput(
                f"feature {name!r} can't be an input of a signature: use letters, digits and _, "
                "and no word of Python's own"
            )
    return dict(features)


def as_sent(features: Any) -> dict[str, tf.Tensor]:
    """Features of a batch as callers send them: dense tensors by the names of a signature."""
    sent = {}
    for name, value in named(features).items():
        if isinstance(value, tf.RaggedTensor):
            sent[name] = value.to_tensor()
            sent[name + LENGTH] = tf.cast(value.row_lengths(), tf.int64)
        else:
            sent[name] = value
    return sent


def serving_functions(
    model: keras.Model,
    preprocess: Preprocess | None,
    features: Features,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """The functions to be exported, each a ``tf.function`` with its signature, by name.

    Raises:
        BadInput: if the classes have names, and the model's outputs are no such classes.
    """
    answer = _answering(model, preprocess, features)

    @tf.function(input_signature=[features.inputs()])
    def predict(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = answer(inputs)
        return {name: tf.identity(value) for name, value in outputs.items()}

    functions = {PREDICT: predict}
    outputs = predict.get_concrete_function().structured_outputs
    head = _head(model, outputs, class_names)
    wanted = _of_example(features)
    if head is None or wanted is None:
        return functions

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def of_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, wanted)
        cast = {name: tf.cast(parsed[name], spec.dtype) for name, spec in features.specs.items()}
        return head.answer(answer(as_sent(cast))["outputs"])

    return functions | {head.name: of_examples}


def check_preprocess(preprocess: Preprocess | None, features: Features) -> None:
    """Raises BadInput if preprocess holds a table or variable, which no version would have."""
    if preprocess is None:
        return
    preprocessed = make_batch_preprocess(preprocess, training=False)

    @tf.function(input_signature=[features.inputs()])
    def alone(inputs: dict[str, tf.Tensor]) -> Any:
        examples = tf.shape(next(iter(inputs.values())))[0]
        return preprocessed(features.of(inputs), tf.zeros([examples, 2], tf.int32))

    held = alone.get_concrete_function().captured_inputs
    if any(each.dtype == tf.resource for each in held):
        raise BadInput(
            "preprocess uses a table or a variable that it did not get as an argument (of a layer "
            "such as StringLookup, perhaps), which a SavedModel would not have: make such layers "
            "part of the model, in build_model, or use --export_dir=none"
        )


def _answering(
    model: keras.Model, preprocess: Preprocess | None, features: Features
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    preprocessed = (
        make_batch_preprocess(preprocess, training=False) if preprocess is not None else None
    )

    def answer(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        taken = features.of(inputs)
        if preprocessed is not None:
            examples = tf.shape(next(iter(inputs.values())))[0]
            taken = preprocessed(taken, tf.zeros([examples, 2], tf.int32))
        outputs = model(taken, training=False)
        if isinstance(outputs, Mapping):
            return dict(outputs)
        if isinstance(outputs, (list, tuple)):
            return {f"output_{i}": value for i, value in enumerate(outputs)}
        return {"outputs": outputs}

    return answer


@dataclasses.dataclass(frozen=True)
class _Head:
    """How a single output, of shape [n], [n, 1] or [n, classes], answers Classify or Regress.

    Args:
        name: of the signature.
        class_names: of all classes, for ``classify``.
        activation: makes scores of logits; None if they are scores already.
        is_of_second: whether the output is the score of the second of two classes alone.
    """

    name: str
    class_names: tuple[str, ...] = ()
    activation: Callable[[tf.Tensor], tf.Tensor] | None = None
    is_of_second: bool = False

    def answer(self, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the signature returns, with the types and shapes that TF Serving gates."""
        outputs = tf.cast(outputs, tf.float32)
        if self.name == "regress":
            return {"outputs": tf.reshape(outputs, [-1, 1])}
        outputs = tf.reshape(outputs, [tf.shape(outputs)[0], -1])
        scores = outputs if self.activation is None else self.activation(outputs)
        if self.is_of_second:
            scores = tf.concat([1 - scores, scores], axis=1)
        classes = tf.tile([list(self.class_names)], [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": tf.ensure_shape(scores, classes.shape)}


def _head(
    model: keras.Model, outputs: Mapping[str, tf.TensorSpec], class_names: Sequence[str] | None
) -> _Head | None:
    """Whether the model classifies, by its loss or its classes' names, or regresses."""
    columns = None
    shape = outputs["outputs"].shape if outputs.keys() == {"outputs"} else None
    if shape is not None and shape.rank in (1, 2) and outputs["outputs"].dtype.is_floating:
        columns = 1 if shape.rank == 1 else shape[1]
    activation, classifies = _loss_of(model)
    if columns is None:
        if class_names is not None:
            raise BadInput(
                f"there are class_names, and the model's outputs are {dict(outputs)}: classes are "
                "the columns of a single output of floats"
            )
        return None
    if not classifies and class_names is None:
        return _Head("regress") if columns == 1 else None
    classes = 2 if columns == 1 else columns
    names = tuple(map(str, range(classes)) if class_names is None else class_names)
    if len(names) != classes:
        raise BadInput(
            f"there are {len(names)} class_names, and the model's outputs are "
            f"{shape}: {classes} are needed"
        )
    return _Head("classify", names, activation, is_of_second=columns == 1)


def _loss_of(model: keras.Model) -> tuple[Callable[[tf.Tensor], tf.Tensor] | None, bool]:
    """What makes scores of the outputs, and whether the model is compiled to classify."""
    losses = tf.nest.flatten(getattr(model, "loss", None))
    if len(losses) != 1 or losses[0] is None:
        return None, False
    try:
        loss = keras.losses.get(losses[0])
    except ValueError:
        return None, False
    if not isinstance(loss, keras.losses.Loss):
        return None, getattr(loss, "__name__", "") in _OF_SCORES
    if not isinstance(loss, (*_SOFTMAX, *_SIGMOID)):
        return None, False
    is_logits = loss.get_config().get("from_logits", False)
    activation = tf.nn.softmax if isinstance(loss, _SOFTMAX) else tf.sigmoid
    return activation if is_logits else None, True


def _of_example(features: Features) -> dict[str, Any] | None:
    """How features are found in a ``tf.train.Example``; None if they can't be."""
    found: dict[str, Any] = {}
    for name, spec in features.specs.items():
        dtype, shape = example_dtype(spec.dtype), spec.shape[1:]
        if dtype is None:
            return None
        if _is_ragged(spec):
            if shape.rank != 1:
                return None
            found[name] = tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
        elif shape.is_fully_defined():
            found[name] = tf.io.FixedLenFeature(shape, dtype)
        else:
            return None
    return found


def example_dtype(dtype: tf.DType) -> tf.DType | None:
    """The one of the three dtypes of a ``tf.train.Example`` that holds values of another."""
    if dtype == tf.string:
        return tf.string
    if dtype.is_bool or dtype.is_integer:
        return tf.int64
    return tf.float32 if dtype.is_floating else None


def _is_ragged(spec: Any) -> bool:
    return isinstance(spec, tf.RaggedTensorSpec)


def _batched(spec: Any) -> Any:
    """The spec of a batch of examples, of the spec of one; as it is if that can't be served."""
    if isinstance(spec, tf.RaggedTensorSpec):  # of one example: TensorFlow calls it rank 0
        return tf.RaggedTensorSpec(
            [None, *spec.shape], spec.dtype, spec.ragged_rank + 1, spec.row_splits_dtype
        )
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec([None, *spec.shape], spec.dtype)
    return spec


def _spec_of_input(tensor: Any) -> Any:
    shape = [None, *tensor.shape[1:]]
    if getattr(tensor, "ragged", False):
        return tf.RaggedTensorSpec(shape, tensor.dtype, ragged_rank=1)
    return tf.TensorSpec(shape, tensor.dtype)


def _batch_spec(source: Source) -> Any:
    read = tf.function(source.read).get_concrete_function(tf.TensorSpec([None], tf.int64))
    return tf.nest.map_structure(_without_size, read.structured_outputs[0])


def _without_size(leaf: Any) -> Any:
    spec = tf.type_spec_from_value(leaf)
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    return spec


def _reader(source: Source) -> Callable[[int], dict[str, Any]]:
    def read(size: int) -> dict[str, Any]:
        indices = np.arange(size, dtype=np.int64) % len(source)
        return named(source.read(tf.constant(indices))[0])

    return read


def _reader_of_dataset(dataset: tf.data.Dataset) -> Callable[[int], dict[str, Any]]:
    alone = dataset.map(lambda *element: element[0])

    def read(size: int) -> dict[str, Any]:
        specs = tf.nest.flatten(alone.element_spec)
        is_dense = all(isinstance(spec, tf.TensorSpec) for spec in specs)
        examples = alone.take(size).repeat().take(size)
        batches = examples.padded_batch(size) if is_dense else examples.batch(size)
        return named(batches.get_single_element())

    return read
