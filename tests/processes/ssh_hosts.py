"""Hosts for tests: network namespaces, each with a real sshd, and a cable to the launcher's own.

The namespaces are ``tfdph-<pid>-hub`` for the launcher and ``tfdph-<pid>-h1`` and so on for hosts,
with addresses in 10.213.40.0/24. Whatever runs in them is killed at the end, and they are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.running import Process, wait_until

NETWORK = "10.213.40"


def skip_unless_possible() -> None:
    """Skips a test where there is no sshd, or no root."""
    for program, package in (("/usr/sbin/sshd", "openssh-server"), ("ssh", "openssh-client")):
        if shutil.which(program) is None:
            pytest.skip(f"hosts need {program} ({package})")
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("hosts need iproute2 and util-linux (ip, nsenter)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")


def call(*command: str, **options: Any) -> str:
    """Runs a short command, fails unless it exits with 0; returns its output."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=30, **options
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Host:
    """One host: its name, address and namespace."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = f"h{number}"
        self.address = f"{NETWORK}.{number}"
        self.namespace = f"tfdph-{os.getpid()}-{self.name}"
        self.pid_file = folder / f"{self.name}.pid"

    @property
    def sshd(self) -> int:
        """Process id of its ssh daemon."""
        return int(self.pid_file.read_text())

    def processes(self) -> list[psutil.Process]:
        """All running processes of the host but its ssh daemon."""
        return [each for each in processes_in(self.namespace) if each.pid != self.sshd]

    def workers(self) -> dict[int, psutil.Process]:
        """The processes with a keeper as their parent, by their index in TF_CONFIG."""
        return workers_of(self.processes())

    def replace_file(self, path: Path, content: Path) -> None:
        """Makes the host see ``content`` in place of a file: its mounts are its own."""
        call(
            "nsenter",
            f"--mount=/proc/{self.sshd}/ns/mnt",
            *("mount", "--bind"),
            str(content),
            str(path),
        )

    def restore_file(self, path: Path) -> None:
        call("nsenter", f"--mount=/proc/{self.sshd}/ns/mnt", "umount", str(path))


class Hosts:
    """Two hosts, and the launcher's place in the network."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.hub = f"tfdph-{os.getpid()}-hub"
        self.hosts = [Host(i + 1, folder) for i in range(number)]
        self.config = folder / "ssh_config"

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def command(self, hosts: str, flags: Sequence[str], command: Sequence[str]) -> list[str]:
        """The command line of a launcher in its namespace."""
        enter = ("nsenter", f"--net=/run/netns/{self.hub}")
        launch = (sys.executable, "-m", "cluster.launch", f"--hosts={hosts}")
        return [*enter, *launch, f"--ssh_config={self.config}", *flags, "--", *command]

    def launch(
        self,
        hosts: str,
        flags: Sequence[str],
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        """Starts a launcher, whose workers get ``env`` too; use it in a ``with`` block."""
        flags = [*(f"--env={name}" for name in env or ()), *flags]
        return Process(self.command(hosts, flags, command), env=env, **options)

    def call(self, *command: str) -> str:
        """Runs a short command where the launcher runs; returns its output."""
        return call("nsenter", f"--net=/run/netns/{self.hub}", *command)

    def left(self) -> list[psutil.Process]:
        """What runs on hosts, and the ssh clients beside the launcher."""
        clients = [each for each in processes_in(self.hub) if each.name() == "ssh"]
        return [each for host in self.hosts for each in host.processes()] + clients

    def wait_until_empty(self, timeout_s: float) -> None:
        """Fails unless nothing of a run is left within a time, on hosts and at the launcher."""
        what = "nothing is left"
        try:
            wait_until(lambda: not self.left(), timeout_s, what)
        except AssertionError:
            raise AssertionError(f"left after {timeout_s} s: {self.left()}") from None

    def cut(self, host: Host, end: str) -> None:
        """Takes a cable down, at the host's or at the launcher's end."""
        self._set(host, end, "down")

    def mend(self, host: Host, end: str) -> None:
        self._set(host, end, "up")

    def _set(self, host: Host, end: str, state: str) -> None:
        namespace, device = {
            "host": (host.namespace, "cable"),
            "launcher": (self.hub, f"to-{host.name}"),
        }[end]
        call("ip", "-n", namespace, "link", "set", device, state)

    def up(self, stack: contextlib.ExitStack) -> None:
        """Makes everything; ``stack`` removes it."""
        stack.callback(self._remove)
        keys = {name: self.folder / name for name in ("id", "hostkey")}
        for path in keys.values():
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
        Path("/run/sshd").mkdir(exist_ok=True)
        try:
            call("ip", "netns", "add", self.hub)
        except AssertionError as error:
            pytest.skip(f"no network namespaces here: {error}")
        hub = ("ip", "-n", self.hub)
        call(*hub, "link", "add", "bridge", "type", "bridge")
        call(*hub, "addr", "add", f"{NETWORK}.100/24", "dev", "bridge")
        for device in ("bridge", "lo"):
            call(*hub, "link", "set", device, "up")
        public = " ".join(Path(f"{keys['hostkey']}.pub").read_text().split()[:2])
        known, config = [], []
        for host in self.hosts:
            self._add(host, keys)
            known.append(f"{host.address} {public}\n")
            config.append(f"Host {host.name}\n  HostName {host.address}\n")
        (self.folder / "known_hosts").write_text("".join(known))
        config.append(
            f"Host *\n  User root\n  IdentityFile {keys['id']}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n"
        )
        self.config.write_text("".join(config))

    def _add(self, host: Host, keys: Mapping[str, Path]) -> None:
        call("ip", "netns", "add", host.namespace)
        peer = f"to-{host.name}"
        link = ("ip", "link", "add", "cable", "netns", host.namespace)
        call(*link, "type", "veth", "peer", "name", peer, "netns", self.hub)
        call("ip", "-n", self.hub, "link", "set", peer, "master", "bridge", "up")
        own = ("ip", "-n", host.namespace)
        call(*own, "addr", "add", f"{host.address}/24", "dev", "cable")
        for device in ("cable", "lo"):
            call(*own, "link", "set", device, "up")
        options = {
            "PidFile": host.pid_file,
            "AuthorizedKeysFile": f"{keys['id']}.pub",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
            "UsePAM": "no",
        }
        daemon = ["/usr/sbin/sshd", "-f", "/dev/null", "-h", str(keys["hostkey"])]
        daemon += ["-E", str(self.folder / f"{host.name}.log")]
        daemon += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        enter = ("nsenter", f"--net=/run/netns/{host.namespace}", "unshare", "--uts", "--mount")
        call(*enter, "sh", "-c", 'hostname "$0" && exec "$@"', host.name, *daemon)
        pid_file = host.pid_file  # it appears empty
        is_up = lambda: pid_file.exists() and pid_file.read_text().strip()  # noqa: E731
        wait_until(is_up, 20, f"sshd of {host.name} runs")

    def _remove(self) -> None:
        for namespace in (self.hub, *(host.namespace for host in self.hosts)):
            with contextlib.suppress(FileNotFoundError):
                for process in processes_in(namespace):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                call("ip", "netns", "del", namespace)


def processes_in(namespace: str) -> list[psutil.Process]:
    """The running processes in a network namespace."""
    inode = Path(f"/run/netns/{namespace}").stat().st_ino
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            in_it = Path(f"/proc/{process.pid}/ns/net").stat().st_ino == inode
            if in_it and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def workers_of(processes: Sequence[psutil.Process]) -> dict[int, psutil.Process]:
    """Workers among processes, by index: those that lead sessions and have a TF_CONFIG."""
    workers = {}
    for process in processes:
        with contextlib.suppress(OSError, psutil.NoSuchProcess, psutil.AccessDenied):
            config = process.environ().get("TF_CONFIG")
            if config and os.getsid(process.pid) == process.pid:
                workers[json.loads(config)["task"]["index"]] = process
    return workers


@contextlib.contextmanager
def hosts_up(folder: Path, number: int = 2) -> Iterator[Hosts]:
    """Brings hosts up, and down again, whatever happens between."""
    skip_unless_possible()
    with contextlib.ExitStack() as stack:
        hosts = Hosts(folder, number)
        hosts.up(stack)
        yield hosts
