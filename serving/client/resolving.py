"""Asks again for the addresses of a name, as replicas come and go."""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import threading
import time
from collections.abc import Collection
from typing import Final

LOOK_EVERY_S = 10.0
LOOK_AFTER_FAILURE_S = 1.0
SCHEMES: Final = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")  # gRPC's

_LONGEST_ABSENCE_S: Final = 600.0
_NAME_AND_PORT: Final = re.compile(r"(dns:(?:///)?)?([\w.-]+):(\d+)")


class Addresses:
    """The addresses to use, by a name server's answers.

    Most answers have all addresses, so one that is missing is gone. Some name servers answer with a
    few of many, other ones each time: an address was missing, and soon it is back. After that, a
    missing one stays for twice as long as the longest such absence.
    """

    def __init__(self) -> None:
        self.in_use: tuple[str, ...] = ()
        self._missing_since_s: dict[str, float] = {}
        self._keep_s = 0.0

    def update(self, found: Collection[str], now_s: float) -> None:
        """Takes in an answer; ``in_use`` stays the same object if nothing changes."""
        missing_since_s = dict.fromkeys(self.in_use, now_s) | self._missing_since_s
        for address in missing_since_s.keys() & found:
            absence_s = now_s - missing_since_s.pop(address)
            if absence_s <= _LONGEST_ABSENCE_S:
                self._keep_s = max(self._keep_s, 2 * absence_s)
        self._missing_since_s = {
            address: since_s
            for address, since_s in missing_since_s.items()
            if now_s - since_s <= _LONGEST_ABSENCE_S
        }
        kept = (a for a, since_s in self._missing_since_s.items() if now_s - since_s < self._keep_s)
        addresses = tuple(sorted({*found, *kept}))
        if addresses != self.in_use:
            self.in_use = addresses


class Resolver:
    """Keeps the addresses of a name up to date while there are calls.

    gRPC asks for a name's addresses once, and again only if a connection breaks. So a new replica
    would get no calls while the others live. A thread of its own asks, because ``getaddrinfo`` can
    block for long; no call waits for it, and neither does the end of the process.

    Args:
        host: the name.
        port: the port of all its addresses.
    """

    def __init__(self, host: str, port: int) -> None:
        self.authority = f"{host}:{port}"
        self._host, self._port = host, port
        self._addresses = Addresses()
        self._looked_s = -math.inf
        self._next_look_s = -math.inf  # infinite while a look is under way

    @classmethod
    def of(cls, target: str) -> Resolver | None:
        """Returns the resolver of ``name:port`` or ``dns:///name:port``, None for other targets."""
        match = _NAME_AND_PORT.fullmatch(target)
        if match is None or is_ip(match[2]) or (not match[1] and match[2] in SCHEMES):
            return None
        return cls(match[2], int(match[3]))

    def addresses(self) -> tuple[str, ...]:
        """Returns the addresses last found, the same object until they change; starts a look.

        Empty until the first look has ended. A look that fails changes nothing.
        """
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = math.inf
            try:
                threading.Thread(target=self._look, name="resolver", daemon=True).start()
            except RuntimeError:  # the interpreter ends, or there are too many threads
                self._next_look_s = time.monotonic() + LOOK_EVERY_S
        return self._addresses.in_use

    def note_failure(self) -> None:
        """Looks soon, because all replicas may have other addresses now."""
        if self._next_look_s != math.inf:
            self._next_look_s = min(self._next_look_s, self._looked_s + LOOK_AFTER_FAILURE_S)
            self.addresses()

    def _look(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        # An address with a zone (fe80::1%eth0) can't be written in a target.
        addresses = {str(entry[4][0]) for entry in found if "%" not in str(entry[4])}
        self._looked_s = time.monotonic()
        if addresses:
            self._addresses.update(addresses, self._looked_s)
        self._next_look_s = self._looked_s + LOOK_EVERY_S

    def target_of(self, addresses: tuple[str, ...]) -> str:
        """Returns gRPC's target for these addresses."""
        if not any(":" in address for address in addresses):
            return "ipv4:" + ",".join(f"{address}:{self._port}" for address in addresses)
        # A target is of one family: IPv4 is written as IPv6, which gRPC takes for IPv4 again.
        mapped = (address if ":" in address else f"::ffff:{address}" for address in addresses)
        return "ipv6:" + ",".join(f"[{address}]:{self._port}" for address in mapped)


def is_ip(host: str) -> bool:
    """Returns whether it is an address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
