"""Start-up checks: the workers are there, and all were started in the same way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdp.errors import BadInput
from tfdp.group import look_for
from tfdp.provenance import package_versions
from tfdp.recipe import Recipe
from tfdp.run.settings import TrainSettings, WorkerSettings
from tfdp.workers.collectives import Workers, workers_of
from tfdp.workers.connecting import join
from tfdp.workers.membership import Membership, elastic_options


def meet(settings: WorkerSettings, recipe: Recipe) -> Workers:
    """Connects the workers, and checks that all were started in the same way; a collective.

    Raises:
        BadInput: on all workers, if their flags, recipes or package versions differ.
        PeerMissing: if a worker did not come in time.
    """
    group = look_for(settings.cluster)
    workers = workers_of(join(settings.communication, settings.startup_timeout_s, group).strategy)
    check_agreement(workers, settings.shared(), recipe)
    return workers


def meet_elastic(settings: TrainSettings, recipe: Recipe) -> tuple[Workers, Membership | None]:
    """As ``meet``, but with ``--min_workers`` without workers that are away.

    Returns:
        The workers that are there, and who is away; None if all are needed.
    """
    group = look_for(settings.cluster)
    if group is None or settings.min_workers is None:
        settings.check_min_workers(1 if group is None else group.size)
        return meet(settings, recipe), None
    settings.check_min_workers(group.size)
    options = elastic_options(
        settings.workdir,
        settings.min_workers,
        settings.elastic_wait_s,
        identity=_digest(_alike(settings.shared(), recipe)),
        asked=asked_of(settings),
    )
    joined = join(settings.communication, settings.startup_timeout_s, group, options)
    assert joined.meeting is not None
    workers = workers_of(joined.strategy)
    membership = Membership(group, options, joined.meeting, workers)
    membership.check_folder_is_shared()
    check_agreement(workers, settings.shared(), recipe)
    return workers, membership


def asked_of(settings: WorkerSettings) -> str:
    """Returns a digest of what a command asks for."""
    return _digest({name: v for name, v in settings.shared().items() if name != "--recipe"})


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def _alike(shared: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Returns what has to be alike on all workers."""
    own = {**shared, "recipe's sha256": recipe.digest, **package_versions()}
    own["--recipe"] = Path(recipe.name).name
    return own


def check_agreement(workers: Workers, shared: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises BadInput on all workers if ``shared``, recipes or package versions differ."""
    own = _alike(shared, recipe)
    of_workers = [json.loads(row) for row in workers.gather_bytes(json.dumps(own).encode())]
    workers.settle()
    for index, values in enumerate(of_workers):
        for name, value in of_workers[0].items():
            if values[name] != value:
                raise BadInput(
                    f"workers differ: {name} is {value} on {workers.name(0)} and {values[name]} on "
                    f"{workers.name(index)}; start all of them with the same command, recipe and "
                    "packages"
                )
