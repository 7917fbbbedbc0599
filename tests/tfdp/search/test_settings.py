"""The flags of a search."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from tests.running import ROOT
from tfdp.errors import BadInput
from tfdp.publishing.settings import PublishSettings
from tfdp.search.rungs import Rungs
from tfdp.search.settings import TuneSettings
from tfdp.search.trial_command import Commands


def settings(**flags: Any) -> TuneSettings:
    needed = {"recipe": "mine.py", "workdir": Path("runs/search"), "objective": "accuracy:max"}
    return TuneSettings(**(needed | flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"recipe": ""}, "--recipe is missing"),
        ({"workdir": Path()}, "--workdir is missing"),
        ({"workdir": Path("gs://bucket/x")}, "remote paths have no atomic rename"),
        ({"objective": ""}, "--objective is missing"),
        ({"objective": "accuracy"}, "--objective is accuracy: it has to be NAME:max or NAME:min"),
        ({"objective": ":max"}, "--objective is :max"),
        ({"trials": 0}, "--trials is 0: it has to be 1 or more"),
        ({"parallel": 0}, "--parallel is 0"),
        ({"workers_per_trial": 0}, "--workers_per_trial is 0"),
        ({"threads_per_trial": -1}, "--threads_per_trial is -1"),
        ({"trials_in_flight": 0}, "--trials_in_flight is 0"),
        ({"rung_factor": 1}, "--rung_factor is 1: it has to be 2 or more"),
        ({"first_rung_steps": 3}, "--first_rung_steps is 3, and nothing is pruned"),
        ({"prune": "median"}, "--prune is median: it has to be one of asha, hyperband, none"),
        ({"sampler": "grid"}, "--sampler is grid: it has to be one of tpe, random"),
        ({"seed": -1}, "--seed is -1"),
        ({"timeout_s": 0.0}, r"--timeout_s is 0\.0: it has to be positive"),
        ({"trial_timeout_s": float("nan")}, "--trial_timeout_s is nan"),
        ({"ssh_config": Path("x")}, "--ssh_config is for trials on other hosts"),
        ({"export_dir": Path("none"), "refit_epochs": 1}, "--export_dir is none"),
        ({"export_dir": Path("none"), "require_min": ("loss:1",)}, "--export_dir is none"),
    ],
)
def test_wrong_values_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        settings(**flags)


def test_the_page_lists_the_flags_and_their_defaults() -> None:
    text = (ROOT / "docs" / "search.md").read_text()
    rows = re.findall(r"^\| `--(\w+)` \| (.*?) \|", text, re.MULTILINE)
    publishing = {field.name for field in dataclasses.fields(PublishSettings)}
    fields = [each for each in dataclasses.fields(TuneSettings) if each.name not in publishing]
    assert [name for name, _ in rows] == [field.name for field in fields]
    for (name, shown), field in zip(rows, fields, strict=True):
        default = str(field.default).lower() if field.default not in (None, "", (), Path()) else ""
        assert shown.strip() == default, name


def test_rungs_are_powers_below_the_whole() -> None:
    assert Rungs.of(settings(prune="asha"), 2700).steps == [100, 300, 900]
    assert Rungs.of(settings(prune="asha", first_rung_steps=5, rung_factor=4), 80).steps == [5, 20]
    assert Rungs.of(settings(), 2700).steps == []
    rungs = Rungs.of(settings(prune="hyperband"), 20)
    assert rungs.steps == [1, 3, 9]
    assert [rungs.next_after(step) for step in (0, 1, 3, 9)] == [1, 3, 9, 20]
    with pytest.raises(BadInput, match="--first_rung_steps is 20, and a trial has 20 steps in all"):
        Rungs.of(settings(prune="asha", first_rung_steps=20), 20)


def test_flags_of_trials_pass_and_those_of_the_search_do_not() -> None:
    of_trials = ["--steps=7", "--notensorboard", "--require_min=loss:0", "--hparam=a=1"]
    commands = Commands.of(settings(keep_versions=3), [*of_trials, "--warmup_batch_sizes=1,2"])
    words = commands.check(Path("somewhere"), NoFields())
    assert "--steps=7" in words and "--notensorboard" in words
    assert {"--require_min=loss:0", "--keep_versions=3", "--warmup_batch_sizes=1,2"} <= set(words)
    assert "--export_dir=runs/search/model" in words and "--hparam=a=1" not in words
    assert commands.of_trials["--steps"] == 7
    assert not {"--workdir", "--require_min", "--recipe"} & set(commands.of_trials)
    for wrong in ("--workdir=x", "--recipe=x", "--pause_at_step=3"):
        name = wrong.partition("=")[0]
        with pytest.raises(BadInput, match=f"{name} after -- is set by the search"):
            Commands.of(settings(), [wrong])
    with pytest.raises(BadInput, match="--keep_versions is 3 before -- and 4 after it"):
        Commands.of(settings(keep_versions=3), ["--keep_versions=4"])
    with pytest.raises(BadInput, match="--export_dir is a before -- and b after it"):
        Commands.of(settings(export_dir=Path("a")), ["--export_dir=b"])
    assert Commands.of(settings(), ["--export_dir=b"]).settings.publish_dir == Path("b")


@dataclasses.dataclass(frozen=True)
class NoFields:
    pass
