"""The channel to a target, and its successor when the target's addresses have changed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from serving.client import methods
from serving.client.connection import Connection, Options
from serving.client.methods import Method
from serving.client.resolving import Resolver


class Channel:
    """A channel with a callable for each method. Who calls keeps it until the answer is there.

    Args:
        channel: gRPC's, blocking or for asyncio.
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.calls: dict[Method, Callable[..., Any]] = {
            method: channel.unary_unary(method.path) for method in methods.ALL
        }


class Route:
    """The way to a target.

    gRPC balances between the addresses of one channel. If the addresses of the target's name
    change, later calls go through a new channel. The old one closes after the last call in it.

    Args:
        connection: the settings.
        target: the address, or a name.
        open_channel: returns gRPC's channel for a target, blocking or for asyncio.
    """

    def __init__(
        self, connection: Connection, target: str, open_channel: Callable[[str, Options], Any]
    ) -> None:
        options = connection.options_for(target)
        self._options, self._open_channel = options, open_channel
        # A proxy resolves names itself.
        self._resolver = None if connection.proxies[target] else Resolver.of(target)
        self._lock = threading.Lock()  # threads may change the next four at the same time
        self._has_failed = False
        self._addresses: tuple[str, ...] = ()
        self._opened: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._channel = self._open(target, options)

    def channel(self) -> Channel:
        """Returns the channel for the next call."""
        if self._resolver is not None:
            addresses = self._resolver.addresses()
            if addresses is not self._addresses:
                with self._lock:
                    self._follow(self._resolver)
        return self._channel

    def note_failure(self) -> None:
        """Notes that the target was unavailable."""
        if self._resolver is not None:
            with self._lock:
                if not self._has_failed:
                    self._has_failed, self._addresses = True, ()  # gRPC may not have found them
            self._resolver.note_failure()

    def opened(self) -> list[Any]:
        """Returns gRPC's channels that are in use."""
        with self._lock:
            return [channel.channel for channel in self._opened]

    def _follow(self, resolver: Resolver) -> None:
        before, self._addresses = self._addresses, resolver.addresses()
        if self._addresses is before:  # another thread was here
            return
        if not before and not self._has_failed:
            return  # gRPC has found them too
        options = self._options
        if "grpc.ssl_target_name_override" not in dict(options):
            # Servers and certificates still see the name. (gRPC lets them see the other one.)
            options = (*options, ("grpc.default_authority", resolver.authority))
        self._channel = self._open(resolver.target_of(self._addresses), options)

    def _open(self, target: str, options: Options) -> Channel:
        channel = Channel(self._open_channel(target, options))
        self._opened.add(channel)
        return channel
