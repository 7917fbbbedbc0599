"""The models.config that the replicas read: written whole, by one rename."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving.protos import serving_pb2
from serving.rollout.errors import Failed, Refused
from serving.rollout.plans import Placement

_HEADER = "# Written by python -m serving.rollout, which keeps other models but no comments.\n"
_READABLE = 0o644  # by whatever user the replicas run as


class ModelsConfig:
    """What is in the file, and one model's part of it.

    Attributes:
        before: the ModelServerConfig that was in the file.
        is_new: the model was not in it.
        placement: what it said of the model.

    Args:
        path: of the file.
        model: the model's name.
        base_path: where the replicas find its versions; for a model, or a file, that is not there
            yet. None: both have to be there.

    Raises:
        Refused: the file is no models.config, or it doesn't have the model.
    """

    def __init__(self, path: Path, model: str, base_path: str | None = None) -> None:
        self.path = path
        self.model = model
        self._original = _bytes(path)
        self.before = self._parsed(base_path is not None)
        self._message = serving_pb2.ModelServerConfig()
        self._message.CopyFrom(self.before)
        models = self._message.model_config_list.config
        found = [config for config in models if config.name == model]
        if found and base_path not in (None, found[0].base_path):
            raise Refused(
                f"--base_path={base_path}: {path} says {found[0].base_path}; it is not changed here"
            )
        self.is_new = not found
        if self.is_new:
            if base_path is None:
                names = ", ".join(repr(config.name) for config in models) or "no model"
                raise Refused(
                    f"{path} has {names}, not {model!r}: check --model, or add it by --base_path"
                )
            if not base_path.startswith("/"):
                raise Refused(f"--base_path={base_path} has to be absolute: TF Serving demands it")
            models.add(name=model, base_path=base_path, model_platform="tensorflow")
        self.placement = Placement(
            dict(self._part(self._message).version_labels),
            frozenset(self._part(self._message).model_version_policy.specific.versions),
        )

    def with_placement(self, placement: Placement) -> Any:
        """The whole configuration with other labels and versions for the model."""
        message = serving_pb2.ModelServerConfig()
        message.CopyFrom(self._message)
        part = self._part(message)
        part.version_labels.clear()
        part.version_labels.update(placement.labels)
        part.model_version_policy.specific.versions[:] = sorted(placement.versions)
        return message

    def check_on_disk(self, version: int) -> None:
        """Raises Refused if the version's folder is not there, where that can be seen from here.

        Replicas may see the folder under another path; its name is the same, and it is beside the
        file.
        """
        folder = self.path.parent / Path(self._part(self._message).base_path).name
        if not folder.is_dir():
            return  # on another machine
        versions = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
        if version not in versions:
            there = ", ".join(map(str, versions)) or "none"
            raise Refused(f"version {version} is not in {folder}; there: {there}")

    def write(self, message: Any) -> None:
        """Puts ``message`` in the file's place."""
        _write_whole(self.path, (_HEADER + text_format.MessageToString(message)).encode())

    def restore(self) -> None:
        """Puts back what was there before the first ``write``."""
        if self._original is None:
            self.path.unlink(missing_ok=True)
        else:
            _write_whole(self.path, self._original)

    def _parsed(self, may_be_absent: bool) -> Any:
        message = serving_pb2.ModelServerConfig()
        if self._original is None and not may_be_absent:
            raise Refused(f"--models_config={self.path} is not there; --base_path lets it be made")
        try:
            text_format.Parse((self._original or b"").decode(), message)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise Refused(f"{self.path} is not a models.config that can be kept: {error}") from None
        return message

    def _part(self, message: Any) -> Any:
        configs = message.model_config_list.config
        return next(config for config in configs if config.name == self.model)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other rollouts on the same file away; the kernel lets go if this process dies.

    Raises:
        Failed: another one is under way.
        Refused: the folder is not there.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise Refused(f"--models_config={path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"another rollout is under way on {path}: wait for its end") from None
        yield
    finally:
        os.close(folder)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"--models_config={path}: {error.strerror}") from None


def _write_whole(path: Path, data: bytes) -> None:
    """Writes durably; a reader sees the old content or the new, also after a crash."""
    path = path.resolve()  # a link stays one
    hidden = path.with_name(f".{path.name}.new")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else _READABLE
    with hidden.open("wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    hidden.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
