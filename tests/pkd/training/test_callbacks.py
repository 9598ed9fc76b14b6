"""Callbacks of a training run."""

import pytest

from pkd.training.callbacks import Callback, CallbackList, TrainingInterrupted
from pkd.training.structures import TEACHER, Phase

CALLS = {
    "on_phase_start": (Phase("teacher", TEACHER, 3, 1, 0.002, None), 30, 10),
    "on_batch_end": (),
    "on_train_steps_end": (11, {"teacher G": 0.5}),
    "on_epoch_end": ({"epoch": 2}, 3),
    "on_message": ("text",),
}


class Recorder(Callback):
    """Appends its name, the hook and the arguments of every call to a list."""

    def __init__(self, name, calls):
        for hook in CALLS:
            setattr(self, hook, lambda *args, hook=hook: calls.append((name, hook, args)))


@pytest.mark.parametrize("hook", CALLS)
def test_a_list_calls_each_callback_in_order(hook):
    calls = []
    callbacks = CallbackList(iter([Recorder("first", calls), Recorder("second", calls)]))
    getattr(callbacks, hook)(*CALLS[hook])
    assert calls == [("first", hook, CALLS[hook]), ("second", hook, CALLS[hook])]


@pytest.mark.parametrize("hook", CALLS)
def test_hooks_do_nothing_by_default(hook):
    for callback in (Callback(), CallbackList([])):
        assert getattr(callback, hook)(*CALLS[hook]) is None


def test_calls_cover_every_hook():
    assert {name for name in vars(Callback) if name.startswith("on_")} == set(CALLS)


def test_a_list_passes_on_the_request_to_stop():
    class Stop(Callback):
        def on_batch_end(self):
            raise TrainingInterrupted

    calls = []
    with pytest.raises(TrainingInterrupted):
        CallbackList([Recorder("first", calls), Stop()]).on_batch_end()
    assert calls == [("first", "on_batch_end", ())]
