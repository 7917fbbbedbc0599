"""The wire: who is lost, and who ends by which fault, told to every worker at any moment.

TensorFlow notices a lost worker late and names nobody, and a worker that waits for another in a
call into TensorFlow hears nothing else. So every worker keeps the connection to the chief by which
it came (``cluster.rendezvous``), and a thread listens. The chief passes on what concerns all.

How a worker is found lost:

- Its process ends: the kernel closes the connection, at once.
- Its machine is gone, or a cable is cut: the kernels miss each other's acknowledgements
  (``channel.CUT_S``).
- It is frozen: nothing was heard for ``SILENCE_S``, and its TensorFlow, whose threads don't need
  Python, does not answer at its address either. A worker that is only busy does answer there.

Who leaves says goodbye, and is not lost. Who fails says why, which ends the others too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from cluster import exit_codes
from cluster.channel import Channel, Closed, Message, host_and_port
from cluster.spec import Cluster

BEAT_EVERY_S: Final = 1.0
SILENCE_S: Final = 9.0
ANSWER_S: Final = 2.0  # for TensorFlow of a silent worker to answer
HEARD_S: Final = 2.0  # for the others to say that they have heard
REASON_CHARACTERS: Final = 600  # each may take up to 12 bytes of a message


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """Why the run can't go on.

    Args:
        code: what every worker that hears of it ends with.
        reason: one line that names the worker.
    """

    code: int
    reason: str


class _Peer:
    def __init__(self, index: int, channel: Channel) -> None:
        self.index = index
        self.channel = channel
        self.silent_s = 0.0
        self.has_left = False  # or is given up: that its connection breaks says nothing new
        self.has_heard = False  # our last words


class Liveness:
    """This process's end of it; made once a run, when all workers have met.

    Args:
        cluster: who the workers are, and which this is.
        channels: as ``rendezvous.meet`` gives them.
    """

    def __init__(self, cluster: Cluster, channels: Mapping[int, Channel]) -> None:
        self._cluster = cluster
        self._peers = {index: _Peer(index, channel) for index, channel in channels.items()}
        self._changed = threading.Condition()
        self._sending = threading.Lock()  # two threads' lines must not mix
        self._end: RunEnd | None = None
        self._on_end: Callable[[RunEnd], None] = lambda _: None
        self._beating = False
        self._is_leaving = False
        # A child that was forked would keep connections open that death should close.
        os.register_at_fork(after_in_child=self._close)

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """While it lasts, a broken connection ends the process by SIGUSR1.

        For the start of TensorFlow, which holds Python's lock while it waits for the others, for
        ever if one is lost. 128 + SIGUSR1 is ``exits.TRY_AGAIN``, as a shell counts. Nobody sends
        anything before all workers are through (``begin``), so only a break can wake the kernel.
        Outside of the main thread, which alone may set handlers, there is no such guard.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        descriptors = [peer.channel.fileno() for peer in self._peers.values()]
        for descriptor in descriptors:
            fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGUSR1)
            _set_flag(descriptor, os.O_ASYNC, on=True)
        try:
            if any(peer.channel.wait(0) for peer in self._peers.values()):
                os.kill(os.getpid(), signal.SIGUSR1)  # lost before the kernel was asked
            yield
        finally:
            for descriptor in descriptors:
                _set_flag(descriptor, os.O_ASYNC, on=False)
            signal.signal(signal.SIGUSR1, before)

    def watch(self, on_end: Callable[[RunEnd], None]) -> None:
        """Starts to listen, in a thread.

        Args:
            on_end: called once, in a thread of its own, when a worker is lost or has failed.
        """
        self._on_end = on_end
        threading.Thread(target=self._watch, name="wire", daemon=True).start()

    def begin(self) -> None:
        """All workers watch: from here on silence means something, and this one is not silent."""
        self._beating = True

    def wait(self, timeout_s: float) -> RunEnd | None:
        """Why the run can't go on, if that turns out within ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, timeout_s)
            return self._end

    def tell(self, code: int, reason: str) -> None:
        """Tells all others that this worker ends the run; returns when they have heard it.

        Args:
            code: what they shall end with.
            reason: one line that names this worker.
        """
        reason = " ".join(reason.split())[:REASON_CHARACTERS]
        self._say_last({"end": code, "reason": reason})

    def leave(self) -> None:
        """Says goodbye to all others; returns when they have heard it."""
        self._say_last({"goodbye": True})

    def _say_last(self, message: Message) -> None:
        with self._changed:
            self._is_leaving = True
        self._send(message, self._peers.values())
        with self._changed:
            self._changed.wait_for(
                lambda: all(each.has_heard or each.has_left for each in self._peers.values()),
                HEARD_S,
            )

    def _send(self, message: Message, peers: Iterable[_Peer]) -> None:
        with self._sending:
            for peer in list(peers):
                peer.channel.send(message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                selector.register(peer.channel, selectors.EVENT_READ, peer)
            looked_s = beaten_s = time.monotonic()
            while self._peers:
                for key, _ in selector.select(BEAT_EVERY_S / 2):
                    try:
                        for message in key.data.channel.receive():
                            self._take(key.data, message)
                    except Closed as closed:
                        self._lose(key.data, str(closed))
                        selector.unregister(key.data.channel)
                        with self._changed:
                            del self._peers[key.data.index]
                            self._changed.notify_all()
                        key.data.channel.close()
                now_s = time.monotonic()
                # A time in which this process itself was frozen or busy says nothing of others.
                passed_s, looked_s = min(now_s - looked_s, BEAT_EVERY_S), now_s
                if self._beating:
                    if now_s - beaten_s >= BEAT_EVERY_S:
                        beaten_s = now_s
                        self._send({}, self._peers.values())
                    self._look_for_frozen(passed_s)

    def _take(self, peer: _Peer, message: Message) -> None:
        peer.silent_s = 0.0
        if "heard" in message:
            with self._changed:
                peer.has_heard = True
                self._changed.notify_all()
        elif message:  # its last words
            with self._changed:
                peer.has_left = True
                self._changed.notify_all()
            if "end" in message:
                self._come_to(RunEnd(int(message["end"]), str(message.get("reason"))), peer)
            self._send({"heard": True}, [peer])

    def _look_for_frozen(self, passed_s: float) -> None:
        for peer in list(self._peers.values()):
            peer.silent_s += passed_s
            if peer.silent_s > SILENCE_S and not peer.has_left:
                if _tensorflow_answers(self._cluster.addresses[peer.index]):
                    peer.silent_s /= 2  # busy; to be looked at again
                else:
                    self._lose(
                        peer,
                        f"it is frozen, or can't be reached: nothing was heard of it for "
                        f"{SILENCE_S + ANSWER_S:.0f} s",
                    )

    def _lose(self, peer: _Peer, why: str) -> None:
        if peer.has_left:
            return
        with self._changed:
            peer.has_left = True
            self._changed.notify_all()
        who = self._cluster.who(peer.index)
        self._come_to(RunEnd(exit_codes.TRY_AGAIN, f"{who} was lost: {why}"), None)

    def _come_to(self, end: RunEnd, told_by: _Peer | None) -> None:
        with self._changed:
            if self._end is not None or self._is_leaving:
                return
            self._end = end
            self._changed.notify_all()
        if self._cluster.is_chief:  # a frozen worker hears it too, should it wake up
            others = [each for each in self._peers.values() if each is not told_by]
            self._send({"end": end.code, "reason": end.reason}, others)
        threading.Thread(target=self._on_end, args=(end,), daemon=True).start()

    def _close(self) -> None:
        for peer in self._peers.values():
            peer.channel.close()


def _set_flag(descriptor: int, flag: int, *, on: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)


def _tensorflow_answers(address: str) -> bool:
    """Whether a gRPC server greets at an address, as they do before anybody asks them."""
    try:
        with socket.create_connection(host_and_port(address), timeout=ANSWER_S) as knock:
            return bool(knock.recv(1))
    except OSError:
        return False
