"""Workers as a cluster manager keeps them: each is started again by itself, unless it is away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence

from tests.running import Process, wait_until


class Pods:
    """One process for each worker, started again after an exit code of 128 and more, or a signal.

    Use it in a ``with`` block. Processes are looked after while one of its methods waits.

    Args:
        command: of every worker.
        environments: variables of each.
        limit_s: each process is killed after this many seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        *,
        limit_s: float = 150,
    ) -> None:
        self._command = command
        self._environments = environments
        self._limit_s = limit_s
        self._stack = contextlib.ExitStack()
        self._running: dict[int, Process] = {}
        self._outputs: list[list[str]] = [[] for _ in environments]
        self.codes: list[list[int]] = [[] for _ in environments]  # of ended processes
        self.away: set[int] = set()

    def start(self, *ranks: int) -> None:
        """Starts workers, or lets those that are away come back."""
        for rank in ranks:
            self.away.discard(rank)
            self._running[rank] = self._stack.enter_context(
                Process(self._command, env=self._environments[rank], limit_s=self._limit_s)
            )

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            self._running[rank].signal(number)

    def take_away(self, *ranks: int) -> None:
        """Kills workers, which stay away until ``start``."""
        self.away.update(ranks)
        self.signal(signal.SIGKILL, *ranks)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
        """Waits for a condition, and starts workers again meanwhile."""

        def look() -> object:
            self._look_after()
            return condition()

        try:
            wait_until(look, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None

    def wait(self) -> None:
        """Waits until all workers that are not away have ended with 0."""
        self.wait_until(lambda: not self._running, "all have finished", self._limit_s)

    def output(self, rank: int) -> str:
        """What all processes of a worker have printed."""
        running = self._running.get(rank)
        return "".join(self._outputs[rank]) + ("" if running is None else running.output)

    def tails(self) -> str:
        """The last lines of every worker."""
        ranks = range(len(self._environments))
        return "\n".join(
            f"--- worker {rank} {self.codes[rank]}\n{self.output(rank)[-3000:]}" for rank in ranks
        )

    def _look_after(self) -> None:
        for rank, process in list(self._running.items()):
            code = process.popen.poll()
            if code is None:
                continue
            self._outputs[rank].append(process.output)
            self.codes[rank].append(code)
            del self._running[rank]
            assert not 0 < code < 128, f"worker {rank} ended with {code}:\n{self.tails()}"
            if code != 0 and rank not in self.away:
                self.start(rank)

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
