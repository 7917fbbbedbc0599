"""A task of a Slurm step: runs the command and reports its end to ``python -m cluster.slurm``.

srun ends with the highest exit code of its tasks, so that a lost worker (138) hides why another one
failed (1). Therefore each task reports its own code, over a TCP connection that lasts as long as
the task. Both ends use it for more: if it closes early, the task or ``cluster.slurm`` is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from cluster import exit_codes
from cluster.launching.signals import Signals
from cluster.slurm.messages import (
    PORT_VARIABLE,
    SEND_TIMEOUT_S,
    TOKEN_VARIABLE,
    Hello,
    Lines,
    keep_alive,
    send,
)

CONNECT_TIMEOUT_S: Final = 30.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)
# Slurm signals all processes of a task. These would end this one, and are for the command alone.
_COMMANDS_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGQUIT)


def main(command: Sequence[str]) -> int:
    """Runs the command of a task; returns the exit code."""
    for number in _COMMANDS_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda *_: None)
    with Signals() as signals:
        environ = dict(os.environ)
        try:
            port, token = int(environ.pop(PORT_VARIABLE)), environ.pop(TOKEN_VARIABLE)
            host = environ["SLURM_LAUNCH_NODE_IPADDR"]
            rank, size = int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"])
        except KeyError as error:
            _say(f"{error} is not set: let srun export the whole environment (--export=ALL)")
            return exit_codes.BAD_INPUT
        try:
            connection = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            _say(f"can't connect to cluster.slurm at {host}:{port}: {error}")
            return exit_codes.TRY_AGAIN
        with connection:
            keep_alive(connection)
            node = environ.get("SLURMD_NODENAME", socket.gethostname())
            send(connection, dataclasses.asdict(Hello(token, rank, size, node)))
            code = _run(command, environ, connection, signals)
            _report(connection, code)
    return code if code >= 0 else 128 - code


def _run(
    command: Sequence[str],
    environ: Mapping[str, str],
    connection: socket.socket,
    signals: Signals,
) -> int:
    """Runs the command to its end; returns its exit code, or minus the signal that killed it."""
    try:
        process = subprocess.Popen(
            command,
            env=environ,
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except OSError as error:
        _say(f"can't run the command: {error}")
        return exit_codes.FAILED
    lines = Lines(connection)
    while (code := process.poll()) is None:
        sources: list[Signals | socket.socket] = [signals, connection]
        readable, _, _ = select.select(sources, [], [])
        if signals in readable:
            # Noted, not passed on: Slurm has sent it to the command as well.
            for number in signals.receive():
                send(connection, {"signal": number})
        if connection in readable:
            for message in lines.read():
                process.send_signal(message["signal"])
            if lines.is_closed:
                _say("cluster.slurm has ended, or can't be reached: ending the command")
                process.kill()
                return process.wait() or -signal.SIGKILL
    return code


def _report(connection: socket.socket, code: int) -> None:
    """Reports the end, and waits until ``cluster.slurm`` has read it."""
    send(connection, {"code": code})
    connection.settimeout(SEND_TIMEOUT_S)
    with contextlib.suppress(OSError):  # it is gone
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _say(text: str) -> None:
    print(f"[slurm] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
