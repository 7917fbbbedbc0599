"""The place of a process among the workers of a run, as an engine describes it."""

from __future__ import annotations

import dataclasses


class PlaceError(ValueError):
    """An engine's description is incomplete or wrong.

    The message contains the variable's value, the rule and what to change.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """What a process has to know to meet the other workers: the chief, how many, and its rank.

    Args:
        engine: name of the engine, for people: ``"Slurm"``.
        found_by: what it was found by, for people: ``"SLURM_STEP_ID, SLURM_PROCID"``.
        rank: of this process, from 0; the chief's is 0.
        size: number of workers.
        chief_host: name or address of the chief's node. It may not resolve yet.
        chief_port: the port at which the engine expects the chief; None if it names none.
        job: text that all workers of one start have in common, and no other job's workers. Empty if
            the engine gives none.
        local_rank: number of this process among those on its node, from 0; None if unknown.
        local_size: number of workers on this node; None if unknown.
        has_own_gpus: whether the engine gives each worker GPUs of its own, so that those that this
            process sees are for it alone.

    Raises:
        PlaceError: if ``size`` is below 1, or ``rank`` is not from 0 to ``size - 1``.
    """

    engine: str
    found_by: str
    rank: int
    size: int
    chief_host: str
    chief_port: int | None = None
    job: str = ""
    local_rank: int | None = None
    local_size: int | None = None
    has_own_gpus: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PlaceError(
                f"{self.engine} ({self.found_by}) gives {self.size} workers: it has to be 1 or more"
            )
        if not 0 <= self.rank < self.size:
            raise PlaceError(
                f"{self.engine} ({self.found_by}) gives the rank {self.rank} of {self.size} "
                f"workers: it has to be from 0 to {self.size - 1}"
            )

    def __str__(self) -> str:
        return f"worker {self.rank} of {self.size} by {self.engine} ({self.found_by})"
