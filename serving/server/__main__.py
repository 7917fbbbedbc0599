"""Entry point of ``python -m serving.server``."""

import os
import sys

from serving.server.command import main

code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # without waiting for computations whose caller has gone
