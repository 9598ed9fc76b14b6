"""Every stage on a CPU, as on a GPU except for CUDA itself."""

import subprocess
import sys

import pytest

from bench.gpu.facts import Facts
from bench.gpu.plan import STAGES
from bench.gpu.runner import ROOT, inherited_environment

# All that a GPU machine may lack before the stage "tests".
OPTIONAL = "filelock hypothesis jinja2 jsonargparse matplotlib PIL pooch pytest rich safetensors"
OPTIONAL += " scipy sklearn yaml"

IMPORT_WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL.split()}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import torch
def fail(*arguments):
    raise AssertionError("a process that uses the GPU cannot be forked")
for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, fail)
import bench.gpu.__main__
from bench.gpu.plan import STAGES
from bench.gpu.tasks import tasks_of
for stage in STAGES[:6]:
    assert tasks_of(stage.tasks, rehearse=False).run
"""


@pytest.mark.slow
def test_the_stages_before_the_tests_need_torch_triton_and_numpy_alone():
    """And no process of a stage uses the GPU before it is forked."""
    environment = inherited_environment()
    subprocess.run([sys.executable, "-c", IMPORT_WITHOUT], cwd=ROOT, env=environment, check=True)


@pytest.mark.slow
def test_a_rehearsal_runs_every_stage_and_a_second_call_has_nothing_to_do(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--out", str(tmp_path / "new")]
    environment = inherited_environment()
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    facts = Facts(tmp_path / "new" / "facts.jsonl")
    ends = [(f["stage"], f["ended"]) for f in facts.read() if "ended" in f and "task" not in f]
    assert ends == [(stage.name, "done") for stage in STAGES]
    assert [fact for fact in facts.read() if "error" in fact] == []
    assert all(row["status"] == "ok" for row in facts.of("headline") if "contender" in row)
    assert {f["function"] for f in facts.of("sweep") if "us" in f} == {
        "tap_tiling",
        "weight_tiling",
    }
    assert all(len(f["nodes"]) > 100 for f in facts.of("replay") if "nodes" in f)
    count = len(facts.read())
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0
    assert len(facts.read()) == count + 1
    assert "All facts are in" in second.stdout
