"""`pkd data`: the state of a data set's files."""

from run_helpers import table_rows

from pkd.cli.main import main


def test_digits_need_no_files(capsys):
    assert main(["data", "digits"]) == 0
    assert "nothing to download" in capsys.readouterr().out


def test_missing_files_are_listed_with_the_command_that_downloads_them(tmp_path, capsys):
    assert main(["data", "mnist", "--data-dir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    rows = table_rows(output.out)
    assert len(rows) > 4
    assert {state for _, state in rows[1:]} == {"missing"}
    assert f"pkd data mnist --data-dir {tmp_path} --download" in output.err


def test_other_files_than_the_official_ones_are_refused(tmp_path, refused):
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"other content")
    argv = ["data", "mnist", "--data-dir", tmp_path]
    refused(argv, "not the official files", path, "--download", unchanged=tmp_path)
