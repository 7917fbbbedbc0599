"""The keeper: starts, signals and reports the workers of one host, and ends them with itself.

The launcher sends this file over the ssh connection; nothing is installed on the host. It therefore
imports the standard library only, and runs with Python 3.8 and later. Messages go through its
standard input and output (``encode``, ``Decoder``).

When the connection ends, or nothing arrives for ``SILENCE_S``, the keeper kills its workers and
ends. When it gets a signal to stop, as at a shutdown of the host, it passes SIGTERM to its workers
and ends when they have saved and ended. If the keeper itself is killed, the kernel kills its
workers, and a second process of it, the guard, kills their children as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

MAGIC = b"\0tfdp-keeper\n"  # precedes the keeper's messages: a login may print other things before
BEAT_EVERY_S = 1.0
SILENCE_S = 8.0  # shorter than the launcher's: the workers have ended when it starts others
WINDOW_BYTES = 1 << 18  # of a stream's output that the launcher has not taken yet
_MAX_HEADER_BYTES = 1 << 20
_MAX_PAYLOAD_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_MAX_PIPE_BYTES = 1 << 20
_FIRST_PORT = 10_000
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def encode(message: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Returns a message as bytes: a line of JSON, and ``payload``, whose size is in the line."""
    fields = dict(message, size=len(payload)) if payload else message
    return json.dumps(fields).encode() + b"\n" + payload


class Decoder:
    """Takes bytes as they come, and gives whole messages."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._message: dict[str, Any] | None = None  # waits for its payload

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Takes the next bytes; gives each message that they complete, and its payload.

        Raises:
            ValueError: if they are no messages.
        """
        self._data += data
        while True:
            if self._message is None:
                end = self._data.find(b"\n")
                if max(end, len(self._data) if end < 0 else 0) > _MAX_HEADER_BYTES:
                    raise ValueError("a message is too long")
                if end < 0:
                    return
                message = json.loads(self._data[:end])
                del self._data[: end + 1]
                if not isinstance(message, dict):
                    raise ValueError("a message is no object")
                self._message = message
            size = self._message.get("size", 0)
            if not isinstance(size, int) or not 0 <= size <= _MAX_PAYLOAD_BYTES:
                raise ValueError("a message has a wrong size")
            if len(self._data) < size:
                return
            message, payload = self._message, bytes(self._data[:size])
            self._message = None
            del self._data[:size]
            yield message, payload


class Silence:
    """For how long nothing has arrived, while this process itself was running."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self.seconds = 0.0

    def add(self, has_arrived: bool) -> None:
        """Call it every second or so: longer gaps, in which this process stood, don't count."""
        now_s = time.monotonic()
        elapsed_s = min(now_s - self._last_s, 2 * BEAT_EVERY_S)
        self.seconds = 0.0 if has_arrived else self.seconds + elapsed_s
        self._last_s = now_s


def read_stat(pid: int) -> tuple[str, int] | None:
    """Returns a process's state letter and its processor time in ticks; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(") ")[2].split()  # a program's name may contain anything
    return fields[0], int(fields[11]) + int(fields[12])


def free_ports(count: int) -> list[int]:
    """Returns TCP ports that are free on all interfaces, and that the kernel gives to nobody."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 0
    family: dict[str, Any] = {}
    if socket.has_dualstack_ipv6():
        family = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    candidates = list(range(_FIRST_PORT, first))
    random.shuffle(candidates)
    ports: list[int] = []
    with contextlib.ExitStack() as stack:  # all are open at once, so that they differ
        for port in [*candidates, *[0] * count]:
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                listener = socket.create_server(("", port), **family)
                ports.append(stack.enter_context(listener).getsockname()[1])
    return ports


def look(
    cwd: str, program: str, path: str | None, recipe: str | None, ports: int
) -> dict[str, Any]:
    """Returns what the launcher has to know about this host before a start.

    Args:
        cwd: working directory of the workers.
        program: the first word of their command.
        path: their PATH; None for this process's own.
        recipe: path of their recipe, if any.
        ports: number of ports.
    """
    digest = None
    if recipe is not None:
        with contextlib.suppress(OSError):
            digest = hashlib.sha256(Path(cwd, recipe).read_bytes()).hexdigest()
    at_path = os.path.join(cwd, program) if os.sep in program else program  # noqa: PTH118
    return {
        "has_cwd": Path(cwd).is_dir(),
        "program": shutil.which(at_path, path=path),
        "recipe_sha256": digest,
        "ports": free_ports(ports),
    }


class Guard:
    """A second process, which kills the workers' process groups when the keeper has ended."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        if os.fork() == 0:
            try:
                self._watch(reader)
            finally:
                os._exit(0)
        os.close(reader)

    def add(self, group: int) -> None:
        """Adds a process group; a new process may add itself between fork and exec."""
        os.write(self._writer, b"+%d\n" % group)

    def remove(self, group: int) -> None:
        """Removes a group that has ended; call it before the kernel can reuse the number."""
        os.write(self._writer, b"-%d\n" % group)

    def _watch(self, reader: int) -> None:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # with a copy of them, the connection would never end
            os.dup2(null, descriptor)
        os.close(self._writer)
        groups: set[int] = set()
        with os.fdopen(reader) as lines:
            for line in lines:
                (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
        for group in groups:
            kill_group(group)


def kill_group(group: int) -> None:
    """Kills all processes of a group, if there are any."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def end_login() -> None:
    """Ends sshd's process for this connection, which would wait on for minutes for a lost peer."""
    parent = os.getppid()
    with contextlib.suppress(OSError):
        if Path(f"/proc/{parent}/comm").read_text().strip() in ("sshd", "sshd-session"):
            os.kill(parent, signal.SIGTERM)


class Child:
    """A worker of this host, or a spare for one.

    Args:
        request: the launcher's message, with command, cwd, environ, and whether it has an input.
        guard: kills its process group if the keeper dies.

    Raises:
        OSError: if the process can't be started.
    """

    def __init__(self, request: Mapping[str, Any], guard: Guard) -> None:
        self._guard = guard
        prctl = ctypes.CDLL(None).prctl

        def before_exec() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            guard.add(os.getpid())

        self.popen = subprocess.Popen(
            request["command"],
            bufsize=0,
            cwd=request["cwd"],
            env=dict(os.environ, **request["environ"]),
            stdin=subprocess.PIPE if request["has_input"] else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before_exec,
        )
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.outputs = {1: self.popen.stdout.fileno(), 2: self.popen.stderr.fileno()}
        for descriptor in self.outputs.values():
            os.set_blocking(descriptor, False)
        self.window = dict.fromkeys(self.outputs, WINDOW_BYTES)  # bytes that may still be sent

    def read(self, stream: int, limit: int) -> bytes:
        """Reads what is there of a stream; forgets the stream at its end."""
        try:
            data = os.read(self.outputs[stream], limit)
        except BlockingIOError:
            return b""
        if not data:
            del self.outputs[stream]
        return data

    def write_line(self, line: str) -> None:
        """Writes a line to its standard input, and closes it."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.popen.stdin as stdin:
            stdin.write(line.encode() + b"\n")

    def close_input(self) -> None:
        """Closes its standard input, if that is a pipe: a spare that waits for a line then ends."""
        if self.popen.stdin is not None:
            self.popen.stdin.close()

    def poll(self) -> int | None:
        """Returns the exit code, or minus the signal that killed it; None while it runs.

        The rest of its process group is killed before the kernel may forget the ended process.
        """
        if self.popen.returncode is None:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.popen.pid, options) is None:
                return None
            kill_group(self.popen.pid)
            self._guard.remove(self.popen.pid)
        return self.popen.wait()

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone, but SIGKILL to its whole process group."""
        if self.popen.returncode is None:
            if number == signal.SIGKILL:
                kill_group(self.popen.pid)
            else:
                os.kill(self.popen.pid, number)

    def close(self) -> None:
        """Closes the keeper's ends of its streams."""
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()


class Keeper:
    """Carries out the launcher's messages until the connection ends."""

    def __init__(self) -> None:
        self._guard = Guard()
        self._children: dict[int, Child] = {}
        self._decoder = Decoder()
        self._outgoing = bytearray(MAGIC)
        self._silence = Silence()
        self._beat_due_s = 0.0
        self._is_over = False  # kills workers
        self._is_leaving = False  # waits for workers that were told to stop
        self._wake, wake_writer = os.pipe()
        for descriptor in (0, 1, self._wake, wake_writer):
            os.set_blocking(descriptor, False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._leave)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serves the connection to its end; then kills all workers."""
        # Four fields: the client's address and port, and this host's.
        address = os.environ.get("SSH_CONNECTION", "").split()[2:3]
        self._send({"hello": {"address": address[0] if address else ""}})
        try:
            while not self._is_over:
                if self._is_leaving and not self._children and not self._outgoing:
                    break
                self._beat_if_due()
                self._wait()
        except (OSError, ValueError):
            pass  # the connection has ended, or is of no use
        finally:
            for child in self._children.values():
                child.signal(signal.SIGKILL)

    def _leave(self, *_: object) -> None:
        self._is_leaving = True
        for child in self._children.values():
            child.signal(signal.SIGTERM)
            child.close_input()

    def _send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        self._outgoing += encode(message, payload)

    def _beat_if_due(self) -> None:
        if time.monotonic() >= self._beat_due_s:
            self._beat_due_s = time.monotonic() + BEAT_EVERY_S
            stats = {number: read_stat(child.popen.pid) for number, child in self._children.items()}
            self._send({"beat": stats})

    def _wait(self) -> None:
        """Waits for an event, at most until the next beat, and handles it."""
        streams = {
            descriptor: (number, stream)
            for number, child in self._children.items()
            for stream, descriptor in child.outputs.items()
            if child.window[stream] > 0
        }
        poll = select.poll()
        for descriptor in (0, self._wake, *streams):
            poll.register(descriptor, select.POLLIN)
        if self._outgoing:
            poll.register(1, select.POLLOUT)
        left_s = max(0.0, self._beat_due_s - time.monotonic())
        ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
        if self._wake in ready:
            os.read(self._wake, _READ_BYTES)
        if 1 in ready:
            del self._outgoing[: os.write(1, self._outgoing[:_READ_BYTES])]
        self._silence.add(0 in ready)
        if 0 in ready:
            self._receive()
        elif self._silence.seconds > SILENCE_S:
            self._is_over = True
            end_login()
        for descriptor in ready & streams.keys():
            self._pass_on(*streams[descriptor])
        self._report_ended()

    def _receive(self) -> None:
        data = os.read(0, _READ_BYTES)
        if not data:
            self._is_over = True
        for message, _ in self._decoder.feed(data):
            if "start" in message:
                self._start(message)
            elif "look" in message:
                self._send({"looked": look(**message["look"])})
            elif message.get("to") in self._children:  # it may have ended meanwhile
                child = self._children[message["to"]]
                if "signal" in message:
                    child.signal(message["signal"])
                elif "line" in message:
                    child.write_line(message["line"])
                elif "taken" in message:
                    child.window[message["stream"]] += message["taken"]

    def _start(self, message: Mapping[str, Any]) -> None:
        number = message["start"]
        if self._is_leaving:
            error = "its keeper was told to stop"
            self._send({"ended": number, "code": 128 + signal.SIGTERM, "error": error})
            return
        try:
            self._children[number] = Child(message, self._guard)
        except (OSError, subprocess.SubprocessError) as error:
            self._send({"ended": number, "code": 1, "error": str(error)})

    def _pass_on(self, number: int, stream: int) -> None:
        """Reads once from a worker's stream, as far as its window allows."""
        child = self._children[number]
        data = child.read(stream, min(_READ_BYTES, child.window[stream]))
        if data:
            child.window[stream] -= len(data)
            self._send({"output": number, "stream": stream}, data)

    def _report_ended(self) -> None:
        for number, child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            for stream in list(child.outputs):  # not to its end: another process may hold it
                for _ in range(_MAX_PIPE_BYTES // _READ_BYTES):
                    data = child.read(stream, _READ_BYTES)
                    if not data:
                        break
                    self._send({"output": number, "stream": stream}, data)
            child.close()
            del self._children[number]
            self._send({"ended": number, "code": code})


if __name__ == "__main__":
    Keeper().run()
