"""Harms runs on two hosts at random: ``python -m tests.processes.ssh_chaos --rounds=8``, as root.

A round is one harm to a worker, a keeper, an ssh client, sshd's session, a cable or the launcher,
at a random moment. A seed determines all of them. After a few rounds a run goes on to its end.
There its weights have to equal those of an undisturbed run, bit for bit, and nothing may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.processes.ssh_hosts import Host, Hosts, hosts_up, processes_in
from tests.processes.test_train import command, finish, summary
from tests.running import Process

ROUNDS_A_RUN = 4
MOST_S = 15.0  # from one harm, or a start, to the next
LIMIT_S = 600
GONE_S = 15.0


def to_workers(act: Callable[[psutil.Process], None], hosts: Hosts, host: Host) -> None:
    for worker in host.workers().values():
        act(worker)


def to_keeper(act: Callable[[psutil.Process], None], hosts: Hosts, host: Host) -> None:
    for keeper in {worker.parent() for worker in host.workers().values()} - {None}:
        act(keeper)  # type: ignore[arg-type]


def to_session(act: Callable[[psutil.Process], None], hosts: Hosts, host: Host) -> None:
    """Acts on the process of sshd that serves the connection."""

    def act_on_parent(keeper: psutil.Process) -> None:
        if (session := keeper.parent()) is not None and session.name() == "sshd":
            act(session)

    to_keeper(act_on_parent, hosts, host)


def to_ssh(act: Callable[[psutil.Process], None], hosts: Hosts, host: Host) -> None:
    for process in processes_in(hosts.hub):
        if process.name() == "ssh" and host.name in process.cmdline():
            act(process)


def freeze_for_a_while(process: psutil.Process) -> None:
    process.suspend()
    time.sleep(20)
    process.resume()


def cut(end: str, for_s: float) -> Callable[[Hosts, Host], None]:
    def harm(hosts: Hosts, host: Host) -> None:
        hosts.cut(host, end)
        try:
            time.sleep(for_s)
        finally:
            hosts.mend(host, end)

    return harm


KILL, STOP, TERM = psutil.Process.kill, psutil.Process.suspend, psutil.Process.terminate
KILL_LAUNCHER = "launcher killed"
HARMS: dict[str, Callable[[Hosts, Host], None]] = {
    "worker killed": lambda hosts, host: to_workers(KILL, hosts, host),
    "worker frozen": lambda hosts, host: to_workers(STOP, hosts, host),
    "worker terminated": lambda hosts, host: to_workers(TERM, hosts, host),
    "keeper killed": lambda hosts, host: to_keeper(KILL, hosts, host),
    "keeper frozen for 20 s": lambda hosts, host: to_keeper(freeze_for_a_while, hosts, host),
    "keeper terminated": lambda hosts, host: to_keeper(TERM, hosts, host),
    "session killed": lambda hosts, host: to_session(KILL, hosts, host),
    "ssh killed": lambda hosts, host: to_ssh(KILL, hosts, host),
    "ssh frozen": lambda hosts, host: to_ssh(STOP, hosts, host),
    "cable cut for 2 s": cut("host", 2),
    "cable cut for 20 s": cut("launcher", 20),
}


def harm_a_run(hosts: Hosts, workdir: Path, harms: Sequence[str], rng: random.Random) -> None:
    """Starts a run, does all of ``harms`` to it, and starts it again until it has ended."""
    left = list(harms)
    while not (workdir / "summary.json").exists():
        train = command(workdir, "--startup_timeout_s=30")
        flags = ("--max_restarts=99",)
        env = {"PACE_S": "0.5"}
        with hosts.launch("h1,h2", flags, train, env=env, limit_s=LIMIT_S) as launcher:
            while left and not has_ended_within(rng.uniform(1, MOST_S), launcher):
                harm, host = left.pop(), rng.choice(hosts.hosts)
                print(f"  {harm:24} {host.name}", flush=True)
                if harm == KILL_LAUNCHER:
                    launcher.kill()
                    break
                with contextlib.suppress(psutil.NoSuchProcess):
                    HARMS[harm](hosts, host)
            launcher.wait(None if launcher.popen.returncode else 0)
            for reason in re.findall(
                r"^\[launch\] (.*: (?:starting|going).*)$", launcher.output, re.M
            ):
                print(f"    {reason}", flush=True)
        hosts.wait_until_empty(GONE_S)


def has_ended_within(timeout_s: float, launcher: Process) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.popen.wait(timeout_s)
    return launcher.popen.returncode is not None


def main(argv: Sequence[str]) -> int:
    """Harms runs, prints what happened, and returns 0 if every run ended with the same weights."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes.ssh_chaos")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args(argv)
    print(f"seed {flags.seed}")
    rng = random.Random(flags.seed)
    names = [*HARMS, KILL_LAUNCHER]
    drawn = [
        name for _ in range(0, flags.rounds, len(names)) for name in rng.sample(names, len(names))
    ]
    drawn = drawn[: flags.rounds]
    with tempfile.TemporaryDirectory(prefix="tfdp-ssh-chaos-") as name:
        folder = Path(name)
        finish(folder / "undisturbed")
        expected = summary(folder / "undisturbed")["weights_sha256"]
        (folder / "hosts").mkdir()
        with hosts_up(folder / "hosts") as hosts:
            for start in range(0, len(drawn), ROUNDS_A_RUN):
                workdir = folder / f"run-{start}"
                print(f"run {start // ROUNDS_A_RUN + 1}", flush=True)
                harm_a_run(hosts, workdir, drawn[start : start + ROUNDS_A_RUN], rng)
                got = summary(workdir)["weights_sha256"]
                print(f"  ended with {got[:12]}, undisturbed {expected[:12]}", flush=True)
                if got != expected:
                    print(f"seed {flags.seed}: other weights", file=sys.stderr)
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
