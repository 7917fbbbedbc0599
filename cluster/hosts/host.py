"""One host of a run: connected or not, ready for workers or not, and the workers on it."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cluster import exit_codes, policy
from cluster.hosts.connection import Connection
from cluster.hosts.worker import RemoteWorker

_UNREACHABLE: Final = 255  # ssh's own code
LOOK_S: Final = 60.0  # for what the launcher asks before a start; the host may be busy
_VERSIONS: Final = """
import importlib.metadata, json, platform
versions = {"python": platform.python_version()}
for name in ("tfdp", "tensorflow", "keras"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = "not installed"
print(json.dumps(versions))
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What all workers run, and as what.

    Args:
        command: the program and its arguments.
        cwd: working directory.
        environ: variables that are added to those of a login on the host.
    """

    command: Sequence[str]
    cwd: str
    environ: Mapping[str, str]

    @property
    def recipe(self) -> str | None:
        """What ``--recipe`` names, if the command has such a flag."""
        for word, following in zip(self.command, [*self.command[1:], ""], strict=True):
            if match := re.fullmatch(r"--?recipe(?:=(.*))?", word, re.DOTALL):
                return following if match[1] is None else match[1]
        return None

    @property
    def is_python(self) -> bool:
        """Whether the program is a Python interpreter."""
        return re.fullmatch(r"python[\d.]*", Path(self.command[0]).name) is not None


class RemoteHost:
    """A host and its state.

    Args:
        name: as ssh takes it.
        slots: numbers of its workers' slots, over all hosts.
        job: what its workers run.
        ssh: the command that starts the keeper there.

    Attributes:
        address: at which ssh reached it.
        ports: a free one for each slot.
        facts: what has to be the same on all hosts, by its name for people.
        problem: why it can't be used for the next start, as in ``policy.Exit``; None if it can.
        is_ready: whether it can be used.
    """

    def __init__(self, name: str, slots: Sequence[int], job: Job, ssh: Sequence[str]) -> None:
        self.name = name
        self.slots = slots
        self.address = ""
        self.ports: list[int] = []
        self.facts: dict[str, str] = {}
        self.problem: policy.Exit | None = None
        self.is_ready = False
        self._job = job
        self._ssh = ssh
        self._has_been_ready = False
        self._connection: Connection | None = None
        self._workers: dict[int, RemoteWorker] = {}  # by the keeper's numbers
        self._last_number = 0
        self._versions: RemoteWorker | None = None  # a process that prints them
        self._deadline_s = 0.0
        self._has_news = False

    @property
    def is_settled(self) -> bool:
        """Whether it is known if it can be used."""
        return self.is_ready or self.problem is not None

    @property
    def connection(self) -> Connection | None:
        """The connection, unless there is none."""
        return None if self._connection is None or self._connection.loss else self._connection

    def begin(self) -> None:
        """Begins to find out whether the host can be used; connects to it if need be.

        Raises:
            OSError: if ssh can't be started.
        """
        self.problem, self.is_ready = None, False
        self._deadline_s = time.monotonic() + LOOK_S
        if self.connection is None:
            self.facts.clear()
            self._connection = Connection(self._ssh, self._on_message)
        else:
            self._look()

    def start(
        self,
        name: str,
        environ: Mapping[str, str],
        *,
        command: Sequence[str] | None = None,
        has_input: bool = False,
    ) -> RemoteWorker:
        """Starts a worker there.

        Args:
            name: the worker's name, for people.
            environ: variables on top of the job's.
            command: by default, the job's.
            has_input: whether standard input is a pipe; by default it is empty.
        """
        self._last_number += 1
        worker = RemoteWorker(name, self._last_number, self._send)
        if self.connection is None:
            worker.note_end(-signal.SIGKILL, f"was lost with host {self.name}")
            return worker
        self._workers[self._last_number] = worker
        self._send(
            {
                "start": self._last_number,
                "command": list(command or self._job.command),
                "cwd": self._job.cwd,
                "environ": {**self._job.environ, **environ},
                "has_input": has_input,
            }
        )
        return worker

    def tend(self, ready: Sequence[object]) -> bool:
        """Serves the connection; returns whether a worker or the host has changed its state."""
        self._has_news = False
        if (connection := self.connection) is not None:
            connection.tend(ready)
            if connection.loss:
                self._on_loss(connection.loss)
        if not self.is_settled and time.monotonic() > self._deadline_s:
            self._give_up(f"did not answer within {LOOK_S:.0f} s", _UNREACHABLE)
        return self._has_news

    def _send(self, message: Mapping[str, Any]) -> None:
        if (connection := self.connection) is not None:
            connection.send(message)

    def _look(self) -> None:
        ports = len(self.slots)
        path = self._job.environ.get("PATH")
        program, recipe = self._job.command[0], self._job.recipe
        look = {"program": program, "path": path, "recipe": recipe, "ports": ports}
        self._send({"look": {"cwd": self._job.cwd, **look}})

    def _give_up(self, loss: str, code: int | None = None) -> None:
        # What a host lacks now but had before may come back, as a file system after a reboot does.
        lacks = _UNREACHABLE if self._has_been_ready else exit_codes.BAD_INPUT
        self.problem = policy.Exit(f"host {self.name}", lacks if code is None else code, loss)
        self.is_ready = False
        self._has_news = True

    def _on_loss(self, reason: str) -> None:
        self._has_news = True
        for worker in self._workers.values():
            worker.note_end(-signal.SIGKILL, f"was lost with host {self.name}: {reason}")
        self._workers.clear()
        if self.problem is None:
            self._give_up(f"can't be reached: {reason}", _UNREACHABLE)

    def _on_message(self, message: Mapping[str, Any], payload: bytes) -> None:
        """Takes a message of the keeper.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: if it is none.
        """
        if "output" in message:
            if worker := self._workers.get(message["output"]):
                output = worker.stdout if message["stream"] == 1 else worker.stderr
                output.feed(payload)
        elif "beat" in message:
            for number, stat in message["beat"].items():
                if stat is not None and (worker := self._workers.get(int(number))):
                    worker.note_sample(policy.Sample(*stat))
        elif "ended" in message:
            self._has_news = True
            if worker := self._workers.pop(message["ended"], None):
                error = message.get("error")
                loss = f"can't be started on {self.name}: {error}" if error else ""
                worker.note_end(int(message["code"]), loss)
                if worker is self._versions:
                    self._on_versions(worker)
        elif "looked" in message:
            self._on_looked(**message["looked"])
        elif "hello" in message:
            self._on_hello(str(message["hello"]["address"]))

    def _on_hello(self, address: str) -> None:
        self.address = address.replace("::ffff:", "")  # IPv4, to a server that listens on IPv6
        if not self.address or "%" in self.address:
            shown = self.address or "none"
            self._give_up(f"was reached at no address for others ({shown}): use another name")
        else:
            self._look()

    def _on_looked(
        self, has_cwd: bool, program: str | None, recipe_sha256: str | None, ports: list[int]
    ) -> None:
        self.ports = ports
        if not has_cwd:
            self._give_up(f"has no folder {self._job.cwd}: workers run in the launcher's")
        elif program is None:
            self._give_up(
                f"has no program {self._job.command[0]}: it has to be where it is for the launcher"
            )
        else:
            if self._job.recipe is not None:
                self.facts[f"{self._job.recipe} (sha256)"] = (recipe_sha256 or "no file")[:12]
            if self._job.is_python and "python" not in self.facts:
                command = [program, "-c", _VERSIONS]
                self._versions = self.start("versions", {}, command=command)
            else:
                self._become_ready()

    def _on_versions(self, process: RemoteWorker) -> None:
        if process.poll() == 0:
            self.facts.update(json.loads(process.stdout.read() or b""))
            self._become_ready()
        else:
            errors = (process.stderr.read() or b"").decode(errors="replace").strip()
            reason = process.loss or errors.rpartition("\n")[2] or f"it ended with {process.poll()}"
            self._give_up(f"can't run {self._job.command[0]}: {reason}")

    def _become_ready(self) -> None:
        self.is_ready = self._has_been_ready = self._has_news = True
