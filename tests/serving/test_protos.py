"""The client's messages beside TF Serving's; both in one process, so their names differ."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    status_pb2,
)
from tensorflow_serving.config import (
    file_system_storage_path_source_pb2,
    log_collector_config_pb2,
    logging_config_pb2,
    model_server_config_pb2,
)

from serving.protos import server_config_pb2, serving_pb2
from tests.running import ROOT

THEIRS = {
    "TensorProto": tensor_pb2.TensorProto,
    "TensorShapeProto": tensor_shape_pb2.TensorShapeProto,
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "SignatureDef": meta_graph_pb2.SignatureDef,
    "TensorInfo": meta_graph_pb2.TensorInfo,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "ModelVersionStatus": get_model_status_pb2.ModelVersionStatus,
    "StatusProto": status_pb2.StatusProto,
    "Example": example_pb2.Example,
    "Features": feature_pb2.Features,
    "Feature": feature_pb2.Feature,
    "BytesList": feature_pb2.BytesList,
    "FloatList": feature_pb2.FloatList,
    "Int64List": feature_pb2.Int64List,
    "Input": input_pb2.Input,
    "ExampleList": input_pb2.ExampleList,
    "ExampleListWithContext": input_pb2.ExampleListWithContext,
    "ClassificationRequest": classification_pb2.ClassificationRequest,
    "ClassificationResponse": classification_pb2.ClassificationResponse,
    "ClassificationResult": classification_pb2.ClassificationResult,
    "Classifications": classification_pb2.Classifications,
    "Class": classification_pb2.Class,
    "RegressionRequest": regression_pb2.RegressionRequest,
    "RegressionResponse": regression_pb2.RegressionResponse,
    "RegressionResult": regression_pb2.RegressionResult,
    "Regression": regression_pb2.Regression,
    "ReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
    "ReloadConfigResponse": model_management_pb2.ReloadConfigResponse,
    "ModelServerConfig": model_server_config_pb2.ModelServerConfig,
    "ModelConfigList": model_server_config_pb2.ModelConfigList,
    "ModelConfig": model_server_config_pb2.ModelConfig,
    "LoggingConfig": logging_config_pb2.LoggingConfig,
    "LogCollectorConfig": log_collector_config_pb2.LogCollectorConfig,
    "SamplingConfig": logging_config_pb2.SamplingConfig,
    "ServableVersionPolicy": (
        file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
    ),
}
TYPE = descriptor_pb2.FieldDescriptorProto.Type


def test_every_message_is_compared():
    assert set(THEIRS) == set(serving_pb2.DESCRIPTOR.message_types_by_name)


@pytest.mark.parametrize("name", THEIRS)
def test_fields_have_the_numbers_and_types_of_the_wire(name):
    theirs = {field.number: field for field in THEIRS[name].DESCRIPTOR.fields}
    for field in serving_pb2.DESCRIPTOR.message_types_by_name[name].fields:
        original = theirs[field.number]
        assert field.name == original.name
        assert field.is_repeated == original.is_repeated
        types = {field.type, original.type}
        # An enum travels as an int32.
        assert len(types) == 1 or types == {TYPE.TYPE_INT32, TYPE.TYPE_ENUM}, field.name


def test_element_types_and_states_have_their_numbers():
    for name, number in serving_pb2.DataType.items():
        assert types_pb2.DataType.Value(name) == number
    theirs = get_model_status_pb2.ModelVersionStatus.State
    assert dict(serving_pb2.ModelVersionStatus.State.items()) == dict(theirs.items())


@pytest.mark.parametrize("module", [serving_pb2, server_config_pb2])
def test_committed_code_is_what_the_proto_generates(module: ModuleType, tmp_path: Path):
    generated = tmp_path / "descriptors"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_out={generated}"]
    command = [*protoc, "-I.", f"--pyi_out={tmp_path}", module.DESCRIPTOR.name]
    subprocess.run(command, cwd=ROOT, check=True)
    (fresh,) = descriptor_pb2.FileDescriptorSet.FromString(generated.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(committed)
    for file in (fresh, committed):
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")  # derived from the name; protoc adds it
            for nested in message.nested_type:
                for field in nested.field:
                    field.ClearField("json_name")
    assert committed == fresh

    stub = Path(module.DESCRIPTOR.name.replace(".proto", "_pb2.pyi"))
    assert (ROOT / stub).read_text() == (tmp_path / stub).read_text()
