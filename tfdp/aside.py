"""What the commands beside training share: flags, what they have to be, a worker's course.

They look at a run from aside: they read its checkpoints and write nothing of its own.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from absl import flags

from cluster import exits
from cluster.spec import ClusterError, from_environment
from tfdp import command, log
from tfdp.errors import BadInput
from tfdp.signals import Signals
from tfdp.words import AutoShard, Communication


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The flags that these commands share, valid.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    recipe: str
    workdir: Path | None
    step: int | None
    hparam: tuple[str, ...]
    global_batch_size: int
    communication: Communication
    auto_shard: AutoShard
    startup_timeout_s: float

    def __post_init__(self) -> None:
        if not self.recipe:
            raise BadInput("--recipe is missing: name a Python file or a dotted module")
        if self.global_batch_size < 1:
            raise BadInput(
                f"--global_batch_size is {self.global_batch_size}: it has to be 1 or more"
            )
        if not self.startup_timeout_s > 0:
            raise BadInput(
                f"--startup_timeout_s is {self.startup_timeout_s}: it has to be positive"
            )
        for name, choices in (
            ("communication", get_args(Communication)),
            ("auto_shard", get_args(AutoShard)),
        ):
            if getattr(self, name) not in choices:
                raise BadInput(
                    f"--{name} is {getattr(self, name)}: it has to be one of {', '.join(choices)}"
                )


def define(values: flags.FlagValues) -> None:
    """Defines the flags of Request."""

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    string("recipe", "", "Python file or dotted module with build_model and the data.")
    string("workdir", None, "Folder of a run, whose checkpoint is taken.")
    flags.DEFINE_integer(
        "step", None, "Of the checkpoint; the newest by default.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "hparam", [], "NAME=VALUE for a field of the recipe's HParams.", flag_values=values
    )
    flags.DEFINE_integer(
        "global_batch_size", 64, "Examples a step, over all replicas.", flag_values=values
    )
    string("communication", "auto", "How workers all-reduce: auto, ring or nccl.")
    string("auto_shard", "auto", "How TensorFlow shards a tf.data.Dataset: auto, file, data, off.")
    flags.DEFINE_float(
        "startup_timeout_s", 600.0, "Seconds to wait for the other workers.", flag_values=values
    )


def given(values: flags.FlagValues, kind: type[Request], *paths: str) -> dict[str, Any]:
    """What the flags that are fields of ``kind`` were given; those in ``paths`` as paths."""
    found = {name: values[name].value for name in kind.__dataclass_fields__ if name in list(values)}
    for name in ("workdir", *paths):
        found[name] = None if found[name] is None else Path(found[name])
    return found | {"hparam": tuple(found["hparam"])}


def run(
    values: flags.FlagValues, argv: list[str], about: str, name: str, work: Callable[[], None]
) -> int:
    """Runs one worker and returns its exit code.

    Args:
        values: the flags.
        argv: the command line.
        about: what ``--help`` says first.
        name: of the command, for its log.
        work: imports TensorFlow, and does all.
    """
    if any(each in ("--help", "-help", "--helpfull") for each in argv):
        print(f"{about}\n{values.get_help()}")
        return exits.FINISHED
    signals = Signals()  # before anything, NumPy included, starts a thread
    try:
        command.parse(values, argv)
        cluster = from_environment()
    except (BadInput, ClusterError) as error:
        return command.failed(exits.BAD_INPUT, error)
    logs = Path(tempfile.mkdtemp(prefix=f"tfdp-{name}-"))
    log_path = log.open_log(logs, 0 if cluster is None else cluster.index)
    code = command.end(work, signals, log_path)
    if code in (exits.FINISHED, exits.BAD_INPUT):  # else the log has more to say
        shutil.rmtree(logs, ignore_errors=True)
    return code
