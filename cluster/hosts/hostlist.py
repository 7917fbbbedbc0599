"""Lists of hosts, as flags and files give them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

# A name that ssh takes: of a host in its configuration, or an address, with a user or without.
_NAME = r"(?:[\w.-]+@)?(?:\w[\w.-]*|\[[0-9a-fA-F:.]+\])"
_ITEM = re.compile(rf"({_NAME})(?::(\d+))?", re.ASCII)
MAX_HOSTS = 300  # three descriptors each, of the 1024 that select takes
_LINE = re.compile(rf"({_NAME})(?:\s+slots\s*=\s*(\d+))?", re.ASCII)


class HostListError(ValueError):
    """A list of hosts is wrong; the message contains the value, the rule and what to change."""


@dataclasses.dataclass(frozen=True)
class Host:
    """A host that ssh can reach.

    Args:
        name: as ssh takes it.
        workers: the number of workers on it.
    """

    name: str
    workers: int


def from_flag(text: str) -> list[Host]:
    """Reads ``h1:2,h2:2``: names with numbers of workers, 1 where there is none.

    Raises:
        HostListError: if it is malformed, a host occurs twice, or there are too many.
    """
    hosts = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise HostListError(
                f"--hosts={text} has {item!r}: write each host as NAME or NAME:WORKERS, with "
                "commas between them and an IPv6 address in brackets"
            )
        hosts.append(_host(match, f"--hosts={text}"))
    return _checked(hosts, f"--hosts={text}")


def from_file(path: str, text: str) -> list[Host]:
    """Reads a host file: lines as ``h1 slots=2``, 1 slot where there is no number, comments by #.

    Args:
        path: of the file, for messages.
        text: its contents.

    Raises:
        HostListError: if a line is malformed, a host occurs twice, or there is none or too many.
    """
    hosts = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise HostListError(
                f"--hostfile={path} has {line!r} in line {number}: write each line as NAME or "
                "NAME slots=WORKERS"
            )
        hosts.append(_host(match, f"--hostfile={path}"))
    return _checked(hosts, f"--hostfile={path}")


def _host(match: re.Match[str], source: str) -> Host:
    host = Host(re.sub(r"[\[\]]", "", match[1]), int(match[2] or 1))
    if host.workers < 1:
        raise HostListError(f"{source} has 0 workers for {host.name}: 1 or more, or leave it out")
    return host


def _checked(hosts: Sequence[Host], source: str) -> list[Host]:
    names = [host.name for host in hosts]
    if not names:
        raise HostListError(f"{source} has no host: list one or more")
    if len(names) > MAX_HOSTS:
        raise HostListError(f"{source} has {len(names)} hosts: a launcher serves up to {MAX_HOSTS}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HostListError(f"{source} has {twice} twice: give it the sum of the workers, once")
    return list(hosts)
