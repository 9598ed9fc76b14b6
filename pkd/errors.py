"""The one error type a user sees."""


class UserError(Exception):
    """A mistake the user can mend: the message names the thing and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
