"""Writing functions as a SavedModel, with the variables and lookup tables that they use."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput

METHODS = {  # TF Serving's method name for each signature but serving_default
    "classify": tf.saved_model.CLASSIFY_METHOD_NAME,
    "regress": tf.saved_model.REGRESS_METHOD_NAME,
}
_PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
_DRAWS = re.compile(  # operations with a state of their own, which a SavedModel does not contain
    "Random[A-Z].*|(Parameterized)?TruncatedNormal|Multinomial|.*CandidateSampler"
    "|SampleDistortedBoundingBox(V2)?"
)


def save(signatures: Mapping[str, Any], path: Path) -> None:
    """Writes a SavedModel.

    Args:
        signatures: by name, a ``tf.function`` with its input signature. TensorFlow traces it again
            and then takes a strategy's variables for plain ones, also where a layer assigns them.
        path: the folder to write to.

    Raises:
        BadInput: if a function can't be saved; see ``check``.
    """
    module = tf.Module()
    module.used = [each for function in signatures.values() for each in _used(function)]
    tf.saved_model.save(module, str(path), signatures=dict(signatures))
    methods = METHODS.keys() & signatures.keys()
    if methods:  # TensorFlow 2 writes the method name of Predict for all
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
        for name in methods:
            updater.replace_method_name(name, METHODS[name], tags=tf.saved_model.SERVING)
        updater.save()


def check(function: Any) -> None:
    """Checks that a function can be saved, and runs without this process.

    Raises:
        BadInput: if it runs Python code, or uses something that a SavedModel can't contain.
    """
    _used(function)
    if any(node.op in _PYTHON_OPERATIONS for node in nodes_of(function)):
        raise BadInput(
            "the model or preprocess uses tf.py_function or tf.numpy_function, and a server has no "
            "Python: use TensorFlow's operations, or --export_dir=none"
        )


def draws_anew(function: Any) -> bool:
    """Returns whether a function draws numbers that another process draws differently.

    TensorFlow's own random functions do that; seeds of Keras are variables, so a SavedModel
    contains them, and the same calls give the same numbers.
    """
    return any(_DRAWS.fullmatch(node.op) for node in nodes_of(function))


def nodes_of(function: Any) -> list[Any]:
    """Returns all nodes (``NodeDef``) of a function, and of the functions that it calls."""
    definition = function.get_concrete_function().graph.as_graph_def()
    bodies = [definition.node, *(each.node_def for each in definition.library.function)]
    return [node for nodes in bodies for node in nodes]


@contextlib.contextmanager
def state_kept(model: keras.Model, signatures: Mapping[str, Any]) -> Iterator[None]:
    """Restores after the block what calls of functions change in a model: seeds, counters.

    Only the chief publishes, and its model has to stay equal to those of the other workers.
    """
    variables = _variables_of(signatures)
    for variable in model.variables:
        first, *others = getattr(variable.value, "values", (variable.value,))
        if id(first) in variables:
            variables |= {id(each): each for each in others}
    changing = [each for each in variables.values() if not each.trainable]
    before = [each.numpy() for each in changing]
    try:
        yield
    finally:
        for variable, value in zip(changing, before, strict=True):
            if not np.array_equal(variable.numpy(), value):
                variable.assign(value)


def _variables_of(signatures: Mapping[str, Any]) -> dict[int, Any]:
    """Returns the variables that functions use, by ``id``."""
    functions = [function.get_concrete_function() for function in signatures.values()]
    return {id(each): each for function in functions for each in function.graph.variables}


def _used(function: Any) -> list[Any]:
    """Returns the variables, and the owners of lookup tables, that a function uses."""
    concrete = function.get_concrete_function()
    variables = list(concrete.graph.variables)
    handles = {id(each.handle) for each in variables}
    tables = []
    for tensor in concrete.captured_inputs:
        if tensor.dtype in (tf.resource, tf.variant) and id(tensor) not in handles:
            owners = _owners(tensor)
            if not owners:
                raise BadInput(
                    "the model or preprocess uses a resource that a SavedModel can't contain, as "
                    "an iterator of a dataset: use variables, tf.lookup's tables or layers of "
                    "Keras, or --export_dir=none"
                )
            tables += owners
    return variables + tables


def _owners(tensor: tf.Tensor) -> list[Any]:
    """Returns the objects that have a tensor as an attribute and can be saved.

    A function keeps the handle of a table, and not the table, which nothing but Python's garbage
    collector finds. TensorFlow finds it in this way too, to name it in an error.
    """
    kind = tf.saved_model.experimental.TrackableResource
    found = []
    for referrer in gc.get_referrers(tensor):
        holders = gc.get_referrers(referrer) if isinstance(referrer, dict) else [referrer]
        found += [each for each in holders if isinstance(each, kind)]
    return found
