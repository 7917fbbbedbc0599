"""Runs a command in all slots of a search at once: what its coordinator does, without a study.

``python -m tests.processes.slots_at_once '{"workdir": …, more settings}' COMMAND …`` prints a line
``NAME ended with CODE`` for each slot. The command finds its slot's number in TF_SLOT. It gets
SIGTERM if this process does, and is killed if this process dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tfdp.errors import BadInput
from tfdp.search.settings import TuneSettings
from tfdp.search.slots import find_slots

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def main(flags: str, *command: str) -> int:
    given = json.loads(flags)
    paths = {name: Path(given.pop(name)) for name in ("workdir", "ssh_config") if name in given}
    settings = TuneSettings(recipe="mine.py", objective="accuracy:max", **paths, **given)
    try:
        slots = find_slots(settings, os.environ)
    except BadInput as error:
        print(error)
        return 2
    running = [
        subprocess.Popen(
            [*slot.launcher, *command],
            env=dict(os.environ, **slot.environ, TF_SLOT=str(number)),
            start_new_session=True,
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        for number, slot in enumerate(slots)
    ]
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        for each in running:
            each.terminate()

    signal.signal(signal.SIGTERM, stop)
    print(f"{len(slots)} slots", flush=True)
    for slot, process in zip(slots, running, strict=True):
        print(f"{slot.name} ended with {process.wait()}", flush=True)
    return 128 + stopped[0] if stopped else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
