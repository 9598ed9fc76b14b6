"""Plain values from YAML: no aliases, no deep nesting, no tags but those of plain values.

A short text with aliases can stand for more values than fit any memory, and deep nesting exhausts
the stack of the parser.
"""

from pathlib import Path
from typing import Any

import yaml

from pkd.utils.files import read_text

MAX_BYTES = 4 * 2**20  # of a file
MAX_DEPTH = 20
MAX_VALUES = 20_000  # scalars, lists and mappings: about a second
MAX_DIGITS = 400  # of a number: more than any float has, fewer than take time
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
TAGS = (
    *(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "str", "seq", "map")),
    *NUMBERS,
)


class _Loader(yaml.SafeLoader):
    """Loader that refuses a document before it builds what is too large."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; ValueError if it cannot be used."""
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} has an alias, *{event.anchor}: write the value again")
        self._depth, self._values = self._depth + 1, self._values + 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"line {line} is nested more than {MAX_DEPTH} levels deep")
        if self._values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if node.tag not in TAGS:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise ValueError(f"line {line} has a value of type {kind}: put text in quotes")
        if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
            raise ValueError(f"line {line} has a number of more than {MAX_DIGITS} characters")
        return node


def parse_yaml(text: str) -> Any:
    """Parse a YAML document of plain values: None, bool, int, float, str, list and dict.

    Raises:
        ValueError: the text is no such document, or exceeds a limit of this module.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} characters")
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    # `!!int x` and similar contradictions, and keys that are lists
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"it has a value that does not fit its type ({error})") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file; OSError if it cannot be read, ValueError as `parse_yaml`."""
    return parse_yaml(read_text(path, MAX_BYTES))
