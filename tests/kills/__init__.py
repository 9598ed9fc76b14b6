"""Trainings and sweeps that are killed, see `__main__`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "pkd"))  # helpers of the tests
