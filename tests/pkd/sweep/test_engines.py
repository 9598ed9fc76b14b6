"""The engine that runs tasks in this process."""

import torch

from pkd.sweep.engines import LocalEngine


def task(value):
    return {"status": "finished", "value": value}


def test_tasks_run_one_after_the_other_when_they_are_waited_for():
    engine = LocalEngine()
    assert (engine.workers, engine.threads) == (1, torch.get_num_threads())
    handles = [engine.submit(task, value) for value in (1, 2)]
    for value in (1, 2):
        handle, result = engine.wait(handles)
        assert handle is handles.pop(0)
        assert result["value"] == value
    engine.close()
