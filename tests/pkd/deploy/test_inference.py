"""Scoring with an ONNX file starts fast: the modules it needs import neither torch nor training."""

import json
import subprocess
import sys

WITHOUT_TORCH = (
    "pkd.cli.parser",
    "pkd.cli.score",
    "pkd.data.image_files",
    "pkd.deploy.inference",
    "pkd.deploy.score_files",
    "pkd.utils.errors",
    "pkd.utils.files",
)


def test_modules_for_scoring_import_no_torch():
    code = (
        f"import json, sys, {', '.join(WITHOUT_TORCH)}; "
        "print(json.dumps([name for name in sys.modules]))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    imported = set(json.loads(process.stdout))
    assert imported >= set(WITHOUT_TORCH)
    assert not imported & {"torch", "sklearn", "onnxruntime", "pkd_kernels"}
    assert {name.split(".")[1] for name in imported if name.startswith("pkd.")} == {
        *("cli", "data", "deploy", "utils")
    }
