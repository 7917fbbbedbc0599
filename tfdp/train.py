"""One worker of a run: ``python -m tfdp.train --recipe=… --workdir=…``.

Started on every node, with TF_CONFIG saying who the nodes are; without TF_CONFIG it trains on this
machine's devices. Exit codes are those of ``cluster.exits``.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from absl import flags

from cluster import exits, spares
from cluster.spec import ClusterError, from_environment
from tfdp import command, files, log
from tfdp.errors import BadInput
from tfdp.peers import end_process
from tfdp.publishing import options
from tfdp.settings import Settings
from tfdp.signals import Signals

_FLAGS = flags.FlagValues()


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
    string("gradient_dtype", "float32", "What gradients are sent as: bfloat16 is half the bytes.")
    integer("bytes_per_pack", None, "The most that one all-reduce of gradients sends.")
    string("auto_shard", "auto", "How TensorFlow shards a tf.data.Dataset: auto, file, data, off.")
    flags.DEFINE_float(
        "startup_timeout_s", 600.0, "Seconds to wait for the other workers.", flag_values=_FLAGS
    )
    flags.DEFINE_boolean(
        "profile", False, "Profile some steps, and say what bounds the run.", flag_values=_FLAGS
    )
    flags.DEFINE_boolean("tensorboard", True, "Write WORKDIR/tensorboard.", flag_values=_FLAGS)
    options.define(_FLAGS)


_define()


def main(argv: list[str]) -> int:
    """Runs one worker and returns its exit code."""
    if any(each in ("--help", "-help", "--helpfull") for each in argv):
        print(f"{__doc__}\n{_FLAGS.get_help()}")
        return exits.FINISHED
    signals = Signals()  # before anything, NumPy included, starts a thread
    if not spares.wait(_import):
        return exits.FINISHED
    try:
        settings = _settings(argv)
        cluster = from_environment()
        is_chief = cluster is None or cluster.is_chief
        lock = files.own(settings.workdir) if is_chief else None
        index = 0 if cluster is None else cluster.index
        log_path = log.open_log(settings.workdir / "logs", index)
    except (BadInput, ClusterError) as error:
        return command.failed(exits.BAD_INPUT, error)
    except OSError as error:
        return command.failed(
            exits.BAD_INPUT, BadInput(f"--workdir={settings.workdir}: {error.strerror}")
        )

    def work() -> None:
        from tfdp import recipe  # from here on TensorFlow is imported, and starts threads
        from tfdp.training import train

        gc.freeze()  # what was imported stays: collections need not go through it
        train(settings, recipe.load(settings.recipe, settings.hparam), signals)

    try:
        return command.end(work, signals, log_path)
    finally:
        if lock is not None:
            os.close(lock)


def _import() -> None:
    """What takes long of that which ``main`` imports in the end; nothing of it is used yet."""
    with log.kept():
        from tfdp import recipe, training  # noqa: F401


def _settings(argv: list[str]) -> Settings:
    command.parse(_FLAGS, argv)
    values = {name: _FLAGS[name].value for name in Settings.__dataclass_fields__}
    export_dir = values["export_dir"]
    return Settings(
        **values
        | options.given(_FLAGS)
        | {
            "workdir": Path(values["workdir"]),
            "export_dir": None if export_dir is None else Path(export_dir),
            "hparam": tuple(values["hparam"]),
        }
    )


if __name__ == "__main__":
    end_process(main(sys.argv))
