"""Batches by TensorFlow's scheduler, beside the same model's answers without batching."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.server.calls import warmup
from serving.server.models import batching_parameters, loading
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.registry import ModelRegistry
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import Servable
from serving.tensors import Array
from tests.serving.test_classify_regress import PREFIX, RECORDED, caller

VALID = "max_batch_size { value: 8 } allowed_batch_sizes: 4 allowed_batch_sizes: 8"


class Network(tf.Module):
    """A layer, words beside it, sums of rows of any length, and a loop without end if asked for."""

    def __init__(self) -> None:
        self.weights = tf.Variable(np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32))
        spec = tf.TensorSpec([None, 3], name="x")
        words = tf.TensorSpec([None], tf.string, name="words")
        rows = tf.TensorSpec([None, None], tf.int32, name="rows")
        text = tf.TensorSpec([None, None, 2], tf.string, name="text")
        self.functions = {
            "dense": tf.function(self._dense, input_signature=[spec, words]),
            "padded": tf.function(self._padded, input_signature=[rows, text]),
            "loop": tf.function(self._loop, input_signature=[tf.TensorSpec([None], name="x")]),
        }

    def _dense(self, x: tf.Tensor, words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.relu(x @ self.weights), "upper": tf.strings.upper(words)}

    def _padded(self, rows: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"rows": rows, "joined": tf.strings.reduce_join(text, [1, 2])}

    def _loop(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.while_loop(lambda y: y[0] > 0, lambda y: [y + 1], [x])[0]}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "1"
    module = Network()
    tf.saved_model.save(module, str(folder), signatures=module.functions)
    return folder


def run(
    model: SavedModel, key: str, arrays: dict[str, Any], timeout_s: float = 30
) -> dict[str, Array]:
    signature = model.signatures[key]
    feeds = {signature.inputs[name]: np.asarray(array) for name, array in arrays.items()}
    results = model.run(feeds, list(signature.outputs.values()), lambda: timeout_s)
    return dict(zip(signature.outputs, results, strict=True))


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Makes the calls at the same moment; what they return or raise."""
    gate = threading.Barrier(len(calls))

    def make(call: Callable[[], Any]) -> Any:
        gate.wait(20)
        try:
            return call()
        except tf.errors.OpError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, calls))


def test_calls_at_once_share_batches_and_get_their_own_rows(path: Path):
    sizes: list[int] = []
    parameters = BatchingParameters(8, 2_000_000, 10, 1, (4, 8))
    batched, alone = (
        SavedModel(path, parameters, sizes.append),
        SavedModel(path),
    )
    rng = np.random.default_rng(1)
    asked = []
    for rows in (1, 2, 3, 1, 1):  # 8 rows: the batch is full, and waits no longer
        words = np.array([b"w%d" % rng.integers(100) for _ in range(rows)], object)
        asked.append({"x": rng.normal(size=(rows, 3)).astype(np.float32), "words": words})
    found = together([lambda a=a: run(batched, "dense", a) for a in asked])
    assert sizes == [8]
    for inputs, outputs in zip(asked, found, strict=True):
        expected = run(alone, "dense", inputs)
        np.testing.assert_allclose(outputs["y"], expected["y"], rtol=1e-6)
        assert outputs["upper"].tolist() == expected["upper"].tolist()

    run(batched, "padded", {"rows": np.ones((8, 1), np.int32), "text": np.full((8, 1, 2), b"a")})
    assert sizes == [8, 8]  # each signature has a queue of its own
    part = batched.signatures["dense"]
    feeds = {part.inputs["x"]: asked[0]["x"], part.inputs["words"]: asked[0]["words"]}
    batched.run(feeds, [part.outputs["y"]])
    assert sizes == [8, 8]  # a filter is no signature, and not waited for


def test_a_small_batch_is_padded_to_an_allowed_size(path: Path):
    sizes: list[int] = []
    model = SavedModel(path, BatchingParameters(8, 0, 10, 1, (4, 8)), sizes.append)
    x = np.ones((3, 3), np.float32)
    assert len(run(model, "dense", {"x": x, "words": np.full(3, b"a", object)})["y"]) == 3
    assert sizes == [4]
    assert run(model, "dense", {"x": x[:0], "words": np.empty(0, object)})["y"].shape == (0, 2)


def test_a_call_that_is_larger_than_a_batch(path: Path):
    model = SavedModel(path, BatchingParameters(8))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        run(model, "dense", {"words": np.full(9, b"a", object), "x": np.ones((9, 3), np.float32)})
    text = "Task size 9 is larger than maximum input batch size 8"
    assert caught.value.message.partition("\n")[0] == text


def test_shapes_that_differ_are_refused_or_padded(path: Path):
    asked = []
    for length in (1, 2, 3):
        text = np.full((1, length, 2), b"%d" % length, object)
        asked.append({"rows": np.full((1, length), length, np.int32), "text": text})

    refusing = SavedModel(path, BatchingParameters(3, 2_000_000, 10, 1))
    errors = together([lambda a=a: run(refusing, "padded", a) for a in asked])
    for error in errors:
        assert isinstance(error, tf.errors.FailedPreconditionError)
        assert "have different shapes and padding is turned off" in error.message

    parameters = BatchingParameters(3, 2_000_000, 10, 1, pad_variable_length_inputs=True)
    padding = SavedModel(path, parameters)
    found = together([lambda a=a: run(padding, "padded", a) for a in asked])
    # Each is padded with its own first element, as TF Serving does.
    assert [outputs["rows"].tolist() for outputs in found] == [[[1] * 3], [[2] * 3], [[3] * 3]]
    assert [outputs["joined"].tolist() for outputs in found] == [
        [b"111111"],
        [b"222222"],
        [b"333333"],
    ]
    empty = {"rows": np.ones((1, 0), np.int32), "text": np.empty((1, 0, 2), object)}
    assert run(padding, "padded", empty)["joined"].tolist() == [b""]


def test_a_full_queue_refuses_and_a_deadline_ends_what_would_not_end(path: Path):
    model = SavedModel(path, BatchingParameters(1, 0, 1, 1))
    forever = {"x": np.ones(1, np.float32)}
    errors = together([lambda: run(model, "loop", forever, timeout_s=0.5)] * 5)
    kinds = {type(error) for error in errors}
    assert kinds == {tf.errors.UnavailableError, tf.errors.DeadlineExceededError}, errors
    full = "The batch scheduling queue to which this task was submitted is full"
    refused = [error for error in errors if isinstance(error, tf.errors.UnavailableError)]
    assert all(error.message.startswith(full) for error in refused)
    assert run(model, "loop", {"x": np.zeros(1, np.float32)})["y"].tolist() == [0]


def test_with_batching_answers_are_tf_servings_still():
    servable = Servable(
        "kitchen", RECORDED / "models" / "kitchen", loading.loader(warmup.run, BatchingParameters())
    )
    servable.poll()
    call, differing, count = caller(ModelRegistry({"kitchen": servable})), {}, 0
    for exchange in json.loads((RECORDED / "exchanges.json").read_text()):
        if exchange["method"] != PREFIX + "Predict" or exchange["response"] is None:
            continue
        request = base64.b64decode(exchange["request"])
        spec = predict_pb2.PredictRequest.FromString(request).model_spec
        if spec.WhichOneof("version_choice"):
            continue  # only the newest is here
        _, text, answer = call("Predict", request)
        theirs = predict_pb2.PredictResponse.FromString(base64.b64decode(exchange["response"]))
        if answer is None:
            differing[exchange["name"]] = text.partition("\n")[0]
            continue
        count += 1
        ours = predict_pb2.PredictResponse.FromString(answer)
        assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
            deterministic=True
        ), exchange["name"]
    no_rows = "Batching Run() input tensors must have at least one dimension"
    unequal = "Batching Run() input tensors must have equal 0th-dimension size"
    assert set(differing.values()) == {no_rows, unequal}
    assert count > 40


def test_a_file_as_tf_serving_reads_it(tmp_path: Path):
    file = tmp_path / "batching.config"
    file.write_text(
        f"{VALID} batch_timeout_micros {{ value: 5 }} max_enqueued_batches {{ value: 6 }} "
        'num_batch_threads { value: 7 } thread_pool_name { value: "a" } '
        "pad_variable_length_inputs: true  # a comment"
    )
    assert batching_parameters.read(file) == BatchingParameters(8, 5, 6, 7, (4, 8), True)
    file.write_text("")
    assert batching_parameters.read(file) == BatchingParameters()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size is 0"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 2", "last entry was 2; expected 4"),
        (f"{VALID} allowed_batch_sizes: 8", "ascending"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros is -1"),
        ("max_batch_size: 4", 'Expected "{"'),
        ("batch_size { value: 4 }", 'no field named "batch_size"'),
        ("\xff", "batching.config"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "batching.config"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"batching parameters in .*batching\.config: ") as caught:
        batching_parameters.read(file)
    assert message in str(caught.value)
