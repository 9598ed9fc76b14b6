"""Tasks on a real local Ray with two CPU workers."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import orphans
import pytest
import ray_tasks
import torch

import pkd
from pkd.sweep.engines import WorkerError
from pkd.sweep.ray_engine import ENVIRONMENT, RETRIES, RayEngine
from pkd.utils.errors import ConfigError, PkdError


class SharedEngine:
    """An engine with two workers for several tests: a process connects to one Ray at a time."""

    engine: RayEngine | None = None

    def start(self) -> RayEngine:
        self.engine = self.engine or RayEngine(workers=2, use_gpu=False)
        return self.engine

    def close(self) -> None:
        if self.engine:
            self.engine.close()
        self.engine = None


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedEngine]:
    with closing(SharedEngine()) as shared:
        yield shared


@pytest.fixture
def engine(shared) -> RayEngine:
    return shared.start()


@pytest.fixture
def no_engine(shared) -> None:
    """For a test that starts an engine with other settings."""
    shared.close()


def run(engine: RayEngine, task, *args):
    handle = engine.submit(task, *args)
    ended, result = engine.wait([handle])
    assert ended is handle
    return result


# -- Errors before Ray starts ----------------------------------------------------------------------


def test_missing_ray_is_an_error_that_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"`engine` .* pip install 'pkdgan\[ray\]'"):
        RayEngine()


def test_an_address_without_an_answer_is_an_error_that_names_it():
    for address in ("127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1", "ray://127.0.0.1:1"):
        with pytest.raises(ConfigError, match=f"`address` is {address}, but no Ray cluster"):
            RayEngine(address=address)


def test_a_ray_that_does_not_start_is_an_error(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no free port")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(PkdError, match=r"no free port.* `engine` local"):
        RayEngine()


def test_no_workers_is_an_error():
    with pytest.raises(ConfigError, match="`workers` must be at least 1, not 0"):
        RayEngine(workers=0)


# -- Tasks -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_task_returns_its_value_from_another_process(engine):
    result = run(engine, ray_tasks.environment, 5)
    assert result["value"] == 5
    assert result["pid"] != os.getpid()
    assert Path(result["pkd"]).samefile(pkd.__file__)
    assert engine.workers == 2
    assert engine.threads == max(1, (os.cpu_count() or 1) // 2)


@pytest.mark.slow
def test_two_tasks_run_at_the_same_time(engine, tmp_path):
    handles = [
        engine.submit(ray_tasks.meet, str(tmp_path), *names) for names in (("a", "b"), ("b", "a"))
    ]
    first, one = engine.wait(handles)
    second, other = engine.wait([handle for handle in handles if handle is not first])
    assert {first, second} == set(handles)
    assert one["pid"] != other["pid"]


@pytest.mark.cluster
@pytest.mark.usefixtures("no_engine")
def test_the_tasks_of_a_sweep_wait_for_a_free_worker(tmp_path):
    """One worker on a machine with more CPUs runs one task after the other."""
    with closing(RayEngine(workers=1, use_gpu=False)) as engine:
        handles = [engine.submit(ray_tasks.alone, str(tmp_path)) for _ in range(4)]
        while handles:
            handle, _ = engine.wait(handles)
            handles.remove(handle)


@pytest.mark.slow
def test_an_error_of_the_task_itself_is_a_worker_error(engine):
    with pytest.raises(WorkerError, match=r"ZeroDivisionError.* same versions of pkd and Python"):
        run(engine, ray_tasks.fail)
    assert run(engine, ray_tasks.environment, 1)["value"] == 1


# -- Processes that die ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deaths",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(RETRIES, marks=pytest.mark.cluster)],
)
def test_a_killed_task_is_repeated_and_continues(engine, tmp_path, deaths):
    result = run(engine, ray_tasks.die, str(tmp_path), deaths)
    assert result == {"first": 2 * deaths, "count": 10, "attempts": 1 + deaths}
    pids = (tmp_path / "attempts").read_text().split()
    assert len(set(pids)) == 1 + deaths


@pytest.mark.cluster
def test_a_task_that_dies_more_often_than_its_retries_is_a_worker_error(engine, tmp_path):
    other = engine.submit(ray_tasks.environment, 3)
    handle = engine.submit(ray_tasks.die, str(tmp_path), RETRIES + 1)
    ended, result = engine.wait([other])
    assert (ended, result["value"]) == (other, 3)
    with pytest.raises(WorkerError, match=r"died 4 times, .* killed or crashed") as caught:
        engine.wait([handle])
    assert caught.value.handle is handle
    assert run(engine, ray_tasks.environment, 1)["value"] == 1


@pytest.mark.cluster
@pytest.mark.usefixtures("no_engine")
def test_a_task_that_exceeds_the_memory_is_a_worker_error(monkeypatch):
    """Ray ends processes where the machine uses more than a share of its memory."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("RAY_task_oom_retry_delay_base_ms", "100")
    with closing(RayEngine(workers=1, use_gpu=False)) as engine:
        handle = engine.submit(ray_tasks.allocate, 100)
        with pytest.raises(WorkerError, match=r"died 4 times, .* memory of its machine was full"):
            engine.wait([handle])


# -- GPUs ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_engine")
def test_each_task_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    """Two GPUs that do not exist: Ray assigns them by CUDA_VISIBLE_DEVICES."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with closing(RayEngine()) as engine:
        assert engine.workers == 2
        names = ("a", "b"), ("b", "a")
        handles = [engine.submit(ray_tasks.meet, str(tmp_path), *pair) for pair in names]
        gpus = []
        while handles:
            handle, result = engine.wait(handles)
            handles.remove(handle)
            gpus.append(result["gpus"])
    assert sorted(gpus) == ["0", "1"]
    with pytest.raises(ConfigError, match=r"`workers` is 3, .* choose at most 2"):
        RayEngine(workers=3)
    # The cluster of the refused engine has ended, so another one can start.
    with closing(RayEngine(workers=1)) as engine:
        assert run(engine, ray_tasks.environment, 1)["value"] == 1


# -- Signals and the end ---------------------------------------------------------------------------


def assert_ends(mark: str, seconds: float, except_pids: Sequence[int] = ()) -> None:
    """Wait until the processes with a mark in their environment have ended."""
    end = time.monotonic() + seconds
    while pids := set(orphans.marked(mark, "PKD_RAY_TEST")).difference(except_pids):
        commands = [Path(f"/proc/{pid}/cmdline") for pid in pids]
        names = [path.read_bytes() for path in commands if path.exists()]
        assert time.monotonic() < end, names
        time.sleep(0.1)


def start_driver(folder: Path, mark: str) -> subprocess.Popen:
    """Start `ray_tasks` as a driver in a session of its own, with a mark in its environment."""
    return subprocess.Popen(
        [sys.executable, ray_tasks.__file__, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PKD_RAY_TEST": mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.cluster
def test_ctrl_c_reaches_the_driver_but_no_worker(tmp_path):
    """SIGINT to the whole process group, as a terminal sends it; afterwards no process is left."""
    mark = uuid.uuid4().hex
    driver = start_driver(tmp_path, mark)
    try:
        for name in ("a", "b"):
            ray_tasks.wait_for(tmp_path / name)
        assert len(orphans.marked(mark, "PKD_RAY_TEST")) > 3  # Ray's processes have the mark
        os.killpg(driver.pid, signal.SIGINT)
        lines = [driver.stdout.readline().strip() for _ in range(3)]
        assert lines == ["interrupted", "interrupted", "closed"]
        for name in ("a", "b"):  # no task was repeated
            assert (tmp_path / name).read_text().split() == ["started", "checkpoint"]
        assert_ends(mark, 5, [driver.pid])
        driver.communicate("")
        assert driver.returncode == 0
    finally:
        orphans.kill_marked(mark, "PKD_RAY_TEST")


@pytest.mark.cluster
def test_a_killed_driver_leaves_no_process(tmp_path):
    mark = uuid.uuid4().hex
    driver = start_driver(tmp_path, mark)
    try:
        for name in ("a", "b"):
            ray_tasks.wait_for(tmp_path / name)
        driver.kill()
        driver.wait()
        assert_ends(mark, 120)  # an agent of Ray may take a minute
    finally:
        orphans.kill_marked(mark, "PKD_RAY_TEST")


# -- A running cluster -----------------------------------------------------------------------------

CLUSTER = """
import sys, ray
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.cluster
@pytest.mark.usefixtures("no_engine")
def test_an_engine_uses_a_running_cluster_and_leaves_it_running(monkeypatch):
    """Its workers get the import path and the settings in PKD_* of the driver."""
    monkeypatch.setenv("PKD_DATA_DIR", "/data/of/the/driver")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PKD_DATA_DIR")}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment | ENVIRONMENT,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = cluster.stdout.readline().strip()
        for workers, expected, threads in ((None, 3, 1), (1, 1, 3), (6, 6, 1)):
            with closing(RayEngine(workers=workers, address=address)) as engine:
                assert (engine.workers, engine.threads) == (expected, threads)
                result = run(engine, ray_tasks.environment, 7)
                assert result["value"] == 7
                assert Path(result["pkd"]).samefile(pkd.__file__)
                assert result["data_dir"] == "/data/of/the/driver"
        cluster.communicate("")
        assert cluster.returncode == 0
    finally:
        cluster.kill()
