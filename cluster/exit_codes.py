"""Exit codes of workers and of the launcher, as cluster managers interpret them.

To Kubeflow's TFJob (``restartPolicy: ExitCode``), 1 to 127 are permanent errors and 128 to 255 are
retryable ones. It leaves 138 to users. 143 is 128 + SIGTERM, and 130 is 128 + SIGINT.
"""

from __future__ import annotations

from typing import Final

FINISHED: Final = 0
FAILED: Final = 1  # permanent error without a code of its own: it would come again
BAD_INPUT: Final = 2  # wrong flags, TF_CONFIG or recipe, reported before training
INTERRUPTED: Final = 130  # by SIGINT, state saved
TRY_AGAIN: Final = 138  # a worker was lost, never came or stands still
TERMINATED: Final = 143  # by SIGTERM, state saved
