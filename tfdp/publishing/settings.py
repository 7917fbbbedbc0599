"""The flags about publishing that several commands have. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from tfdp.cli.flags import flag
from tfdp.errors import BadInput
from tfdp.publishing.gates import Gates

WARMUP_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
MAX_WARMUP_REQUESTS = 1000  # TF Serving does not load a version with more


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """The flags about publishing, checked.

    Raises:
        BadInput: if a value is out of range.
    """

    require_min: tuple[str, ...] = flag((), "NAME:VALUE that an evaluation has to reach.")
    require_max: tuple[str, ...] = flag((), "NAME:VALUE that an evaluation may not exceed.")
    require_weights: str = flag("", "sha256 of all weights; others are not published.")
    not_worse_than_current: float | None = flag(
        None, "How much worse than the version now served a metric may be."
    )
    keep_versions: int | None = flag(
        None, "Number of newest versions to keep; by default all are kept."
    )
    models_config: Path | None = flag(
        None,
        "TF Serving's configuration; versions that it names are kept. By default the "
        "models.config beside the servable's folder, if it exists.",
        may_differ=True,
    )
    warmup_batch_sizes: tuple[int, ...] = flag(
        WARMUP_BATCH_SIZES, "Batch sizes that servers warm a version up with; empty: none."
    )

    def __post_init__(self) -> None:
        check_options(self.not_worse_than_current, self.keep_versions, self.warmup_batch_sizes)
        gates = self.gates
        for name in gates.at_least.keys() & gates.at_most.keys():
            if gates.at_least[name] > gates.at_most[name]:
                raise BadInput(
                    f"--require_min={name}:{gates.at_least[name]:g} and "
                    f"--require_max={name}:{gates.at_most[name]:g}: no value meets both"
                )

    @property
    def gates(self) -> Gates:
        """The metrics that an evaluation has to reach."""
        return Gates(
            _limits("require_min", self.require_min),
            _limits("require_max", self.require_max),
            self.not_worse_than_current,
        )


def check_options(
    not_worse_than_current: float | None, keep: int | None, warmup_batch_sizes: Sequence[int]
) -> None:
    """Raises BadInput if a value is out of range; arguments as in ``PublishSettings``."""
    if not_worse_than_current is not None and not 0 <= not_worse_than_current < math.inf:
        raise BadInput(
            f"--not_worse_than_current is {not_worse_than_current}: it has to be 0 or more, the "
            "amount by which a metric may be worse"
        )
    if keep is not None and keep < 1:
        raise BadInput(f"--keep_versions is {keep}: it has to be 1 or more; without it, all stay")
    if len(warmup_batch_sizes) > MAX_WARMUP_REQUESTS or any(
        not 1 <= size < 1 << 31 for size in warmup_batch_sizes
    ):
        raise BadInput(
            f"--warmup_batch_sizes is {','.join(map(str, warmup_batch_sizes))}: they have to be "
            f"1 or more, and at most {MAX_WARMUP_REQUESTS} of them"
        )


def _limits(name: str, values: Sequence[str]) -> dict[str, float]:
    """Parses the values of a flag, each METRIC:VALUE."""
    limits = {}
    for each in values:
        metric, colon, text = each.rpartition(":")
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if not (colon and metric and math.isfinite(limit)):
            raise BadInput(
                f"--{name}={each}: it has to be NAME:VALUE, a metric of the evaluation and a "
                "number, such as accuracy:0.97"
            )
        limits[metric] = limit
    return limits
