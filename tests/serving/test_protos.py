"""The client's messages beside TF Serving's; both in one process, so their names differ."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (  # they bring the messages of all methods
    get_model_status_pb2,
    model_service_pb2,  # noqa: F401
    prediction_service_pb2,  # noqa: F401
)

from serving.protos import server_config_pb2, serving_pb2
from tests.running import ROOT

TYPE = descriptor_pb2.FieldDescriptorProto.Type


def original(name: str) -> Descriptor:
    """TF Serving's or TensorFlow's message of this name."""
    for scope in ("", "serving.", "serving.FileSystemStoragePathSourceConfig."):
        try:
            return descriptor_pool.Default().FindMessageTypeByName(f"tensorflow.{scope}{name}")
        except KeyError:
            continue
    raise AssertionError(f"no {name} to compare with")


def test_fields_have_the_numbers_and_types_of_the_wire():
    for name, message in serving_pb2.DESCRIPTOR.message_types_by_name.items():
        theirs = {field.number: field for field in original(name).fields}
        for field in message.fields:
            other = theirs[field.number]
            assert (field.name, field.is_repeated) == (other.name, other.is_repeated), name
            types = {field.type, other.type}
            # An enum travels as an int32.
            assert len(types) == 1 or types == {TYPE.TYPE_INT32, TYPE.TYPE_ENUM}, field.full_name


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
