"""Start-up checks: the workers are there, and all were started in the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdp.errors import BadInput
from tfdp.provenance import package_versions
from tfdp.recipe import Recipe
from tfdp.run.settings import WorkerSettings
from tfdp.workers.collectives import Workers, workers_of
from tfdp.workers.connecting import connect


def meet(settings: WorkerSettings, recipe: Recipe) -> Workers:
    """Connects the workers, and checks that all were started in the same way; a collective.

    Raises:
        BadInput: on all workers, if their flags, recipes or package versions differ.
        PeerMissing: if a worker did not come in time.
    """
    workers = workers_of(
        connect(settings.communication, settings.startup_timeout_s, settings.cluster)
    )
    check_agreement(workers, settings.shared(), recipe)
    return workers


def check_agreement(workers: Workers, shared: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises BadInput on all workers if ``shared``, recipes or package versions differ."""
    own = {**shared, "recipe's sha256": recipe.digest, **package_versions()}
    own["--recipe"] = Path(recipe.name).name
    of_workers = [json.loads(row) for row in workers.gather_bytes(json.dumps(own).encode())]
    workers.settle()
    for index, values in enumerate(of_workers):
        for name, value in of_workers[0].items():
            if values[name] != value:
                raise BadInput(
                    f"workers differ: {name} is {value} on worker 0 and {values[name]} on worker "
                    f"{index}; start all of them with the same command, recipe and packages"
                )
