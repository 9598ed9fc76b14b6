"""The source archive and the wheel are complete, and the wheel works outside the repository."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "pkd", "kernels")
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
DETECTOR = """
import numpy as np
import pkd
from pathlib import Path

assert Path(pkd.__file__).is_relative_to(Path(__import__("sys").prefix))
images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
detector = pkd.Detector(
    image_size=16, latent=8, teacher_widths=(2, 4, 8), student_widths=(1, 2, 4),
    teacher_epochs=1, step1_epochs=1, step2_epochs=1, random_state=0,
)
scores = detector.fit(images).score_samples(images)
assert scores.shape == (12,) and np.isfinite(scores).all()
"""


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Run a command that must succeed, without this environment's packages; return its output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    process = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, built from a copy: files of an earlier build cannot get into it."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-c", BUILD, "build_sdist", folder, cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    run(sys.executable, "-c", BUILD, "build_wheel", folder, cwd=source)
    (file,) = folder.glob("*.whl")
    return file


def package_files() -> set[str]:
    """Files below pkd and pkd_kernels, as they are named in a wheel."""
    files = set()
    for parent, package in ((ROOT, "pkd"), (ROOT / "kernels", "pkd_kernels")):
        for path in (parent / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(path.relative_to(parent).as_posix())
    return files


def test_the_wheel_holds_every_file_of_both_packages_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == package_files()
    assert {"pkd/py.typed", "pkd_kernels/py.typed"} < names
    templates = {f"pkd/report/{name}.html" for name in ("base", "macros", "report", "sweep")}
    assert templates < names
    assert any(name.endswith("/licenses/LICENSE") for name in information)


def test_the_source_archive_holds_the_licence_and_the_readme(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} < names


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """Installs from PyPI, with the versions of requirements.txt."""
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(line for line in pins if not line.startswith("#")))
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    options = ("--quiet", "--no-compile", "--constraint", constraints)
    run(programs / "python", "-m", "pip", "install", *options, wheel, cwd=tmp_path)

    sizes = ("--latent", "8", "--teacher-widths", "2-4-8", "--student-widths", "1-2-4")
    length = ("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1")
    few = ("--normal-class", "3", "--max-train-images", "20", "--device", "cpu")
    run(programs / "pkd", "train", *few, *sizes, *length, "--out", "run", cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(0 <= auc <= 1 for auc in results["mean_auc"].values())
    run(programs / "pkd", "report", "run", cwd=tmp_path)  # reads report.html of the package
    run(programs / "python", "-c", DETECTOR, cwd=tmp_path)
