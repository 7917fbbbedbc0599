"""What a version has to reach to be published. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tfdp.errors import BadInput, Refused
from tfdp.log import say

# Last words of the names that Keras gives its metrics; a number may follow (auc_1).
_HIGHER = re.compile(
    r"(?:^|_)(?:acc|accuracy|auc|precision|recall|(?:f1|fbeta|r2)_score|io_u|similarity|correlation"
    r"|sensitivity|specificity)(?:_\d+)?$"
)
_LOWER = re.compile(
    r"(?:^|_)(?:loss|error|mae|mse|rmse|mape|msle|logcosh|divergence|hinge|crossentropy|poisson)"
    r"(?:_\d+)?$"
)
_LOSS = re.compile(r"(?:^|_)loss$")


@dataclasses.dataclass(frozen=True)
class Gates:
    """What an evaluation has to reach.

    Args:
        at_least: by the metric's name.
        at_most: likewise.
        not_worse_by: how much worse than the version now served a metric may be, or None.
    """

    at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    at_most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    not_worse_by: float | None = None

    def __bool__(self) -> bool:
        return bool(self.at_least or self.at_most or self.not_worse_by is not None)

    def check_names(self, evaluated: Collection[str]) -> None:
        """Raises BadInput if a metric that is asked for is none of the evaluation's."""
        for flag, values in (("require_min", self.at_least), ("require_max", self.at_most)):
            for name, value in values.items():
                if name not in evaluated:
                    raise BadInput(
                        f"--{flag}={name}:{value:g}: evaluations give "
                        f"{', '.join(sorted(evaluated)) or 'nothing'}"
                    )
        if self.not_worse_by is not None and not evaluated:
            raise BadInput(
                f"--not_worse_than_current={self.not_worse_by:g} compares evaluations, and there "
                "are none: give the recipe eval_data"
            )

    def check(
        self, metrics: Mapping[str, Any], current: Path | None, served: Mapping[str, Any] | None
    ) -> None:
        """Raises Refused unless an evaluation is good enough.

        Args:
            metrics: of the evaluation.
            current: the version now served, or None.
            served: what its evaluation gave, or None if it says nothing of it.
        """
        for name, least in self.at_least.items():
            if not metrics[name] >= least:
                raise _refused(f"{name} is {metrics[name]:g}, below --require_min={name}:{least:g}")
        for name, most in self.at_most.items():
            if not metrics[name] <= most:
                raise _refused(f"{name} is {metrics[name]:g}, above --require_max={name}:{most:g}")
        if self.not_worse_by is None or current is None:
            return
        common = {
            name: sign
            for name, sign in self._signs(metrics).items()
            if isinstance((served or {}).get(name), (int, float))
        }
        flag = f"--not_worse_than_current={self.not_worse_by:g}"
        if not common:
            raise _refused(
                f"{flag} has nothing to compare: {current}, which is served now, says nothing of "
                f"{', '.join(self._signs(metrics)) or 'metrics whose better side is known'}"
            )
        if missing := self._signs(metrics).keys() - common.keys():
            say(f"{flag} leaves out {', '.join(sorted(missing))}: {current} says nothing of that")
        for name, sign in common.items():
            before = (served or {})[name]
            # What a computer makes of 0.9 - 0.01 is not quite 0.89.
            margin = self.not_worse_by + 1e-9 * max(1.0, abs(before))
            if not sign * (before - metrics[name]) <= margin:
                raise _refused(
                    f"{name} is {metrics[name]:g} and that of {current}, which is served now, is "
                    f"{before:g}: worse by more than {flag} allows"
                )

    def _signs(self, metrics: Mapping[str, Any]) -> dict[str, int]:
        """Metrics to compare: 1 where more is better, -1 where less is.

        Those that are asked for by name; without such, all whose names tell, losses only if there
        is nothing else.
        """
        named = dict.fromkeys(self.at_least, 1) | dict.fromkeys(self.at_most, -1)
        if named:
            return named
        known = {
            name: 1 if _HIGHER.search(name) else -1
            for name, value in metrics.items()
            if isinstance(value, (int, float)) and (_HIGHER.search(name) or _LOWER.search(name))
        }
        return {name: sign for name, sign in known.items() if not _LOSS.search(name)} or known


def _refused(why: str) -> Refused:
    return Refused(f"not published: {why}")
