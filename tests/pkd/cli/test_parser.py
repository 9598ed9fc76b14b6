"""Messages of the parser, exit codes, and the flags in messages."""

import pytest

from pkd.cli.parser import Parser, flag, with_flags
from pkd.cli.process import guarded
from pkd.utils.errors import ConfigError, PkdError


def test_the_flag_of_a_setting_has_hyphens():
    assert flag("max_train_images") == "--max-train-images"


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("`batch_size` 21 is too large", "--batch-size 21 is too large"),
        ("choose smaller `seeds` or `latent`", "choose smaller --seeds or --latent"),
        ("`step1_epochs` is 0", "--step1-epochs is 0"),
        ("no setting: `a file.png`", "no setting: `a file.png`"),
    ],
)
def test_settings_in_backticks_are_printed_as_flags(message, printed):
    assert with_flags(message) == printed


def fail(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code", "printed"),
    [
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (fail(PkdError("the cause")), 2, "pkd: the cause\n"),
        (fail(ConfigError("lr", "is 0")), 2, "pkd: --lr is 0\n"),
        (fail(PkdError("a [bold] :smile: path")), 2, "pkd: a [bold] :smile: path\n"),
        (fail(KeyboardInterrupt()), 130, "pkd: interrupted\n"),
    ],
)
def test_errors_of_the_user_end_with_one_line_and_an_exit_code(command, code, printed, capsys):
    assert guarded(command) == code
    assert capsys.readouterr().err == printed


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guarded(fail(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--count", "x"], ("--count", "int", "x")),
        (["--colour", "red"], ("--colour",)),
        (["--max-size", "1.5"], ("--max-size", "int", "1.5")),
    ],
)
def test_the_parser_raises_one_line_that_refers_to_the_help(argv, words):
    parser = Parser(prog="pkd test")
    parser.add_argument("--count", type=int)
    parser.add_argument("--max-size", type=int | None)
    with pytest.raises(PkdError) as caught:
        parser.parse_args(argv)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert message.endswith("(see pkd test --help)")
    assert "\n" not in message
