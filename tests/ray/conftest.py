"""Tests of examples/ray on a real Ray cluster: ``make ray`` runs them, where Ray is installed."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Ray is large, so it is not among the packages of the other tests.
collect_ignore = [] if importlib.util.find_spec("ray") else ["test_submit.py", "test_train_loop.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: three nodes with one CPU each, besides the head."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-")  # a short path: it is part of names of sockets
    Path(folder, "ray").mkdir()
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))  # otherwise Ray makes one in the home directory
    variables = {"RAY_TMPDIR": folder, "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ |= {**variables, "RAY_USAGE_STATS_ENABLED": "0"}
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1, **small)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
