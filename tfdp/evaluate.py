"""Evaluates a checkpoint or a published version on a recipe's ``eval_data``, on all workers.

``python -m tfdp.evaluate --recipe=… --workdir=…`` takes the newest checkpoint of a run, or that of
``--step``; ``--version=MODELS/3`` takes a published version, asked as TF Serving would ask it. The
chief prints a line of JSON. Nothing in the workdir is touched. TF_CONFIG and exit codes are as for
``python -m tfdp.train``.
"""

from __future__ import annotations

import sys

from absl import flags

from tfdp import aside
from tfdp.peers import end_process

_FLAGS = flags.FlagValues()
aside.define(_FLAGS)
flags.DEFINE_string(
    "version",
    None,
    "Folder of a published version, to be evaluated instead.",
    flag_values=_FLAGS,
)
flags.DEFINE_string(
    "output", None, "File for the result, instead of standard output.", flag_values=_FLAGS
)


def main(argv: list[str]) -> int:
    """Runs one worker and returns its exit code."""
    return aside.run(_FLAGS, argv, __doc__ or "", "evaluate", _work)


def _work() -> None:
    from tfdp import recipe, scoring  # from here on TensorFlow is imported

    request = scoring.Request(**aside.given(_FLAGS, scoring.Request, "version", "output"))
    scoring.evaluate(request, recipe.load(request.recipe, request.hparam))


if __name__ == "__main__":
    end_process(main(sys.argv))
