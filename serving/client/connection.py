"""The settings of a client's channels: targets, keepalive, TLS, headers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from serving.client import checks, proxies, resolving
from serving.client.errors import InvalidInput

Options = tuple[tuple[str, Any], ...]

_Pem = bytes | str | os.PathLike[str] | None

_URL_SCHEMES: Final = ("http", "https", "tcp", "grpc", "grpcs")
_NO_PORTS: Final = ("unix", "unix-abstract", "vsock", "xds")
_OPTIONS: Final[Options] = (
    # For a name with several addresses: each call goes to the next address that is connected.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),  # gRPC's own limit is 4 MB
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A host that is down does not refuse connections. Calls go to another one after this time.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Servers close connections with pings more often than every five minutes (too_many_pings).
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True)
class Tls:
    """Certificates for TLS, and for mutual TLS if the client has a certificate.

    Each of the first three is a file's path, or PEM as ``bytes``.

    Attributes:
        root_certificates: authorities that may sign the server's certificate; by default gRPC's.
        certificate_chain: the client's certificate, for servers that require one.
        private_key: the key of the client's certificate.
        server_name: the name in the server's certificate, if it differs from the target's host.
    """

    root_certificates: _Pem = None
    certificate_chain: _Pem = field(default=None, repr=False)
    private_key: _Pem = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):
            raise InvalidInput("certificate_chain and private_key go together: give both")

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns gRPC's credentials; raises InvalidInput if a file can't be read."""
        pem = (self.root_certificates, self.private_key, self.certificate_chain)
        return grpc.ssl_channel_credentials(*map(_read_pem, pem))


@dataclass(frozen=True)
class Connection:
    """The settings of a client's channels.

    Attributes:
        targets: addresses; each has a channel.
        interceptors: called for every call; requests and answers are bytes.
        options: gRPC's channel options for all targets.
        credentials: ``None`` without TLS.
        headers: sent with every call.
        proxies: by target; None if calls go directly.
    """

    targets: tuple[str, ...]
    interceptors: tuple[Any, ...]
    options: Options
    credentials: grpc.ChannelCredentials | None = field(repr=False)
    headers: tuple[Any, ...] | None = field(repr=False)
    proxies: Mapping[str, str | None]

    @classmethod
    def of(
        cls,
        target: str | Sequence[str],
        tls: Tls | bool,
        metadata: Mapping[str, str | bytes],
        token: str | None,
        interceptors: Sequence[Any],
    ) -> Connection:
        """Checks the arguments of a client, see there; raises InvalidInput."""
        targets = (target,) if isinstance(target, str) else tuple(target)
        if not targets or not all(isinstance(address, str) and address for address in targets):
            raise InvalidInput(f"target={target!r} has to be host:port, or a list of these")
        for address in targets:
            _check_target(address)
        if token is not None and not tls:
            raise InvalidInput(
                "a token would be sent in plain text: give tls=True; if a proxy encrypts the "
                "connection, send it by metadata={'authorization': …}"
            )
        if tls is True:
            tls = Tls()
        options = _OPTIONS
        if tls and tls.server_name:
            options += (("grpc.ssl_target_name_override", tls.server_name),)
        headers = checks.headers(metadata, token) or None
        credentials = tls.credentials() if tls else None
        proxy_of_target = {target: proxies.proxy_of(target, os.environ) for target in targets}
        return cls(targets, tuple(interceptors), options, credentials, headers, proxy_of_target)

    def options_for(self, target: str) -> Options:
        """Returns gRPC's channel options for a target."""
        if proxies.goes_directly(target, os.environ):
            return (*self.options, ("grpc.enable_http_proxy", 0))
        return self.options


def _check_target(target: str) -> None:
    """Raises InvalidInput for what gRPC would take for a strange name, or for another port."""
    scheme, _, rest = target.partition(":")
    problem = ""
    if scheme in _URL_SCHEMES and rest.startswith("//"):
        problem = f"leave out {scheme}://" + ("; tls=True encrypts" if scheme[-1] == "s" else "")
    elif scheme not in resolving.SCHEMES and (wrong := re.search(r"[\s/,]", target)):
        problem = f"it has {wrong[0]!r}; several addresses are a list"
    elif scheme not in _NO_PORTS and (port := re.search(r":(\d+)$", target)):
        problem = "" if int(port[1]) < 65536 else "a port is at most 65535"
    if problem:
        raise InvalidInput(f"target={target!r} has to be host:port: {problem}")


def _read_pem(pem: _Pem) -> bytes | None:
    if pem is None or isinstance(pem, bytes):
        return pem
    try:
        return Path(pem).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{error.filename} can't be read: {error.strerror}") from None
