"""Which workers train, in a run that may go on without some of them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from cluster import exit_codes
from cluster.meeting import lease
from cluster.meeting.elastic import Newcomers, Options
from cluster.meeting.group import Group
from cluster.meeting.rendezvous import Meeting
from tfdp.errors import BadInput, Superseded
from tfdp.log import say
from tfdp.workers.collectives import Workers
from tfdp.workers.faults import FAULTS, end_process

SHARED_WITHIN_S: Final = 5.0
_FINISHED: Final = "finished"  # a file that says what was asked for and is done


def elastic_options(
    workdir: Path, min_workers: int, wait_s: float, *, identity: str, asked: str
) -> Options:
    """Returns when a part of the workers may train, given the flags of a run.

    Args:
        workdir: of the run.
        min_workers: how many are enough.
        wait_s: how long to wait for the others.
        identity: a digest of all that workers of one run have in common.
        asked: a digest of what the command asks for.
    """
    folder = workdir / ".workers"

    def is_finished() -> bool:
        is_done = lease.read(folder / _FINISHED) == {"asked": asked}
        return is_done and (workdir / "summary.json").exists()  # which a person may have removed

    return Options(folder, min_workers, wait_s, identity, is_finished)


class Membership:
    """The workers that train, and those that are away.

    Args:
        group: all workers.
        options: from ``elastic_options``.
        meeting: those that have met.
        workers: the same, as a strategy has them.
    """

    def __init__(self, group: Group, options: Options, meeting: Meeting, workers: Workers) -> None:
        self._group = group
        self._options = options
        self._workers = workers
        self.away = sorted(set(range(group.size)) - set(meeting.ranks))
        self._newcomers: Newcomers | None = None
        if meeting.lease is not None:
            meeting.lease.keep(self._end_replaced)
            if self.away:
                names = ", ".join(group.describe(rank) for rank in self.away)
                say(f"training with {len(meeting.ranks)} of {group.size} workers, without {names}")
                self._newcomers = Newcomers(group, options, meeting.ranks)

    def check_folder_is_shared(self) -> None:
        """Checks that all workers see the chief's lease; a collective.

        Raises:
            BadInput: on all workers, if one does not.
        """
        name = self._workers.broadcast(self._lease_name() if self._workers.is_chief else None)
        deadline_s = time.monotonic() + SHARED_WITHIN_S
        folder = lease.Folder(self._options.folder, self._group.rank)
        while not (sees_it := self._lease_name() == name) and time.monotonic() < deadline_s:
            folder.refresh()
            time.sleep(0.2)
        seen = self._workers.gather_bytes(b"1" if sees_it else b"0")
        self._workers.settle()
        if b"0" in seen:
            blind, chief = self._workers.name(seen.index(b"0")), self._workers.name(0)
            raise BadInput(
                f"--min_workers is {self._options.min_workers}, which needs a --workdir that all "
                f"workers share, and {blind} does not see what {chief} writes there: give "
                "a folder of a shared file system, or leave out --min_workers"
            )

    def newcomers(self) -> list[str]:
        """Returns the names of workers that are back and wait to be taken in; a collective."""
        if not self.away:
            return []
        newcomers = self._newcomers
        found: list[int] = self._workers.run_on_chief(
            lambda: [] if newcomers is None else newcomers.waiting
        )
        return [self._group.names[rank] for rank in found]

    def finish(self, asked: str) -> None:
        """Lets workers that are still away end, should they come back; on the chief.

        Args:
            asked: as in ``elastic_options``.
        """
        with contextlib.suppress(OSError):  # of a run that is finished
            lease.write(self._options.folder / _FINISHED, {"asked": asked})

    def _lease_name(self) -> bytes:
        held = lease.read(self._options.lease_path)
        return b"" if held is None else str(held.get("name")).encode()

    def _end_replaced(self) -> None:
        error = Superseded(
            "other workers go on with this run: this process, which must have been frozen or cut "
            "off meanwhile, ends"
        )
        FAULTS.report_failure(error)
        say(str(error))
        end_process(exit_codes.TRY_AGAIN)
