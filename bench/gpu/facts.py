"""Measured facts: one file of JSON lines, to which all processes append."""

import json
import os
import time
from pathlib import Path
from typing import Any

FILE_NAME = "facts.jsonl"

Fact = dict[str, Any]


class Facts:
    """The facts of one or several calls of `python -m bench.gpu` with the same folder.

    Args:
        path: the file; it need not exist.
        call: number of this call, which every appended fact contains.
    """

    def __init__(self, path: Path, call: int = 0):
        self.path, self.call = path, call

    def append(self, stage: str, **values: Any) -> None:
        """Append a fact; it remains if this process is killed afterwards.

        A single write at the end of the file: lines of parallel processes do not mix.
        """
        fact = {"stage": stage, "call": self.call, "time": round(time.time(), 3)} | values
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(fact) + "\n").encode())
        finally:
            os.close(file)

    def read(self) -> list[Fact]:
        """Return all facts; a line that is not complete is left out."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return list(filter(None, map(_parsed, text.splitlines())))

    def end_last_line(self) -> None:
        """End a line that is not complete, so that the next fact starts a new line."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    def of(self, stage: str) -> list[Fact]:
        """Return the facts of a stage."""
        return [fact for fact in self.read() if fact["stage"] == stage]

    def finished_tasks(self, stage: str) -> set[str]:
        """Return the tasks of a stage that are done, in this call or in an earlier one."""
        return {f["task"] for f in self.of(stage) if "task" in f and f.get("ended") == "done"}

    def is_done(self, stage: str) -> bool:
        """Whether a stage is done, in this call or in an earlier one."""
        return any("task" not in f and f.get("ended") == "done" for f in self.of(stage))


def _parsed(line: str) -> Fact | None:
    try:
        fact = json.loads(line)
    except ValueError:
        return None
    return fact if isinstance(fact, dict) and "stage" in fact else None
