"""The callback that stops training on SIGINT and SIGTERM."""

import os
import signal

import pytest

from pkd.runs.stop_on_signal import StopOnSignal
from pkd.training.callbacks import TrainingInterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_stops_after_the_batch_in_which_a_signal_arrives(number):
    handler = signal.getsignal(number)
    with StopOnSignal() as callback:
        callback.on_batch_end()
        os.kill(os.getpid(), number)
        with pytest.raises(TrainingInterrupted):
            callback.on_batch_end()
    assert signal.getsignal(number) == handler
