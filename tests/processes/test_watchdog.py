"""A watchdog that survives when its maker is killed together with all of its children."""

from __future__ import annotations

import signal

import psutil

from tests.running import Process, wait_until

MAKER = """
import sys, time
from cluster.launching.process import WorkerProcess
from cluster.launching.watchdog import Watchdog

start = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid); time.sleep(600)"
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
watchdog = Watchdog(is_orphan=True)
worker = WorkerProcess("worker", [sys.executable, "-uc", start, *sleep], {}, watchdog)
print("grandchild", worker.stdout.readline().decode(), flush=True)
time.sleep(600)
"""


def test_an_orphan_watchdog_kills_grandchildren() -> None:
    with Process(["python", "-c", MAKER]) as maker:
        grandchild = psutil.Process(int(maker.wait_for(r"grandchild (\d+)")[1]))
        (worker,) = psutil.Process(maker.pid).children()
        assert grandchild.parent() == worker
        for process in (psutil.Process(maker.pid), worker):
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: has_ended(grandchild), 10, "the grandchild is killed")


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
