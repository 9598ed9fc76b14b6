"""Stages with fast tasks, and with tasks that crash, hang, run out of memory or have children."""

import os
import resource
import signal
import subprocess
import time
from functools import partial

from bench.gpu.tasks import Tasks

HANG = "FAKE_HANG"  # "stage/task" that hangs after its first value


def _value(stage, name, deadline):
    yield {"value": 1}
    if os.environ.get(HANG) == f"{stage}/{name}":
        time.sleep(600)
    yield {"value": 2}


def _tasks(stage, **others):
    first = {"first": partial(_value, stage, "first")}
    return Tasks(first | others | {"last": partial(_value, stage, "last")})


def _crash(deadline):
    yield {"value": 1}
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(deadline):
    yield {"value": 1}
    time.sleep(600)


def _out_of_memory(deadline):
    yield {"value": 1}
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    bytearray(2**31)


def _error(deadline):
    yield {"value": 1}
    raise ValueError("first line\nsecond line")


def _error_as_fact(deadline):
    yield {"value": 1, "error": "ValueError: one contender"}
    yield {"value": 2}


def _child(deadline):
    subprocess.Popen(["sh", "-c", f"sleep 1; touch {os.environ['FAKE_FILE']}"])
    yield {"value": 1}


def one(rehearse):
    return _tasks("one")


def two(rehearse):
    return _tasks("two")


def three(rehearse):
    return _tasks("three")._replace(processes=2)


def crash(rehearse):
    return _tasks("crash", bad=_crash)


def hang(rehearse):
    return Tasks({"bad": _hang, "last": partial(_value, "hang", "last")})


def out_of_memory(rehearse):
    return _tasks("out_of_memory", bad=_out_of_memory)


def error(rehearse):
    return _tasks("error", bad=_error)


def error_as_fact(rehearse):
    return _tasks("error_as_fact", bad=_error_as_fact)


def child(rehearse):
    return Tasks({"first": _child})


def broken(rehearse):
    os.kill(os.getpid(), signal.SIGKILL)


def stuck(rehearse):
    time.sleep(600)
