"""The best trial of a search becomes a version, as it is or after more training.

A copy of its run goes on from its last checkpoint, and publishes as any run does. ``tfdp.export``
could not: a callback may restore weights at the end of a run that are not in the checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cluster import exit_codes
from tfdp.errors import BadInput, TrainingError
from tfdp.files import sync_tree, write_whole
from tfdp.log import say
from tfdp.search import child
from tfdp.search.child import Wait
from tfdp.search.slot import Slot
from tfdp.search.table import Row
from tfdp.search.trial import TrialFolder
from tfdp.search.trial_command import Commands

MAX_STARTS: Final = 3
TIMEOUT_S: Final = 7 * 24 * 3600.0  # --refit_epochs may take long


def publish(
    best: Row, hparams: Any, commands: Commands, slot: Slot, steps_per_epoch: int, wait: Wait
) -> None:
    """Publishes the best trial, unless that was done before.

    Args:
        best: its row.
        hparams: its ``HParams``.
        commands: makes the commands.
        slot: where to run them.
        steps_per_epoch: updates per epoch, for ``--refit_epochs``.
        wait: see ``child.run``.

    Raises:
        BadInput: if the command finds that something is wrong.
        SearchStopped: if a signal came.
        TrainingError: if the conditions for publishing are not met, or publishing failed.
    """
    settings, epochs = commands.settings, commands.settings.refit_epochs
    workdir = settings.workdir / "best" / f"{best.number:04}"
    if epochs:
        workdir = workdir.with_name(f"{best.number:04}-{epochs}-epochs-more")
    command = commands.publish_best(workdir, hparams, best.steps + epochs * steps_per_epoch)
    if not epochs:  # a callback that draws random numbers could restore other ones
        command.append(f"--require_weights={best.weights_sha256}")
    done = settings.workdir / "published.json"
    about = {"command": command[1:], "weights_sha256": best.weights_sha256}
    if done.exists() and json.loads(done.read_text()) == about:
        return
    _copy_checkpoint(TrialFolder(settings.workdir, best.number).path, best.steps, workdir)
    summary = workdir / "summary.json"
    summary.unlink(missing_ok=True)  # with it, the run would be finished and publish nothing
    name = f"{'training on and ' * bool(epochs)}publishing trial {best.number}"
    say(name)
    _run(name, [*slot.launcher, *command], slot.environ, settings.workdir, wait)
    published = json.loads(summary.read_text())
    say(f"trial {best.number} is published as {published['export_path']}")
    if epochs and published["steps"] == best.steps:
        say(f"trial {best.number} was not trained on: one of its callbacks had stopped it")
    write_whole(done, json.dumps(about, indent=2) + "\n")


def _run(
    name: str, command: list[str], environ: Mapping[str, str], workdir: Path, wait: Wait
) -> None:
    for start in range(MAX_STARTS):
        output = workdir / f".publishing-{start}.log"
        output.unlink(missing_ok=True)
        code = child.run(
            name, command, environ=environ, output=output, timeout_s=TIMEOUT_S, wait=wait
        )
        lines = output.read_text(errors="replace").splitlines()
        output.unlink()
        if code == exit_codes.FINISHED:
            return
        if 0 < code < 128:
            break
    text = "\n".join(lines[-20:])
    error = BadInput if code == exit_codes.BAD_INPUT else TrainingError
    raise error(f"{name} ended with {code}; the search itself is finished:\n{text}")


def _copy_checkpoint(trial: Path, step: int, workdir: Path) -> None:
    """Lets a run begin with a checkpoint of a trial, unless it has one already."""
    copy = workdir / "checkpoints" / str(step)
    if copy.parent.exists() and any(each.name.isdigit() for each in copy.parent.iterdir()):
        return
    hidden = copy.with_name(f".copied-{step}")
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.copytree(trial / "checkpoints" / str(step), hidden)
    sync_tree(hidden)
    hidden.rename(copy)
