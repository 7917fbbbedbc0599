"""Workers that are made to look like the pods of an Indexed Job.

Each has a network namespace with an address of its own, a host name, an ``/etc/hosts`` as the
kubelet writes it, its own process namespace with the worker as the first process, and the variables
that Kubernetes gives it. A pod that is started again has another address. The names of other pods
resolve when the test says so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.running import Process, wait_until

DOMAIN = "mine.default.svc.cluster.local"
_NETWORK = "10.213.20"
_LIMIT_S = 200
_SCRIPT = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


def ip(*arguments: str) -> None:
    """Runs ``ip``."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


class Pod:
    """One start of a pod.

    Args:
        index: its completion index.
        address: of its network interface.
        namespace: of its network.
        process: that runs the worker, and ends as the worker does.
    """

    def __init__(self, index: int, address: str, namespace: str, process: Process) -> None:
        self.index = index
        self.address = address
        self.namespace = namespace
        self.process = process

    def signal(self, number: int) -> None:
        """Sends the worker a signal, from outside of its process namespace as the kubelet does."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (worker,) = wait_until(lambda: path.read_text().split(), 20, "the worker is started")
        os.kill(int(worker), number)


class Job:
    """The pods of an Indexed Job, all on one network.

    Args:
        command: of every worker.
        size: number of pods.
        folder: for the pods' hosts files.
        env: variables of every worker.
    """

    def __init__(
        self, command: Sequence[str], size: int, folder: Path, env: Mapping[str, str]
    ) -> None:
        self._command = command
        self._size = size
        self._env = dict(env)
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self._switch = f"tfdpk-{os.getpid()}"
        self._records: dict[int, str] = {}  # the address to which a pod's name resolves
        self._folder = folder
        self.pods: dict[int, Pod] = {}

    def __enter__(self) -> Job:
        self._add_namespace(self._switch)
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, index: int, command: Sequence[str] | None = None) -> Pod:
        """Starts a pod, for the first time or again; its name does not resolve to it yet.

        Args:
            index: its completion index.
            command: in place of the command of all.
        """
        number = next(self._numbers)
        address = f"{_NETWORK}.{number}"
        namespace = f"{self._switch}-{number}"
        self._add_namespace(namespace)
        port = ("link", "add", f"pod{number}", "type", "veth", "peer", "name", "eth0")
        ip("-n", self._switch, *port, "netns", namespace)
        ip("-n", self._switch, "link", "set", f"pod{number}", "master", "switch", "up")
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", namespace, "link", "set", device, "up")
        hosts = self._folder / f"hosts-{index}"
        hosts.touch()
        worker = [
            *("nsenter", f"--net=/run/netns/{namespace}"),
            *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(
                "sh",
                "-c",
                _SCRIPT,
                f"mine-{index}",
                str(hosts),
                *_program(command or self._command),
            ),
        ]
        env = {"JOB_COMPLETION_INDEX": str(index), "TFDP_WORKERS": str(self._size), **self._env}
        if index in self.pods:
            self.pods[index].process.wait(None)  # podReplacementPolicy: Failed
        self._write_hosts(index, address)
        process = self._stack.enter_context(Process(worker, env=env, limit_s=_LIMIT_S))
        self.pods[index] = Pod(index, address, namespace, process)
        return self.pods[index]

    def publish(self, index: int) -> None:
        """Lets the name of a pod resolve to its present address."""
        self._records[index] = self.pods[index].address
        for each in self.pods.values():
            self._write_hosts(each.index, each.address)

    def disconnect(self, index: int) -> None:
        """Takes a pod off the network, as if its node had lost power."""
        ip("-n", self.pods[index].namespace, "link", "set", "eth0", "down")

    def connect(self, index: int) -> None:
        """Puts a pod back on the network."""
        ip("-n", self.pods[index].namespace, "link", "set", "eth0", "up")

    def wait(self, *expect: int | None) -> list[str]:
        """Waits for the end of all pods and returns their outputs.

        Args:
            expect: exit code of each; None for a killed one, of which ``unshare`` keeps no code.
        """
        pods = [self.pods[index] for index in sorted(self.pods)]
        try:
            return [pod.process.wait(code) for pod, code in zip(pods, expect, strict=True)]
        except AssertionError as error:
            tails = (f"--- pod {pod.index}\n{pod.process.tail(30)}" for pod in pods)
            raise AssertionError("\n".join([f"{error}", *tails])) from None

    def _write_hosts(self, index: int, own_address: str) -> None:
        records = {**self._records, index: own_address}
        lines = [f"{address}\tmine-{i}.{DOMAIN}\tmine-{i}" for i, address in records.items()]
        # Into the same file, which is mounted in the pod.
        (self._folder / f"hosts-{index}").write_text(
            "\n".join(["127.0.0.1\tlocalhost", *lines, ""])
        )

    def _add_namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._stack.callback(ip, "netns", "del", name)


def _program(command: Sequence[str]) -> list[str]:
    return [sys.executable if part == "python" else part for part in command]


def skip_if_there_are_no_namespaces() -> None:
    """Skips a test where processes can't get namespaces of their own."""
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    if any(shutil.which(name) is None for name in ("ip", "nsenter", "unshare")):
        pytest.skip("namespaces need iproute2 and util-linux (ip, nsenter, unshare)")
    name = f"tfdpk-{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")


@contextlib.contextmanager
def indexed_job(
    command: Sequence[str], size: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Job]:
    """Makes the network of a job; its pods are killed when the block ends."""
    skip_if_there_are_no_namespaces()
    with Job(command, size, folder, env or {}) as job:
        yield job
