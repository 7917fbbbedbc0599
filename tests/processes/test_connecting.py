"""``tfdp.connect`` with real workers: what may come between them while TensorFlow starts."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from cluster.spec import Cluster
from tests.processes.test_train import assert_only_own_words, command, summary
from tests.processes.workers import Workers
from tests.running import Process, free_port

# Worker 1 is gone as soon as the workers have met, and before its TensorFlow has started.
CONNECTING = """
import os, signal, sys, threading
import tensorflow as tf
import tfdp
where, fault = sys.argv[1:]

def fail(**_):
    os.kill(os.getpid(), getattr(signal, fault))

if '"index": 1' in os.environ["TF_CONFIG"]:
    tf.distribute.MultiWorkerMirroredStrategy = fail
if where == "thread":
    thread = threading.Thread(target=tfdp.connect, kwargs={"startup_timeout_s": 4})
    thread.start()
    thread.join()
else:
    tfdp.connect(startup_timeout_s=60)
"""


@pytest.mark.parametrize(
    ("fault", "where", "said"),
    [
        ("SIGKILL", "main", r"W was lost while TensorFlow started: its process has ended"),
        ("SIGSTOP", "thread", r"TensorFlow did not start within 4 s: W does not answer at its .*"),
    ],
)
def test_a_worker_that_is_gone_while_tensorflow_starts_is_named(
    fault: str, where: str, said: str
) -> None:
    with Workers([["python", "-c", CONNECTING, where, fault]] * 2, limit_s=60) as workers:
        output = workers[0].wait(-signal.SIGUSR1)
    said = said.replace("W", r"worker 1 \(127\.0\.0\.1:\d+\)")
    assert re.search(rf"^tfdp: {said}\n\Z", output, re.MULTILINE), output


def test_workers_meet_without_the_proxy_of_the_environment(tmp_path: Path) -> None:
    addresses = tuple(f"{host}:{free_port()}" for host in ("127.0.0.1", "localhost"))
    dead = f"http://127.0.0.1:{free_port()}"
    environs = [
        {
            "TF_CONFIG": Cluster(addresses, ("worker 0", "worker 1"), index).tf_config(),
            **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), dead),
            "no_proxy": "example.org",
        }
        for index in range(2)
    ]
    flags = ("--steps=2", "--startup_timeout_s=40", "--export_dir=none")
    with (
        Process(command(tmp_path / "run", *flags), env=environs[0]) as chief,
        Process(command(tmp_path / "run", *flags), env=environs[1]) as other,
    ):
        outputs = [chief.wait(0), other.wait(0)]
    assert_only_own_words(*outputs)
    assert summary(tmp_path / "run")["workers"] == 2
