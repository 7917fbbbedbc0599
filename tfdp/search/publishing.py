"""The best trial of a search becomes a version, as it is or after more training."""

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
    settings = commands.settings
    folder = TrialFolder(settings.workdir, best.number)
    if settings.refit_epochs:
        workdir = settings.workdir / "refit" / f"{best.number:04}"
        _copy_last_checkpoint(folder, workdir)
        steps = best.steps + settings.refit_epochs * steps_per_epoch
        command = commands.refit(workdir, hparams, steps)
        name = f"training trial {best.number} on"
    else:
        command = commands.export(folder, hparams)
        name = f"publishing trial {best.number}"
    done = settings.workdir / "published.json"
    about = {"command": command[1:], "weights_sha256": best.weights_sha256}
    if done.exists() and json.loads(done.read_text()) == about:
        return
    say(name)
    _run(name, [*slot.launcher, *command], slot.environ, settings.workdir, wait)
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
            for line in lines:
                _, is_for_people, text = line.partition("tfdp: ")  # maybe after a worker's name
                if is_for_people and "published" in text:
                    say(text)
            return
        if 0 < code < 128:
            break
    text = "\n".join(lines[-20:])
    error = BadInput if code == exit_codes.BAD_INPUT else TrainingError
    raise error(f"{name} ended with {code}; the search itself is finished:\n{text}")


def _copy_last_checkpoint(folder: TrialFolder, workdir: Path) -> None:
    """Copies a trial's last checkpoint into a workdir of its own, unless it is there."""
    step = folder.newest_checkpoint
    copy = workdir / "checkpoints" / str(step)
    if copy.exists():
        return
    hidden = workdir / "checkpoints" / f".copied-{step}"
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.copytree(folder.path / "checkpoints" / str(step), hidden)
    sync_tree(hidden)
    hidden.rename(copy)
