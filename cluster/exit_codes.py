"""Exit codes that workers, the launcher and cluster managers agree on.

Kubeflow's TFJob (``restartPolicy: ExitCode``) takes 1 to 127 for permanent and 128 to 255 for
retryable; 138 is the one that it leaves to users, 143 is SIGTERM's and 130 SIGINT's.
"""

from __future__ import annotations

from typing import Final

FINISHED: Final = 0
FAILED: Final = 1  # anything that no other code names: starting it again would fail again
BAD_INPUT: Final = 2  # wrong flags, TF_CONFIG or recipe, said before training
INTERRUPTED: Final = 130  # SIGINT, state saved
TRY_AGAIN: Final = 138  # a peer was lost or never came
TERMINATED: Final = 143  # SIGTERM, state saved
