"""The commands of a search: train a trial, check one, publish the best."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdp.cli import flags
from tfdp.errors import BadInput
from tfdp.publishing.settings import PublishSettings
from tfdp.run.settings import TrainSettings
from tfdp.search.settings import TuneSettings
from tfdp.search.space import hparam_flags
from tfdp.search.trial import TrialFolder

_PUBLISHING = {field.name for field in dataclasses.fields(PublishSettings)}
_SET_BY_SEARCH = {"recipe", "workdir", "pause_at_step"}
_WITHOUT_EFFECT = {  # on results
    *("recipe", "export_dir", "pause_at_step", "checkpoint_every_steps", "keep_checkpoints"),
    *("tensorboard", "profile"),
}


@dataclasses.dataclass(frozen=True)
class Commands:
    """Makes commands from the flags of a search.

    Args:
        settings: flags of the search.
        train: flags of its trials.
        publish: flags about publishing, of both.
    """

    settings: TuneSettings
    train: TrainSettings
    publish: Mapping[str, Any]

    @classmethod
    def of(cls, settings: TuneSettings, argv: Sequence[str]) -> Commands:
        """Parses the flags of trials.

        Args:
            settings: flags of the search.
            argv: flags of ``python -m tfdp.train``, without those that the search sets.

        Raises:
            BadInput: if one is wrong.
        """
        given = {"recipe": settings.recipe, "workdir": settings.workdir / "trials"}
        first = [f"--{name}={value}" for name, value in given.items()]
        train = flags.parse(TrainSettings, ["tfdp.train", *first, *argv])
        for name in sorted(_SET_BY_SEARCH):
            if getattr(train, name) != given.get(name):
                raise BadInput(f"--{name} after -- is set by the search: leave it out there")
        if train.export_dir is not None and settings.export_dir not in (None, train.export_dir):
            raise BadInput(
                f"--export_dir is {settings.export_dir} before -- and {train.export_dir} after "
                "it: give it once"
            )
        if train.export_dir is not None:
            settings = dataclasses.replace(settings, export_dir=train.export_dir)
        return cls(settings, train, _publishing(settings, train))

    def train_trial(self, folder: TrialFolder, hparams: Any, to_step: int | None) -> list[str]:
        """Returns the command that trains a trial.

        Args:
            folder: of the trial.
            hparams: the trial's ``HParams``.
            to_step: number of updates at which it pauses; None to train to the end.
        """
        pause = [] if to_step is None else [f"--pause_at_step={to_step}"]
        return [
            *_module("tfdp.train"),
            f"--recipe={self.settings.recipe}",
            f"--workdir={folder.path}",
            "--export_dir=none",
            *(f"--hparam={each}" for each in hparam_flags(hparams)),
            *self._given(TrainSettings, without={"hparam", "export_dir", *_PUBLISHING}),
            *pause,
        ]

    def check(self, folder: Path, hparams: Any) -> list[str]:
        """Returns the flags of a run that is only prepared, to see whether trials can train.

        It is prepared by this machine alone: the engine of a job (Slurm) would expect all workers.
        """
        without = {"hparam", "export_dir", "cluster", "min_workers", *_PUBLISHING}
        return [
            f"--recipe={self.settings.recipe}",
            f"--workdir={folder}",
            *(f"--hparam={each}" for each in hparam_flags(hparams)),
            *self._given(TrainSettings, without=without),
            "--cluster=none",
            *self._to_publish(),
        ]

    def publish_best(self, workdir: Path, hparams: Any, steps: int) -> list[str]:
        """Returns the command that lets a copy of the best trial end at a step, and publish."""
        without = {"hparam", "export_dir", "steps", "epochs", *_PUBLISHING}
        return [
            *_module("tfdp.train"),
            f"--recipe={self.settings.recipe}",
            f"--workdir={workdir}",
            f"--steps={steps}",
            *(f"--hparam={each}" for each in hparam_flags(hparams)),
            *self._given(TrainSettings, without=without),
            *self._to_publish(),
        ]

    @property
    def of_trials(self) -> dict[str, Any]:
        """What the flags of trials say about their results."""
        return {
            name: value
            for name, value in self.train.shared().items()
            if name.removeprefix("--") not in {*_WITHOUT_EFFECT, *_PUBLISHING}
        }

    def _given(self, kind: type[Any], without: set[str]) -> list[str]:
        """Returns the flags of trials that a command takes and that are not at their defaults."""
        return [
            word
            for field in dataclasses.fields(kind)
            if field.name not in {*_SET_BY_SEARCH, *without}
            and (value := getattr(self.train, field.name)) != field.default
            for word in _words(field.name, value)
        ]

    def _to_publish(self) -> list[str]:
        folder = self.settings.publish_dir
        words = [f"--export_dir={'none' if folder is None else folder}"]
        return words + [
            word for name, value in self.publish.items() for word in _words(name, value)
        ]


def _publishing(settings: TuneSettings, train: TrainSettings) -> dict[str, Any]:
    """Returns the flags about publishing that were given, before -- or after it."""
    found = {}
    for field in dataclasses.fields(PublishSettings):
        before, after = getattr(settings, field.name), getattr(train, field.name)
        given = [value for value in (before, after) if value != field.default]
        if len(given) == 2 and before != after:
            raise BadInput(
                f"--{field.name} is {before} before -- and {after} after it: give it once"
            )
        if given:
            found[field.name] = given[0]
    return found


def _words(name: str, value: Any) -> list[str]:
    """Returns a flag with a value as words of a command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no{name}"]
    if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
        return [f"--{name}={','.join(map(str, value))}"]
    return [f"--{name}={each}" for each in (value if isinstance(value, tuple) else (value,))]


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]
