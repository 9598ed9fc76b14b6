"""Errors that name a remedy, and the wording they share. Needs no torch."""

import shlex
from pathlib import Path

RESTORE = "restore it from a copy, or train again in a new folder"


class PkdError(Exception):
    """A mistake that the user can correct: the message names the cause and the remedy.

    Messages put the name of a setting in backticks (`batch_size`); the command line prints its flag
    instead. The command line prints the message without a traceback and exits with code 2.
    """


class ConfigError(PkdError, ValueError):
    """A setting has a value that cannot be used.

    Attributes:
        parameter: name of the setting, as `TrainConfig` and `Detector` spell it.
    """

    def __init__(self, parameter: str, problem: str):
        super().__init__(f"`{parameter}` {problem}")
        self.parameter = parameter


class DataError(PkdError, ValueError):
    """Images, labels or data files that are missing, damaged or of an unsupported kind."""


class DivergenceError(PkdError, ValueError):
    """Losses, weights or scores that are not finite."""


class CheckpointError(PkdError):
    """A run folder, checkpoint or exported model that is missing, damaged or incompatible."""


class OutputError(PkdError):
    """A file or folder that cannot be written."""

    @classmethod
    def from_os_error(cls, path: Path, error: OSError) -> "OutputError":
        """The error for a write to `path` that the system refused."""
        return cls(
            f"{path} cannot be written ({error.strerror or error}): free disk space, get write "
            "permission, or choose another path"
        )


def resume_command(folder: Path) -> str:
    """Command that continues the training of a run folder."""
    return f"pkd train --resume {shlex.quote(str(folder))}"
