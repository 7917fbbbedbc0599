"""What has to be the same on all hosts."""

from __future__ import annotations

from collections.abc import Mapping


def differences(facts: Mapping[str, Mapping[str, str]]) -> str:
    """Says in what hosts differ, as in ``policy.Exit``.

    Args:
        facts: for each host's name, values by their names.

    Returns:
        Each name with its values and hosts; empty if the hosts do not differ.
    """
    found = []
    for name in dict.fromkeys(name for values in facts.values() for name in values):
        hosts_of: dict[str, list[str]] = {}
        for host, values in facts.items():
            hosts_of.setdefault(values.get(name, "unknown"), []).append(host)
        if len(hosts_of) > 1:
            listed = (f"{value} on {', '.join(hosts)}" for value, hosts in hosts_of.items())
            found.append(f"{name} is {' and '.join(listed)}")
    if not found:
        return ""
    return f"differ: {'; '.join(found)}; use the same packages and files on all of them"
