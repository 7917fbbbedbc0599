"""Watches all workers of a run: a worker that is lost or fails ends the others too.

TensorFlow notices a lost worker late and does not name it, and a worker that waits in a call into
TensorFlow receives no other news. So every worker keeps its connection to the chief from the start
(``rendezvous``), and a thread reads it. The chief forwards the news that end the run.

A worker is lost in one of three cases:

- Its process ends: the kernel closes the connection at once.
- Its machine or its network fails: the kernels miss acknowledgements
  (``channel.KERNEL_TIMEOUT_S``).
- Its process is frozen: no message has come for ``SILENCE_S``, and TensorFlow in that process does
  not answer at its address either. TensorFlow's threads don't need Python's lock, so they do answer
  in a worker that is only busy.

A worker that ends as it should says goodbye first, and is not lost. A worker that fails sends its
error first, which ends the others with the same code.

The chief may ask all others a question. Each answers it in a thread, whatever its main thread does.
"""

from __future__ import annotations

import dataclasses
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from cluster import exit_codes
from cluster.meeting.channel import Channel, Closed, Message
from cluster.spec import Cluster, host_and_port

HEARTBEAT_EVERY_S: Final = 1.0
SILENCE_S: Final = 9.0  # without a message a worker may be frozen
GREETING_TIMEOUT_S: Final = 2.0  # for TensorFlow of a silent worker
ACKNOWLEDGE_TIMEOUT_S: Final = 2.0  # for the last message of a worker
MAX_REASON_CHARACTERS: Final = 600  # each may take up to 12 bytes of a message


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """Why the run can't go on.

    Args:
        code: the exit code of every worker that receives this.
        reason: one line that names the worker at fault.
    """

    code: int
    reason: str


class _OtherWorker:
    """Another worker, at the other end of a connection."""

    def __init__(self, index: int, channel: Channel) -> None:
        self.index = index
        self.channel = channel
        self.silent_s = 0.0
        self.has_ended = False  # or is lost: the end of its connection is no news
        self.has_acknowledged = False  # the last message of this worker
        self.answer: Message | None = None  # to the newest question


class Liveness:
    """The connections of this process to the other workers; create it once all are connected.

    Args:
        cluster: the workers, and the index of this one.
        channels: from ``rendezvous.connect_workers``.
    """

    def __init__(self, cluster: Cluster, channels: Mapping[int, Channel]) -> None:
        self._cluster = cluster
        self._others = {index: _OtherWorker(index, channel) for index, channel in channels.items()}
        self._changed = threading.Condition()  # guards the run's end and the state of the others
        self._send_lock = threading.Lock()  # keeps the lines of two threads apart
        self._run_end: RunEnd | None = None
        self._on_run_end: Callable[[RunEnd], None] = lambda _: None
        self._answer: Callable[[str], Message] = lambda _: {}
        self._questions = 0
        self._has_heartbeats = False
        self._is_ending = False
        # A forked child would keep connections open after the death of this process.
        os.register_at_fork(after_in_child=self._close)

    def watch(self, on_run_end: Callable[[RunEnd], None]) -> None:
        """Starts to watch the connections, in a thread.

        Args:
            on_run_end: called once, in a thread of its own, when a worker is lost or has failed.
        """
        self._on_run_end = on_run_end
        threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    @property
    def names(self) -> Sequence[str]:
        """Names of all workers, in the order of their indices."""
        return self._cluster.names

    def connections(self) -> dict[int, str]:
        """Returns the name of the other worker by the descriptor of the connection to it."""
        with self._changed:
            return {
                other.channel.fileno(): self._cluster.describe(index)
                for index, other in self._others.items()
            }

    def answer_by(self, answer: Callable[[str], Message]) -> None:
        """Sets what answers questions of the chief; it is called in a thread of its own."""
        self._answer = answer

    def ask(
        self, question: str, timeout_s: float, of: Collection[int] | None = None
    ) -> dict[int, Message]:
        """Asks other workers; on the chief, which alone is connected to all.

        Args:
            question: what the other worker's ``answer_by`` gets.
            timeout_s: how long to wait for answers.
            of: indices of the workers; None for all.

        Returns:
            The answers that came in time, by the index of the worker.
        """
        with self._changed:
            self._questions += 1
            others = {i: other for i, other in self._others.items() if of is None or i in of}
            for other in others.values():
                other.answer = None
        self._send({"ask": question, "number": self._questions}, others.values())
        with self._changed:
            self._changed.wait_for(
                lambda: all(other.answer is not None for other in others.values()), timeout_s
            )
            return {i: other.answer for i, other in others.items() if other.answer is not None}

    def start_heartbeats(self) -> None:
        """Starts to send heartbeats and to expect them; call it when all workers ``watch``."""
        self._has_heartbeats = True

    def wait_for_end(self, timeout_s: float) -> RunEnd | None:
        """Returns why the run can't go on; None if that is still unknown after ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._run_end is not None, timeout_s)
            return self._run_end

    def end_run(self, code: int, reason: str) -> None:
        """Ends all other workers; returns when they have acknowledged it.

        Args:
            code: their exit code.
            reason: one line that names this worker.
        """
        reason = " ".join(reason.split())[:MAX_REASON_CHARACTERS]
        self._send_last({"end": code, "reason": reason})

    def leave(self) -> None:
        """Says goodbye to all other workers; returns when they have acknowledged it."""
        self._send_last({"goodbye": True})

    def _send_last(self, message: Message) -> None:
        with self._changed:
            self._is_ending = True
        self._send(message, self._others.values())
        with self._changed:
            self._changed.wait_for(
                lambda: all(
                    other.has_acknowledged or other.has_ended for other in self._others.values()
                ),
                ACKNOWLEDGE_TIMEOUT_S,
            )

    def _send(self, message: Message, others: Iterable[_OtherWorker]) -> None:
        with self._send_lock:
            for other in list(others):
                other.channel.send(message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for other in self._others.values():
                selector.register(other.channel, selectors.EVENT_READ, other)
            last_check_s = last_heartbeat_s = time.monotonic()
            while self._others:
                for key, _ in selector.select(HEARTBEAT_EVERY_S / 2):
                    self._receive(key.data, selector)
                now_s = time.monotonic()
                # If more time has passed, this process was frozen or busy, and the others were not
                # silent.
                passed_s = min(now_s - last_check_s, HEARTBEAT_EVERY_S)
                last_check_s = now_s
                if self._has_heartbeats:
                    if now_s - last_heartbeat_s >= HEARTBEAT_EVERY_S:
                        last_heartbeat_s = now_s
                        self._send({}, self._others.values())
                    self._check_silence(passed_s)

    def _receive(self, other: _OtherWorker, selector: selectors.BaseSelector) -> None:
        try:
            for message in other.channel.receive():
                self._handle(message, other)
        except Closed as closed:
            self._mark_lost(other, str(closed))
            selector.unregister(other.channel)
            with self._changed:
                del self._others[other.index]
                self._changed.notify_all()
            other.channel.close()

    def _handle(self, message: Message, other: _OtherWorker) -> None:
        other.silent_s = 0.0
        if "heard" in message:
            with self._changed:
                other.has_acknowledged = True
                self._changed.notify_all()
        elif "ask" in message:
            threading.Thread(target=self._reply, args=(message, other), daemon=True).start()
        elif "answer" in message:
            with self._changed:
                if message.get("number") == self._questions:
                    other.answer = dict(message["answer"])
                    self._changed.notify_all()
        elif message:  # not a heartbeat: the other worker's last message
            with self._changed:
                other.has_ended = True
                self._changed.notify_all()
            if "end" in message:
                run_end = RunEnd(int(message["end"]), str(message.get("reason")))
                self._set_run_end(run_end, reported_by=other)
            self._send({"heard": True}, [other])

    def _reply(self, message: Message, other: _OtherWorker) -> None:
        answer = self._answer(str(message["ask"]))
        self._send({"answer": answer, "number": message.get("number")}, [other])

    def _check_silence(self, passed_s: float) -> None:
        """Adds to the silence of every other worker; marks those lost that are frozen."""
        for other in list(self._others.values()):
            other.silent_s += passed_s
            if other.silent_s > SILENCE_S and not other.has_ended:
                if _tensorflow_answers(self._cluster.addresses[other.index]):
                    other.silent_s /= 2  # busy; checked again later
                else:
                    self._mark_lost(
                        other,
                        f"it is frozen, or can't be reached: no message came for "
                        f"{SILENCE_S + GREETING_TIMEOUT_S:.0f} s",
                    )

    def _mark_lost(self, other: _OtherWorker, reason: str) -> None:
        if other.has_ended:
            return
        with self._changed:
            other.has_ended = True
            self._changed.notify_all()
        worker = self._cluster.describe(other.index)
        self._set_run_end(RunEnd(exit_codes.TRY_AGAIN, f"{worker} was lost: {reason}"))

    def _set_run_end(self, run_end: RunEnd, reported_by: _OtherWorker | None = None) -> None:
        with self._changed:
            if self._run_end is not None or self._is_ending:
                return
            self._run_end = run_end
            self._changed.notify_all()
        if self._cluster.is_chief:  # a frozen worker is included: it may wake up
            others = [other for other in self._others.values() if other is not reported_by]
            self._send({"end": run_end.code, "reason": run_end.reason}, others)
        threading.Thread(target=self._on_run_end, args=(run_end,), daemon=True).start()

    def _close(self) -> None:
        for other in self._others.values():
            other.channel.close()


def _tensorflow_answers(address: str) -> bool:
    """Returns whether a gRPC server is alive at an address: it sends the first bytes."""
    try:
        with socket.create_connection(host_and_port(address), GREETING_TIMEOUT_S) as probe:
            return bool(probe.recv(1))
    except OSError:
        return False
