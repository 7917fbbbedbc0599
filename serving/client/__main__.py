"""Entry point of ``python -m serving.client``."""

import sys

from serving.client.command.cli import main

sys.exit(main(sys.argv[1:]))
