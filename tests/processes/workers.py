"""The workers of one run as real processes, each with a TF_CONFIG of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from cluster import spec
from tests.running import Process, free_port


class Workers:
    """One process for each command; use it in a ``with`` block.

    Args:
        commands: of worker 0, worker 1, …; ``[command] * 2`` starts two alike.
        env: variables of all of them besides TF_CONFIG.
        limit_s: they are killed after this many seconds, whatever they do.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        env: Mapping[str, str] | None = None,
        limit_s: float = 120,
    ) -> None:
        configs = tf_configs(len(commands))
        with contextlib.ExitStack() as stack:
            self.all = [
                stack.enter_context(
                    Process(command, env={"TF_CONFIG": config, **(env or {})}, limit_s=limit_s)
                )
                for command, config in zip(commands, configs, strict=True)
            ]
            self._stack = stack.pop_all()

    def __getitem__(self, index: int) -> Process:
        return self.all[index]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self, *expect: int) -> list[str]:
        """Waits for all and returns their outputs; fails unless they exit with ``expect``."""
        try:
            return [process.wait(code) for process, code in zip(self.all, expect, strict=True)]
        except AssertionError as error:
            raise AssertionError(f"{error}\n\nAll of them:\n{self.tails()}") from None

    def end(self) -> list[int]:
        """Waits for all, however they end, and returns their exit codes."""
        codes = []
        for process in self.all:
            with contextlib.suppress(AssertionError):
                process.wait(None)
            codes.append(process.popen.returncode)
        return codes

    def signal(self, number: int) -> None:
        """Sends every worker a signal."""
        for process in self.all:
            process.signal(number)

    def tails(self) -> str:
        """The last lines of every worker."""
        return "\n".join(
            f"--- worker {i} ({process.popen.poll()})\n{process.tail(30)}"
            for i, process in enumerate(self.all)
        )


def tf_configs(count: int) -> list[str]:
    """TF_CONFIG of each of ``count`` workers on free ports of this machine."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return [spec.local(list(ports), index).tf_config() for index in range(count)]


def places(size: int) -> list[dict[str, str]]:
    """The variables of each worker: the chief's address, how many, and a rank."""
    port = str(free_port())
    about = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), **about} for rank in range(size)]


def run_places(
    commands: Sequence[Sequence[str]], *expect: int, env: Mapping[str, str] | None = None
) -> list[str]:
    """Runs workers that know their places only; returns their outputs."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(Process(command, env={**place, **(env or {})}))
            for command, place in zip(commands, places(len(commands)), strict=True)
        ]
        return [process.wait(code) for process, code in zip(processes, expect, strict=True)]
