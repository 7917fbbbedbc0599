"""Reads TF Serving's ``models.config``: which versions of a servable its servers serve."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfdp.errors import BadInput

STABLE = "stable"  # the label by which clients call a version


@dataclasses.dataclass(frozen=True)
class ServedVersions:
    """The versions of a servable that servers are configured to serve.

    Args:
        stable: versions labelled ``stable``; several if several models have the servable's name.
        labelled: versions with any label.
        specific: versions that a version policy names.
        latest: number of newest versions that are served.
    """

    stable: frozenset[int] = frozenset()
    labelled: frozenset[int] = frozenset()
    specific: frozenset[int] = frozenset()
    latest: int = 1

    def required(self, numbers: list[int]) -> set[int]:
        """Returns which versions may not be removed, given all existing ones in order."""
        return {*self.labelled, *self.specific, *numbers[-self.latest :]}

    def current(self, numbers: list[int]) -> int | None:
        """Returns the version that clients call: the stable one, or else the newest served one.

        Args:
            numbers: all existing versions, in ascending order.
        """
        stable = [number for number in numbers if number in self.stable]
        specific = [number for number in numbers if number in self.specific]
        return max(stable or specific or numbers, default=None)


def read_served_versions(path: Path | None, folder: Path) -> ServedVersions:
    """Reads from a models.config which versions of the servable in ``folder`` are served.

    A ``config`` counts if its name, or the last component of its ``base_path``, is the folder's
    name. The rest of the path may differ, as it does within a container.

    Args:
        path: the file; None uses ``models.config`` beside the servable's folder, if it exists.
        folder: folder of the servable.

    Raises:
        BadInput: if the given file can't be read, or is not a models.config.
    """
    folder = folder.resolve()
    if path is None:
        path = folder.parent / "models.config"
        if not path.exists():
            return ServedVersions()
    try:
        parsed = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    except OSError as error:
        raise BadInput(f"--models_config={path} can't be read: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is not a models.config of TF Serving, which states the versions to keep: "
            f"{error}"
        ) from None
    stable: set[int] = set()
    labelled: set[int] = set()
    specific: set[int] = set()
    latest = 1
    for config in parsed.model_config_list.config:
        if folder.name not in (config.name, Path(config.base_path).name):
            continue
        labelled |= set(config.version_labels.values())
        stable |= {number for label, number in config.version_labels.items() if label == STABLE}
        policy = config.model_version_policy
        specific |= set(policy.specific.versions)
        latest = max(latest, policy.latest.num_versions)
    return ServedVersions(frozenset(stable), frozenset(labelled), frozenset(specific), latest)
