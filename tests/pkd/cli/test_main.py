"""Commands and their help."""

import pytest

from pkd.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ("train,sweep,evaluate,report,export",)),
        (["fly"], ("fly", "train")),
        (["evaluate"], ("run",)),
        (["report"], ("run",)),
        (["data", "imagenet"], ("imagenet", "mnist")),
    ],
)
def test_a_bad_command_is_refused(argv, words, refused):
    refused(argv, *words)


def test_help_documents_every_flag_with_hyphens(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--help"])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    for flag in ("--normal-class", "--teacher-widths", "--step1-epochs", "--max-train-images"):
        assert flag in output
    assert "--betas X,X" in output
    assert "_" not in "".join(word for word in output.split() if word.startswith("--"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    assert f"pkd {command}" in " ".join(capsys.readouterr().out.replace("[options] ", "").split())
