"""The folder of a trial: ``WORKDIR/trials/0007/``, which is also the workdir of its run.

The run writes its results there (``pauses/<step>.json``, ``summary.json``), and the coordinator
writes ``trial.json`` (what the trial is) and ``failure.json`` (why it has no results).
Results never change. So a search that starts again reads what it knew before it was killed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdp.errors import BadInput
from tfdp.files import write_whole
from tfdp.log import PREFIX
from tfdp.run import pausing
from tfdp.search.objective import Objective, is_number

# A line for people, of the only worker or of the chief: a launcher writes who said it.
_SAID = re.compile(rf"(?:\[worker 0\] )?{PREFIX}(.*)")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a trial has come to.

    Args:
        steps: updates done.
        examples: that they used; None if unknown.
        objective: None if the trial failed.
        weights_sha256: of the weights; empty if the trial failed.
        is_end: whether the run is finished.
        failure: why the trial failed; empty if it did not.
    """

    steps: int = 0
    examples: int | None = None
    objective: float | None = None
    weights_sha256: str = ""
    is_end: bool = True
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class TrialFolder:
    """The folder of a trial.

    Args:
        workdir: of the search.
        number: of the trial.
    """

    workdir: Path
    number: int

    @property
    def name(self) -> str:
        """The folder, relative to the search's workdir."""
        return f"trials/{self.number:04}"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.workdir / self.name

    @property
    def output(self) -> Path:
        """The file that gets what the run prints."""
        return self.path / "output.log"

    @property
    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 without any."""
        names = (path.name for path in (self.path / "checkpoints").glob("[0-9]*"))
        return max((int(name) for name in names if name.isdigit()), default=0)

    @property
    def logged_bytes(self) -> int:
        """Size of the run's logs: each start adds to them."""
        return sum(path.stat().st_size for path in (self.path / "logs").glob("*.log"))

    def prepare(self, about: Mapping[str, Any]) -> None:
        """Creates the folder, or checks that it is of the same trial.

        Args:
            about: what the trial is, as JSON takes it.

        Raises:
            BadInput: if the folder is of another trial.
        """
        path = self.path / "trial.json"
        if path.exists():
            try:
                before = json.loads(path.read_text())
            except ValueError as error:
                raise self._is_damaged(error) from None
            if before != json.loads(json.dumps(about)):
                raise BadInput(
                    f"{self.path} was made for {before}, and trial {self.number} is now {about}: "
                    "other versions of Optuna or NumPy choose other values, and so do other "
                    "results of earlier trials. Restore those, remove the folders of this and all "
                    "later trials, or use another --workdir"
                )
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(about, indent=2) + "\n")

    def write_failure(self, to_step: int | None, reason: str) -> None:
        """Takes note that the trial has failed, for good, on its way to a step; None for its end.

        A process that outlives this note (on a host that was cut off) changes nothing any more.
        """
        content = {"failure": reason, "to_step": to_step}
        write_whole(self.path / "failure.json", json.dumps(content) + "\n")

    def result(self, to_step: int | None, objective: Objective) -> Result | None:
        """Returns the result of a trial; None while there is none.

        Args:
            to_step: the rung up to which it was to train; None for the whole trial.
            objective: whose value is read.

        Raises:
            BadInput: if a file of it is damaged.
        """
        try:
            return self._result(to_step, objective)
        except (ValueError, KeyError, TypeError) as error:
            raise self._is_damaged(error) from None

    def _result(self, to_step: int | None, objective: Objective) -> Result | None:
        path = self.path / "failure.json"
        if path.exists():
            failure = json.loads(path.read_text())
            failed_at = failure["to_step"]
            if to_step is None or (failed_at is not None and failed_at <= to_step):
                return Result(failure=str(failure["failure"]))
        found = None if to_step is None else pausing.read(self.path, to_step)
        if found is not None:
            return _result(found, False, objective)
        path = self.path / "summary.json"
        if path.exists():
            found = json.loads(path.read_text())
            if to_step is None or found["steps"] <= to_step:  # a callback may have stopped the run
                return _result(found, True, objective)
        return None

    @property
    def reason(self) -> str:
        """Why the run failed: the last line for people that it printed; empty without one.

        It is the same wherever the search lies, and in whichever slot the run was.
        """
        said = [found[1] for line in self.last_lines() if (found := _SAID.match(line))]
        return said[-1].replace(str(self.path), self.name) if said else ""

    def last_lines(self, count: int = 20) -> Sequence[str]:
        """Returns the last lines that the run has printed."""
        try:
            return self.output.read_text(errors="replace").splitlines()[-count:]
        except OSError:
            return []

    def _is_damaged(self, error: Exception) -> BadInput:
        return BadInput(
            f"a JSON file in {self.path} is damaged ({error!r}): restore it, or remove this "
            "folder, and the trial trains again"
        )


def _result(found: Mapping[str, Any], is_end: bool, objective: Objective) -> Result:
    metrics = found["eval_metrics"] or found["metrics"]
    value = metrics.get(objective.name)
    common = {"steps": found["steps"], "examples": found["examples"]}
    if not is_number(value):
        return Result(**common, failure=f"{objective.name} is {value} at step {found['steps']}")
    return Result(
        **common,
        objective=float(value),
        weights_sha256=found["weights_sha256"],
        is_end=is_end,
    )
