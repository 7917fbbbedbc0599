"""``tfdp.export``: a model, its preprocessing inside, as a version that TF Serving picks up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput, TrainingError
from tfdp.feed import Preprocess, per_batch
from tfdp.files import sync_folder, sync_tree, write_durably
from tfdp.sources import Source

_ABOUT = "tfdp.json"  # beside saved_model.pb: where a version came from
_HIDDEN = ".unpublished-"  # and the publisher's process id
_PROBES = 8  # examples that a new version has to answer as the live model does


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess | None = None,
    features: Any = None,
    about: Mapping[str, Any] | None = None,
    confirm: Callable[[], None] | None = None,
) -> Path:
    """Publishes a model as the next version in ``path``.

    Call it on the chief. The version is written under a hidden name, loaded again and asked, and
    then appears by one rename: readers see all of it or nothing.

    The signature ``serving_default`` takes the features, batch first, by name (a single tensor is
    called ``features``) and returns the model's outputs by name (a single one is ``outputs``).

    Args:
        model: a built model.
        path: the servable's folder, which holds the versions; made if it isn't there.
        preprocess: of the recipe; applied to each example, with ``training=False``.
        features: a ``tfdp.Source``, or ``tf.TensorSpec`` of the features of one example; by
            default the model's inputs. Examples of a source are what the new version is asked.
        about: what the file ``tfdp.json`` beside the SavedModel shall say, as JSON takes it.
        confirm: called just before the version appears; if it raises, nothing does.

    Returns:
        The version's folder, ``path/<number>``.

    Raises:
        BadInput: if a feature's name is not an identifier, or the features can't be told.
        TrainingError: if the version does not answer as the model does; it is not published then.
    """
    folder = Path(path)
    make_folder(folder)
    spec, is_single, probes = _features(model, features, preprocess)
    serve = _serving_function(model, preprocess, spec, is_single)

    _sweep(folder)
    hidden = folder / f"{_HIDDEN}{os.getpid()}"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serving_default", serve, input_signature=[spec])
        archive.write_out(str(hidden), verbose=False)
        _check(hidden, serve, probes)
        write_durably(hidden / _ABOUT, json.dumps(dict(about or {}), indent=2).encode())
        sync_tree(hidden)
        if confirm is not None:
            confirm()
        return _publish(hidden, folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def versions(folder: Path) -> list[int]:
    """Numbers of the versions in a servable's folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdigit())


def published(folder: Path, about: Mapping[str, Any]) -> Path | None:
    """The newest version whose ``tfdp.json`` says all of ``about``, or None."""
    for number in reversed(versions(folder)):
        path = folder / str(number)
        try:
            said = json.loads((path / _ABOUT).read_text())
        except (OSError, ValueError):
            continue  # a version that something else has written
        if about.items() <= said.items():
            return path
    return None


def _sweep(folder: Path) -> None:
    """Removes what publishers of this machine left that were killed."""
    for left in folder.glob(f"{_HIDDEN}*"):
        publisher = left.name.removeprefix(_HIDDEN)
        if publisher.isdigit() and not Path("/proc", publisher).exists():
            shutil.rmtree(left, ignore_errors=True)


def _publish(hidden: Path, folder: Path) -> Path:
    """Renames to the next number; who takes one at the same time makes the rename fail."""
    while True:
        number = max(versions(folder), default=0) + 1
        try:
            hidden.rename(folder / str(number))
        except OSError:
            if not (folder / str(number)).exists():
                raise
            continue
        sync_folder(folder)
        return folder / str(number)


def _features(
    model: keras.Model, features: Any, preprocess: Preprocess | None
) -> tuple[dict[str, Any], bool, dict[str, Any] | None]:
    """Features of a batch: their specs by name, whether it is one without a name, a few real ones.

    There are real ones where ``features`` is a source.
    """
    probes = None
    if isinstance(features, Source):
        spec = features.element_spec()[0]
        probes = named(features.read(tf.range(min(_PROBES, len(features)), dtype=tf.int64))[0])
    elif features is not None:
        spec = features
    elif preprocess is not None or not getattr(model, "inputs", None):
        raise BadInput(
            "the features can't be told from the model: give features=, a source or tf.TensorSpec "
            "of one example"
        )
    else:
        inputs = {tensor.name: tensor for tensor in model.inputs}
        single = len(inputs) == 1
        spec = {name: tf.TensorSpec(t.shape[1:], t.dtype) for name, t in inputs.items()}
        spec = next(iter(spec.values())) if single else spec
    batched = {
        name: tf.TensorSpec([None, *leaf.shape], leaf.dtype, name=name)
        for name, leaf in named(spec).items()
    }
    return batched, not isinstance(spec, Mapping), probes


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
        if not name.isidentifier():
            raise BadInput(
                f"feature {name!r} can't be an input of a signature: use letters, digits and _"
            )
    return dict(features)


def make_folder(folder: Path) -> None:
    """Makes a servable's folder; BadInput if something else is there or it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"versions can't be published in {folder}: {error.strerror}") from None


def _serving_function(
    model: keras.Model,
    preprocess: Preprocess | None,
    spec: dict[str, tf.TensorSpec],
    is_single: bool,
) -> Any:
    preprocessed = per_batch(preprocess, training=False) if preprocess is not None else None

    @tf.function(input_signature=[spec])
    def serve(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs: Any = features["features"] if is_single else features
        if preprocessed is not None:
            examples = tf.shape(next(iter(features.values())))[0]
            inputs = preprocessed(inputs, tf.zeros([examples, 2], tf.int32))
        outputs = model(inputs, training=False)
        if isinstance(outputs, Mapping):
            return {name: tf.identity(value) for name, value in outputs.items()}
        if isinstance(outputs, (list, tuple)):
            return {f"output_{i}": tf.identity(value) for i, value in enumerate(outputs)}
        return {"outputs": outputs}

    return serve


def _check(path: Path, serve: Any, probes: dict[str, Any] | None) -> None:
    """Loads a SavedModel as TF Serving does, in a session, and compares its answers."""
    if probes is None:
        return
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        signature = loaded.signature_def["serving_default"]
        answers = session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs[name].name: probe.numpy() for name, probe in probes.items()},
        )
    for name, expected in serve(probes).items():
        if not np.allclose(expected.numpy(), answers[name], rtol=1e-4, atol=1e-5):
            raise TrainingError(
                f"the exported model answers {name} differently from the live one: not published"
            )
