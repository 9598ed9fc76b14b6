"""The errors a user sees, and how they name a flag."""


class UserError(Exception):
    """A mistake the user can mend: the message names the thing and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class InputError(UserError, ValueError):
    """Images or parameters that cannot be used; a ValueError, as scikit-learn has it."""


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
