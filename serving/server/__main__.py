"""``python -m serving.server``."""

import os
import sys

from serving.server.command import main

code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # a model that still computes for a caller who is gone must not hold things up
