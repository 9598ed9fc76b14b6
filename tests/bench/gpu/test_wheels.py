"""Wheels for another machine; the download itself needs a network."""

import ast
import re
import subprocess
from itertools import pairwise
from pathlib import Path

from bench.gpu import wheels

SETUP = Path(__file__).parents[3] / "setup.py"


def test_the_command_names_python_platforms_and_packages(tmp_path):
    command = wheels.command(tmp_path, "3.12")
    assert command[1:4] == ["-m", "pip", "download"]
    assert command[command.index("--python-version") + 1] == "3.12"
    assert command[command.index("--dest") + 1] == str(tmp_path)
    platforms = [b for a, b in pairwise(command) if a == "--platform"]
    assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"} < {*platforms}
    assert "--only-binary=:all:" in command
    assert command[-len(wheels.PACKAGES) :] == list(wheels.PACKAGES)


def test_wheels_of_installed_packages_are_left_out(tmp_path, monkeypatch):
    def download(command, check):
        for name in ("numpy-2.1", "torch-2.11", "numpydoc-1.0", "rich-13.0"):
            (tmp_path / f"{name}-py3-none-any.whl").touch()

    monkeypatch.setattr(subprocess, "run", download)
    names = [wheel.name.partition("-")[0] for wheel in wheels.collect(tmp_path, "3.12")]
    assert names == ["numpydoc", "rich"]


def test_all_requirements_of_the_package_are_collected_or_installed():
    call = next(
        n
        for n in ast.walk(ast.parse(SETUP.read_text()))
        if isinstance(n, ast.keyword) and n.arg == "install_requires"
    )
    required = {re.match(r"[\w-]+", text)[0] for text in ast.literal_eval(call.value)}
    collected = {re.match(r"[\w-]+", text)[0] for text in wheels.PACKAGES}
    assert required <= collected | set(wheels.INSTALLED)
