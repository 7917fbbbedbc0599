"""What the embedded server's service checks before a model is asked."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2

from serving.server.calls import predict, predict_fast_path
from serving.server.errors import StatusError
from serving.server.models.registry import ModelRegistry
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import Servable


class Add(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], name="x"), tf.TensorSpec([None], name="y")])
    def add(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": x + y}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    base = tmp_path_factory.mktemp("add")
    module = Add()
    tf.saved_model.save(module, str(base / "1"), signatures=module.add)
    # What an exporter puts there if an input may be left out.
    path = base / "1" / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    definition = proto.meta_graphs[0].signature_def["serving_default"]
    definition.defaults["y"].CopyFrom(tf.make_tensor_proto([100.0]))
    path.write_bytes(proto.SerializeToString())
    servable = Servable("add", base, SavedModel)
    servable.poll()
    return ModelRegistry({"add": servable})


def request(**inputs: Any) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "add"
    for name, values in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32)))
    return message


def test_an_input_with_a_default_may_be_left_out(models: ModelRegistry):
    for _ in range(3):  # those that repeat the first one as well
        for inputs, expected in (({"x": [1.0], "y": [2.0]}, [3]), ({"x": [1.0, 2.0]}, [101, 102])):
            _, call = predict_fast_path.read(request(**inputs).SerializeToString())
            response = predict_pb2.PredictResponse.FromString(
                predict_fast_path.predict(models, call, lambda: None)
            )
            assert list(response.outputs["sum"].float_val) == expected


def test_an_input_without_default_may_not(models: ModelRegistry):
    for inputs in ({}, {"y": [1.0]}, {"x": [1.0], "y": [1.0], "z": [1.0]}):
        with pytest.raises(StatusError) as caught:
            predict.predict(models, request(**inputs), lambda: None)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_initializer_is_no_signature(models: ModelRegistry):
    message = request(x=[1.0])
    message.model_spec.signature_name = "__saved_model_init_op"
    with pytest.raises(StatusError, match="not found"):
        predict.predict(models, message, lambda: None)
