"""What a caller gives against what the model says of itself, before anything is sent.

Every function raises InvalidInput: the value, the rule, and what to change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from serving import tensors
from serving.client.errors import InvalidInput
from serving.client.methods import Method
from serving.client.models import ModelMetadata, Signature, TensorInfo
from serving.tensors import Array

DEFAULT_SIGNATURE: Final = "serving_default"
_UNCHECKED: Final = "; or make the client with check=False to let the server decide"


def positive(name: str, value: float) -> float:
    """``value``, if it is above 0."""
    if not value > 0:
        raise InvalidInput(f"{name}={value} has to be above 0")
    return value


def is_open(inputs: Any) -> bool:
    """Whether only the model can say what is meant: no name is given, or no dtype."""
    return not isinstance(inputs, Mapping) or not all(map(tensors.has_dtype, inputs.values()))


def signature_for_predict(about: ModelMetadata, name: str | None) -> Signature:
    """The signature called ``name``, by default ``serving_default``."""
    return _named(about, name or DEFAULT_SIGNATURE)


def signature_for_examples(about: ModelMetadata, name: str | None, method: Method) -> Signature:
    """The signature called ``name``, by default the one that is made for Classify or Regress."""
    made_for = method.name.lower()  # "classify" of "tensorflow/serving/classify"
    names = [key for key, found in about.signatures.items() if found.method == made_for]
    if name is not None:
        found = _named(about, name)
        if found.method != made_for:
            raise InvalidInput(
                f"signature {name!r} of {about.model!r} is made for {found.method!r}, and "
                f"{made_for!r} is asked for; it has {_list(names)} for that"
            )
        return found
    if DEFAULT_SIGNATURE in names:
        return about.signatures[DEFAULT_SIGNATURE]
    if len(names) != 1:
        raise InvalidInput(
            f"{about.model!r} has {len(names)} signatures for {made_for!r} ({_list(names)}); "
            + ("say which one by signature=" if names else "ask it by predict()")
        )
    return about.signatures[names[0]]


def arrays(signature: Signature | None, inputs: Any) -> dict[str, Array]:
    """Inputs by name, as arrays; what has no dtype yet gets the signature's.

    Args:
        signature: may be missing if nothing is left open.
        inputs: as ``predict`` takes them.
    """
    if not isinstance(inputs, Mapping):
        names = list(signature.inputs) if signature else []
        if len(names) != 1:
            raise InvalidInput(
                f"the signature has {len(names)} inputs; give them by name: {_list(names)}"
            )
        inputs = {names[0]: inputs}
    found = {}
    for name, values in inputs.items():
        info = signature.inputs.get(name) if signature else None
        try:
            found[name] = tensors.as_array(values, info.dtype if info else None)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"input {name!r}: {error}") from None
    return found


def check(signature: Signature, inputs: Mapping[str, Array], output_filter: Iterable[str]) -> None:
    """Names, dtypes and shapes of inputs, and names of the outputs wanted."""
    if inputs.keys() != signature.inputs.keys():
        _check_names(signature, set(inputs))
    for name, array in inputs.items():
        info = signature.inputs[name]
        dtype = tensors.element_type(array)
        if dtype != info.dtype:
            turn = "" if "string" in (dtype, info.dtype) else f", by array.astype({info.dtype!r})"
            raise InvalidInput(
                f"input {name!r} is {dtype}, and the model takes {info.dtype}: turn it into "
                f"that{turn}{_UNCHECKED}"
            )
        if not _fits(array.shape, info):
            raise InvalidInput(
                f"input {name!r} has the shape {list(array.shape)}, and the model takes {info}: "
                f"reshape it{_hint(array.shape, info)}{_UNCHECKED}"
            )
    if wrong := set(output_filter) - signature.outputs.keys():
        raise InvalidInput(
            f"there is no output {_list(wrong)}; signature {signature.name!r} gives "
            f"{_list(signature.outputs)}: change output_filter{_UNCHECKED}"
        )


def _check_names(signature: Signature, given: set[str]) -> None:
    known = set(signature.inputs)
    if extra := given - known:
        raise InvalidInput(
            f"there is no input {_list(extra)}; signature {signature.name!r} takes "
            f"{_list(known)}: take it away{_UNCHECKED}"
        )
    if missing := known - given - signature.optional:
        raise InvalidInput(
            f"input {_list(missing)} is missing; signature {signature.name!r} takes "
            f"{_list(known)}: give it too{_UNCHECKED}"
        )


def rows(inputs: Mapping[str, Array], max_batch_size: int) -> int:
    """How many rows all inputs have, so that they can be split into batches."""
    positive("max_batch_size", max_batch_size)
    sizes = {name: array.shape[0] if array.ndim else None for name, array in inputs.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        said = ", ".join(
            f"{name!r} has {'none' if size is None else size}" for name, size in sizes.items()
        )
        raise InvalidInput(
            f"max_batch_size={max_batch_size} splits rows, and the inputs have to have as many "
            f"each ({said}): leave it out, or give inputs of one length"
        )
    return int(next(size for size in sizes.values() if size is not None))


def headers(metadata: Mapping[str, str | bytes], token: str | None) -> tuple[Any, ...]:
    """Metadata as gRPC takes it. A value is a secret: no message has it."""
    pairs = [(name.lower(), value) for name, value in metadata.items()]
    if token is not None:
        pairs.append(("authorization", f"Bearer {token}"))
    for name, value in pairs:
        if not re.fullmatch("[0-9a-z_.-]+", name):
            raise InvalidInput(f"metadata {name!r}: names are made of a-z, 0-9, _, . and -")
        if name.endswith("-bin") != isinstance(value, bytes):
            raise InvalidInput(f"metadata {name!r}: bytes go with names that end in -bin, only")
        if isinstance(value, str) and not re.fullmatch("[ -~]*", value):
            raise InvalidInput(
                f"the value of metadata {name!r} has characters other than printable ASCII (a line "
                "end, perhaps): take them away, or send bytes under a name that ends in -bin"
            )
    return tuple(pairs)


def _named(about: ModelMetadata, name: str) -> Signature:
    if name not in about.signatures:
        names = _list(about.signatures)
        raise InvalidInput(f"{about.model!r} has no signature {name!r}; it has {names}")
    return about.signatures[name]


def _fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    if info.shape is None:
        return True
    return len(shape) == len(info.shape) and all(
        wanted is None or size == wanted for size, wanted in zip(shape, info.shape, strict=True)
    )


def _hint(shape: tuple[int, ...], info: TensorInfo) -> str:
    """A batch of one that lacks its first dimension is the usual slip."""
    return ", by array[None] if it is one example" if _fits((1, *shape), info) else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
