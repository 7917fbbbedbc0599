"""One worker of a run: ``python -m tfdp.train --recipe=… --workdir=…``.

Started on every node, with TF_CONFIG saying who the nodes are; without TF_CONFIG it trains on this
machine's devices. Exit codes are those of ``cluster.exits``.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from absl import flags

from cluster import exits
from cluster.spec import ClusterError, from_environment
from tfdp import files, log
from tfdp.errors import BadInput, PeerFailed, PeerMissing, Stopped, TrainingError
from tfdp.log import say
from tfdp.peers import PEERS, end_process
from tfdp.settings import Settings
from tfdp.signals import Signals

_FLAGS = flags.FlagValues()
# What ended the run, until the process is gone: its frames hold iterators over data, and to let one
# go waits for the ops that read, which may be stuck for good.
_KEPT: list[Exception] = []


def _define() -> None:
    def integer(name: str, default: int | None, text: str) -> None:
        flags.DEFINE_integer(name, default, text, flag_values=_FLAGS)

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=_FLAGS)

    string("recipe", "", "Python file or dotted module with build_model and train_data.")
    string("workdir", "", "Folder for checkpoints, logs, curves and summary.json.")
    integer("steps", None, "Updates to have done at the end; or give --epochs.")
    integer("epochs", None, "Passes over the data to have done at the end; 10 by default.")
    integer("global_batch_size", 64, "Examples per update, over all replicas.")
    integer("seed", 0, "Makes initial weights, the order of examples and random layers.")
    flags.DEFINE_multi_string(
        "hparam", [], "NAME=VALUE for a field of the recipe's HParams.", flag_values=_FLAGS
    )
    integer("checkpoint_every_steps", 1000, "Updates from one checkpoint to the next.")
    integer("keep_checkpoints", 3, "How many of the newest checkpoints stay.")
    string("keep_best", "", "NAME:min or NAME:max of an evaluation: that checkpoint stays, too.")
    flags.DEFINE_boolean(
        "adopt_checkpoints",
        False,
        "Go on from checkpoints of another recipe, seed or global batch size.",
        flag_values=_FLAGS,
    )
    integer("eval_every_steps", 0, "Updates from one evaluation to the next; 0: at the end only.")
    string("export_dir", None, "Where versions are published: WORKDIR/model; none: nowhere.")
    string("communication", "auto", "How workers all-reduce: auto, ring or nccl.")
    integer("accumulate_steps", 1, "Pieces in which a replica computes its part of a batch.")
    string("mixed_precision", "none", "Compute in bfloat16 or float16, keep float32 weights.")
    string("auto_shard", "auto", "How TensorFlow shards a tf.data.Dataset: auto, file, data, off.")
    flags.DEFINE_float(
        "startup_timeout_s", 600.0, "Seconds to wait for the other workers.", flag_values=_FLAGS
    )
    flags.DEFINE_boolean("tensorboard", True, "Write WORKDIR/tensorboard.", flag_values=_FLAGS)


_define()


def main(argv: list[str]) -> int:
    """Runs one worker and returns its exit code."""
    if any(each in ("--help", "-help", "--helpfull") for each in argv):
        print(f"{__doc__}\n{_FLAGS.get_help()}")
        return exits.FINISHED
    signals = Signals()  # before anything, NumPy included, starts a thread
    try:
        settings = _settings(argv)
        cluster = from_environment()
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if backend != "tensorflow":
            raise BadInput(f"KERAS_BACKEND is {backend}: it has to be tensorflow, or not set")
        is_chief = cluster is None or cluster.is_chief
        lock = files.own(settings.workdir) if is_chief else None
        index = 0 if cluster is None else cluster.index
        log_path = log.open_log(settings.workdir / "logs", index)
    except (BadInput, ClusterError) as error:
        return _failed(exits.BAD_INPUT, error)
    except OSError as error:
        return _failed(exits.BAD_INPUT, BadInput(f"--workdir={settings.workdir}: {error.strerror}"))
    try:
        return _train(settings, signals, log_path)
    finally:
        PEERS.leave()
        if lock is not None:
            os.close(lock)


def _train(settings: Settings, signals: Signals, log_path: Path) -> int:
    from tfdp import recipe  # from here on TensorFlow is imported, and starts threads
    from tfdp.training import train

    PEERS.end_with_run()
    try:
        train(settings, recipe.load(settings.recipe, settings.hparam), signals)
    except Exception as error:
        _KEPT.append(error)
        return _code_of(error, signals, log_path)
    return exits.FINISHED


def _code_of(error: Exception, signals: Signals, log_path: Path) -> int:
    """Tells people, and the other workers, what ended the run; returns the exit code."""
    if isinstance(error, Stopped):
        say(f"{error}; its state is saved, and the same command goes on from there")
        return exits.TRY_AGAIN if signals.received is None else 128 + signals.received
    if isinstance(error, PeerFailed):
        return _failed(exits.FAILED, error)
    if isinstance(error, PeerMissing):
        return _failed(exits.TRY_AGAIN, error)
    code = _lost_another(error, log_path)
    if code is not None:
        return code
    PEERS.fail(error)
    if isinstance(error, TrainingError):
        return _failed(exits.BAD_INPUT if isinstance(error, BadInput) else exits.FAILED, error)
    logging.getLogger("tfdp").exception("failed", exc_info=error)  # a bug, in the recipe or here
    print(_for_people(error), file=sys.stderr)
    say(f"ended by the error above; all of it is in {log_path}")
    return exits.FAILED


def _lost_another(error: Exception, log_path: Path) -> int | None:
    """The exit code if a call into TensorFlow failed because of another worker; None if not."""
    import tensorflow as tf

    is_lost = isinstance(
        error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    )
    # Other types may be about another worker, or about this one.
    if not is_lost and "Collective ops is aborted" not in str(error):
        return None
    end = PEERS.news()
    if end is None and not is_lost:
        return None
    logging.getLogger("tfdp").exception("a call into TensorFlow failed", exc_info=error)
    if end is not None:
        say(end.reason)
        return end.code
    say(f"another worker was lost: {str(error).splitlines()[0][:200]} (all of it: {log_path})")
    return exits.TRY_AGAIN


def _settings(argv: list[str]) -> Settings:
    try:
        rest = _FLAGS(argv)[1:]
    except flags.Error as error:
        raise BadInput(f"{error} (--help lists the flags)") from None
    if rest:
        raise BadInput(f"{rest[0]!r} is not a flag: flags begin with -- (--help lists them)")
    values = {name: _FLAGS[name].value for name in Settings.__dataclass_fields__}
    export_dir = values["export_dir"]
    return Settings(
        **values
        | {
            "workdir": Path(values["workdir"]),
            "export_dir": None if export_dir is None else Path(export_dir),
            "hparam": tuple(values["hparam"]),
        }
    )


def _for_people(error: Exception) -> str:
    """A traceback without the frames of libraries, which are in the log."""
    short = traceback.TracebackException.from_exception(error)
    own = [
        frame
        for frame in short.stack
        if "site-packages" not in frame.filename and "__autograph" not in frame.filename
    ]
    short.stack = traceback.StackSummary.from_list(own)
    return "".join(short.format(chain=False)).rstrip()


def _failed(code: int, error: BaseException) -> int:
    say(f"{error}" if isinstance(error, (TrainingError, ClusterError)) else f"{error!r}")
    return code


if __name__ == "__main__":
    end_process(main(sys.argv))
