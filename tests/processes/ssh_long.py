"""Workers on other hosts by real ssh: training, and faults of every part. ``make ssh`` runs it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.hosts import connection, keeper
from cluster.launching import spares
from tests.processes.ssh_hosts import Host, Hosts, hosts_up, processes_in
from tests.processes.test_ssh import GONE_S, LIMIT_S, WITH_CHILD, wait_until_asleep, worker
from tests.processes.test_train import Hold, checkpoints, command, summary, wait_for_checkpoint
from tests.running import ROOT, Process, clean_environment, run, wait_until

TRAIN_LIMIT_S = 180
# A cut cable: the keeper's patience at the host, the launcher's here; and a busy machine.
CUT_S = max(keeper.SILENCE_S, connection.SILENCE_S) + GONE_S


PRINTS_FOR_EVER = 'while True: print("x" * 1000)'


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts_up(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def clients(hosts: Hosts) -> list[psutil.Process]:
    return [each for each in processes_in(hosts.hub) if each.name() == "ssh"]


def keeper_of(host: Host) -> psutil.Process:
    (found,) = {each.parent() for each in host.workers().values()}
    assert found is not None
    return found


def train(
    hosts: Hosts, names: str, workdir: Path, *flags: str, hold: Hold | None = None
) -> Process:
    env = {} if hold is None else dict(hold.env)
    return hosts.launch(names, flags, command(workdir), env=env, limit_s=TRAIN_LIMIT_S)


def test_four_workers_on_two_hosts_compute_the_same_as_here(hosts: Hosts, tmp_path: Path) -> None:
    here = ["python", "-m", "cluster.launch", "--workers=4", "--", *command(tmp_path / "here")]
    run(here, limit_s=TRAIN_LIMIT_S)
    with train(hosts, "h1:2,h2:2", tmp_path / "there") as launcher:
        launcher.wait(0)
    expected, found = summary(tmp_path / "here"), summary(tmp_path / "there")
    assert found["workers"] == expected["workers"] == 4
    assert found["weights_sha256"] == expected["weights_sha256"]
    hosts.wait_until_empty(GONE_S)


def is_waiting_spare(process: psutil.Process) -> bool:
    has_input = Path(f"/proc/{process.pid}/fd/0").readlink().name.startswith("pipe:")
    return has_input and spares.VARIABLE in process.environ()


def test_spares_replace_workers_after_a_kill_and_the_weights_are_the_same(
    hosts: Hosts, undisturbed: Path, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    with train(hosts, "h1,h2", tmp_path / "run", "--max_restarts=1", hold=hold) as launcher:
        wait_for_checkpoint(tmp_path / "run", 8)

        def waiting() -> list[int]:
            found = [each for host in hosts.hosts for each in host.processes()]
            return sorted(each.pid for each in found if is_waiting_spare(each))

        spare_pids = wait_until(lambda: len(waiting()) == 2 and waiting(), 60, "spares wait")
        hosts[1].workers()[1].kill()
        launcher.wait_for("worker 1 was killed by SIGKILL: starting again, restart 1 of 1")
        wait_until(lambda: not set(waiting()) & set(spare_pids), 60, "spares are workers")
        assert all(psutil.pid_exists(pid) for pid in spare_pids)
        hold.end()
        launcher.wait(0)
    assert summary(tmp_path / "run")["weights_sha256"] == summary(undisturbed)["weights_sha256"]
    hosts.wait_until_empty(GONE_S)


def test_a_signal_to_the_launcher_saves_and_the_run_goes_on_later(
    hosts: Hosts, undisturbed: Path, tmp_path: Path
) -> None:
    hold, workdir = Hold(tmp_path), tmp_path / "run"
    with train(hosts, "h1,h2", workdir, hold=hold) as launcher:
        wait_for_checkpoint(workdir, 8)
        launcher.signal(signal.SIGTERM)
        launcher.wait_for("sending SIGTERM to worker 0, worker 1")
        hold.end()
        output = launcher.wait(143)
    assert re.search(r"stopped at step \d+: worker \d got a signal to stop; its state is s", output)
    assert max(checkpoints(workdir)) > 8
    hosts.wait_until_empty(GONE_S)
    with train(hosts, "h1,h2", workdir) as launcher:
        launcher.wait(0)
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]


def kill_launcher(hosts: Hosts, launcher: Process) -> None:
    launcher.signal(signal.SIGKILL)


def kill_ssh(hosts: Hosts, launcher: Process) -> None:
    for client in clients(hosts):
        client.kill()


def kill_keepers(hosts: Hosts, launcher: Process) -> None:
    for host in hosts.hosts:
        keeper_of(host).kill()


def kill_sessions(hosts: Hosts, launcher: Process) -> None:
    """Kills the processes of sshd that serve the connections."""
    for host in hosts.hosts:
        session = keeper_of(host).parent()
        assert session is not None and session.name() == "sshd" and session.pid != host.sshd
        session.kill()


def cut_at_hosts(hosts: Hosts, launcher: Process) -> None:
    for host in hosts.hosts:
        hosts.cut(host, "host")


def cut_at_launcher(hosts: Hosts, launcher: Process) -> None:
    for host in hosts.hosts:
        hosts.cut(host, "launcher")


@pytest.mark.parametrize(
    ("harm", "code", "within_s", "said"),
    [
        (kill_launcher, -9, GONE_S, ""),
        (kill_ssh, 138, GONE_S, "ssh was killed by signal 9"),
        (kill_keepers, 138, GONE_S, "its keeper has ended"),
        (kill_sessions, 138, GONE_S, "closed"),
        (cut_at_hosts, 138, CUT_S, "it did not answer for 10 s"),
        (cut_at_launcher, 138, CUT_S, "it did not answer for 10 s"),
    ],
)
def test_nothing_is_left_on_either_side(
    harm: Callable[[Hosts, Process], None],
    code: int,
    within_s: float,
    said: str,
    hosts: Hosts,
) -> None:
    try:
        with hosts.launch("h1:2,h2:2", [], worker(WITH_CHILD + "sleep()")) as launcher:
            wait_until_asleep(launcher, 4)
            assert len(hosts.left()) >= 14, "8 workers and children, keepers, guards, ssh"
            harm(hosts, launcher)
            began_s = time.monotonic()
            for host in hosts.hosts:
                what = f"nothing is left on {host.name}"
                wait_until(lambda host=host: not host.processes(), within_s, what)
            gone_s = time.monotonic() - began_s
            output = launcher.wait(code)
            ended_s = time.monotonic() - began_s
            assert not said or re.search(rf"worker \d was lost with host h\d: .*{said}", output)
    finally:
        for host in hosts.hosts:
            for end in ("host", "launcher"):
                hosts.mend(host, end)
    hosts.wait_until_empty(within_s)
    print(f"\n{harm.__name__}: gone on hosts after {gone_s:.1f} s, launcher: {ended_s:.1f} s")


def test_a_stopped_launcher_is_a_lost_one_to_its_hosts(hosts: Hosts) -> None:
    with hosts.launch("h1,h2", [], worker("sleep()")) as launcher:
        wait_until_asleep(launcher)
        launcher.signal(signal.SIGSTOP)
        began_s = time.monotonic()
        wait_until(lambda: not any(host.processes() for host in hosts.hosts), CUT_S, "all is gone")
        print(f"\nlauncher stopped: gone on hosts after {time.monotonic() - began_s:.1f} s")
        launcher.signal(signal.SIGCONT)
        assert "was lost with host h" in launcher.wait(138)
    hosts.wait_until_empty(GONE_S)


def test_a_short_outage_changes_nothing(hosts: Hosts) -> None:
    with hosts.launch("h1,h2", [], worker("sleep() if index else time.sleep(600)")) as launcher:
        wait_until_asleep(launcher, 1)
        for end in ("host", "launcher"):
            hosts.cut(hosts[1], end)
            time.sleep(2)
            hosts.mend(hosts[1], end)
            time.sleep(5)
        assert len(hosts[1].workers()) == 1
        launcher.signal(signal.SIGTERM)
        assert "lost" not in launcher.wait(143)
    hosts.wait_until_empty(GONE_S)


def test_a_run_goes_on_without_a_lost_host_and_takes_it_in_again(hosts: Hosts) -> None:
    flags = ("--max_restarts=3", "--min_workers=1")
    lost = hosts[1]
    with hosts.launch("h1,h2", flags, worker("sleep()"), limit_s=TRAIN_LIMIT_S) as launcher:
        wait_until_asleep(launcher, 2)
        try:
            hosts.cut(lost, "host")
            launcher.wait_for(r"host h2 can't be reached: .*: going on with 1 of 2 workers\n")
            wait_until_asleep(launcher, 3)
            assert "worker 1 was lost with host h2: it did not answer for 10 s" in launcher.output
            assert list(hosts[0].workers()) == [0]
            assert lost.workers() == {}
        finally:
            hosts.mend(lost, "host")
        hosts[0].workers()[0].kill()
        wait_until_asleep(launcher, 5)
        assert list(lost.workers()) == [1]
        launcher.signal(signal.SIGTERM)
        launcher.wait(143)
    hosts.wait_until_empty(GONE_S)


def test_all_hosts_are_needed_without_min_workers(hosts: Hosts) -> None:
    try:
        hosts.cut(hosts[1], "host")
        flags = ("--max_restarts=1",)
        with hosts.launch("h1,h2", flags, worker("say('hello')"), limit_s=LIMIT_S) as launcher:
            launcher.wait_for(r"host h2 can't be reached: ssh: .*: starting again, restart 1 of 1")
            output = launcher.wait(138)
        assert "hello" not in output
        assert re.search(r"host h2 can't be reached: ssh: .* no restart left", output)
    finally:
        hosts.mend(hosts[1], "host")
    with hosts.launch("h1,h2", flags, worker("say('hello')"), limit_s=LIMIT_S) as launcher:
        assert launcher.wait(0).count("hello\n") == 2


def test_a_signal_ends_the_launcher_while_it_connects(hosts: Hosts) -> None:
    hosts.cut(hosts[1], "host")
    try:
        with hosts.launch("h1,h2", [], worker("sleep()"), limit_s=LIMIT_S) as launcher:
            wait_until(lambda: clients(hosts), LIMIT_S, "it connects")
            time.sleep(1)
            launcher.signal(signal.SIGTERM)
            assert launcher.wait(143) == "[launch] stopped by SIGTERM\n"
    finally:
        hosts.mend(hosts[1], "host")
    hosts.wait_until_empty(GONE_S)


def test_hosts_with_other_recipes_or_packages_are_refused(hosts: Hosts, tmp_path: Path) -> None:
    recipe, other = tmp_path / "mine.py", tmp_path / "other.py"
    recipe.write_text("a = 1\n")
    other.write_text("a = 2\n")
    version = importlib.metadata.version("keras")
    metadata = Path(str(importlib.metadata.distribution("keras").locate_file("")))
    metadata /= f"keras-{version}.dist-info/METADATA"
    (tmp_path / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 3.0.1\n")
    train_command = ["python", "-m", "tfdp.train", "--recipe=mine.py", f"--workdir={tmp_path}/run"]
    changes = [(recipe, other), (metadata, tmp_path / "METADATA")]
    for path, content in changes:
        hosts[1].replace_file(path, content)
    try:
        flags = ("--max_restarts=3",)
        with hosts.launch("h1,h2", flags, train_command, cwd=tmp_path, limit_s=LIMIT_S) as launcher:
            output = launcher.wait(2)
    finally:
        for path, _ in changes:
            hosts[1].restore_file(path)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (recipe, other)]
    assert f"keras is {version} on h1 and 3.0.1 on h2" in output
    assert f"mine.py (sha256) is {digests[0]} on h1 and {digests[1]} on h2" in output
    assert len(output.splitlines()) == 1, "nothing has started"
    assert not (tmp_path / "run").exists()
    hosts.wait_until_empty(GONE_S)


def test_what_a_host_lacks_is_named(hosts: Hosts, tmp_path: Path) -> None:
    """The host has another file system where the launcher has its folder."""
    empty, folder = tmp_path / "empty", tmp_path / "folder"
    for path in (empty, folder / "project"):
        path.mkdir(parents=True)
    (folder / "project" / "run.sh").write_text("#!/bin/sh\nexec sleep 600\n")
    (folder / "project" / "run.sh").chmod(0o755)
    hosts[1].replace_file(folder, empty)
    try:
        for program, said in (
            ("./run.sh", f"host h2 has no folder {folder}/project: "),
            (f"{folder}/project/run.sh", f"host h2 has no program {folder}/project/run.sh: "),
        ):
            cwd = folder / "project" if program.startswith(".") else tmp_path
            with hosts.launch("h1,h2", [], [program], cwd=cwd, limit_s=LIMIT_S) as launcher:
                assert said in launcher.wait(2)
    finally:
        hosts[1].restore_file(folder)
    hosts.wait_until_empty(GONE_S)


def test_five_megabytes_of_each_worker_are_complete_and_in_order(hosts: Hosts) -> None:
    lines = 50_000
    script = f'for i in range({lines}): print(i, "x" * 99, file=[sys.stdout, sys.stderr][i % 2])'
    with hosts.launch("h1:2,h2", [], worker(script), limit_s=LIMIT_S) as launcher:
        output = launcher.wait(0)
    numbers: dict[tuple[str, int], list[int]] = {}
    for line in output.splitlines():
        if not line.startswith("[launch]"):
            match = re.fullmatch(r"\[worker (\d)\] (\d+) x{99}", line)
            assert match is not None, f"torn: {line!r}"
            number = int(match[2])
            numbers.setdefault((match[1], number % 2), []).append(number)
    expected = {(f"{i}", odd): list(range(odd, lines, 2)) for i in range(3) for odd in (0, 1)}
    assert numbers == expected


def test_workers_can_be_stopped_while_nobody_reads_their_output(hosts: Hosts) -> None:
    launcher = subprocess.Popen(
        hosts.command("h1,h2", [], [sys.executable, *worker(PRINTS_FOR_EVER)[1:]]),
        env=clean_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:

        def written() -> list[int]:
            workers = [each for host in hosts.hosts for each in host.workers().values()]
            return [each.io_counters().write_chars for each in workers]

        def blocked() -> bool:
            before = written()
            time.sleep(3)  # longer than beats are apart
            return len(before) == 2 and min(before) > keeper.WINDOW_BYTES and written() == before

        wait_until(blocked, LIMIT_S, "workers can't print any more")
        time.sleep(connection.SILENCE_S)
        assert len(written()) == 2, "hosts are not lost"
        launcher.send_signal(signal.SIGTERM)
        hosts.wait_until_empty(GONE_S)
        output, _ = launcher.communicate(timeout=LIMIT_S)
        assert launcher.returncode == 143
        assert b"[launch] stopped by SIGTERM" in output
    finally:
        launcher.kill()
        launcher.wait()


def test_frozen_workers_are_found_on_hosts_too(hosts: Hosts) -> None:
    flags = ("--max_restarts=1",)
    started = hosts.folder / "frozen"
    script = "sleep() if not os.path.exists(os.environ['STARTED']) else say('again')"
    env = {"STARTED": str(started)}
    with hosts.launch("h1,h2", flags, worker(script), env=env, limit_s=LIMIT_S) as launcher:
        wait_until_asleep(launcher)
        started.touch()
        for host in hosts.hosts:
            for process in host.workers().values():
                process.suspend()
        began_s = time.monotonic()
        launcher.wait_for("starting again")
        assert time.monotonic() - began_s < 30 + GONE_S
        output = launcher.wait(0)
    for index in range(2):
        assert f"worker {index} was frozen for 20 s (stopped by a signal): sending SIG" in output
    assert output.count("again\n") == 2
    hosts.wait_until_empty(GONE_S)


def test_a_login_that_prints_does_not_disturb(hosts: Hosts, tmp_path: Path) -> None:
    """Shells may print at each login, on both streams; here root's own does on h2."""
    shell = tmp_path / "bashrc"
    shell.write_text("echo welcome to this host; echo mind the gap >&2\n")
    rc = Path("~root/.bashrc").expanduser()
    if not rc.exists() or Path(pwd.getpwnam("root").pw_shell).name != "bash":
        pytest.skip("root's shell has no .bashrc here")
    hosts[1].replace_file(rc, shell)
    try:
        assert "welcome" in hosts.call("ssh", "-F", str(hosts.config), "h2", "true")
        with hosts.launch("h1,h2", [], worker("say('hello')"), limit_s=LIMIT_S) as launcher:
            output = launcher.wait(0)
    finally:
        hosts[1].restore_file(rc)
    assert output.count("hello\n") == 2
    assert "welcome" not in output
