"""What a server says about its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.tensors import Array


@dataclass(frozen=True)
class TensorInfo:
    """A named input or output of a signature.

    Attributes:
        name: what callers call it.
        dtype: TensorFlow's name of the element type: ``float32``, ``string``, ``bfloat16``…
        shape: sizes, ``None`` where any will do; ``None`` as a whole if the rank is unknown too.
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
    """One way to call a model.

    Attributes:
        name: its key in the SavedModel.
        inputs: what goes in, by name.
        outputs: what comes out, by name.
        method: what it is made for: ``predict``, ``classify`` or ``regress``.
        optional: names of inputs that may be left out, as they have a default.
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
    """How far a server is with one version of a model.

    Attributes:
        version: its number.
        state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
        error: why it failed; ``None`` if it did not.
    """

    version: int
    state: str
    error: str | None

    def __str__(self) -> str:
        error = f" ({self.error})" if self.error else ""
        return f"version {self.version} is {self.state}{error}"


@dataclass(frozen=True)
class Classification:
    """Classes and how sure the model is of each, for every example.

    Attributes:
        labels: ``str`` objects [examples, classes]; empty where the model names no classes.
        scores: float32 [examples, classes].
    """

    labels: Array
    scores: Array
