"""What a process sends before it ends, and how it ends when bad news comes."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from cluster.meeting.channel import Channel, Closed
from tests.running import Process, wait_until
from tfdp.errors import BadInput
from tfdp.workers.faults import in_one_line

# A worker without TensorFlow: its end of a connection, and then the code of a test.
WORKER = """
import ctypes, socket, sys, threading, time
from cluster import spec
from cluster.meeting import channel, liveness
from tfdp.errors import BadInput, Superseded
from tfdp.workers.faults import FAULTS, end_process
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
FAULTS.join(liveness.Liveness(spec.local([1, 2], 1), {0: channel.Channel(connection)}), "worker 1")
print("ready", flush=True)
"""


def received(channel: Channel, until: str) -> list[dict[str, Any]]:
    """What came until a message has the key ``until``, or the connection was closed."""
    messages: list[dict[str, Any]] = []
    while not any(until in message for message in messages):
        assert channel.wait(20)
        try:
            messages += channel.receive()
        except Closed:
            break
    channel.send({"heard": True})
    return messages


@pytest.mark.parametrize(
    ("script", "code", "sent"),
    [
        ("pass", 0, [{"goodbye": True}]),
        ("sys.exit(3)", 3, [{"goodbye": True}]),
        (
            "1 / 0",
            1,
            [{"end": 1, "reason": "worker 1 failed: ZeroDivisionError: division by zero"}],
        ),
        ("raise BadInput('no')", 1, [{"end": 2, "reason": "worker 1 failed: BadInput: no"}]),
        (
            "raise Superseded('late')",
            1,
            [{"end": 138, "reason": "worker 1 failed: Superseded: late"}],
        ),
        ("raise KeyboardInterrupt", 130, []),
        (
            "FAULTS.end_process_on_error(); FAULTS.report_if_fatal(ValueError('a'))\n"
            "FAULTS.report_failure(ValueError('b'))",
            0,
            [{"end": 1, "reason": "worker 1 failed: ValueError: a"}],
        ),
        ("assert not FAULTS.report_if_fatal(ValueError('caught'))", 0, [{"goodbye": True}]),
        (
            "FAULTS.report_stop('SIGTERM'); end_process(143)",
            143,
            [{"end": 138, "reason": "worker 1 got SIGTERM and ends"}],
        ),
    ],
)
def test_others_receive_how_a_process_ends(
    script: str, code: int, sent: list[dict[str, Any]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with Process(["python", "-c", WORKER + script, port], limit_s=30) as process:
            channel = Channel(listener.accept()[0])
            until = next(iter(sent[0])) if sent else "its end"
            assert received(channel, until) == sent
            process.wait(-2 if code == 130 else code)
            channel.close()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("time.sleep(20)", 138),
        ("time.sleep(0.01); connection_lost()", 7),
    ],
)
def test_bad_news_ends_a_process_that_does_not_end_by_itself(script: str, code: int) -> None:
    own = "def connection_lost():\n    FAULTS.wait_for_news(); end_process(7)\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with Process(["python", "-c", WORKER + own + script, port], limit_s=30) as process:
            channel = Channel(listener.accept()[0])
            process.wait_for("ready")
            channel.send({"end": 138, "reason": "worker 2 was lost: so"})
            wait_until(lambda: process.popen.poll() is not None, 5, "it ends")
            output = process.wait(code)
            assert ("tfdp: worker 2 was lost: so" in output) == (code == 138)
            channel.close()


GRAPH_ERROR = """Graph execution error:

Detected at node PyFunc defined at (most recent call last):
  File "train.py", line 1, in <module>

<stack traces unavailable>
ValueError: it is said here
Traceback (most recent call last):
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "ValueError: one"),
        (ValueError("\n two\nthree"), "ValueError: two"),
        (ValueError(), "ValueError: "),
        (BadInput("no"), "BadInput: no"),
        (RuntimeError(GRAPH_ERROR), "RuntimeError: ValueError: it is said here"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 288),
    ],
)
def test_an_error_in_one_line_is_what_it_says_first(error: Exception, line: str) -> None:
    assert in_one_line(error) == line
