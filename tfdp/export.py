"""Publishes a checkpoint of a run for TF Serving, without training.

``python -m tfdp.export --recipe=… --workdir=…`` evaluates the newest checkpoint of a run, or that
of ``--step``, on the recipe's ``eval_data``, and publishes it as the next version in
``WORKDIR/model`` or ``--export_dir``. A version of that run, step and weights that is there already
is not published again. TF_CONFIG and exit codes are as for ``python -m tfdp.train``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cluster import exits
from cluster.spec import ClusterError, from_environment
from tfdp import command, log
from tfdp.errors import BadInput
from tfdp.peers import end_process
from tfdp.publishing import options
from tfdp.signals import Signals

if TYPE_CHECKING:
    from tfdp.publishing.from_checkpoint import Request

_FLAGS = flags.FlagValues()


def _define() -> None:
    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=_FLAGS)

    string("recipe", "", "Python file or dotted module with build_model and train_data.")
    string("workdir", None, "Folder of a run; its checkpoint is published.")
    flags.DEFINE_integer(
        "step", None, "Of the checkpoint; the newest by default.", flag_values=_FLAGS
    )
    string("export_dir", None, "Where the version is published: WORKDIR/model.")
    flags.DEFINE_multi_string(
        "hparam", [], "NAME=VALUE for a field of the recipe's HParams.", flag_values=_FLAGS
    )
    flags.DEFINE_integer(
        "global_batch_size", 64, "Examples a step of the evaluation.", flag_values=_FLAGS
    )
    string("communication", "auto", "How workers all-reduce: auto, ring or nccl.")
    string("auto_shard", "auto", "How TensorFlow shards a tf.data.Dataset: auto, file, data, off.")
    flags.DEFINE_float(
        "startup_timeout_s", 600.0, "Seconds to wait for the other workers.", flag_values=_FLAGS
    )
    options.define(_FLAGS)


_define()


def main(argv: list[str]) -> int:
    """Runs one worker and returns its exit code."""
    if any(each in ("--help", "-help", "--helpfull") for each in argv):
        print(f"{__doc__}\n{_FLAGS.get_help()}")
        return exits.FINISHED
    signals = Signals()  # before anything, NumPy included, starts a thread
    try:
        command.parse(_FLAGS, argv)
        cluster = from_environment()
    except (BadInput, ClusterError) as error:
        return command.failed(exits.BAD_INPUT, error)
    logs = Path(tempfile.mkdtemp(prefix="tfdp-export-"))
    log_path = log.open_log(logs, 0 if cluster is None else cluster.index)

    def work() -> None:
        from tfdp import recipe
        from tfdp.publishing import from_checkpoint  # from here on TensorFlow is imported

        request = _request(from_checkpoint.Request)
        from_checkpoint.publish(request, recipe.load(request.recipe, request.hparam))

    code = command.end(work, signals, log_path)
    if code in (exits.FINISHED, exits.BAD_INPUT):  # else the log has more to say
        shutil.rmtree(logs, ignore_errors=True)
    return code


def _request(kind: type[Request]) -> Request:
    values: dict[str, Any] = {name: _FLAGS[name].value for name in kind.__dataclass_fields__}
    for name in ("workdir", "export_dir"):
        values[name] = None if values[name] is None else Path(values[name])
    values |= options.given(_FLAGS)
    return kind(**values | {"hparam": tuple(values["hparam"])})


if __name__ == "__main__":
    end_process(main(sys.argv))
