"""The features that a published version takes: their names and specs, and examples of them."""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data.preprocessing import Preprocess, as_tuple
from tfdp.data.sources import Source
from tfdp.errors import BadInput

LENGTH_SUFFIX = "_length"  # after a ragged feature's name: the input with its examples' lengths


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of a recipe's source, which clients send.

    Args:
        specs: spec of a batch of each feature, by name.
        is_single: whether the features are one tensor, which is then called ``features``.
        read: returns a batch of real examples of a given size, by name; None if only specs are
            known.
        batch_size: the only number of examples that the model declares to take; None: any number.
    """

    specs: dict[str, tf.TensorSpec | tf.RaggedTensorSpec]
    is_single: bool
    read: Callable[[int], dict[str, Any]] | None
    batch_size: int | None = None

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the specs of a signature's inputs: dense tensors, which TF Serving can batch."""
        specs = {}
        for name, spec in self.specs.items():
            specs[name] = tf.TensorSpec(spec.shape, spec.dtype, name=name)
            if _is_ragged(spec):
                length = name + LENGTH_SUFFIX
                specs[length] = tf.TensorSpec([self.batch_size], tf.int64, name=length)
        return specs

    def from_inputs(self, inputs: Mapping[str, tf.Tensor]) -> Any:
        """Returns a signature's inputs in the structure that the source's features have."""
        by_name = {
            name: tf.RaggedTensor.from_tensor(inputs[name], lengths=inputs[name + LENGTH_SUFFIX])
            if _is_ragged(spec)
            else inputs[name]
            for name, spec in self.specs.items()
        }
        return by_name["features"] if self.is_single else by_name

    def example_specs(self) -> dict[str, Any] | None:
        """Returns how to parse the features from a ``tf.train.Example``; None if they can't be."""
        parsers: dict[str, Any] = {}
        for name, spec in self.specs.items():
            dtype, shape = example_dtype(spec.dtype), spec.shape[1:]
            if dtype is None:
                return None
            if _is_ragged(spec):
                if shape.rank != 1:
                    return None
                parsers[name] = tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
            elif shape.is_fully_defined():
                parsers[name] = tf.io.FixedLenFeature(shape, dtype)
            else:
                return None
        return parsers


def find_features(model: keras.Model, features: Any, preprocess: Preprocess | None) -> Features:
    """Returns the features that a version of a model takes.

    Args:
        model: a built model.
        features: a source, a dataset of single examples, specs of one example, or None for the
            model's inputs.
        preprocess: preprocessing of one example, or None.

    Raises:
        BadInput: if a feature can't be served, its name is not an identifier, or the features are
            unknown.
    """
    read = None
    if isinstance(features, Source):
        spec = _batch_spec_of_source(features)
        read = _make_source_reader(features)
    elif isinstance(features, tf.data.Dataset):
        spec = tf.nest.map_structure(_batch_spec, as_tuple(features.element_spec)[0])
        read = _make_dataset_reader(features)
    elif features is not None:
        spec = tf.nest.map_structure(_batch_spec, features)
    elif preprocess is not None or not getattr(model, "inputs", None):
        raise BadInput(
            "the model does not determine the features: give features=, a source or tf.TensorSpec "
            "of one example"
        )
    else:
        spec = _specs_of_inputs(model)
    batch_size = _declared_batch_size(model)
    specs = {name: _with_batch_size(each, batch_size) for name, each in by_name(spec).items()}
    for name, feature in specs.items():
        if not isinstance(feature, (tf.TensorSpec, tf.RaggedTensorSpec)):
            raise BadInput(f"feature {name!r} is {feature}: it has to be a tensor, dense or ragged")
        if _is_ragged(feature) and (feature.ragged_rank > 1 or name + LENGTH_SUFFIX in specs):
            raise BadInput(
                f"feature {name!r} is ragged in several dimensions, or another feature is called "
                f"{name + LENGTH_SUFFIX!r}, the name of its lengths: it can't be served"
            )
    return Features(specs, not isinstance(spec, Mapping), read, batch_size)


def by_name(features: Any) -> dict[str, Any]:
    """Returns features by the names of a signature's inputs.

    Raises:
        BadInput: if they have no names, or a name can't be the name of an argument.
    """
    if isinstance(features, (list, tuple)):
        raise BadInput(
            "features are a tuple or list, and a signature's inputs have names: use a dict, "
            "or --export_dir=none"
        )
    if not isinstance(features, Mapping):
        return {"features": features}
    for name in features:
        if not _is_name(name):
            raise BadInput(
                f"feature {name!r} can't be an input of a signature: use letters, digits and _, "
                f"and no keyword of Python, as in {_as_name(name)!r}. If the model needs the old "
                "name, preprocess can give it: it may return another dict than it gets"
            )
    return dict(features)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _as_name(name: Any) -> str:
    """Returns a similar name that is an identifier."""
    text = re.sub(r"\W", "_", str(name))
    return text if _is_name(text) else f"feature_{text}".rstrip("_")


def to_inputs(features: Any) -> dict[str, tf.Tensor]:
    """Returns a batch of features as a signature's inputs: dense tensors by name."""
    inputs = {}
    for name, value in by_name(features).items():
        if isinstance(value, tf.RaggedTensor):
            inputs[name] = value.to_tensor()
            inputs[name + LENGTH_SUFFIX] = tf.cast(value.row_lengths(), tf.int64)
        else:
            inputs[name] = value
    return inputs


def example_dtype(dtype: tf.DType) -> tf.DType | None:
    """Returns which of the three dtypes of a ``tf.train.Example`` can hold a dtype, or None."""
    if dtype == tf.string:
        return tf.string
    if dtype.is_bool or dtype.is_integer:
        return tf.int64
    return tf.float32 if dtype.is_floating else None


def _is_ragged(spec: Any) -> bool:
    return isinstance(spec, tf.RaggedTensorSpec)


def _batch_spec(spec: Any) -> Any:
    """Returns the spec of a batch, given the spec of one example; others can't be served."""
    if isinstance(spec, tf.RaggedTensorSpec):  # TensorFlow gives ragged examples rank 0
        return tf.RaggedTensorSpec(
            [None, *spec.shape], spec.dtype, spec.ragged_rank + 1, spec.row_splits_dtype
        )
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec([None, *spec.shape], spec.dtype)
    return spec


def _specs_of_inputs(model: keras.Model) -> Any:
    """Returns the specs of a model's inputs by the names that users gave; of one input, its spec.

    Raises:
        BadInput: if one of several inputs has no name but Keras's, which differs between processes.
    """
    structure = getattr(model, "input", None)
    if len(model.inputs) == 1 and not isinstance(structure, Mapping):
        return _spec_of_input(model.inputs[0])
    named = structure if isinstance(structure, Mapping) else {x.name: x for x in model.inputs}
    for name, tensor in named.items():
        if isinstance(name, str) and re.fullmatch(r"keras_tensor(_\d+)?", name):
            raise BadInput(
                f"an input of the model, {tensor.shape}, has no name, and features of a signature "
                "are sent by name: name it, keras.Input(…, name=…)"
            )
    return {name: _spec_of_input(tensor) for name, tensor in named.items()}


def _declared_batch_size(model: keras.Model) -> int | None:
    """Returns the batch size of ``keras.Input(batch_size=…)``; None if there is none."""
    sizes = {tensor.shape[0] for tensor in getattr(model, "inputs", None) or ()} - {None}
    if len(sizes) > 1:
        raise BadInput(
            f"inputs of the model have the fixed batch sizes {sorted(sizes)}: a request has one "
            "number of examples for all of them, so use the same batch_size, or none"
        )
    return next(iter(sizes), None)


def _with_batch_size(spec: Any, size: int | None) -> Any:
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec([size, *spec.shape[1:]], spec.dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        shape = [size, *spec.shape[1:]]
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return spec


def _spec_of_input(tensor: Any) -> Any:
    shape = [None, *tensor.shape[1:]]
    if getattr(tensor, "ragged", False):
        return tf.RaggedTensorSpec(shape, tensor.dtype, ragged_rank=1)
    return tf.TensorSpec(shape, tensor.dtype)


def _batch_spec_of_source(source: Source) -> Any:
    read = tf.function(source.read).get_concrete_function(tf.TensorSpec([None], tf.int64))
    return tf.nest.map_structure(_with_unknown_batch_size, read.structured_outputs[0])


def _with_unknown_batch_size(leaf: Any) -> Any:
    spec = tf.type_spec_from_value(leaf)
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    return spec


def _make_source_reader(source: Source) -> Callable[[int], dict[str, Any]]:
    def read(size: int) -> dict[str, Any]:
        indices = np.arange(size, dtype=np.int64) % len(source)
        return by_name(source.read(tf.constant(indices))[0])

    return read


def _make_dataset_reader(dataset: tf.data.Dataset) -> Callable[[int], dict[str, Any]]:
    specs = as_tuple(dataset.element_spec)[0]  # of map's result, ragged ones would be dense
    features = dataset.map(lambda *element: element[0])

    def as_declared(spec: Any, batch: Any) -> Any:
        is_padded = isinstance(spec, tf.TensorSpec) and isinstance(batch, tf.RaggedTensor)
        return batch.to_tensor() if is_padded else batch

    def read(size: int) -> dict[str, Any]:
        examples = features.take(size).repeat().take(size)
        batch = examples.ragged_batch(size).get_single_element()
        return by_name(tf.nest.map_structure(as_declared, specs, batch))

    return read
