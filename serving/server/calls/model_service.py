"""ModelService: GetModelStatus and HandleReloadConfigRequest."""

from __future__ import annotations

from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

from serving.server.calls.grpc_status import status_of
from serving.server.deadlines import TimeLeft
from serving.server.models.registry import ModelRegistry
from serving.server.models.reloadable_registry import ReloadableRegistry


def get_model_status(
    registry: ModelRegistry,
    request: get_model_status_pb2.GetModelStatusRequest,
    time_left_s: TimeLeft,
) -> get_model_status_pb2.GetModelStatusResponse:
    """Answers ModelService/GetModelStatus."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for state in registry.states(request.model_spec):
        entry = response.model_version_status.add()
        entry.version = state.number
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state.state)
        entry.status.SetInParent()
        if state.error is not None:
            code, text = status_of(state.error)
            entry.status.error_code = code.value[0]
            entry.status.error_message = text
    return response


def handle_reload_config_request(
    registry: ReloadableRegistry,
    request: model_management_pb2.ReloadConfigRequest,
    time_left_s: TimeLeft,
) -> model_management_pb2.ReloadConfigResponse:
    """Answers ModelService/HandleReloadConfigRequest."""
    registry.reload(request.config, time_left_s())
    response = model_management_pb2.ReloadConfigResponse()
    response.status.SetInParent()
    return response
