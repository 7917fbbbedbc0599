"""Gates: conditions that a version has to meet to be published. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tfdp.errors import BadInput, Refused
from tfdp.log import say

# Ends of the names of Keras's metrics; a number may follow (auc_1).
_HIGHER_IS_BETTER = re.compile(
    r"(?:^|_)(?:acc|accuracy|auc|precision|recall|(?:f1|fbeta|r2)_score|io_u|similarity|correlation"
    r"|sensitivity|specificity)(?:_\d+)?$"
)
_LOWER_IS_BETTER = re.compile(
    r"(?:^|_)(?:loss|error|mae|mse|rmse|mape|msle|logcosh|divergence|hinge|crossentropy|poisson)"
    r"(?:_\d+)?$"
)
_LOSS = re.compile(r"(?:^|_)loss$")


@dataclasses.dataclass(frozen=True)
class Gates:
    """Limits on the metrics of an evaluation.

    Args:
        at_least: smallest allowed values, by metric.
        at_most: largest allowed values, by metric.
        not_worse_by: how much worse than the currently served version a metric may be; None: do
            not compare with that version.
    """

    at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    at_most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    not_worse_by: float | None = None

    def __bool__(self) -> bool:
        return bool(self.at_least or self.at_most or self.not_worse_by is not None)

    def check_names(self, evaluated: Collection[str]) -> None:
        """Raises BadInput if the evaluation does not contain a metric that a gate needs."""
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
        self,
        metrics: Mapping[str, Any],
        current: Path | None,
        current_metrics: Mapping[str, Any] | None,
    ) -> None:
        """Raises Refused unless an evaluation passes all gates.

        Args:
            metrics: metrics of the evaluation.
            current: the currently served version, or None.
            current_metrics: metrics of that version's evaluation, or None if they are unknown.
        """
        for name, least in self.at_least.items():
            if not metrics[name] >= least:
                raise _refused(f"{name} is {metrics[name]:g}, below --require_min={name}:{least:g}")
        for name, most in self.at_most.items():
            if not metrics[name] <= most:
                raise _refused(f"{name} is {metrics[name]:g}, above --require_max={name}:{most:g}")
        if self.not_worse_by is None or current is None:
            return
        known = current_metrics or {}
        compared = self._compared(metrics)
        common = {
            name: sign
            for name, sign in compared.items()
            if isinstance(known.get(name), (int, float))
        }
        flag = f"--not_worse_than_current={self.not_worse_by:g}"
        if not common:
            raise _refused(
                f"{flag} has nothing to compare: {current}, which is served now, has no record of "
                f"{', '.join(compared) or 'a metric whose better direction is known'}"
            )
        if missing := compared.keys() - common.keys():
            say(f"{flag} leaves out {', '.join(sorted(missing))}: {current} has no record of that")
        for name, sign in common.items():
            before = known[name]
            # 0.9 - 0.01 is not exactly 0.89 in floating point.
            margin = self.not_worse_by + 1e-9 * max(1.0, abs(before))
            if not sign * (before - metrics[name]) <= margin:
                raise _refused(
                    f"{name} is {metrics[name]:g} and that of {current}, which is served now, is "
                    f"{before:g}: worse by more than {flag} allows"
                )

    def _compared(self, metrics: Mapping[str, Any]) -> dict[str, int]:
        """Returns the metrics to compare: 1 if a higher value is better, -1 if a lower one is.

        They are those of the other gates. Without other gates, they are all metrics whose names
        show which direction is better; losses only if no other metric is left.
        """
        named = dict.fromkeys(self.at_least, 1) | dict.fromkeys(self.at_most, -1)
        if named:
            return named
        known = {
            name: 1 if _HIGHER_IS_BETTER.search(name) else -1
            for name, value in metrics.items()
            if isinstance(value, (int, float))
            and (_HIGHER_IS_BETTER.search(name) or _LOWER_IS_BETTER.search(name))
        }
        return {name: sign for name, sign in known.items() if not _LOSS.search(name)} or known


def _refused(reason: str) -> Refused:
    return Refused(f"not published: {reason}")
