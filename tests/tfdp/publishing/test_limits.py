"""What TF Serving can't do with a version, said when it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.returning import Returning
from tests.tfdp.servables import loaded, warmup_requests
from tfdp.publishing import exporting, serving_version

pytestmark = pytest.mark.usefixtures("reloaded_here")


def test_a_fixed_batch_size_is_said_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = keras.Input((3, 1), batch_size=4, name="x")
    state = keras.layers.LSTM(1, stateful=True)(inputs)  # takes four sequences, and no others
    model = keras.Model(inputs, state)
    version = tfdp.export(model, tmp_path)
    said = capsys.readouterr()
    assert "serving_default, regress take 4 examples in each call" in said.out + said.err
    (request,) = warmup_requests(version)
    assert request.inputs["features"].tensor_shape.dim[0].size == 4
    with loaded(version) as servable:
        assert servable.inputs()["features"][1] == [4, 3, 1]
        assert servable.inputs("regress")["inputs"][1] == [4]
    with pytest.raises(tfdp.errors.BadInput, match=r"\[2, 4\]"):
        other = keras.Input((1,), batch_size=2, name="y")
        tfdp.export(keras.Model([inputs, other], state), tmp_path)


@pytest.mark.parametrize("compute", [tf.reduce_sum, lambda x: tf.zeros([3]) + tf.reduce_sum(x)])
def test_an_output_without_rows_is_said(
    compute: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Returning(lambda x: {"rows": x, "all": compute(x)})
    tfdp.export(model, tmp_path, features=tf.TensorSpec([1]), warmup_batch_sizes=[])
    said = "".join(capsys.readouterr())
    assert "the output 'all'" in said and "'rows'" not in said


def test_operations_that_the_pinned_tf_serving_lacks_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def decode(features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.raw_ops.DecodeJxl(contents=features)[:1, 0, 0], tf.float32)

    features = tf.TensorSpec([], tf.string)
    exporting._make_signatures(Returning(lambda x: x), decode, features, None)
    assert "the operation DecodeJxl, which is newer than TF Serving" in "".join(capsys.readouterr())
    exporting._make_signatures(Returning(lambda x: x), None, tf.TensorSpec([4]), None)
    assert "newer" not in "".join(capsys.readouterr())


def test_the_pinned_tf_serving_is_that_of_docker_compose() -> None:
    compose = Path(exporting.__file__).parents[2] / "docker-compose.yml"
    assert f"tensorflow/serving:{serving_version.TF_SERVING}\n" in compose.read_text()
    assert tf.__version__.startswith(f"{serving_version.COMPARED_WITH}.")  # or compare again
    for operation in serving_version.NEW_OPERATIONS:
        assert hasattr(tf.raw_ops, operation)
    for (operation, attribute), _ in serving_version.NEW_ATTRIBUTES.items():
        assert hasattr(tf.raw_ops, operation), attribute
