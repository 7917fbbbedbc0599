from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf

import tfdp
from tfdp.publishing.features import find_features

FLOATS = tf.TensorSpec([4], tf.float32)


class Sentences(tfdp.Source):
    """Words, a ragged string feature, with two features of other dtypes; their number."""

    WORDS = tf.ragged.constant([["a", "b"], [], ["c", "a", "a", "b"], ["d"]], dtype=tf.string)

    def __len__(self) -> int:
        return 4

    def read(self, indices: tf.Tensor) -> Any:
        words = tf.gather(self.WORDS, indices)
        size = tf.reshape(tf.cast(indices, tf.uint8), [-1, 1, 1])
        features = {"words": words, "size": size, "late": indices > 1}
        return features, tf.cast(words.row_lengths(), tf.float32)[:, tf.newaxis]


def test_ragged_features_are_sent_with_their_lengths() -> None:
    features = find_features(keras.Sequential(), Sentences(), None)
    assert {name: spec.shape.as_list() for name, spec in features.input_specs().items()} == {
        "words": [None, None],
        "words_length": [None],
        "size": [None, 1, 1],
        "late": [None],
    }


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "give features="),
        ((FLOATS, FLOATS), "use a dict"),
        *(
            ({name: FLOATS}, f"feature '{name}' can't be an input")
            for name in ("a b", "a/b", "1st", "", "a-b", "class")
        ),
        ({"passenger count": FLOATS}, "no keyword of Python, as in 'passenger_count'"),
        ({"class": FLOATS}, "as in 'feature_class'. If the model needs the old name, preprocess"),
        ({0: FLOATS, 1: FLOATS}, "feature 0 can't be an input of a signature: .* 'feature_0'"),
        (
            {"a": tf.RaggedTensorSpec([None, None], tf.int64, ragged_rank=1)},
            "ragged in several dimensions, or",
        ),
        (
            {"a": tf.RaggedTensorSpec([None], tf.int64, 0), "a_length": tf.TensorSpec([])},
            "ragged in several dimensions, or",
        ),
        ({"a": tf.SparseTensorSpec([3])}, "has to be a tensor, dense or ragged"),
    ],
)
def test_features_that_can_not_be_served_are_refused(features: Any, message: str) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        find_features(keras.Sequential(), features, None)


def test_the_models_inputs_are_no_features_before_preprocess() -> None:
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    assert find_features(model, None, None).input_specs().keys() == {"features"}
    with pytest.raises(tfdp.BadInput, match="give features="):
        find_features(model, None, lambda features, training, seed: features)
