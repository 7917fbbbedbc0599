"""``tfdp.export``: publishes a model, with its preprocessing, as a version for TF Serving."""

from __future__ import annotations

import dataclasses
import json
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.chief import is_chief
from tfdp.data.preprocessing import Preprocess
from tfdp.data.sources import data_sha256
from tfdp.errors import BadInput
from tfdp.files import write_durably
from tfdp.log import say
from tfdp.provenance import package_versions, weights_sha256
from tfdp.publishing import load_check, saved_model, servable, serving_version, warmup
from tfdp.publishing.features import Features, find_features
from tfdp.publishing.gates import Gates
from tfdp.publishing.load_check import Outputs
from tfdp.publishing.models_config import read_served_versions
from tfdp.publishing.servable import Draft, make_folder
from tfdp.publishing.settings import WARMUP_BATCH_SIZES, check_options
from tfdp.publishing.signatures import PREDICT, check_has_call, make_signatures

_TEST_EXAMPLES = 8  # in each request of the load check, besides the warm-up requests


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

    Call it on the chief, ``if tfdp.is_chief():``. The version is written to a hidden folder, loaded
    in a fresh process as TF Serving loads it, and compared with the model. Then it appears by one
    rename: readers see a complete version or none.

    The signature ``serving_default`` takes the features, batch first, by name (a single tensor is
    called ``features``) and returns the model's outputs by name: a single one is ``outputs``;
    others have their keys and fields, or the names of a functional model's layers, those without a
    name are ``output_0`` and so on, and names of nested ones are joined by ``_``. A ragged feature
    is taken as a padded tensor of shape [n, longest, …], with the lengths, int64[n], as
    ``<name>_length``. If the model's inputs have a fixed batch size, n is that size.

    ``classify`` and ``regress`` take serialized ``tf.train.Example``
    (``inputs``, string[n]), if it can hold the features and the model has a single output.
    ``classify`` returns ``classes`` (string) and ``scores`` (float32), both [n, classes], of a
    model that is compiled with a crossentropy, or has ``class_names``. ``regress`` returns
    ``outputs`` (float32[n, 1]) of another model whose output is [n] or [n, 1].

    Args:
        model: a built model with a ``call``, compiled or not. Of a model that only has a
            ``train_step``, export a part: ``model.generator``.
        path: folder of the servable, which contains the versions; created if it does not exist.
        preprocess: preprocessing of one example, called with ``training=False``.
        features: a ``tfdp.Source``, or a ``tf.data.Dataset`` of single examples, or
            ``tf.TensorSpec`` (``tf.RaggedTensorSpec``) of the features of one example; by default
            the model's inputs. The first examples are used to warm up and to compare the version;
            if only specs are given, zeros and empty strings are used.
        class_names: names of the output's columns; by default "0", "1" and so on.
        warmup_batch_sizes: number of examples in each of the version's warm-up requests.
        eval_metrics: metrics of an evaluation, as ``tfdp.evaluate`` returns them.
        require_min: smallest allowed values of these metrics.
        require_max: largest allowed values.
        not_worse_than_current: how much worse a metric may be than that of the currently served
            version: the one with the label ``stable``, or the newest. The metrics of
            ``require_min`` and ``require_max`` are compared. Without those, all metrics are
            compared whose names show which direction is better; the loss only if no other is left.
        keep: number of newest versions to keep; None: all. Versions that ``models_config`` names
            are kept as well.
        models_config: TF Serving's configuration; by default ``models.config`` beside ``path``, if
            it exists.
        about: further content of the file ``tfdp.json`` beside the SavedModel, as JSON takes it.
        confirm: called just before the version appears; if it raises, the version does not appear.

    Returns:
        Folder of the version, ``path/<number>``.

    Raises:
        BadInput: if the features are unknown or have unsuitable names, or an argument is out of
            range.
        Refused: if the metrics do not meet the conditions; nothing is published then.
        TrainingError: if the version answers differently from the model; nothing is published then.
    """
    folder = Path(path)
    config = None if models_config is None else Path(models_config)
    if not is_chief():
        say("tfdp.export publishes on this worker too: call it on the chief, if tfdp.is_chief():")
    check_options(not_worse_than_current, keep, warmup_batch_sizes)
    gates = Gates(require_min or {}, require_max or {}, not_worse_than_current)
    metrics = _as_floats(eval_metrics or {})
    gates.check_names([name for name, value in metrics.items() if isinstance(value, float)])
    make_folder(folder)
    read_served_versions(config, folder)  # fails now if it can't be read later

    served_features, signatures = _make_signatures(model, preprocess, features, class_names)
    provenance = _describe_provenance(model, features, metrics, about or {})
    _check_gates(gates, folder, config, provenance)
    with Draft(folder) as draft:
        saved_model.save(signatures, draft.path)
        name = folder.resolve().name
        with saved_model.state_kept(model, signatures):  # the version has the state of before
            requests = _make_requests(signatures, served_features, warmup_batch_sizes, name)
        if requests.warmup:
            warmup.write(draft.path / warmup.PATH, requests.warmup)
        rtol = load_check.choose_rtol(model)
        is_random = saved_model.draws_anew(signatures[PREDICT])
        load_check.check(draft.path, requests.others, requests.expected, rtol, is_random)
        text = json.dumps(provenance, indent=2) + "\n"
        write_durably(draft.path / servable.PROVENANCE_FILE, text.encode())
        version = draft.publish(confirm or (lambda: None))
    if keep is not None:
        _remove_old_versions(folder, keep, config)
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
    """Checks before training arguments that ``export`` would refuse after it.

    Raises:
        BadInput: if the features, model or classes can't be served, or the folder or
            ``models_config`` can't be used.
    """
    servable.check_writable(folder)
    read_served_versions(models_config, folder)
    _make_signatures(model, preprocess, features, class_names)


def _make_signatures(
    model: keras.Model,
    preprocess: Preprocess | None,
    features: Any,
    class_names: Sequence[str] | None,
) -> tuple[Features, dict[str, Any]]:
    """Returns a version's features and functions; raises BadInput if the model can't have them."""
    check_has_call(model)
    served_features = find_features(model, features, preprocess)
    weights = len(model.weights)
    signatures = make_signatures(model, preprocess, served_features, class_names)
    if len(model.weights) > weights:
        raise BadInput(
            f"the model had {weights} weights and has {len(model.weights)} now that it was called: "
            "layers that were not built can't have been trained; build the model first"
        )
    saved_model.check(signatures[PREDICT])  # the others call the same
    _report_limits(served_features, signatures)
    return served_features, signatures


def _report_limits(features: Features, signatures: Mapping[str, Any]) -> None:
    """Prints what a version can't do on the servers of docker-compose.yml, or for all callers."""
    size = features.batch_size
    if size is not None:
        say(
            f"the model's inputs have the fixed batch size {size}, so the signatures "
            f"{', '.join(signatures)} take {size} examples in each call, and the warm-up "
            f"requests contain {size}. TF Serving with batching needs max_batch_size and "
            f"allowed_batch_sizes of {size}; it then fills up smaller calls. For any number of "
            "examples, build the model without batch_size"
        )
    else:
        outputs = signatures[PREDICT].get_concrete_function().structured_outputs
        shapes = {name: spec.shape for name, spec in outputs.items()}
        fixed = [name for name, shape in shapes.items() if shape.rank == 0 or _rows(shape)]
        for name in fixed:
            say(
                f"the output {name!r} of {PREDICT} has the shape {shapes[name]}, whatever the "
                "number of examples: TF Serving with batching can't divide it among calls and "
                "refuses them; return a row for each example, or serve it without batching"
            )
    nodes = [node for function in signatures.values() for node in saved_model.nodes_of(function)]
    for operation in sorted(serving_version.unsupported(nodes)):
        say(
            f"the model or preprocess uses the operation {operation}, which is newer than TF "
            f"Serving {serving_version.TF_SERVING}, the version of docker-compose.yml: it can't "
            "load such a version. Use another operation, or a newer TF Serving"
        )


def _rows(shape: tf.TensorShape) -> int | None:
    """Returns the fixed first dimension of a shape; None if it has none."""
    return None if shape.rank is None else shape[0]


def _as_floats(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics with numbers of any type as floats, and other values unchanged."""
    return {
        name: float(value) if isinstance(value, numbers.Real) else value
        for name, value in metrics.items()
    }


def _describe_provenance(
    model: keras.Model, features: Any, metrics: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "weights_sha256": about.get("weights_sha256") or weights_sha256(model),
        "data_sha256": data_sha256(features),
        **package_versions(),
        **about,
        "eval_metrics": metrics,
    }


def _check_gates(
    gates: Gates, folder: Path, config: Path | None, provenance: Mapping[str, Any]
) -> None:
    """Raises Refused unless the new version passes the gates."""
    if not gates:
        return
    existing = servable.versions(folder)
    number = read_served_versions(config, folder).current(list(existing))
    current = None if number is None else existing[number]
    current_provenance = {} if current is None else servable.read_provenance(current) or {}
    data, current_data = (
        source.get("eval_data_sha256") for source in (provenance, current_provenance)
    )
    if gates.not_worse_by is not None and data and current_data and data != current_data:
        say(f"{current}, which is served now, was evaluated on other data than this version")
    gates.check(provenance["eval_metrics"], current, current_provenance.get("eval_metrics"))


@dataclasses.dataclass(frozen=True)
class _Requests:
    """The requests of a version's load check.

    Args:
        warmup: warm-up requests, which are published with the version.
        others: further requests.
        expected: outputs of the live model for all requests, in this order.
    """

    warmup: list[bytes] = dataclasses.field(default_factory=list)
    others: list[bytes] = dataclasses.field(default_factory=list)
    expected: list[Outputs] = dataclasses.field(default_factory=list)


def _make_requests(
    signatures: Mapping[str, Any],
    features: Features,
    batch_sizes: Sequence[int],
    servable_name: str,
) -> _Requests:
    """Returns requests, of real features if possible; none if the model refuses zeros."""
    requests = _Requests()
    try:
        test_examples = features.batch_size or _TEST_EXAMPLES
        if features.batch_size and batch_sizes:
            batch_sizes = [features.batch_size]
        for size in batch_sizes:
            inputs = warmup.make_inputs(features, size)
            requests.expected.append(_call(signatures[PREDICT], inputs))
            requests.warmup.append(warmup.make_request(servable_name, inputs))
        inputs = warmup.make_inputs(features, test_examples)
        for signature, function in signatures.items():
            sent: Any = inputs
            if signature != PREDICT:
                sent = {"inputs": np.array(warmup.to_examples(inputs, features), object)}
            requests.expected.append(_call(function, inputs if sent is inputs else sent["inputs"]))
            requests.others.append(warmup.make_request(servable_name, sent, signature))
    except tf.errors.OpError as error:
        if features.read is not None:
            raise
        say(
            "the model does not take zeros and empty strings, so the version has no warm-up "
            f"requests, and its answers are not compared ({str(error).splitlines()[0][:200]}); "
            "give features= as a source"
        )
        return _Requests()
    return requests


def _call(function: Any, inputs: Any) -> Outputs:
    tensors = tf.nest.map_structure(tf.constant, inputs)
    return {name: value.numpy() for name, value in function(tensors).items()}


def _remove_old_versions(folder: Path, keep: int, config: Path | None) -> None:
    def required() -> set[int]:
        return read_served_versions(config, folder).required(list(servable.versions(folder)))

    try:
        servable.remove_old(folder, keep, required)
    except BadInput as error:  # models.config was changed meanwhile
        say(f"old versions stay: {error}")
