"""Collect the wheels that the measurement needs beside torch, triton and numpy.

They are for another Python version and platform, for example a machine without network. There:

    python -m pip install --no-index --no-deps DIR/*.whl
"""

import subprocess
import sys
from pathlib import Path

# What the GPU tests and the benchmarks of the ops import, directly.
PACKAGES = (
    "docstring-parser",
    "filelock",
    "hypothesis",
    "jinja2",
    "jsonargparse[signatures]",
    "markupsafe",
    "matplotlib",
    "pillow",
    "pooch",
    "pytest",
    "pytest-benchmark",
    "pytest-timeout",
    "pytest-xdist",
    "pyyaml",
    "rich",
    "safetensors",
    "scikit-learn",
    "typing-extensions",
)
# A GPU machine has these, in builds that fit each other and the driver.
INSTALLED = ("numpy", "torch", "triton")
GLIBC = range(28, 16, -1)  # 2.28 and earlier: pip matches each version exactly
ALIASES = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")


def command(folder: Path, python: str) -> list[str]:
    """Return the command that downloads the wheels.

    Args:
        folder: folder of the wheels.
        python: version of the other Python, such as "3.12".
    """
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), *ALIASES]
    arguments = ["--dest", str(folder), "--only-binary=:all:"]
    arguments += ["--implementation", "cp", "--python-version", python]
    for platform in platforms:
        arguments += ["--platform", platform]
    return [sys.executable, "-m", "pip", "download", *arguments, *PACKAGES]


def collect(folder: Path, python: str) -> list[Path]:
    """Download the wheels; leave out those of packages that a GPU machine has.

    Raises:
        subprocess.CalledProcessError: pip found no wheel, or no network.
    """
    subprocess.run(command(folder, python), check=True)
    for name in INSTALLED:
        for wheel in folder.glob(f"{name}-*.whl"):
            wheel.unlink()
    return sorted(folder.glob("*.whl"))
