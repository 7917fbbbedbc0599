"""Results of calls: signatures, states of versions, classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.tensors import Array


@dataclass(frozen=True)
class TensorInfo:
    """A named input or output of a signature.

    Attributes:
        name: its name in requests and answers.
        dtype: TensorFlow's name of the element type, for example ``float32`` or ``string``.
        shape: sizes, ``None`` for any size; ``None`` instead of a tuple if the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of any shape"
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} [{sizes}]"


@dataclass(frozen=True)
class Signature:
    """A signature of a model.

    Attributes:
        name: its key in the SavedModel.
        inputs: by name.
        outputs: by name.
        method: the method that it is for: ``predict``, ``classify`` or ``regress``.
        optional: names of inputs with a default, which may be missing.
    """

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method: str
    optional: frozenset[str]


@dataclass(frozen=True)
class ModelMetadata:
    """The signatures of one version of a model."""

    model: str
    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True)
class VersionStatus:
    """The state of one version of a model on a server.

    Attributes:
        version: its number.
        state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
        error: why it failed to load; ``None`` if it did not.
    """

    version: int
    state: str
    error: str | None

    def __str__(self) -> str:
        error = f" ({self.error})" if self.error else ""
        return f"version {self.version} is {self.state}{error}"


@dataclass(frozen=True)
class Classification:
    """Classes and their scores, for every example.

    Attributes:
        labels: ``str`` objects [examples, classes]; empty strings if the model has no names.
        scores: float32 [examples, classes].
    """

    labels: Array
    scores: Array
