"""Errors of all packages arrive as they were: from workers, pools and queues of tasks."""

from __future__ import annotations

import copy
import importlib
import inspect
import multiprocessing
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import grpc
import pytest

import cluster.hosts.hostlist
import cluster.meeting.channel
import cluster.meeting.elastic
import cluster.meeting.rendezvous
import cluster.policy
import cluster.resolvers.place
import cluster.resolvers.variables
import cluster.spec
import serving.rollout.errors
import serving.server.errors
import tfdp.errors
import tfdp.search.child
import tfdp.search.space
from serving.client import errors as client_errors
from tests.running import free_port
from tests.serving.callers import call_nobody
from tests.test_rules import COMMANDS, MODULES

CALL = ("host:8500", "digits", "Predict", grpc.StatusCode.UNAVAILABLE, "refused", "http://p (x)")
TEXT = ("wrong: give another one",)

# A sample of each class: what its constructor takes.
SAMPLES: dict[type[Exception], tuple[Any, ...]] = {
    tfdp.errors.TrainingError: TEXT,
    tfdp.errors.BadInput: TEXT,
    tfdp.errors.WorkdirInUse: TEXT,
    tfdp.errors.Replaced: TEXT,
    tfdp.errors.Superseded: TEXT,
    tfdp.errors.Finished: TEXT,
    tfdp.errors.Diverged: TEXT,
    tfdp.errors.Refused: TEXT,
    tfdp.errors.PeerMissing: TEXT,
    tfdp.errors.PeerFailed: TEXT,
    tfdp.errors.Stopped: (7, "worker 1"),
    tfdp.errors.Paused: (7,),
    tfdp.errors.Regrouping: (7, ["worker 1", "worker 2"]),
    tfdp.search.child.SearchStopped: (signal.SIGTERM,),
    tfdp.search.space._Refused: TEXT,
    cluster.spec.ClusterError: TEXT,
    cluster.meeting.elastic.RunFinished: TEXT,
    cluster.meeting.elastic.FolderError: (13, "no permission", "/folder"),
    cluster.meeting.channel.Closed: TEXT,
    cluster.meeting.rendezvous.MissingWorkers: TEXT,
    cluster.meeting.rendezvous.Refused: TEXT,
    cluster.resolvers.place.PlaceError: TEXT,
    cluster.resolvers.variables.ChiefUnknown: TEXT,
    cluster.hosts.hostlist.HostListError: TEXT,
    cluster.policy.CantStart: ([cluster.policy.Exit("worker 1", -9, "is gone")],),
    serving.rollout.errors.RolloutError: TEXT,
    serving.rollout.errors.Refused: TEXT,
    serving.rollout.errors.Failed: TEXT,
    serving.server.errors._Pickled: TEXT,
    serving.server.errors.StatusError: (grpc.StatusCode.NOT_FOUND, "not here"),
    serving.server.errors.ServableNotFound: ("digits", 3),
    client_errors.ServingError: TEXT,
    client_errors.InvalidInput: TEXT,
    client_errors.InvalidAnswer: TEXT,
    client_errors.NotReady: TEXT,
    **dict.fromkeys(
        (
            client_errors.CallFailed,
            client_errors.InvalidRequest,
            client_errors.NotFound,
            client_errors.DeadlineExceeded,
            client_errors.Unavailable,
            client_errors.ResourceExhausted,
            client_errors.PermissionDenied,
            client_errors.Unimplemented,
            client_errors.Cancelled,
            client_errors.ServerError,
        ),
        CALL,
    ),
}


def exceptions() -> Iterator[type[Exception]]:
    """The classes of all modules but commands, with those inside of functions left out."""
    for name in MODULES.keys() - COMMANDS.keys():  # tfdp.export, imported, would hide the function
        if name.endswith("__main__"):
            continue
        for _, value in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if issubclass(value, BaseException) and value.__module__ == name:
                yield value


def test_every_exception_has_a_sample() -> None:
    assert set(exceptions()) == SAMPLES.keys()


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_an_exception_arrives_as_itself(kind: type[Exception]) -> None:
    error = kind(*SAMPLES[kind])
    copies = [pickle.loads(pickle.dumps(error, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    for arrived in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert_same(arrived, error)


def assert_same(arrived: BaseException, error: BaseException) -> None:
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.args) == (str(error), error.args)
    assert vars(arrived) == vars(error)


def test_a_pool_of_processes_raises_what_its_call_raised() -> None:
    target = f"127.0.0.1:{free_port()}"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        with pytest.raises(client_errors.Unavailable, match="refused") as caught:
            pool.submit(call_nobody, target).result(timeout=60)
        assert (caught.value.target, caught.value.code) == (target, grpc.StatusCode.UNAVAILABLE)
        assert pool.submit(abs, -1).result(timeout=60) == 1  # the pool lives
