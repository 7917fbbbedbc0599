"""Tells why a base path has no version to serve. Imports no TensorFlow.

A base path contains versions: ``BASE_PATH/1/saved_model.pb``. The usual mistakes are a path that is
a version itself, is inside of one, or is a folder of several models.
"""

from __future__ import annotations

from pathlib import Path

from serving.server.errors import invalid_argument

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_MAX_LISTED = 3


def is_version_name(name: str) -> bool:
    """Returns whether a folder of this name is a version."""
    return name.isascii() and name.isdigit()


def has_graph(folder: Path) -> bool:
    """Returns whether the folder is a SavedModel."""
    return any((folder / name).is_file() for name in _GRAPHS)


def check_is_no_tflite_model(folder: Path) -> None:
    """Checks a version's folder.

    Raises:
        StatusError: it has a TFLite model and no SavedModel.
    """
    if not has_graph(folder) and (folder / "model.tflite").is_file():
        raise invalid_argument(
            f"{folder} has model.tflite and no saved_model.pb; TFLite models are not served here, "
            "so publish a SavedModel"
        )


def why_no_version(base_path: Path) -> str:
    """Returns a sentence that says why no version is found, and which path is meant.

    Raises:
        OSError: a folder can't be read.
    """
    if not base_path.exists():
        return f"{base_path} does not exist"
    if not base_path.is_dir():
        return f"{base_path} is a file"
    if has_graph(base_path):
        found = f"{base_path} is a version itself: it has saved_model.pb"
        if is_version_name(base_path.name):
            return f"{found}. The base path is {base_path.parent}"
        return f"{found}. Move it to {base_path / '1'}"
    if has_graph(base_path.parent):
        version = base_path.parent
        meant = version.parent if is_version_name(version.name) else version
        return f"{base_path} is inside of the version {version}. The base path is {meant}"
    folders = sorted(path for path in base_path.iterdir() if path.is_dir())
    if numbered := [folder for folder in folders if is_version_name(folder.name)]:
        return f"{base_path} has {_listed([path.name for path in numbered])}, not what is to serve"
    if misnamed := [str(folder) for folder in folders if has_graph(folder)]:
        return f"{_listed(misnamed)} has saved_model.pb, but a version's name is a number"
    if models := [str(folder) for folder in folders if _has_versions(folder)]:
        return f"{base_path} is a folder of models. The base path is {_listed(models)}"
    return f"{base_path} has no folder whose name is a number"


def _has_versions(folder: Path) -> bool:
    try:
        return any(is_version_name(path.name) and has_graph(path) for path in folder.iterdir())
    except PermissionError:  # another user's folder beside the models
        return False


def _listed(names: list[str]) -> str:
    more = ["…"] if len(names) > _MAX_LISTED else []
    return " or ".join([*names[:_MAX_LISTED], *more])
