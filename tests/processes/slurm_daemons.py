"""The inside of ``slurm_cluster.Cluster``: makes the network and starts the daemons.

Runs as the first process of namespaces for processes, mounts, the network and the hostname. These
are the controller's; each node has a network and a hostname on top.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

CONTROLLER = "tfdps-ctl"
SUBNET = "10.213.30"
STATE = Path("/run/slurm")  # on a file system of the namespace
CONF = STATE / "slurm.conf"
MUNGE_SOCKET = STATE / "munge.socket"
CPUS = 4  # of each node; tasks are not bound to them
KILL_WAIT_S = 5
SLURMD_TIMEOUT_S = 20

CONFIGURATION = f"""
ClusterName=tfdps
SlurmctldHost={CONTROLLER}({SUBNET}.100)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its old credentials have expired, two minutes by default.
AuthInfo=socket={MUNGE_SOCKET},cred_expire=5
StateSaveLocation={STATE}/state
SlurmdSpoolDir={STATE}/spool/%n
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmdPidFile={STATE}/slurmd-%n.pid
SlurmctldLogFile={STATE}/log/slurmctld.log
SlurmdLogFile={STATE}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=2,requeue_delay=1
ReturnToService=2
JobRequeue=1
KillWait={KILL_WAIT_S}
SlurmdTimeout={SLURMD_TIMEOUT_S}
MinJobAge=600
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 State=UP
"""


def node_names(nodes: int) -> list[str]:
    return [f"n{number}" for number in range(1, nodes + 1)]


def on(host: str, *command: str) -> list[str]:
    """The command line that runs a program on a host."""
    set_name = 'hostname "$0" && exec "$@"'
    enter = [] if host == CONTROLLER else ["nsenter", f"--net=/run/netns/{host}"]
    return [*enter, "unshare", "--uts", "sh", "-c", set_name, host, *command]


def slurmd(node: str) -> list[str]:
    """The command line that runs the daemon of a node."""
    return on(node, "slurmd", "-D", "-N", node)


def main(nodes: int) -> None:
    _run("mount", "-t", "tmpfs", "none", "/run")
    for folder in ("state", "spool", "log"):
        (STATE / folder).mkdir(parents=True)
    _write_files(nodes)
    _run("mount", "--bind", str(STATE / "hosts"), "/etc/hosts")
    _make_network(nodes)
    os.environ["SLURM_CONF"] = str(CONF)
    munge_files = ("key-file", "seed-file", "pid-file", "log-file")
    munge_flags = [f"--{name}={STATE}/munge.{name}" for name in munge_files]
    _start("munged", "--foreground", "--force", f"--socket={MUNGE_SOCKET}", *munge_flags)
    while not MUNGE_SOCKET.exists():
        time.sleep(0.01)
    _start(*on(CONTROLLER, "slurmctld", "-D", "-i", "-c"))
    for node in node_names(nodes):
        _start(*slurmd(node))
    print("daemons have started", flush=True)
    while True:  # as the first process, it is the parent of all that lose theirs
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(1)


def _write_files(nodes: int) -> None:
    hosts = {f"{SUBNET}.{number}": node for number, node in enumerate(node_names(nodes), 1)}
    hosts |= {"127.0.0.1": "localhost", f"{SUBNET}.100": CONTROLLER}
    (STATE / "hosts").write_text("".join(f"{ip} {name}\n" for ip, name in hosts.items()))
    node_line = f"NodeName=n[1-{nodes}] NodeAddr={SUBNET}.[1-{nodes}] CPUs={CPUS} RealMemory=4000\n"
    CONF.write_text(CONFIGURATION + node_line)
    key = STATE / "munge.key-file"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))


def _make_network(nodes: int) -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "bridge", "type", "bridge")
    _run("ip", "addr", "add", f"{SUBNET}.100/24", "dev", "bridge")
    _run("ip", "link", "set", "bridge", "up")
    for number, node in enumerate(node_names(nodes), 1):
        _run("ip", "netns", "add", node)
        _run("ip", "-n", node, "link", "set", "lo", "up")
        _run("ip", "link", "add", node, "type", "veth", "peer", "name", "cable", "netns", node)
        _run("ip", "link", "set", node, "master", "bridge", "up")
        _run("ip", "-n", node, "addr", "add", f"{SUBNET}.{number}/24", "dev", "cable")
        _run("ip", "-n", node, "link", "set", "cable", "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20)


def _start(*command: str) -> None:
    subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
