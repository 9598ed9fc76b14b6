"""`pkd sweep --engine ray`: the results of the local engine, whichever process dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import orphans
import pytest
from sweep_helpers import TINY_SWEEP, make_sweeps_fast, read_json, rows_without_times, weights

from pkd.cli.main import main

MARK = "PKD_RAY_TEST"
SECONDS = 120.0
# Two cells train long enough to be interrupted in the middle.
SETTINGS = (
    *("--structure", "student-only,2", "--step1-epochs", "8", "--teacher-epochs", "2"),
    *("--max-train-images", "140", "--checkpoint-every", "0.2"),
)
STUDENT = "digits_student-only_1-2-4_part1"
DISTILLED = "digits_2_1-2-4_part1"


@pytest.fixture(scope="module")
def local_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sweep by the local engine, which nothing disturbs."""
    out = tmp_path_factory.mktemp("local") / "sweep"
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_sweeps_fast(monkeypatch)
        assert main(["sweep", *TINY_SWEEP, *SETTINGS, "--out", str(out)]) == 0
    return out


class RaySweep:
    """The same plan in another folder, by two workers of Ray."""

    def __init__(self, local_sweep: Path, directory: Path):
        directory.mkdir()
        shutil.copy(local_sweep / "plan.json", directory)
        self.directory, self.mark = directory, uuid.uuid4().hex
        self.start()

    def start(self) -> None:
        """Start or resume the sweep in a process of its own."""
        command = ["-m", "pkd", "sweep", "--resume", self.directory, "--engine", "ray"]
        self.driver = subprocess.Popen(
            [sys.executable, *command, "--workers", "2"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ends_with(self, code: int) -> str:
        """Wait for the end of the driver with an exit code; return its output."""
        output, _ = self.driver.communicate(timeout=SECONDS)
        assert self.driver.returncode == code, output
        return output

    def wait_for_steps(self, shard: str, steps: int) -> None:
        """Wait until an unfinished shard has done some steps."""
        path, end, done = self.directory / "progress" / f"{shard}.json", time.monotonic(), 0
        while done < steps:
            assert time.monotonic() < end + SECONDS
            assert self.driver.poll() is None, self.driver.communicate()
            time.sleep(0.02)
            done = read_json(path)["steps_done"] if path.exists() else 0
        assert done < read_json(path)["steps"]

    def kill_worker(self, shard: str) -> None:
        """Kill the process that has the lock of a shard's folder, as the kernel would."""
        (worker,) = (pid for pid in orphans.marked(self.mark, MARK) if self._has_lock(pid, shard))
        os.kill(worker, signal.SIGKILL)

    def _has_lock(self, pid: int, shard: str) -> bool:
        lock = self.directory / "shards" / shard / ".lock"
        try:
            return any(link.readlink() == lock for link in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            return False

    def assert_equals(self, local_sweep: Path) -> None:
        assert weights(self.directory / "shards") == weights(local_sweep / "shards")
        assert rows_without_times(self.directory) == rows_without_times(local_sweep)
        assert read_json(self.directory / "sweep.json")["failed"] == []


@pytest.fixture
def ray_sweep(local_sweep, tmp_path) -> Iterator[RaySweep]:
    sweep = RaySweep(local_sweep, tmp_path / "sweep")
    yield sweep
    sweep.driver.kill()
    orphans.kill_marked(sweep.mark, MARK)


@pytest.mark.cluster
def test_a_sweep_by_ray_equals_the_local_sweep(ray_sweep, local_sweep):
    ray_sweep.ends_with(0)
    ray_sweep.assert_equals(local_sweep)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_results_are_equal(ray_sweep, local_sweep):
    for shard in (STUDENT, DISTILLED):
        ray_sweep.wait_for_steps(shard, 100)
        ray_sweep.kill_worker(shard)
    ray_sweep.ends_with(0)
    ray_sweep.assert_equals(local_sweep)


@pytest.mark.cluster
def test_a_killed_driver_is_resumed_and_the_results_are_equal(ray_sweep, local_sweep):
    """Its workers end with it, so the resumed sweep gets the locks of their folders."""
    ray_sweep.wait_for_steps(DISTILLED, 100)
    ray_sweep.driver.kill()
    ray_sweep.driver.communicate()
    finished = {
        path: path.read_bytes() for path in (ray_sweep.directory / "shards").rglob("results.json")
    }
    ray_sweep.start()
    ray_sweep.ends_with(0)
    ray_sweep.assert_equals(local_sweep)
    assert all(path.read_bytes() == content for path, content in finished.items())


@pytest.mark.cluster
def test_ctrl_c_checkpoints_all_workers_and_the_sweep_continues(ray_sweep, local_sweep):
    """SIGINT to the whole process group, as a terminal sends it."""
    ray_sweep.wait_for_steps(STUDENT, 100)
    os.killpg(ray_sweep.driver.pid, signal.SIGINT)
    output = ray_sweep.ends_with(130)
    assert f"continue with: pkd sweep --resume {ray_sweep.directory}" in output
    assert not orphans.marked(ray_sweep.mark, MARK)
    assert main(["sweep", "--resume", str(ray_sweep.directory)]) == 0
    ray_sweep.assert_equals(local_sweep)
