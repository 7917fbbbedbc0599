"""Reads and checks a ModelServerConfig. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.server.errors import StatusError, invalid_argument
from serving.server.models.servables import VersionPolicy, every, latest, specific

_MAX_MODELS = 1000
PLATFORM = "tensorflow"


@dataclass(frozen=True)
class ModelConfig:
    """One model of a configuration.

    Attributes:
        name: the model's name in requests.
        base_path: absolute path of the folder that contains its versions.
        policy: selects the versions to serve.
        labels: version numbers by label.
    """

    name: str
    base_path: Path
    policy: VersionPolicy
    labels: Mapping[str, int]


def single_model(name: str, base_path: Path) -> model_server_config_pb2.ModelServerConfig:
    """Returns the configuration of one model, whose newest version is served."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=name, base_path=str(base_path.absolute()), model_platform=PLATFORM
    )
    return config


def model_configs(
    config: model_server_config_pb2.ModelServerConfig, served: Container[str] = ()
) -> list[ModelConfig]:
    """Returns the models of a configuration; the texts of errors are TF Serving's.

    Args:
        config: the configuration.
        served: names of models that are served now, whose platform can't change.

    Raises:
        StatusError: the configuration is wrong.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    if len(config.model_config_list.config) > _MAX_MODELS:
        raise invalid_argument(
            f"More than {_MAX_MODELS} models are configured, and each has a thread here"
        )
    names: set[str] = set()
    for model in config.model_config_list.config:
        if model.name in names:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        names.add(model.name)
    return [_model_config(model, served) for model in config.model_config_list.config]


def check_first_labels(models: list[ModelConfig], labels_for_unavailable: bool) -> None:
    """Checks the labels of a server that starts: no version is available then.

    Raises:
        StatusError: a model has labels, and ``labels_for_unavailable`` does not allow them.
    """
    for model in models:
        if not labels_for_unavailable:
            for number in model.labels.values():
                raise label_not_available(model.name, number)


def label_not_available(name: str, number: int) -> StatusError:
    """Returns the error for a label on a version that is not available."""
    return StatusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Request to assign label to version {number} of model {name}, "
        "which is not currently available for inference",
    )


def _model_config(
    model: model_server_config_pb2.ModelConfig, served: Container[str]
) -> ModelConfig:
    if "://" in model.base_path:
        raise invalid_argument(
            f"model {model.name}: base_path {model.base_path}: only folders of this machine can be "
            "served; TF Serving itself reads remote ones"
        )
    if not model.base_path.startswith("/"):
        raise invalid_argument(
            f"Expected model {model.name} to have an absolute path or URI; "
            f"got base_path()={model.base_path}"
        )
    _check_platform(model, served)
    if model.HasField("logging_config"):
        raise invalid_argument(
            "No request-logger-creator provided. Requests can't be logged here, nor by TF "
            f"Serving's own binary: remove logging_config from model {model.name}"
        )
    return ModelConfig(
        model.name, Path(model.base_path), _policy(model), dict(model.version_labels)
    )


def _check_platform(model: model_server_config_pb2.ModelConfig, served: Container[str]) -> None:
    old_field, new_field = (f"ModelServerConfig::model_{field}" for field in ("type", "platform"))
    platform = model.model_platform
    if model.model_type:
        if platform:
            raise invalid_argument(
                f"Illegal setting both {old_field} (deprecated) and {new_field}."
            )
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(f"{old_field} choice {model.model_type} not supported.")
        platform = PLATFORM
    if not platform:
        raise invalid_argument(
            f"Illegal setting neither {old_field} (deprecated) nor {new_field}, "
            f"model name is {model.name}"
        )
    if platform != PLATFORM and model.name in served:
        raise invalid_argument(
            f"Illegal to change a model's platform. For model {model.name} platform was "
            f"{PLATFORM} and new platform requested is {platform}"
        )
    if platform != PLATFORM:
        text = f"PlatformConfigMap has no entry for platform {platform}"
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, text)


def _policy(model: model_server_config_pb2.ModelConfig) -> VersionPolicy:
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return every
    if choice == "specific":
        if not policy.specific.versions:
            raise invalid_argument(f"model {model.name}: the policy specific names no versions")
        return specific(frozenset(policy.specific.versions))
    return latest(max(1, policy.latest.num_versions))
