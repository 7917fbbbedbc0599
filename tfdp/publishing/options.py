"""The flags about publishing that several commands share. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfdp.errors import BadInput
from tfdp.publishing.demands import Demands

WARMUP_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
MOST_WARMUP_REQUESTS = 1000  # or TF Serving refuses the version


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """The flags about publishing that commands share, valid.

    Raises:
        BadInput: if a value is out of range.
    """

    require_min: tuple[str, ...] = ()
    require_max: tuple[str, ...] = ()
    not_worse_than_current: float | None = None
    keep_versions: int | None = None
    models_config: Path | None = None
    warmup_batch_sizes: tuple[int, ...] = WARMUP_BATCH_SIZES

    def __post_init__(self) -> None:
        check_options(self.not_worse_than_current, self.keep_versions, self.warmup_batch_sizes)
        both = self.demands.at_least.keys() & self.demands.at_most.keys()
        for name in both:
            if self.demands.at_least[name] > self.demands.at_most[name]:
                raise BadInput(
                    f"--require_min={name}:{self.demands.at_least[name]:g} and "
                    f"--require_max={name}:{self.demands.at_most[name]:g}: nothing is both"
                )

    @property
    def demands(self) -> Demands:
        """What an evaluation has to reach."""
        return Demands(
            _numbers("require_min", self.require_min),
            _numbers("require_max", self.require_max),
            self.not_worse_than_current,
        )


def check_options(
    not_worse_than_current: float | None, keep: int | None, warmup_batch_sizes: Sequence[int]
) -> None:
    """Raises BadInput if one of these is out of range."""
    if not_worse_than_current is not None and not 0 <= not_worse_than_current < math.inf:
        raise BadInput(
            f"--not_worse_than_current is {not_worse_than_current}: it has to be 0 or more, what "
            "a metric may be worse by"
        )
    if keep is not None and keep < 1:
        raise BadInput(f"--keep_versions is {keep}: it has to be 1 or more; without it, all stay")
    if len(warmup_batch_sizes) > MOST_WARMUP_REQUESTS or any(
        not 1 <= size < 1 << 31 for size in warmup_batch_sizes
    ):
        raise BadInput(
            f"--warmup_batch_sizes is {','.join(map(str, warmup_batch_sizes))}: they have to be "
            f"1 or more, and at most {MOST_WARMUP_REQUESTS} of them"
        )


def define(values: flags.FlagValues) -> None:
    """Defines the flags of PublishSettings."""
    flags.DEFINE_multi_string(
        "require_min", [], "NAME:VALUE that an evaluation has to reach.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "require_max", [], "NAME:VALUE that an evaluation may not exceed.", flag_values=values
    )
    flags.DEFINE_float(
        "not_worse_than_current",
        None,
        "How much worse than the version now served a metric may be.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "keep_versions",
        None,
        "How many of the newest versions stay; by default all do.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "models_config",
        None,
        "TF Serving's configuration; versions that it names stay. By default the models.config "
        "beside the servable's folder, if it is there.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "warmup_batch_sizes",
        list(map(str, WARMUP_BATCH_SIZES)),
        "Batch sizes that servers warm a version up with; empty: none.",
        flag_values=values,
    )


def given(values: flags.FlagValues) -> dict[str, Any]:
    """What the flags of PublishSettings were given, as it takes them."""
    config = values["models_config"].value
    sizes = values["warmup_batch_sizes"].value
    try:
        numbers = tuple(int(size) for size in sizes)
    except ValueError:
        raise BadInput(
            f"--warmup_batch_sizes is {','.join(sizes)}: it has to be whole numbers, as in 1,8,32"
        ) from None
    return {
        "require_min": tuple(values["require_min"].value),
        "require_max": tuple(values["require_max"].value),
        "not_worse_than_current": values["not_worse_than_current"].value,
        "keep_versions": values["keep_versions"].value,
        "models_config": None if config is None else Path(config),
        "warmup_batch_sizes": numbers,
    }


def _numbers(flag: str, given: Sequence[str]) -> dict[str, float]:
    found = {}
    for each in given:
        name, colon, text = each.rpartition(":")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (colon and name and math.isfinite(value)):
            raise BadInput(
                f"--{flag}={each}: it has to be NAME:VALUE, a metric of the evaluation and a "
                "number, such as accuracy:0.97"
            )
        found[name] = value
    return found
