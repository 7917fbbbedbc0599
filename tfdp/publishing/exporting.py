"""``tfdp.export``: a model, its preprocessing inside, as a version that TF Serving picks up."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.checkpoints import state
from tfdp.data.pipeline import Preprocess
from tfdp.data.sources import data_sha256
from tfdp.errors import BadInput
from tfdp.files import write_durably
from tfdp.log import say
from tfdp.publishing import load_check, servable, warmup
from tfdp.publishing.gates import Gates
from tfdp.publishing.load_check import Answers
from tfdp.publishing.models_config import needs_of
from tfdp.publishing.servable import Draft, make_folder
from tfdp.publishing.settings import WARMUP_BATCH_SIZES, check_options
from tfdp.publishing.signatures import (
    METHODS,
    PREDICT,
    Features,
    check_preprocess,
    features_of,
    serving_functions,
)
from tfdp.versions import package_versions

_PROBES = 8  # examples in what a new version is asked besides the warm-up requests


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess | None = None,
    features: Any = None,
    class_names: Sequence[str] | None = None,
    warmup_batch_sizes: Sequence[int] = WARMUP_BATCH_SIZES,
    eval_metrics: Mapping[str, Any] | None = None,
    require_min: Mapping[str, float] | None = None,
    require_max: Mapping[str, float] | None = None,
    not_worse_than_current: float | None = None,
    keep: int | None = None,
    models_config: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    confirm: Callable[[], None] | None = None,
) -> Path:
    """Publishes a model as the next version in ``path``.

    Call it on the chief. The version is written under a hidden name, loaded in a fresh process as
    TF Serving loads it, asked, and then appears by one rename: readers see all of it or nothing.

    The signature ``serving_default`` takes the features, batch first, by name (a single tensor is
    called ``features``) and returns the model's outputs by name (a single one is ``outputs``). A
    ragged feature is taken as a padded tensor of shape [n, longest, …], with the lengths, int64[n],
    as ``<name>_length``. ``classify`` and ``regress`` take serialized ``tf.train.Example``
    (``inputs``, string[n]) where the features fit into one and the model has a single output:
    ``classify`` gives ``classes`` (string) and ``scores`` (float32), both [n, classes], of a model
    that is compiled with a crossentropy, or has ``class_names``; ``regress`` gives ``outputs``
    (float32[n, 1]) of another model whose output is [n] or [n, 1].

    Args:
        model: a built model.
        path: the servable's folder, which holds the versions; made if it isn't there.
        preprocess: of the recipe; applied to each example, with ``training=False``.
        features: a ``tfdp.Source``, or a ``tf.data.Dataset`` of single examples, or
            ``tf.TensorSpec`` (``tf.RaggedTensorSpec``) of the features of one example; by default
            the model's inputs. The first examples are what the version is asked, and warmed up
            with; where there are only specs, zeros and empty strings.
        class_names: of the outputs' columns; by default "0", "1" and so on.
        warmup_batch_sizes: examples in each of the requests that servers warm the version up with.
        eval_metrics: what an evaluation gave: a dict, as ``tfdp.evaluate`` gives it.
        require_min: least values of metrics in it.
        require_max: greatest values.
        not_worse_than_current: by how much a metric may be worse than that of the version now
            served: the one that the label ``stable`` points to, or the newest. Compared are the
            metrics of ``require_min`` and ``require_max``; without those, all whose names tell
            which side is better; the loss, if there is nothing else.
        keep: how many of the newest versions stay; None: all. Those that ``models_config`` names
            stay as well.
        models_config: TF Serving's; by default ``models.config`` beside ``path``, if it is there.
        about: what the file ``tfdp.json`` beside the SavedModel shall say besides, as JSON takes
            it.
        confirm: called just before the version appears; if it raises, nothing does.

    Returns:
        The version's folder, ``path/<number>``.

    Raises:
        BadInput: if the features can't be told or named, or an argument is out of range.
        Refused: if the metrics are not what was demanded; nothing is published then.
        TrainingError: if the version does not answer as the model does; nothing is published then.
    """
    folder = Path(path)
    config = None if models_config is None else Path(models_config)
    gates = Gates(require_min or {}, require_max or {}, not_worse_than_current)
    check_options(not_worse_than_current, keep, warmup_batch_sizes)
    scores = {
        name: float(value) if isinstance(value, numbers.Real) else value
        for name, value in (eval_metrics or {}).items()
    }
    gates.check_names([name for name, value in scores.items() if isinstance(value, float)])
    make_folder(folder)
    needs_of(config, folder)
    told = features_of(model, features, preprocess)
    functions = serving_functions(model, preprocess, told, class_names)
    provenance = {
        "weights_sha256": (about or {}).get("weights_sha256") or state.weights_sha256(model),
        "data_sha256": data_sha256(features),
        **package_versions(),
        **(about or {}),
        "eval_metrics": scores,
    }
    _check_metrics(gates, folder, config, provenance)

    with Draft(folder) as draft:
        _save(model, functions, draft.path)
        name = folder.resolve().name
        requests, questions, answers = _questions(functions, told, warmup_batch_sizes, name)
        if requests:
            warmup.write(draft.path / warmup.PATH, requests)
        load_check.check(draft.path, questions, answers, load_check.rtol_of(model))
        text = json.dumps(provenance, indent=2) + "\n"
        write_durably(draft.path / servable.ABOUT, text.encode())
        version = draft.publish(confirm or (lambda: None))
    if keep is not None:
        _remove_old(folder, keep, config)
    return version


def check(
    model: keras.Model,
    folder: Path,
    *,
    preprocess: Preprocess | None,
    features: Any,
    class_names: Sequence[str] | None,
    models_config: Path | None,
) -> None:
    """Finds out what would fail only after training; arguments as for ``export``.

    Raises:
        BadInput: if features or classes can't be named so, or files are not as they have to be.
    """
    servable.try_out(folder)
    needs_of(models_config, folder)
    told = features_of(model, features, preprocess)
    check_preprocess(preprocess, told)
    if class_names is not None:
        serving_functions(model, preprocess, told, class_names)


def _check_metrics(
    gates: Gates, folder: Path, config: Path | None, provenance: Mapping[str, Any]
) -> None:
    if not gates:
        return
    found = servable.versions(folder)
    number = needs_of(config, folder).current(list(found))
    current = None if number is None else found[number]
    said = {} if current is None else servable.about(current) or {}
    ours, theirs = (each.get("eval_data_sha256") for each in (provenance, said))
    if gates.not_worse_by is not None and ours and theirs and ours != theirs:
        say(f"{current}, which is served now, was evaluated on other data than this version")
    gates.check(provenance["eval_metrics"], current, said.get("eval_metrics"))


def _save(model: keras.Model, functions: Mapping[str, Any], path: Path) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, function in functions.items():
        archive.add_endpoint(name, function)
    archive.write_out(str(path), verbose=False)
    methods = METHODS.keys() & functions.keys()
    if methods:  # Keras and TensorFlow 2 write Predict's for all
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
        for name in methods:
            updater.replace_method_name(name, METHODS[name], tags=tf.saved_model.SERVING)
        updater.save()


def _questions(
    functions: Mapping[str, Any], features: Features, sizes: Sequence[int], name: str
) -> tuple[list[bytes], list[bytes], list[Answers]]:
    """What a new version is asked, and how the live model answers.

    Returns:
        Warm-up requests, other questions, and answers to all of them in that order.
    """
    requests, questions, answers = [], [], []
    try:
        for size in sizes:
            inputs = warmup.inputs_of(features, size)
            answers.append(_answers(functions[PREDICT], inputs))
            requests.append(warmup.request(name, inputs))
        inputs = warmup.inputs_of(features, _PROBES)
        for signature, function in functions.items():
            asked: Any = inputs
            if signature != PREDICT:
                asked = {"inputs": np.array(warmup.as_examples(inputs, features), object)}
            answers.append(_answers(function, asked if signature == PREDICT else asked["inputs"]))
            questions.append(warmup.request(name, asked, signature))
    except tf.errors.OpError as error:
        if features.read is not None:
            raise
        say(
            "the model does not take zeros and empty strings, so the version has no warm-up "
            f"requests, and its answers are not compared ({str(error).splitlines()[0][:200]}); "
            "give features= as a source"
        )
        return [], [], []
    return requests, questions, answers


def _answers(function: Any, inputs: Any) -> Answers:
    tensors = tf.nest.map_structure(tf.constant, inputs)
    return {name: value.numpy() for name, value in function(tensors).items()}


def _remove_old(folder: Path, keep: int, config: Path | None) -> None:
    def needed() -> set[int]:
        return needs_of(config, folder).of(list(servable.versions(folder)))

    try:
        servable.remove_old(folder, keep, needed)
    except BadInput as error:  # somebody has changed it meanwhile
        say(f"old versions stay: {error}")
