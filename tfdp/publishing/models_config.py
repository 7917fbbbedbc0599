"""What TF Serving's ``models.config`` says of a servable: which versions its servers need."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfdp.errors import BadInput

STABLE = "stable"  # the label that callers are sent to


@dataclasses.dataclass(frozen=True)
class Needs:
    """Versions that servers are told to serve.

    Args:
        stable: versions that callers are sent to; several if several models are called alike.
        labelled: versions that labels point to, ``stable`` among them.
        specific: versions that a policy names.
        latest: how many of the newest are served.
    """

    stable: frozenset[int] = frozenset()
    labelled: frozenset[int] = frozenset()
    specific: frozenset[int] = frozenset()
    latest: int = 1

    def of(self, numbers: list[int]) -> set[int]:
        """Those of the versions, ascending, that have to stay."""
        return {*self.labelled, *self.specific, *numbers[-self.latest :]}

    def current(self, numbers: list[int]) -> int | None:
        """The one of the versions, ascending, that callers get: the stable one, or the newest."""
        stable = [number for number in numbers if number in self.stable]
        named = [number for number in numbers if number in self.specific]
        return max(stable or named or numbers, default=None)


def needs_of(path: Path | None, folder: Path) -> Needs:
    """Reads what a models.config says of the servable in ``folder``.

    It says it in every ``config`` whose name, or whose ``base_path``'s last part, is the folder's
    name: inside of a container the path before it is another.

    Args:
        path: of the file; None for ``models.config`` beside the servable's folder, if it is there.
        folder: the servable's.

    Raises:
        BadInput: if the file that was named isn't there, or it is no models.config.
    """
    folder = folder.resolve()
    if path is None:
        path = folder.parent / "models.config"
        if not path.exists():
            return Needs()
    try:
        said = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    except OSError as error:
        raise BadInput(f"--models_config={path} can't be read: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is not a models.config of TF Serving, which says what versions are needed: "
            f"{error}"
        ) from None
    stable: set[int] = set()
    labelled: set[int] = set()
    specific: set[int] = set()
    latest = 1
    for config in said.model_config_list.config:
        if folder.name not in (config.name, Path(config.base_path).name):
            continue
        labelled |= set(config.version_labels.values())
        stable |= {number for label, number in config.version_labels.items() if label == STABLE}
        policy = config.model_version_policy
        specific |= set(policy.specific.versions)
        latest = max(latest, policy.latest.num_versions)
    return Needs(frozenset(stable), frozenset(labelled), frozenset(specific), latest)
