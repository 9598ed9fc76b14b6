"""YAML of plain values: equal to PyYAML's where it is accepted, and refused quickly otherwise."""

import os
import time

import pytest
import yaml

from pkd.utils.yaml_files import MAX_BYTES, parse_yaml, read_yaml

PLAIN = """
lr: 0.002
betas: [0.5, 0.999]
structure: "2"
normal_class: all
graph: true
stack: null
cells: [{seeds: 2, lr: 1e-3}, {seeds: 0x10}]
"""
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]\n" for k in range(10)
)
REFUSED = {
    "aliases": (BOMB, "line 2 has an alias"),
    "a cycle": ("a: &a [*a]", "alias"),
    "nested lists": ("[" * 100_000, "nested more than 20 levels"),
    "nested mappings": ("{a: " * 100_000, "nested more than 20 levels"),
    "nested blocks": ("- " * 100_000 + "x", "nested more than 20 levels"),
    "many values": ("- 1\n" * 500_000, "more than 20,000 values"),
    "a large document": ("x" * (MAX_BYTES + 1), "characters"),
    "a number of base 60": (f"seeds: 1{':1' * 200_000}", "more than 400 characters"),
    "a long integer": (f"seeds: {'9' * 100_000}", "more than 400 characters"),
    "a contradiction": ("seeds: !!int x", "invalid literal"),
    "another contradiction": ("lr: !!float [1]", "expected a scalar node"),
    "an object": ("a: !!python/object/apply:os.getcwd []", "python/object"),
    "a date": ("a: 2020-01-01", "type timestamp: put text in quotes"),
    "bytes": ("a: !!binary x", "type binary"),
    "merged mappings": ("<<: {a: 1}", "type merge"),
    "a list as a key": ("? [a]\n: 1", "unhashable"),
    "a mapping as a key": ("? {a: 1}\n: 1", "unhashable"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "control characters": ("a: \x00", "special characters"),
    "an open quote": ('a: "', "end of stream"),
}


def test_plain_values_are_those_of_pyyaml():
    assert parse_yaml(PLAIN) == yaml.safe_load(PLAIN)
    assert parse_yaml("") is None


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_other_documents_are_refused_quickly(text, words):
    begin = time.process_time()
    with pytest.raises(ValueError, match=words) as caught:
        parse_yaml(text)
    assert time.process_time() - begin < 5  # about a second
    assert "\n" not in str(caught.value)


def test_only_regular_files_in_utf8_are_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"lr: \xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_yaml(tmp_path / "a.yaml")
    os.mkfifo(tmp_path / "b.yaml")
    with pytest.raises(OSError, match="it is a FIFO"):
        read_yaml(tmp_path / "b.yaml")
