"""Entry point of ``python -m serving.rollout``."""

import sys

from serving.rollout.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
