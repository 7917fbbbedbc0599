"""Waiting until every worker is there, before TensorFlow waits for them without end.

TensorFlow's own start can't be interrupted, not even by a thread, and names nobody. So each worker
first listens at its own address and knocks at the others'; who answers is there, be it here or in
TensorFlow's start already, which listens at the same address.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator

from cluster.spec import Cluster

KNOCK_EVERY_S = 0.2


class MissingWorkers(TimeoutError):  # noqa: N818
    """Workers that never came; the message names them and their addresses."""


def meet(cluster: Cluster, timeout_s: float, waiting: Callable[[str], None]) -> None:
    """Returns when every worker of the cluster has answered at its address.

    Args:
        cluster: who the workers are, and which this is.
        timeout_s: how long to wait at the most.
        waiting: told, once, whom the others wait for, if that takes more than a few seconds.

    Raises:
        MissingWorkers: if some did not come in time.
        OSError: if this worker's own port is taken.
    """
    missing = {
        address: name
        for name, address in zip(cluster.names, cluster.addresses, strict=True)
        if address != cluster.address
    }
    began_s = time.monotonic()
    told = False
    with _listening(_port(cluster.address)):
        while missing:
            for address in list(missing):
                if _answers(address):
                    del missing[address]
            waited_s = time.monotonic() - began_s
            who = ", ".join(f"{name} ({address})" for address, name in missing.items())
            if missing and waited_s > timeout_s:
                raise MissingWorkers(
                    f"waited {timeout_s:g} s for {who}: start them, correct TF_CONFIG, "
                    "or raise --startup_timeout_s"
                )
            if missing and waited_s > 5 and not told:
                told = True
                waiting(f"waiting for {who}, for at most {timeout_s:g} s")
            if missing:
                time.sleep(KNOCK_EVERY_S)


@contextlib.contextmanager
def _listening(port: int) -> Iterator[None]:
    """Accepts connections at ``port``, on all interfaces as TensorFlow does, and closes them."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with (
        socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        ) as listener,
        selectors.DefaultSelector() as selector,
    ):
        done, wake = socket.socketpair()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(done, selectors.EVENT_READ)

        def answer() -> None:
            while all(key.fileobj is not done for key, _ in selector.select()):
                with contextlib.suppress(OSError):
                    listener.accept()[0].close()

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        try:
            yield
        finally:
            wake.close()
            answering.join()
            done.close()


def _answers(address: str) -> bool:
    try:
        with socket.create_connection((_host(address), _port(address)), timeout=2) as knock:
            # Where nobody listens, TCP may connect a socket to itself.
            return bool(knock.getsockname() != knock.getpeername())
    except OSError:
        return False


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
