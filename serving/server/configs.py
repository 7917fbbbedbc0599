"""Configuration files, and what a ModelServerConfig says, checked. Knows no TensorFlow."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from serving.server.models import Refused, invalid
from serving.server.servables import Policy, every, latest, specific

_MAX_MODELS = 1000
PLATFORM = "tensorflow"

T = TypeVar("T", bound=Message)


@dataclass(frozen=True)
class ModelConfig:
    """One model of a configuration.

    Attributes:
        name: what callers call it.
        base_path: the folder of its versions, absolute.
        policy: which versions are served.
        labels: the versions that labels stand for.
    """

    name: str
    base_path: Path
    policy: Policy
    labels: Mapping[str, int]


def read(path: Path, message: T) -> T:
    """Reads a file in protobuf's text format into ``message``, and returns it.

    Raises:
        ValueError: the file can't be read or isn't such a message.
    """
    try:
        text_format.Parse(path.read_bytes(), message)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        kind = message.DESCRIPTOR.name
        raise ValueError(f"{path} is no {kind} in protobuf's text format: {error}") from None
    return message


def single_model(name: str, base_path: Path) -> model_server_config_pb2.ModelServerConfig:
    """The configuration of one model of which the newest version is served."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=name, base_path=str(base_path.absolute()), model_platform=PLATFORM
    )
    return config


def model_configs(
    config: model_server_config_pb2.ModelServerConfig, served: Container[str] = ()
) -> list[ModelConfig]:
    """The models of a configuration; errors are worded as TF Serving does.

    Args:
        config: the configuration.
        served: names of models that are served now; the platform of these can't change.

    Raises:
        Refused: something is wrong with it.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    if len(config.model_config_list.config) > _MAX_MODELS:
        raise invalid(f"More than {_MAX_MODELS} models are configured, and each has a thread here")
    names: set[str] = set()
    for model in config.model_config_list.config:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
    return [_model_config(model, served) for model in config.model_config_list.config]


def _model_config(
    model: model_server_config_pb2.ModelConfig, served: Container[str]
) -> ModelConfig:
    if "://" in model.base_path:
        raise invalid(
            f"model {model.name}: base_path {model.base_path}: only folders of this machine can be "
            "served; TF Serving itself reads remote ones"
        )
    if not model.base_path.startswith("/"):
        raise invalid(
            f"Expected model {model.name} to have an absolute path or URI; "
            f"got base_path()={model.base_path}"
        )
    _check_platform(model, served)
    return ModelConfig(
        model.name, Path(model.base_path), _policy(model), dict(model.version_labels)
    )


def _check_platform(model: model_server_config_pb2.ModelConfig, served: Container[str]) -> None:
    old_field, new_field = (f"ModelServerConfig::model_{field}" for field in ("type", "platform"))
    platform = model.model_platform
    if model.model_type:
        if platform:
            raise invalid(f"Illegal setting both {old_field} (deprecated) and {new_field}.")
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid(f"{old_field} choice {model.model_type} not supported.")
        platform = PLATFORM
    if not platform:
        raise invalid(
            f"Illegal setting neither {old_field} (deprecated) nor {new_field}, "
            f"model name is {model.name}"
        )
    if platform != PLATFORM and model.name in served:
        raise invalid(
            f"Illegal to change a model's platform. For model {model.name} platform was "
            f"{PLATFORM} and new platform requested is {platform}"
        )
    if platform != PLATFORM:
        text = f"PlatformConfigMap has no entry for platform {platform}"
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text)


def _policy(model: model_server_config_pb2.ModelConfig) -> Policy:
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return every
    if choice == "specific":
        if not policy.specific.versions:
            raise invalid(f"model {model.name}: the policy specific names no versions")
        return specific(frozenset(policy.specific.versions))
    return latest(max(1, policy.latest.num_versions))
