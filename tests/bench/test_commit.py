"""The commit in result files."""

import subprocess

import pytest

from bench.commit import commit


@pytest.mark.parametrize("value", ["0123abc", None])
def test_without_git_the_commit_is_an_environment_variable(value, monkeypatch):
    def no_git(*_, **__):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", no_git)
    monkeypatch.delenv("PKD_COMMIT", raising=False)
    if value:
        monkeypatch.setenv("PKD_COMMIT", value)
    assert commit() == value
