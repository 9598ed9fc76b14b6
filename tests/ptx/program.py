"""Parse the text of a PTX kernel into a list of instructions.

Opcodes and operands are those of NVIDIA's "PTX ISA"; `machine` executes them.
"""

import re
from typing import NamedTuple

SPECIAL = {f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}


class Address(NamedTuple):
    """[base + offset]: base is a register, a parameter or 0."""

    base: "str | int"
    offset: int


# A register or label, an immediate as its bits, a vector in braces, or an address in brackets.
Operand = str | int | tuple | Address


class Instruction(NamedTuple):
    """An instruction: `@guard opcode.modifier.modifier operand, operand;`."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str | None
    negated: bool
    line: int  # of the text, from 1

    def __str__(self) -> str:
        return f"{'.'.join((self.opcode, *self.modifiers))} (line {self.line})"


class Program:
    """A parsed kernel.

    Attributes:
        name: of the kernel.
        parameters: names of its parameters -> bytes of each, in order.
        widths: registers, by name or by the letters before their number -> bits; 1 is a predicate.
        instructions, labels: its code, and the position of each label in it.
    """

    def __init__(self, text: str):
        entry = re.search(r"\.entry (\w+)\((.*?)\)[^{]*\{", text, re.DOTALL)
        self.name = entry[1]
        declared = re.findall(r"\.param \.[bsuf](\d+).*?(\w+)(?:,|\s*$)", entry[2], re.MULTILINE)
        self.parameters = {name: int(bits) // 8 for bits, name in declared}
        self.widths: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        body = text[entry.end() :]
        self._read(body[: body.index("\n}")], text[: entry.end()].count("\n") + 1)

    def width(self, register: str) -> int:
        """Bits of a register."""
        return self.widths.get(register) or self.widths[register.rstrip("0123456789")]

    def _read(self, body: str, first: int) -> None:
        statement, begun = "", first
        for number, line in enumerate(body.split("\n"), first):
            line = line.split("//")[0].strip()
            if line.startswith(".loc"):
                continue
            if label := re.match(r"(\$?\w+):\s*", line):
                self.labels[label[1]] = len(self.instructions)
                line = line[label.end() :]
            if not statement:
                begun = number
            statement += f" {line}"
            *whole, statement = statement.split(";")
            for text in whole:
                self._statement(re.sub(r"^[\s{}]+", "", text), begun)
            statement = re.sub(r"^[\s}]+", "", statement)

    def _statement(self, text: str, line: int) -> None:
        text = text.strip()
        if declared := re.match(r"\.reg \.(pred|\w)(\d*)\s+(.*)", text):
            for name in declared[3].split(","):
                self.widths[name.strip().partition("<")[0]] = int(declared[2] or 1)
        if not text or text.startswith("."):
            return
        guard, negated = None, False
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
            negated, guard = guard.startswith("!"), guard.lstrip("!")
        name, _, rest = text.replace("\t", " ").partition(" ")
        opcode, *modifiers = name.replace("::", ".").split(".")
        operands = tuple(map(_operand, _split(rest)))
        instruction = Instruction(opcode, tuple(modifiers), operands, guard, negated, line)
        self.instructions.append(instruction)


def _split(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_operand(part.strip()) for part in text.strip("{}").split(","))
    if text.startswith("["):
        base, _, offset = text.strip("[] ").partition("+")
        return Address(_operand(base.strip()), int(offset or "0", 0))
    if re.fullmatch(r"0[fd][0-9A-Fa-f]+", text):
        return int(text[2:], 16)
    if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    return 0 if text == "global_smem" else text  # where shared memory begins
