"""Checks a caller's arguments, also against the model's metadata, before they are sent.

Every function raises InvalidInput with the value, the rule, and the change to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from serving import element_types, tensors
from serving.client.errors import InvalidInput
from serving.client.methods import Method
from serving.client.results import ModelMetadata, Signature, TensorInfo
from serving.tensors import Array

DEFAULT_SIGNATURE: Final = "serving_default"
_UNCHECKED: Final = "; or make the client with check=False to let the server decide"


def positive(name: str, value: float) -> float:
    """Returns ``value`` if it is above 0."""
    if not value > 0:
        raise InvalidInput(f"{name}={value} has to be above 0")
    return value


def needs_metadata(inputs: Any) -> bool:
    """Returns whether an input has no name or no dtype, so that the metadata has to provide it."""
    return not isinstance(inputs, Mapping) or not all(map(tensors.has_dtype, inputs.values()))


def signature_for_predict(metadata: ModelMetadata, name: str | None) -> Signature:
    """Returns the signature ``name``, by default ``serving_default``."""
    return _named(metadata, name or DEFAULT_SIGNATURE)


def signature_for_examples(metadata: ModelMetadata, name: str | None, method: Method) -> Signature:
    """Returns the signature ``name``, by default the only one for Classify or Regress."""
    method_name = method.name.lower()  # "classify" of "tensorflow/serving/classify"
    signatures = metadata.signatures
    names = [key for key, signature in signatures.items() if signature.method == method_name]
    if name is not None:
        signature = _named(metadata, name)
        if signature.method != method_name:
            raise InvalidInput(
                f"signature {name!r} of {metadata.model!r} is for {signature.method!r}, not for "
                f"{method_name!r}; signatures for {method_name!r}: {_list(names)}"
            )
        return signature
    if DEFAULT_SIGNATURE in names:
        return signatures[DEFAULT_SIGNATURE]
    if len(names) != 1:
        raise InvalidInput(
            f"{metadata.model!r} has {len(names)} signatures for {method_name!r} "
            f"({_list(names)}); " + ("select one by signature=" if names else "use predict()")
        )
    return signatures[names[0]]


def arrays(signature: Signature | None, inputs: Any) -> dict[str, Array]:
    """Returns inputs as arrays by name; values without a dtype get the signature's.

    Args:
        signature: may be None if all inputs have names and dtypes.
        inputs: the inputs of ``predict``.
    """
    if not isinstance(inputs, Mapping):
        names = list(signature.inputs) if signature else []
        if len(names) != 1:
            raise InvalidInput(
                f"the signature has {len(names)} inputs; give them by name: {_list(names)}"
            )
        inputs = {names[0]: inputs}
    converted = {}
    for name, values in inputs.items():
        info = signature.inputs.get(name) if signature else None
        try:
            converted[name] = tensors.as_array(values, info.dtype if info else None)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"input {name!r}: {error}") from None
    return converted


def check(signature: Signature, inputs: Mapping[str, Array], output_filter: Iterable[str]) -> None:
    """Checks names, dtypes and shapes of inputs, and names in the output filter."""
    if inputs.keys() != signature.inputs.keys():
        _check_names(signature, set(inputs))
    for name, array in inputs.items():
        info = signature.inputs[name]
        dtype = element_types.element_type(array)
        if dtype != info.dtype:
            is_text = "string" in (dtype, info.dtype)
            how = "" if is_text else f", by array.astype({info.dtype!r})"
            raise InvalidInput(
                f"input {name!r} is {dtype}, and the model takes {info.dtype}: convert it"
                f"{how}{_UNCHECKED}"
            )
        if not _fits(array.shape, info):
            raise InvalidInput(
                f"input {name!r} has the shape {list(array.shape)}, and the model takes {info}: "
                f"reshape it{_hint(array.shape, info)}{_UNCHECKED}"
            )
    if wrong := set(output_filter) - signature.outputs.keys():
        raise InvalidInput(
            f"no output {_list(wrong)}; signature {signature.name!r} gives "
            f"{_list(signature.outputs)}: change output_filter{_UNCHECKED}"
        )


def _check_names(signature: Signature, given: set[str]) -> None:
    known = set(signature.inputs)
    if extra := given - known:
        raise InvalidInput(
            f"no input {_list(extra)}; signature {signature.name!r} takes "
            f"{_list(known)}: {'remove' if known <= given else 'rename'} it{_UNCHECKED}"
        )
    if missing := known - given - signature.optional:
        raise InvalidInput(
            f"input {_list(missing)} is missing; signature {signature.name!r} takes "
            f"{_list(known)}: add it{_UNCHECKED}"
        )


def row_count(inputs: Mapping[str, Array], max_batch_size: int) -> int:
    """Returns the number of rows, which has to be the same for all inputs, to split them."""
    positive("max_batch_size", max_batch_size)
    sizes = {name: array.shape[0] if array.ndim else None for name, array in inputs.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        counts = ", ".join(
            f"{name!r} has {'none' if size is None else size}" for name, size in sizes.items()
        )
        raise InvalidInput(
            f"max_batch_size={max_batch_size} splits rows, and all inputs need the same number "
            f"({counts}): omit max_batch_size, or give inputs of the same length"
        )
    return int(next(size for size in sizes.values() if size is not None))


def headers(metadata: Mapping[str, str | bytes], token: str | None) -> tuple[Any, ...]:
    """Returns metadata in gRPC's form. Values are secrets: no error message contains them."""
    pairs = [(name.lower(), value) for name, value in metadata.items()]
    if token is not None:
        pairs.append(("authorization", f"Bearer {token}"))
    for name, value in pairs:
        if not re.fullmatch("[0-9a-z_.-]+", name):
            raise InvalidInput(f"metadata {name!r}: names consist of a-z, 0-9, _, . and -")
        if name.endswith("-bin") != isinstance(value, bytes):
            raise InvalidInput(
                f"metadata {name!r}: bytes need a name that ends in -bin, and text another name"
            )
        if isinstance(value, str) and not re.fullmatch("[ -~]*", value):
            raise InvalidInput(
                f"the value of metadata {name!r} has characters other than printable ASCII (a line "
                "end, perhaps): remove them, or send bytes under a name that ends in -bin"
            )
    return tuple(pairs)


def _named(metadata: ModelMetadata, name: str) -> Signature:
    if name not in metadata.signatures:
        names = _list(metadata.signatures)
        raise InvalidInput(f"{metadata.model!r} has no signature {name!r}; it has {names}")
    return metadata.signatures[name]


def _fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    if info.shape is None:
        return True
    return len(shape) == len(info.shape) and all(
        expected is None or size == expected
        for size, expected in zip(shape, info.shape, strict=True)
    )


def _hint(shape: tuple[int, ...], info: TensorInfo) -> str:
    """Returns advice for the most frequent error: one example without a batch dimension."""
    return ", by array[None] if it is one example" if _fits((1, *shape), info) else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
