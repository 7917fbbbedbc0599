"""The models.config that the replicas read; it is replaced by one rename."""

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
from serving.rollout.labels import Assignment

_HEADER = "# Written by python -m serving.rollout, which keeps other models but no comments.\n"
_MODE = 0o644  # the replicas may run as another user


class ModelsConfig:
    """The contents of the file, and its entry of one model.

    Attributes:
        original: the ModelServerConfig in the file.
        is_new: whether the file had no entry of the model.
        assignment: the model's labels and versions in the file.

    Args:
        path: the file.
        model: the model's name.
        base_path: the folder, as replicas see it, of the versions of a model or file that does not
            exist yet. With None, both have to exist.

    Raises:
        Refused: the file is no models.config, or has no entry of the model.
    """

    def __init__(self, path: Path, model: str, base_path: str | None = None) -> None:
        self.path = path
        self.model = model
        self._original_bytes = _read(path)
        self.original = self._parse(may_be_missing=base_path is not None)
        self._message = serving_pb2.ModelServerConfig()
        self._message.CopyFrom(self.original)
        models = self._message.model_config_list.config
        entries = [config for config in models if config.name == model]
        if entries and base_path not in (None, entries[0].base_path):
            raise Refused(
                f"--base_path={base_path}: {path} has {entries[0].base_path}, which this command "
                "does not change"
            )
        self.is_new = not entries
        if self.is_new:
            if base_path is None:
                names = ", ".join(repr(config.name) for config in models) or "no model"
                raise Refused(
                    f"{path} has {names}, not {model!r}: check --model, or add it with --base_path"
                )
            if not base_path.startswith("/"):
                raise Refused(f"--base_path={base_path} has to be absolute: TF Serving requires it")
            models.add(name=model, base_path=base_path, model_platform="tensorflow")
        entry = self._entry(self._message)
        self.assignment = Assignment(
            dict(entry.version_labels), frozenset(entry.model_version_policy.specific.versions)
        )

    def with_assignment(self, assignment: Assignment) -> Any:
        """Returns the whole configuration with other labels and versions of the model."""
        message = serving_pb2.ModelServerConfig()
        message.CopyFrom(self._message)
        entry = self._entry(message)
        entry.version_labels.clear()
        entry.version_labels.update(assignment.labels)
        entry.model_version_policy.specific.versions[:] = sorted(assignment.versions)
        return message

    def check_on_disk(self, version: int) -> None:
        """Raises Refused if the model's folder is on this machine and lacks the version.

        Replicas may see the folder under another path, but with the same name and beside the file.
        """
        folder = self.path.parent / Path(self._entry(self._message).base_path).name
        if not folder.is_dir():
            return  # on another machine
        versions = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
        if version not in versions:
            existing = ", ".join(map(str, versions)) or "none"
            raise Refused(f"version {version} is not in {folder}; it has: {existing}")

    def write(self, message: Any) -> None:
        """Replaces the file's content by ``message``."""
        _replace(self.path, (_HEADER + text_format.MessageToString(message)).encode())

    def restore(self) -> None:
        """Restores the content from before the first ``write``."""
        if self._original_bytes is None:
            self.path.unlink(missing_ok=True)
        else:
            _replace(self.path, self._original_bytes)

    def _parse(self, may_be_missing: bool) -> Any:
        message = serving_pb2.ModelServerConfig()
        if self._original_bytes is None and not may_be_missing:
            raise Refused(f"--models_config={self.path} does not exist; --base_path creates it")
        try:
            text_format.Parse((self._original_bytes or b"").decode(), message)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise Refused(f"{self.path} is not a models.config that can be kept: {error}") from None
        return message

    def _entry(self, message: Any) -> Any:
        configs = message.model_config_list.config
        return next(config for config in configs if config.name == self.model)


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Excludes other rollouts of the same file; the kernel frees the lock if this process dies.

    Raises:
        Failed: another rollout is under way.
        Refused: the folder does not exist.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise Refused(f"--models_config={path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"another rollout is under way on {path}: wait until it ends") from None
        yield
    finally:
        os.close(folder)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"--models_config={path}: {error.strerror}") from None


def _replace(path: Path, data: bytes) -> None:
    """Replaces a file durably; readers see the old or the new content, also after a crash."""
    path = path.resolve()  # replaces the target of a link, not the link
    hidden = path.with_name(f".{path.name}.new")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else _MODE
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
