"""``tfdp.connect``: joining the cluster that TF_CONFIG or an engine describes."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from cluster.meeting import elastic, ports, rendezvous
from cluster.meeting.channel import Channel
from cluster.meeting.group import Choice, Group
from cluster.meeting.guard import Guard
from cluster.meeting.liveness import Liveness
from cluster.meeting.rendezvous import Meeting
from cluster.resolvers import gpus
from cluster.resolvers.place import PlaceError
from cluster.spec import Cluster, host_and_port
from tfdp import log
from tfdp.choices import Communication
from tfdp.errors import BadInput, Finished, PeerMissing
from tfdp.group import look_for, set_cluster
from tfdp.log import say
from tfdp.workers import proxy
from tfdp.workers.collectives import workers_of
from tfdp.workers.faults import FAULTS
from tfdp.workers.random_state import share_random_state


def connect(
    communication: Communication = "auto",
    startup_timeout_s: float = 600.0,
    cluster: Choice = "auto",
) -> tf.distribute.Strategy:
    """Joins the other workers; if this process trains by itself, uses this machine's devices.

    The other workers are found by TF_CONFIG, or by the variables of the engine that started this
    process: Slurm, Kubernetes, MPI, torchrun and others (docs/clusters). An engine names the chief,
    the number of workers and the rank of this one; addresses are exchanged, and TF_CONFIG is set.

    Call it before any other use of TensorFlow in the process. From then on the workers watch each
    other. If one is lost, the process ends with 138; if one ends by an exception, the process ends
    with 1. This holds wherever the main thread is (docs/faults.md).

    All workers get the chief's random state (``random``, ``np.random``, TensorFlow's global seed),
    unless theirs are equal already. So what they draw for their data is alike.

    Args:
        communication: implementation of the all-reduce: ``"nccl"`` (GPUs), ``"ring"`` (any device)
            or ``"auto"`` (TensorFlow's choice).
        startup_timeout_s: seconds to wait for the other workers. TensorFlow itself waits without
            limit.
        cluster: where to find the other workers: ``"tf_config"``, one kind of engine
            (``"slurm"``, ``"kubernetes"``, ``"env"``), ``"none"``, or the first that is there.

    Returns:
        A MultiWorkerMirroredStrategy if there are other workers. Otherwise a MirroredStrategy if
        the machine has several GPUs, and TensorFlow's default strategy if not.

    Raises:
        BadInput: if TF_CONFIG or an engine's variables are wrong, ``"nccl"`` is asked for on a
            machine without a GPU, or TensorFlow was used before.
        PeerMissing: if a worker did not come in time; the message names it.
    """
    return join(communication, startup_timeout_s, look_for(cluster)).strategy


@dataclasses.dataclass(frozen=True)
class Joined:
    """This process's connection to the other workers.

    Args:
        strategy: of all workers, or of this process alone.
        meeting: who has met; None if there are no other workers.
    """

    strategy: tf.distribute.Strategy
    meeting: Meeting | None = None


def join(
    communication: Communication,
    startup_timeout_s: float,
    group: Group | None,
    options: elastic.Options | None = None,
) -> Joined:
    """Joins the other workers, as ``connect``.

    Args:
        communication: as in ``connect``.
        startup_timeout_s: as in ``connect``.
        group: the workers, from ``look_for``.
        options: when a part of them may train without the others; None if all are needed.
    """
    own_gpus = _own_gpus(group)
    if communication == "nccl" and not own_gpus:
        raise BadInput(
            "communication is nccl, which needs GPUs, and TensorFlow sees none on this machine: "
            "use ring or auto, or install the CUDA libraries (pip install 'tfdp[train,gpu]')"
        )
    if group is None:
        return Joined(_local_strategy(own_gpus))
    if os.getpid() == 1:
        say(
            "this is the first process of its container, which can't end itself if another worker "
            "is lost while TensorFlow starts: set shareProcessNamespace: true in the pod's spec, "
            "or start the container with --init"
        )
    meeting = _meet(group, startup_timeout_s, options)
    cluster = meeting.cluster
    set_cluster(cluster)
    if cluster.size == 1:
        return Joined(_local_strategy(own_gpus), meeting)
    implementation = tf.distribute.experimental.CommunicationImplementation[communication.upper()]
    all_reduce = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    liveness = Liveness(cluster, meeting.channels)
    hosts = [host_and_port(address)[0] for address in cluster.addresses]
    os.environ[proxy.VARIABLE] = proxy.direct_hosts(os.environ, hosts)
    with _guard(cluster, meeting.channels, startup_timeout_s):
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=all_reduce)
        except RuntimeError as error:
            if "program startup" not in str(error):
                raise
            raise BadInput(
                "TensorFlow was used before the workers were connected: make tensors, datasets "
                "and models in functions that run after tfdp.connect(), not at import"
            ) from error
        except tf.errors.UnknownError as error:
            if "Could not start gRPC server" not in str(error):
                raise
            raise PeerMissing(
                f"another process has taken the port of {cluster.address} while TensorFlow "
                "started: start all workers again"
            ) from None
    FAULTS.join(liveness, cluster.name)
    workers = workers_of(strategy)
    try:
        share_random_state(workers)
        workers.settle()
    except tf.errors.OpError as error:
        # To start, TensorFlow connects each worker to the chief only; from now on, to all others.
        others = (i for i in range(cluster.size) if i != cluster.index)
        silent = next((i for i in others if not ports.accepts(cluster.addresses[i])), None)
        if silent is None:
            raise
        raise PeerMissing(
            f"{cluster.describe(silent)} can't be reached from {cluster.describe(cluster.index)}: "
            "it has ended, or a firewall stands between the workers' ports"
        ) from error
    liveness.start_heartbeats()  # every worker has started TensorFlow by now
    return Joined(strategy, meeting)


def _own_gpus(group: Group | None) -> list[tf.config.PhysicalDevice]:
    """Returns the GPUs that this process uses, and hides those that others on its node use."""
    visible = tf.config.list_physical_devices("GPU")
    place = None if group is None else group.place
    try:
        own = gpus.own_gpus(place, len(visible), os.environ.get("CUDA_VISIBLE_DEVICES"))
    except PlaceError as error:
        raise BadInput(str(error)) from None
    if len(own) < len(visible):
        tf.config.set_visible_devices([visible[index] for index in own], "GPU")
    return [visible[index] for index in own]


def _local_strategy(own_gpus: Sequence[tf.config.PhysicalDevice]) -> tf.distribute.Strategy:
    has_several = len(own_gpus) > 1
    return tf.distribute.MirroredStrategy() if has_several else tf.distribute.get_strategy()


def _meet(group: Group, timeout_s: float, options: elastic.Options | None) -> Meeting:
    """Meets the other workers, or those that are there if ``options`` allow that."""
    if group.place is not None:
        (say if group.is_chief else logging.getLogger("tfdp").info)(str(group.place))
    try:
        if options is None:
            return rendezvous.meet(group, timeout_s, report=say)
        return elastic.meet(group, options, timeout_s, report=say)
    except rendezvous.MissingWorkers as error:
        raise PeerMissing(str(error)) from None
    except elastic.RunFinished:
        raise Finished("other workers have finished this run: nothing to do") from None
    except elastic.FolderError as error:
        raise BadInput(
            f"{error.filename}: {error.strerror}: --min_workers needs a --workdir that this worker "
            "can write in"
        ) from None
    except OSError as error:
        where = "a port" if group.addresses is None else group.addresses[group.rank]
        if error.errno == errno.EADDRINUSE:  # an earlier process of this worker may be leaving
            raise PeerMissing(f"the port of {where} is in use: {error}") from None
        raise BadInput(f"can't listen at {where}, as {group.origin} says: {error}") from None


def _guard(cluster: Cluster, channels: Mapping[int, Channel], timeout_s: float) -> Guard:
    """Returns what ends this process if a worker is lost, or freezes, while TensorFlow starts.

    TensorFlow holds Python's lock while it waits for the other workers, without limit.
    """
    others = [index for index in range(cluster.size) if index != cluster.index]
    terminal, log_file = log.descriptors()
    return Guard(
        timeout_s,
        f"TensorFlow did not start within {timeout_s:g} s: {{silent}}. See whether a worker is "
        "frozen, whether a firewall or a proxy (http_proxy) stands between the workers' ports, or "
        "raise --startup_timeout_s",
        prefix=log.PREFIX,
        terminal=terminal,
        log=log_file,
        connections={channels[index].fileno(): cluster.describe(index) for index in channels},
        addresses={cluster.describe(i): host_and_port(cluster.addresses[i]) for i in others},
        lost_while="TensorFlow started",
    )
