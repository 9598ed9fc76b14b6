"""Python processes of the tests, which end with the test run, even if it is killed."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

from pkd_kernels.aot.compiler import exit_with_parent


def start(arguments: list[str], environment: dict[str, str], **options: Any) -> subprocess.Popen:
    """Start Python with the import paths of this process.

    Args:
        arguments: of Python.
        environment: variables on top of this process's, less TRITON_INTERPRET.
        options: of `subprocess.Popen`.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(exit_with_parent, os.getpid()),
        **options,
    )


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Run Python to its end; standard output and error together are in `stdout`."""
    process = start(arguments, environment, stderr=subprocess.STDOUT)
    output, _ = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output)
