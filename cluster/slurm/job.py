"""The Slurm job that this program runs in, and what Slurm says about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Final

COMMAND_TIMEOUT_S: Final = 30.0
ASK_AGAIN_S: Final = 2.0


class Job:
    """The job of this process.

    Args:
        environ: environment variables.

    Raises:
        KeyError: if this process is not in a job.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.number = environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in environ:
            self.number = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"

    @property
    def missing_programs(self) -> list[str]:
        """Programs that ``is_running`` and ``requeue`` need, and that are not here."""
        return [name for name in ("squeue", "scontrol") if shutil.which(name) is None]

    def is_running(self, timeout_s: float = 0.0) -> bool | None:
        """Returns whether the job is to go on, or None if Slurm does not answer for a time.

        A job that was cancelled or preempted, or has reached its time limit, is not running, even
        if its processes have not ended yet.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            asked = _run("squeue", "--noheader", f"--jobs={self.number}", "--format=%T")
            if asked is not None and asked.returncode == 0:
                return asked.stdout.split() == ["RUNNING"]
            if self.missing_programs or time.monotonic() > until_s:
                return None
            time.sleep(ASK_AGAIN_S)

    def nodes(self) -> frozenset[str] | None:
        """Returns the names of the nodes that the job has now, or None if Slurm does not answer."""
        asked = _run("squeue", "--noheader", f"--jobs={self.number}", "--format=%N")
        if asked is None or asked.returncode != 0 or not asked.stdout.strip():
            return None
        names = _run("scontrol", "show", "hostnames", asked.stdout.strip())
        return frozenset(names.stdout.split()) if names and names.returncode == 0 else None

    def requeue(self) -> bool:
        """Puts the job back into the queue; returns whether Slurm has agreed.

        Slurm then ends the job, with this process and possibly before this returns. The job must
        be running: Slurm puts a cancelled job back as well.
        """
        asked = _run("scontrol", "requeue", self.number)
        return asked is not None and asked.returncode <= 0  # below 0: killed with the job


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Runs a command of Slurm; returns None if it can't be run. It prints errors itself."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
