import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from image_helpers import product_photos
from run_helpers import TINY, file_contents

from pkd.cli.main import main


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two classes and two seeds, in a path of odd characters; read only."""
    out = tmp_path_factory.mktemp("runs") / "a run [bold] of :smile: ü"
    assert main(["train", *TINY, "--seeds", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may damage."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos in the layout of `--dataset folder`."""
    return product_photos(tmp_path / "photos")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """Check of (argv, *words, unchanged=folder): exit code 2 and one message with all words."""

    def check(argv: Sequence[object], *words: object, unchanged: Path | None = None) -> None:
        before = file_contents(unchanged) if unchanged else None
        assert main([str(a) for a in argv]) == 2
        output = capsys.readouterr()
        assert output.err.startswith("pkd: ")
        assert "Traceback" not in output.err
        assert not re.search(r"`\w+`", output.err)  # settings are printed as flags
        assert [word for word in words if str(word) not in output.err] == []
        if unchanged:
            assert file_contents(unchanged) == before

    return check
