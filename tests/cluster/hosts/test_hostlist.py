from __future__ import annotations

import pytest

from cluster.hosts import hostlist
from cluster.hosts.hostlist import Host, HostListError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("h1", [Host("h1", 1)]),
        ("h1:2,h2:3", [Host("h1", 2), Host("h2", 3)]),
        ("h1, h2:4", [Host("h1", 1), Host("h2", 4)]),
        ("me@node-7.example.org:8", [Host("me@node-7.example.org", 8)]),
        ("10.0.0.1:2", [Host("10.0.0.1", 2)]),
        ("[fe80::7]:2,root@[::1]", [Host("fe80::7", 2), Host("root@::1", 1)]),
    ],
)
def test_hosts_of_a_flag(text: str, hosts: list[Host]) -> None:
    assert hostlist.from_flag(text) == hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--hosts= has ''"),
        ("h1:2,", "--hosts=h1:2, has ''"),
        ("h1:two", "has 'h1:two': write each host as NAME or NAME:WORKERS"),
        ("h1:0", "has 0 workers for h1"),
        ("fe80::7:2", "an IPv6 address in brackets"),
        ("-oProxyCommand=touch", "has '-oProxyCommand=touch'"),
        ("me@-oProxyCommand:1", "has 'me@-oProxyCommand:1'"),
        ("h1;reboot", "has 'h1;reboot'"),
        ("h1 h2", "with commas between them"),
        ("h1:2,h2,h1:1", "has h1 twice"),
        ("h1:²", "has 'h1:²'"),
    ],
)
def test_a_wrong_flag_is_named(text: str, message: str) -> None:
    with pytest.raises(HostListError) as error:
        hostlist.from_flag(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_hosts_of_a_file() -> None:
    text = """
# our machines
h1 slots=2
h2   slots = 4   # the big one
\tme@h3.example.org
[fe80::7] slots=1
"""
    assert hostlist.from_file("hosts", text) == [
        Host("h1", 2),
        Host("h2", 4),
        Host("me@h3.example.org", 1),
        Host("fe80::7", 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--hostfile=hosts has no host"),
        ("# h1\n\n", "--hostfile=hosts has no host"),
        ("h1 slots=2\nh2 slot=2", "has 'h2 slot=2' in line 2: write each line as NAME or NAME slo"),
        ("h1:2", "has 'h1:2' in line 1"),
        ("h1 slots=2 max_slots=4", "in line 1"),
        ("h1 slots=0", "has 0 workers for h1"),
        ("h1\nh2\nh1", "has h1 twice"),
        ("\n".join(f"h{i}" for i in range(301)), "has 301 hosts: a launcher serves up to 300"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str) -> None:
    with pytest.raises(HostListError) as error:
        hostlist.from_file("hosts", text)
    assert message in str(error.value)
