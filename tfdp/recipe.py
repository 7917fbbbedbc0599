"""Recipes: Python files or modules of a few functions, which users write."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tfdp.errors import BadInput, shortened

_ARGUMENTS = {  # of each function that a recipe may define
    "build_model": ("hparams",),
    "train_data": ("hparams",),
    "eval_data": ("hparams",),
    "predict_data": ("hparams",),
    "preprocess": ("features", "training", "seed"),
    "callbacks": ("hparams",),
    "class_names": ("hparams",),
    "search_space": ("trial",),
}
_REQUIRED = ("build_model", "train_data")


@dataclasses.dataclass(frozen=True)
class NoHParams:
    """The hyperparameters of a recipe that defines none."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe, loaded and checked.

    Args:
        name: path or module name, as the user gave it.
        hparams: its ``HParams`` with the user's values.
        digest: sha256 of its source and hyperparameters, without the modules that it imports.
        build_model: returns a compiled ``keras.Model``.
        train_data: returns a source or a dataset of single examples.
        eval_data: returns evaluation data of the same kinds, or None.
        predict_data: returns data to predict, of the same kinds, without need of labels; or None.
        preprocess: returns model inputs for ``(features, training, seed)`` of one example, or None.
        callbacks: returns a list of Keras callbacks, or None.
        class_names: returns the names of the output's columns, or None.
        search_space: returns an ``HParams`` for an ``optuna.Trial``, or None.
    """

    name: str
    hparams: Any
    digest: str
    build_model: Callable[[Any], Any]
    train_data: Callable[[Any], Any]
    eval_data: Callable[[Any], Any] | None
    predict_data: Callable[[Any], Any] | None
    preprocess: Callable[[Any, bool, Any], Any] | None
    callbacks: Callable[[Any], Any] | None
    class_names: Callable[[Any], Any] | None
    search_space: Callable[[Any], Any] | None = None


def load(name: str, hparam: Sequence[str] = ()) -> Recipe:
    """Imports a recipe and overrides its hyperparameters.

    Args:
        name: path of a Python file (ending in ``.py``), or a dotted module name.
        hparam: ``NAME=VALUE`` for each overridden field of its ``HParams``.

    Raises:
        BadInput: if it can't be imported, lacks a function, or a value has the wrong type.
    """
    module = _import(name)
    functions: dict[str, Any] = {}
    for function, arguments in _ARGUMENTS.items():
        functions[function] = getattr(module, function, None)
        if functions[function] is None:
            if function in _REQUIRED:
                raise BadInput(
                    f"recipe {name} has no function {function}({', '.join(arguments)}): "
                    f"a recipe needs {' and '.join(_REQUIRED)}"
                )
        elif not _accepts(functions[function], len(arguments)):
            raise BadInput(
                f"recipe {name}: {function} has to be a function that takes "
                f"({', '.join(arguments)})"
            )
    hparams = make_hparams(name, getattr(module, "HParams", NoHParams), hparam)
    source = Path(module.__file__ or "").read_bytes()
    values = json.dumps(dataclasses.asdict(hparams), sort_keys=True, default=str)
    digest = hashlib.sha256(source + values.encode()).hexdigest()
    return Recipe(name=name, hparams=hparams, digest=digest, **functions)


def _import(name: str) -> ModuleType:
    path = Path(name)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise BadInput(f"--recipe is {name}: there is no such file")
    try:
        if not is_file:
            return importlib.import_module(name)
        sys.path.insert(0, str(path.resolve().parent))  # it may import modules beside it
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadInput(
                f"--recipe is {name}: there is no such module (a file has to end in .py)"
            ) from None
        raise BadInput(f"recipe {name} imports {error.name}, which is not installed") from error
    except SystemExit as error:
        raise BadInput(
            f"recipe {name} ended the process: sys.exit({shortened(error.code)})"
        ) from error
    except Exception as error:
        trace = "".join(traceback.format_exception(error)).rstrip()
        raise BadInput(f"recipe {name} could not be imported:\n{trace}") from error


def _accepts(function: Any, arguments: int) -> bool:
    """Returns whether a value is a function that accepts so many positional arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    return True


def make_hparams(recipe: str, kind: Any, overrides: Sequence[str]) -> Any:
    """Returns an instance of ``HParams``.

    Args:
        recipe: the recipe's name, for messages.
        kind: its ``HParams``.
        overrides: ``NAME=VALUE`` for each overridden field.

    Raises:
        BadInput: if a value has the wrong type, or ``HParams`` refuses it.
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise BadInput(f"recipe {recipe}: HParams has to be a dataclass")
    values = parse_hparams(recipe, kind, overrides)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise BadInput(f"recipe {recipe}: HParams can't be created: {error}") from error


def parse_hparams(recipe: str, kind: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the values of ``NAME=VALUE`` by name, as ``make_hparams`` passes them on.

    Raises:
        BadInput: if there is no such field, or a value has the wrong type.
    """
    types = hparam_types(kind)
    values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise BadInput(f"--hparam={override}: it has to be NAME=VALUE")
        if name not in types:
            raise BadInput(
                f"--hparam={override}: recipe {recipe} has no such hyperparameter; "
                f"it has {', '.join(types) or 'none'}"
            )
        values[name] = parse_value(f"--hparam={override}", text, types[name])
    return values


def hparam_types(kind: Any) -> dict[str, Any]:
    """Returns the type of each field of ``HParams`` by name."""
    types = typing.get_type_hints(kind)
    return {field.name: types[field.name] for field in dataclasses.fields(kind)}


def parse_value(flag: str, text: str, kind: Any) -> Any:
    """Returns ``text`` as a value of a type; it is parsed as JSON for any type but str.

    Args:
        flag: the flag that contains the text, for messages.
        text: what the user wrote.
        kind: type of the field.

    Raises:
        BadInput: if it is not a value of this type.
    """
    if kind is str:
        return text
    try:
        value = json.loads(text.lower() if kind is bool else text)
    except json.JSONDecodeError:
        value = text
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, bool) and type(value) is not kind:
        raise BadInput(f"{flag}: the value has to be of type {kind.__name__}")
    return tuple(value) if isinstance(value, list) else value
