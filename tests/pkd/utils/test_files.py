"""`atomic_write`: a file is complete or unchanged after any error while it is written."""

import os
import re
from pathlib import Path

import pytest

from pkd.utils.errors import DataError, OutputError
from pkd.utils.files import atomic_write, open_regular, read_bytes, unused_folder

EXCEPTIONS = {
    "error": ValueError("bad"),
    "interrupt": KeyboardInterrupt(),
    "exit": SystemExit(1),
    "error of pkd": DataError("images are missing"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def test_content_appears_only_after_the_body(file):
    with atomic_write(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def write_half(file: Path, error: BaseException) -> None:
    """Write a part of the new content, then fail."""
    with atomic_write(file) as temporary:
        temporary.write_text("ne")
        raise error


@pytest.mark.parametrize("exception", EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_exceptions_leave_the_old_file_and_no_temporary(exception, file):
    with pytest.raises(type(exception)) as raised:
        write_half(file, exception)
    assert raised.value is exception
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_errors_of_the_system_name_the_file_and_a_remedy(file):
    with pytest.raises(
        OutputError, match=r"file\.txt cannot be written \(No space left.*free disk"
    ):
        write_half(file, OSError(28, "No space left on device"))
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_rename_removes_the_temporary(file, monkeypatch):
    def replace(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="not permitted"), atomic_write(file) as temporary:
        temporary.write_text("new")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_an_existing_file_is_replaced_only_with_overwrite(file):
    with pytest.raises(OutputError, match=r"exists: .*`overwrite`"), atomic_write(file, False):
        pytest.fail("refused before the body")
    assert file.read_text() == "old"
    new = file.with_name("new.txt")
    with atomic_write(new, overwrite=False) as temporary:
        temporary.write_text("new")
    assert new.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_kept_without_overwrite(tmp_path):
    path = tmp_path / "file.txt"
    with pytest.raises(OutputError, match="exists"), atomic_write(path, overwrite=False):
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere/new.txt", "No such file"),
        ("file.txt/new.txt", "Not a directory"),
        (".", "is a folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_paths_that_cannot_be_written(name, problem, file):
    with pytest.raises(OutputError, match=problem), atomic_write(file.parent / name):
        pass
    assert list(file.parent.iterdir()) == [file]


def test_names_of_the_greatest_length_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 127)
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_temporaries_lie_beside_the_file_under_different_hidden_names(file):
    with atomic_write(file) as first, atomic_write(file) as second:
        assert {first, second} == set(file.parent.glob(".*.tmp"))
        assert first != second


def test_an_existing_temporary_is_neither_followed_nor_removed(file, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    link = file.with_name(".new.txt.0.tmp")
    link.symlink_to(file)
    with pytest.raises(OutputError, match="File exists"), atomic_write(file.with_name("new.txt")):
        pass
    assert file.read_text() == "old"
    assert link.is_symlink()


def test_a_symbolic_link_is_replaced_and_its_target_kept(file):
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(OutputError, match="exists"), atomic_write(link, overwrite=False):
        pass
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert file.read_text() == "old"
    assert (link.read_text(), link.is_symlink()) == ("new", False)


def test_a_dangling_symbolic_link_counts_as_existing(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "missing")
    with pytest.raises(OutputError, match="exists"), atomic_write(link, overwrite=False):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_ordinary_new_files(umask, mode, file):
    before = os.umask(umask)
    try:
        with atomic_write(file) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == mode


def test_file_and_folder_are_synced_around_the_rename(file, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(("replace", source.stat().st_ino))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    with atomic_write(file) as temporary:
        temporary.write_text("new")
        inode = temporary.stat().st_ino
    folder = file.parent.stat().st_ino
    assert calls == [("fsync", inode), ("replace", inode), ("fsync", folder)]


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link", 7) == b"content"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, words in (("fifo", "a FIFO"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(OSError, match=f"it is {words}"):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match="7 bytes, more than 6"):
        open_regular(tmp_path / "file", 6)


def test_default_folders_of_one_second_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [unused_folder("digits") for _ in range(30)]
    assert len(set(folders)) == 30
    assert all(re.fullmatch(r"runs/digits-\d{8}-\d{6}(-\d+)?", str(path)) for path in folders)
    assert all(path.is_dir() for path in folders)


def test_a_default_folder_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    with pytest.raises(OutputError, match=r"runs/digits-.* cannot be written"):
        unused_folder("digits")
