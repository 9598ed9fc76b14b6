"""Hostile inputs of every kind, see `__main__`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process has one thread
sys.path.append(str(Path(__file__).parents[1] / "pkd"))  # helpers of the tests
