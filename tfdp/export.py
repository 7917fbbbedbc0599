"""Publishes a checkpoint of a run for TF Serving, without training.

``python -m tfdp.export --recipe=… --workdir=…`` evaluates the newest checkpoint of a run, or that
of ``--step``, on the recipe's ``eval_data``, and publishes it as the next version in
``WORKDIR/model`` or ``--export_dir``. A version of that run, step and weights that is there already
is not published again. TF_CONFIG and exit codes are as for ``python -m tfdp.train``.
"""

from __future__ import annotations

import sys

from absl import flags

from tfdp import aside
from tfdp.peers import end_process
from tfdp.publishing import options

_FLAGS = flags.FlagValues()
aside.define(_FLAGS)
flags.DEFINE_string(
    "export_dir", None, "Where the version is published: WORKDIR/model.", flag_values=_FLAGS
)
options.define(_FLAGS)


def main(argv: list[str]) -> int:
    """Runs one worker and returns its exit code."""
    return aside.run(_FLAGS, argv, __doc__ or "", "export", _work)


def _work() -> None:
    from tfdp import recipe
    from tfdp.publishing import from_checkpoint  # from here on TensorFlow is imported

    kind = from_checkpoint.Request
    request = kind(**aside.given(_FLAGS, kind, "export_dir") | options.given(_FLAGS))
    from_checkpoint.publish(request, recipe.load(request.recipe, request.hparam))


if __name__ == "__main__":
    end_process(main(sys.argv))
