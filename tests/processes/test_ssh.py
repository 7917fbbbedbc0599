"""The launcher with workers on other hosts by real ssh, briefly; ``make ssh`` tests it at length.

Workers are small scripts without TensorFlow.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from cluster import spec
from tests.processes.ssh_hosts import Hosts, hosts_up
from tests.running import Process, wait_until

LIMIT_S = 60
GONE_S = 5  # for what ends at once; the machine may be busy
PRELUDE = """
import json, os, signal, subprocess, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def say(text): sys.stdout.write(text + "\\n"); sys.stdout.flush()
def sleep(): say("asleep"); time.sleep(600)
"""
SAVES = """
def stop(number, frame):
    say(f"saved on {signal.Signals(number).name}"); sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
sleep()
"""
# Starts a child of the worker, which nobody else knows.
WITH_CHILD = 'subprocess.Popen(["sleep", "600"])\n'


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts_up(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def worker(script: str) -> list[str]:
    return ["python", "-c", PRELUDE + script]


def wait_until_asleep(launcher: Process, workers: int = 2) -> None:
    wait_until(lambda: launcher.output.count("asleep") >= workers, LIMIT_S, "workers sleep")


def test_each_worker_gets_its_host_in_tf_config_and_the_end_is_orderly(hosts: Hosts) -> None:
    script = 'say(os.uname().nodename + " " + os.environ["TF_CONFIG"])'
    with hosts.launch("h1,h2:2", [], worker(script), limit_s=LIMIT_S) as launcher:
        output = launcher.wait(0)
    printed = sorted(re.findall(r"^\[worker (\d)\] (h\d) (.*)$", output, re.MULTILINE))
    assert [(index, host) for index, host, _ in printed] == [("0", "h1"), ("1", "h2"), ("2", "h2")]
    clusters = [spec.from_environment({"TF_CONFIG": text}) for _, _, text in printed]
    for index, cluster in enumerate(clusters):
        assert cluster is not None
        assert cluster.index == index
        places = [address.partition(":")[0] for address in cluster.addresses]
        assert places == [hosts[0].address, hosts[1].address, hosts[1].address]
    assert f"[launch] worker 0 on h1 ({hosts[0].address}); worker 1, 2 on h2" in output
    assert output.endswith("[launch] all workers have finished\n")
    hosts.wait_until_empty(GONE_S)


def test_variables_are_passed_but_not_shown_and_a_signal_reaches_workers(hosts: Hosts) -> None:
    script = 'say(str(os.environ.get("TOKEN")) + os.environ["TF_X"])\n' + SAVES
    env = {"TOKEN": "s3cret", "TF_X": "-shown-nowhere"}
    with hosts.launch("h1,h2", [], worker(script), env=env, limit_s=LIMIT_S) as launcher:
        wait_until_asleep(launcher)
        command_lines = [word for process in hosts.left() for word in process.cmdline()]
        assert "-S" in command_lines, "keepers and ssh clients are among them"
        for shown in (*env.values(), "10.213.40.1:"):
            assert not [word for word in command_lines if shown in word]
        launcher.signal(signal.SIGTERM)
        output = launcher.wait(143)
    assert output.count("s3cret-shown-nowhere\n") == 2
    assert output.count("saved on SIGTERM") == 2
    assert "[launch] stopped by SIGTERM" in output
    hosts.wait_until_empty(GONE_S)


def test_nothing_outlives_a_killed_launcher(hosts: Hosts) -> None:
    with hosts.launch("h1,h2", [], worker(WITH_CHILD + "sleep()"), limit_s=LIMIT_S) as launcher:
        wait_until_asleep(launcher)
        assert [len(host.workers()) for host in hosts.hosts] == [1, 1]
        assert len(hosts.left()) > 6, "workers, their children, keepers and ssh clients"
        launcher.signal(signal.SIGKILL)
        launcher.wait(-signal.SIGKILL)
        hosts.wait_until_empty(GONE_S)


def test_a_killed_worker_is_started_again_with_the_others(hosts: Hosts) -> None:
    script = "sleep() if not os.path.exists(os.environ['STARTED']) else say('again')"
    started = hosts.folder / "started"
    env = {"STARTED": str(started)}
    flags = ("--max_restarts=1",)
    with hosts.launch("h1,h2", flags, worker(script), env=env, limit_s=LIMIT_S) as launcher:
        wait_until_asleep(launcher)
        started.touch()
        hosts[1].workers()[1].kill()
        output = launcher.wait(0)
    assert "[launch] worker 1 was killed by SIGKILL: starting again, restart 1 of 1\n" in output
    assert output.count("again\n") == 2
    hosts.wait_until_empty(GONE_S)


def test_a_host_that_can_not_be_reached_is_named(hosts: Hosts) -> None:
    with hosts.launch("h1,nowhere", [], worker("sleep()"), limit_s=LIMIT_S) as launcher:
        output = launcher.wait(138)
    assert re.match(r"\[launch\] host nowhere can't be reached: ssh: Could not resolve ", output)
    assert len(output.splitlines()) == 1
    hosts.wait_until_empty(GONE_S)
