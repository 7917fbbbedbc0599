"""Keeps an HTTP proxy out of the way between workers.

Where ``http_proxy``, ``https_proxy`` or ``grpc_proxy`` is set, as on most companies' nodes,
TensorFlow's gRPC would ask the proxy for its peers, and the workers would never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

VARIABLE = "no_grpc_proxy"


def direct_hosts(environ: Mapping[str, str], hosts: Iterable[str]) -> str:
    """Returns the value of ``no_grpc_proxy`` with which gRPC connects to ``hosts`` directly.

    gRPC reads ``no_grpc_proxy``, and ``no_proxy`` only where that is not set; so one of them comes
    first in the result. All other programs and libraries read ``no_proxy``, which stays as it is.

    Args:
        environ: the environment variables.
        hosts: names and IP addresses, the latter without brackets.
    """
    listed = environ.get(VARIABLE, environ.get("no_proxy", "")).split(",")
    return ",".join(dict.fromkeys([*(each.strip() for each in listed if each.strip()), *hosts]))
