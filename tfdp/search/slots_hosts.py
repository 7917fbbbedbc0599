"""Slots on other hosts, by ssh: each takes as many of the hosts' workers as a trial has, in order.

Trials write into the search's workdir on whichever host they run, and go on from there on another:
so all hosts have to share it, which is checked here.
"""

from __future__ import annotations

import collections
import concurrent.futures
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cluster import devices
from cluster.hosts import hostlist
from cluster.hosts.connection import ssh_command
from cluster.hosts.hostlist import Host
from tfdp.errors import BadInput
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import THREAD_VARIABLES, Slot, number_of_slots, thread_environ

_ANSWER_TIMEOUT_S: Final = 60.0
_MAX_CONNECTIONS: Final = 50  # at a time


def find(settings: TuneSettings, environ: Mapping[str, str]) -> list[Slot]:
    """Returns slots on ``--hosts``.

    Raises:
        BadInput: if there are too few workers, a host can't be reached or does not see the workdir,
            or GPUs can't be shared equally.
    """
    try:
        hosts = hostlist.from_flag(settings.hosts)
    except hostlist.HostListError as error:
        raise BadInput(str(error)) from None
    if settings.ssh_config is not None and not settings.ssh_config.is_file():
        raise BadInput(f"--ssh_config is {settings.ssh_config}: there is no such file")
    workers = settings.workers_per_trial
    total = sum(host.workers for host in hosts)
    count = number_of_slots(
        settings.parallel,
        total // workers,
        f"--hosts={settings.hosts} has {total} workers, enough for {total // workers} trials of "
        f"{workers}",
        "lower --parallel or --workers_per_trial, or give --hosts more workers",
    )
    gpus = _gpus_per_worker(hosts, _look(hosts, settings, environ))
    # Each worker as its host's name, and its index there.
    places = [(host.name, index) for host in hosts for index in range(host.workers)]
    flags = [f"--ssh_config={settings.ssh_config}"] if settings.ssh_config else []
    threads = thread_environ(settings.threads_per_trial)
    flags += [f"--env={name}" for name in THREAD_VARIABLES if name in threads]
    names: collections.Counter[str] = collections.Counter()
    slots = []
    for number in range(count):
        own = places[number * workers : (number + 1) * workers]
        on = collections.Counter(name for name, _ in own)
        hosts_flag = ",".join(f"{_bracketed(name)}:{number}" for name, number in on.items())
        words = (sys.executable, "-m", "cluster.launch", f"--hosts={hosts_flag}", *flags, "--")
        name = "+".join(on)
        names[name] += 1
        shown = name if names[name] == 1 else f"{name} #{names[name]}"
        slots.append(Slot(shown, words, {**threads, **_gpu_environ(gpus, own)}, may_be_away=True))
    return slots


def _look(
    hosts: Sequence[Host], settings: TuneSettings, environ: Mapping[str, str]
) -> dict[str, list[str]]:
    """Returns the GPUs of each host, and checks that it sees the workdir."""
    token = secrets.token_hex(16)
    settings.workdir.mkdir(parents=True, exist_ok=True)
    path = settings.workdir.absolute() / f".seen-by-hosts-{token}"
    path.write_text(token)
    try:
        with concurrent.futures.ThreadPoolExecutor(_MAX_CONNECTIONS) as pool:
            outputs = list(pool.map(lambda host: _ask(host.name, path, settings, environ), hosts))
    finally:
        path.unlink()
    blind = [host.name for host, output in zip(hosts, outputs, strict=True) if token not in output]
    if blind:
        raise BadInput(
            f"--workdir is {settings.workdir}, and a file there can't be seen on "
            f"{', '.join(blind)}: use a folder on a file system that all hosts share, at the same "
            "path on each"
        )
    if devices.VARIABLE in environ:  # as it is here, it is passed on to every host
        return {host.name: devices.listed(environ[devices.VARIABLE]) for host in hosts}
    return {
        host.name: devices.found_by_nvidia_smi(output)
        for host, output in zip(hosts, outputs, strict=True)
    }


def _ask(host: str, path: Path, settings: TuneSettings, environ: Mapping[str, str]) -> str:
    # Workers have the PATH of the launcher.
    search = f"PATH={shlex.quote(environ.get('PATH', ''))}:$PATH"
    script = f"{search}; cat {shlex.quote(str(path))}; echo; nvidia-smi -L; exit 0"
    config = None if settings.ssh_config is None else str(settings.ssh_config)
    try:
        asked = subprocess.run(
            ssh_command(host, config, script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"host {host} of --hosts did not answer within {_ANSWER_TIMEOUT_S:.0f} s: leave it out"
        ) from None
    except OSError as error:
        raise BadInput(f"--hosts needs OpenSSH's client, which can't be run: {error}") from None
    if asked.returncode != 0:
        reason = asked.stderr.strip().rpartition("\n")[2] or f"ssh ended with {asked.returncode}"
        raise BadInput(
            f"host {host} of --hosts can't be reached: {reason.strip().rstrip('.')}; try "
            f"ssh -o BatchMode=yes {host} true, or leave it out"
        )
    return asked.stdout


def _gpus_per_worker(
    hosts: Sequence[Host], gpus: Mapping[str, Sequence[str]]
) -> Mapping[str, list[list[str]]]:
    """Returns each worker's GPUs, by its host's name and its index there.

    Raises:
        BadInput: if workers would not have the same number.
    """
    shares = {host.name: len(gpus[host.name]) // host.workers for host in hosts}
    has_gpus = any(gpus.values())
    if has_gpus and (len(set(shares.values())) > 1 or not all(shares.values())):
        found = "; ".join(
            f"{host.name} has {len(gpus[host.name])} for {host.workers} workers" for host in hosts
        )
        raise BadInput(
            f"trials would not have the same number of GPUs everywhere ({found}): give each host "
            "of --hosts workers in proportion to its GPUs, or set CUDA_VISIBLE_DEVICES for all of "
            "them (nothing, to train on CPUs)"
        )
    return {
        host.name: [
            list(gpus[host.name][index * share : (index + 1) * share])
            for index in range(host.workers)
        ]
        for host in hosts
        for share in [shares[host.name]]
    }


def _gpu_environ(
    gpus: Mapping[str, list[list[str]]], places: Sequence[tuple[str, int]]
) -> dict[str, str]:
    """Returns CUDA_VISIBLE_DEVICES of a trial, which its launcher divides among its workers.

    Raises:
        BadInput: if it is not the same on all of the trial's hosts.
    """
    on: dict[str, list[str]] = {}
    for name, index in places:
        on.setdefault(name, []).extend(gpus[name][index])
    values = {",".join(own) for own in on.values()}
    if values == {""}:
        return {}
    if len(values) > 1:
        described = ", ".join(f"{','.join(own)} on {name}" for name, own in on.items())
        raise BadInput(
            f"a trial would have the GPUs {described}, but it can only have the same ones on each "
            "of its hosts: give hosts a multiple of --workers_per_trial, or all hosts the same "
            "number of workers, of which --workers_per_trial is a multiple"
        )
    return {devices.VARIABLE: values.pop()}


def _bracketed(name: str) -> str:
    """Returns a host's name as ``--hosts`` takes it: an IPv6 address in brackets."""
    user, at, address = name.rpartition("@")
    return f"{user}{at}[{address}]" if ":" in address else name
