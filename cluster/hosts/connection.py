"""The ssh connection to one host: starts the keeper there, and exchanges messages with it.

OpenSSH's client does the work, so that users' ssh_config applies. Nothing here blocks: the caller
selects on ``sources`` and ``targets``, and calls ``tend`` about every second.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from cluster.hosts import keeper

ANSWER_S: Final = 30.0  # until the keeper's first message
SILENCE_S: Final = 10.0  # between later ones; longer than the keeper's, see there
_MAX_NOISE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)
_OPTIONS: Final = (
    *("-T", "-x", "-a", "-S", "none"),  # no terminal, no forwarding, a connection of its own
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none", "-o", "PermitLocalCommand=no"),
)
# Reads the keeper's source from standard input. Without quotes: it stands between two pairs.
_READ_SOURCE: Final = "import sys;i=sys.stdin.buffer;exec(i.read(int(i.readline())))"


def keeper_command(host: str, config: str | None) -> list[str]:
    """Returns the command that starts the keeper on a host; see ``ssh_command``."""
    return ssh_command(
        host,
        config,
        f"for p in {shlex.quote(sys.executable)} python3; do "
        f'if command -v "$p" >/dev/null 2>&1; then exec "$p" -I -S -c "{_READ_SOURCE}"; fi; done; '
        "echo python3 is not installed >&2; exit 127",
    )


def ssh_command(host: str, config: str | None, script: str) -> list[str]:
    """Returns the command that runs a script of the shell on a host.

    Args:
        host: its name, as ssh takes it.
        config: file to read in place of the user's ssh_config, if any.
        script: for ``sh``.
    """
    files = ("-F", config) if config else ()
    return ["ssh", *files, *_OPTIONS, "--", host, f"exec /bin/sh -c {shlex.quote(script)}"]


class Connection:
    """A connection, from its start to its loss; create it in the main thread.

    Args:
        command: starts ssh.
        on_message: takes each message of the keeper, and its payload.

    Raises:
        OSError: if ssh can't be started.

    Attributes:
        loss: why the connection is lost; empty while it lasts.
    """

    def __init__(
        self, command: Sequence[str], on_message: Callable[[Mapping[str, Any], bytes], None]
    ) -> None:
        self.loss = ""
        self._on_message = on_message
        self._decoder = keeper.Decoder()
        self._silence = keeper.Silence()
        self._is_open = False  # whether the keeper has sent anything
        self._noise = b""  # before that
        self._errors = b""
        self._reason = ""  # why ssh was killed here
        self._beat_due_s = time.monotonic()
        source = Path(keeper.__file__).read_bytes()
        self._outgoing = bytearray(b"%d\n" % len(source) + source)
        self._popen = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's signals are for the launcher
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        assert self._popen.stdin and self._popen.stdout and self._popen.stderr
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout
        self._stderr = self._popen.stderr
        self._sources = [self._stdout, self._stderr]
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)

    @property
    def sources(self) -> list[IO[bytes]]:
        """Streams to pass to ``tend`` when they are readable."""
        return self._sources

    @property
    def targets(self) -> list[IO[bytes]]:
        """Streams to pass to ``tend`` when they are writable."""
        return [self._stdin] if self._outgoing and not self._stdin.closed else []

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message, once the caller calls ``tend``; without effect after a loss."""
        if not self.loss:
            self._outgoing += keeper.encode(message)

    def tend(self, ready: Sequence[object]) -> None:
        """Reads and writes on ready streams, sends a beat if one is due, and notices a loss."""
        if self.loss:
            return
        has_ended = self._popen.poll() is not None
        has_arrived = False
        try:
            if has_ended or self._stdout in ready:
                has_arrived = self._read()
            if has_ended or self._stderr in ready:
                self._read_errors()
            if not has_ended and self._stdin in ready:
                del self._outgoing[: os.write(self._stdin.fileno(), self._outgoing[:_READ_BYTES])]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._abandon(f"its answer is wrong: {error!r}")
        except OSError:  # ssh has closed its end
            self._outgoing.clear()
        self._silence.add(has_arrived)
        if self._silence.seconds > (SILENCE_S if self._is_open else ANSWER_S):
            self._abandon(f"it did not answer for {self._silence.seconds:.0f} s")
        if self._is_open and time.monotonic() >= self._beat_due_s:
            self._beat_due_s = time.monotonic() + keeper.BEAT_EVERY_S
            self.send({"beat": {}})
        if has_ended:
            self.loss = self._reason or self._why_ssh_ended()
            self._close_streams()

    def close(self) -> None:
        """Ends the connection: the keeper kills its workers, and ssh ends; does not wait."""
        for stream in (self._stdin, self._stdout):  # ssh must not wait for a reader of its output
            with contextlib.suppress(OSError):
                stream.close()

    def wait(self, until_s: float) -> None:
        """Waits for the end of a closed connection; kills ssh at the monotonic ``until_s``."""
        try:
            self._popen.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._close_streams()

    def _abandon(self, reason: str) -> None:
        if not self._reason:
            self._reason = reason
            self._popen.kill()

    def _read(self) -> bool:
        """Reads and handles what has arrived; returns whether anything has."""
        has_arrived = False
        while data := self._stdout.read(_READ_BYTES):
            has_arrived = True
            if not self._is_open:
                self._noise, magic, data = (self._noise + data).partition(keeper.MAGIC)
                self._is_open = bool(magic)
                if len(self._noise) > _MAX_NOISE_BYTES:
                    raise ValueError("a login prints without end")
            for message, payload in self._decoder.feed(data):
                self._on_message(message, payload)
        if data == b"" and self._stdout in self._sources:
            self._sources.remove(self._stdout)
        return has_arrived

    def _read_errors(self) -> None:
        while data := self._stderr.read(_READ_BYTES):
            self._errors = (self._errors + data)[-_READ_BYTES:]
        if data == b"" and self._stderr in self._sources:
            self._sources.remove(self._stderr)

    def _why_ssh_ended(self) -> str:
        code = self._popen.returncode
        if code < 0:
            return f"ssh was killed by signal {-code}"
        for text in (self._errors, b"" if self._is_open else self._noise):
            lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1].strip().rstrip(".")
        return f"its keeper has ended (ssh: {code})" if self._is_open else f"ssh ended with {code}"

    def _close_streams(self) -> None:
        self._sources.clear()
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()
