"""The commit of the sources, which every result file contains."""

import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """Return the commit of the sources, with "+" if they are modified.

    Without git it is the environment variable PKD_COMMIT; None without that as well.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PKD_COMMIT")
    return result.stdout.strip()
