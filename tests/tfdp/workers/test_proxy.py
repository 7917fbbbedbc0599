"""The variable with which gRPC skips a proxy."""

from __future__ import annotations

import pytest

from tfdp.workers.proxy import direct_hosts

HOSTS = ["10.0.0.1", "::1", "node-2"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "10.0.0.1,::1,node-2"),
        ({"no_proxy": "localhost, .example.org"}, "localhost,.example.org,10.0.0.1,::1,node-2"),
        # gRPC does not look at no_proxy if no_grpc_proxy is set, even to nothing.
        ({"no_proxy": "localhost", "no_grpc_proxy": "a"}, "a,10.0.0.1,::1,node-2"),
        ({"no_proxy": "localhost", "no_grpc_proxy": ""}, "10.0.0.1,::1,node-2"),
        ({"no_grpc_proxy": "node-2,,10.0.0.0/8"}, "node-2,10.0.0.0/8,10.0.0.1,::1"),
    ],
)
def test_workers_come_after_the_hosts_of_the_user(environ: dict[str, str], expected: str) -> None:
    assert direct_hosts(environ, HOSTS) == expected
    assert direct_hosts({"no_grpc_proxy": expected}, HOSTS) == expected, "a second time"
