"""Which targets gRPC calls by way of an HTTP proxy, by the variables of the environment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC takes the first one set
_EXCEPTIONS: Final = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
_NEVER: Final = ("unix:", "unix-abstract:", "vsock:")


def proxy_of(target: str, environ: Mapping[str, str]) -> str | None:
    """Returns the proxy of a target and its variable, for people; None if calls go directly.

    gRPC finds the proxy by itself. It knows two forms of an exception, the end of a host's name
    and a range of addresses, so the client decides for it: see ``goes_directly``.
    """
    variable = next((name for name in _VARIABLES if name in environ), None)
    if variable is None or goes_directly(target, environ):
        return None
    try:
        url = urlsplit(environ[variable])
    except ValueError:
        return None
    if url.scheme != "http" or not url.netloc or environ[variable][0].isspace():
        return None  # gRPC logs that it can't use this proxy, and connects directly
    return f"http://{url.netloc.rpartition('@')[2]} ({variable})"  # without its password


def goes_directly(target: str, environ: Mapping[str, str]) -> bool:
    """Returns whether a target is this machine, or an exception of ``no_proxy``.

    Exceptions are gRPC's (each host whose name ends like that), and also ``*``, ``host:port``,
    ``.suffix`` for the host itself, and ``NO_PROXY`` in capitals.
    """
    if target.startswith(_NEVER):
        return True
    no_proxy = next((environ[name] for name in _EXCEPTIONS if name in environ), "")
    exceptions = re.split(r"[,\s]+", no_proxy.lower())
    path = re.sub(r"^(?:dns|ipv4|ipv6):(?://[^/]*/)?", "", target)
    return all(
        _is_loopback(host) or any(_matches(host, port, entry) for entry in exceptions if entry)
        for host, port in map(_split, path.lower().split(","))
    )


def _split(address: str) -> tuple[str, str]:
    """Returns host and port; the host without brackets, the port empty if there is none."""
    match = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?|([^:]*)(?::(\d+))?", address)
    if match is None:  # an IPv6 address without brackets
        return address, ""
    return match[1] or match[3] or "", match[2] or match[4] or ""


def _is_loopback(host: str) -> bool:
    address = _ip(host)
    if address is None:
        return host.rstrip(".") == "localhost"
    return address.is_loopback


def _matches(host: str, port: str, entry: str) -> bool:
    if entry == "*":
        return True
    address = _ip(host)
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, its_port = _split(entry)
    if its_port and its_port != port:
        return False
    if address is not None and (its_address := _ip(name)) is not None:
        return address == its_address
    suffix = name.removeprefix("*")
    return bool(suffix) and (host.endswith(suffix) or host == suffix.lstrip("."))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
