"""Execute a PTX kernel on a CPU, instruction by instruction, all threads of all blocks at once.

Registers are arrays of bits over threads. After a divergent branch, the threads with the lowest
instruction run first until all threads reconverge. Sections refer to NVIDIA's "PTX ISA" 8.7, which
also specifies the error of approximate instructions: here results have errors of up to that size,
derived from their bits, so that a GPU is at least as accurate as the machine of the tests.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from ptx.program import SPECIAL, Address, Instruction, Operand, Program

WARP = 32
LANES = 2**14  # threads that are executed at once, at least one block
POISON = 0xDB  # bytes of unwritten shared memory and registers
UNITS = {
    "ex2": 2,
    "div": 2,
    "rcp": 1,
    "sqrt": 1,
    "rsqrt": 2,
    "lg2": 2,
}  # error in units in the last place
_IGNORED = {"fence", "griddepcontrol"}


def run(
    program: Program,
    grid: Sequence[int],
    threads: int,
    shared_bytes: int,
    arguments: Sequence[torch.Tensor | int],
) -> None:
    """Run a kernel on CPU tensors.

    Args:
        program: the kernel.
        grid: blocks along x, y and z.
        threads: of a block.
        shared_bytes: bytes of shared memory of a block.
        arguments: tensors, whose addresses are passed, and integers; missing ones are 0.

    Raises:
        IndexError: an address is outside of all tensors or shared memory, or is not aligned.
        RuntimeError: blocks race, a barrier is not reached by all threads, or a thread traps.
        NotImplementedError: the machine does not implement an instruction.
    """
    memory = Memory([a for a in arguments if isinstance(a, torch.Tensor)])
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    values += [0] * (len(program.parameters) - len(values))
    parameters = dict(zip(program.parameters, values, strict=True))
    blocks = np.arange(np.prod(grid, dtype=np.int64))
    for chunk in np.array_split(blocks, max(1, len(blocks) * threads // LANES)):
        with np.errstate(all="ignore"):
            _Blocks(program, memory, parameters, grid, chunk, threads, shared_bytes).run()


class _Accesses:
    """The blocks, counted from 1, that read and wrote each value of a storage in a launch."""

    def __init__(self, count: int):
        self.writer = np.zeros(count, np.int64)
        self.first_reader = np.full(count, np.iinfo(np.int64).max)
        self.last_reader = np.zeros(count, np.int64)

    def read(self, indices: np.ndarray, blocks: np.ndarray) -> None:
        writers = self.writer[indices]
        if ((writers != 0) & (writers != blocks)).any():
            raise RuntimeError("a block reads data that another writes")
        np.minimum.at(self.first_reader, indices, blocks)
        np.maximum.at(self.last_reader, indices, blocks)

    def write(self, indices: np.ndarray, blocks: np.ndarray) -> None:
        writers = self.writer[indices]
        foreign = (writers != 0) & (writers != blocks)
        foreign |= (self.first_reader[indices] < blocks) | (self.last_reader[indices] > blocks)
        self.writer[indices] = blocks
        if foreign.any() or (self.writer[indices] != blocks).any():  # two in one instruction
            raise RuntimeError("a block writes data that another reads or writes")


class Memory:
    """Global memory: the storages of tensors.

    Blocks run in any order, or at once: no value may be written by one block and accessed by
    another, except after an atomic operation, which may order the blocks.

    Args:
        tensors: all tensors that a kernel may access.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]):
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self.begins = np.array(sorted(sizes), np.uint64)
        self.ends = self.begins + np.array([sizes[int(b)] for b in self.begins], np.uint64)
        self.storages = [
            np.frombuffer((ctypes.c_uint8 * sizes[int(b)]).from_address(int(b)), np.uint8)
            for b in self.begins
        ]
        self.accesses: dict[tuple[int, int], _Accesses] = {}

    def load(self, addresses: np.ndarray, size: int, blocks: np.ndarray) -> np.ndarray:
        """Values at addresses, as bits.

        Args:
            addresses: (n,).
            size: bytes of a value.
            blocks: (n,) reading blocks, from 1; 0 is a block ordered by an atomic operation.
        """
        values = np.empty(len(addresses), f"u{size}")
        for inside, storage, indices, accesses in self._locate(addresses, size):
            values[inside] = storage[indices]
            if (free := blocks[inside] != 0).any():
                accesses.read(indices[free], blocks[inside][free])
        return values

    def store(self, addresses: np.ndarray, values: np.ndarray, blocks: np.ndarray) -> None:
        for inside, storage, indices, accesses in self._locate(addresses, values.itemsize):
            storage[indices] = values[inside]
            if (free := blocks[inside] != 0).any():
                accesses.write(indices[free], blocks[inside][free])

    def _locate(self, addresses: np.ndarray, size: int):
        """For each storage: addresses inside (mask), its values, their indices and accesses."""
        numbers = np.searchsorted(self.begins, addresses, side="right") - 1
        outside = (numbers < 0) | (addresses + np.uint64(size) > self.ends[numbers])
        if outside.any():
            raise IndexError(
                f"{size} bytes at {addresses[outside][0]:#x} are outside of all tensors"
            )
        if (addresses % np.uint64(size)).any():
            raise IndexError(f"an address is not a multiple of {size}")
        for number in np.unique(numbers):
            inside, storage = numbers == number, self.storages[number]
            values = storage[: len(storage) // size * size].view(f"u{size}")
            if (number, size) not in self.accesses:
                self.accesses[number, size] = _Accesses(len(values))
            indices = (addresses[inside] - self.begins[number]) // np.uint64(size)
            yield inside, values, indices.astype(np.int64), self.accesses[number, size]


class _Blocks:
    """Blocks of a launch that are executed in lockstep."""

    def __init__(
        self,
        program: Program,
        memory: Memory,
        parameters: dict[str, int],
        grid: Sequence[int],
        blocks: np.ndarray,
        threads: int,
        shared_bytes: int,
    ):
        self.program, self.memory, self.parameters = program, memory, parameters
        self.count = len(blocks)
        self.shared = np.full((self.count, shared_bytes // 8 * 8 + 8), POISON, np.uint8)
        self.block = np.repeat(np.arange(self.count), threads)
        self.unordered = np.repeat(1 + blocks, threads)  # see Memory.load
        self.registers: dict[str, np.ndarray] = {}
        x, y, _ = grid
        block = (blocks % x, blocks // x % y, blocks // (x * y))
        special = {
            "tid": (np.tile(np.arange(threads), self.count), 0, 0),
            "ntid": (threads, 1, 1),
            "ctaid": tuple(np.repeat(axis, threads) for axis in block),
            "nctaid": tuple(grid),
        }
        for name in SPECIAL:
            values = special[name[1:-2]]["xyz".index(name[-1])]
            self.registers[name] = np.broadcast_to(np.uint32(values), self.block.shape)
        self.position = np.zeros(len(self.block), np.int64)  # of each thread's next instruction
        self.exited = np.zeros(len(self.block), bool)
        self.active: np.ndarray | None = None  # threads that execute; None is all of them

    def run(self) -> None:
        instructions, position = self.program.instructions, 0
        while position < len(instructions):
            instruction = instructions[position]
            try:
                jump = self._execute(instruction)
            except Exception as error:
                raise type(error)(f"{self.program.name}, {instruction}: {error}") from error
            position = self._next_position(position, jump)

    def _next_position(self, position: int, jump: "tuple[int, np.ndarray | None] | None") -> int:
        """Position of the next instruction to execute.

        Args:
            position: of the instruction that was executed.
            jump: target and mask of the threads that it moves there; None without a jump.
        """
        if self.active is None and (jump is None or jump[1] is None or jump[1].all()):
            return position + 1 if jump is None else jump[0]
        if self.active is None and not jump[1].any():
            return position + 1
        active = ~self.exited if self.active is None else self.active
        self.position[active] = position + 1
        if jump is not None:
            self.position[active if jump[1] is None else jump[1]] = jump[0]
        self.exited |= self.position >= len(self.program.instructions)
        if self.exited.all():
            return len(self.program.instructions)
        first = int(self.position[~self.exited].min())
        self.active = (self.position == first) & ~self.exited
        if self.active.all():
            self.active = None
        return first

    def _mask(self, instruction: Instruction) -> np.ndarray | None:
        """Threads that take part; None is all."""
        if instruction.guard is None:
            return self.active
        guard = self._bits(instruction.guard) != instruction.negated
        return guard if self.active is None else guard & self.active

    def _execute(self, instruction: Instruction) -> "tuple[int, np.ndarray | None] | None":
        opcode, mask = instruction.opcode, self._mask(instruction)
        if opcode == "bra":
            return self.program.labels[instruction.operands[0]], mask
        if opcode in ("ret", "exit"):
            return len(self.program.instructions), mask
        if opcode == "trap" and (mask is None or mask.any()):
            raise RuntimeError("a thread traps")
        if opcode not in _IGNORED and (mask is None or mask.any()):
            method = getattr(self, f"_{opcode}", None)
            if method is not None:
                method(instruction, mask)
            elif opcode in ELEMENTWISE:
                self._elementwise(instruction, mask)
            else:
                raise NotImplementedError("the machine does not implement this instruction")
        return None

    def read(self, operand: Operand, kind: str) -> np.ndarray:
        """An operand as type `kind` of PTX, such as "s32"; wider registers are cut."""
        size = 1 if kind == "pred" else int(kind.lstrip("bsuf")) // 8
        if isinstance(operand, int):
            bits = np.array([operand & (2 ** (8 * size) - 1)], f"u{size}")
        else:
            bits = self._bits(operand)
            bits = bits if bits.itemsize == size else bits.astype(f"u{size}")
        if kind == "pred":
            return bits.astype(bool)
        return _typed(bits, kind)

    def write(self, register: str, values: np.ndarray, kind: str, mask: np.ndarray | None) -> None:
        """Values of type `kind` into a register, extended to its width."""
        if register == "_":
            return
        width = self.program.width(register)
        if width == 1:
            bits = values.astype(bool)
        elif kind == "bf16":
            bits = _bf16(values)
        else:
            dtype = _dtype(kind)
            values = values.astype(dtype, copy=False)
            if dtype.kind == "f" or dtype.itemsize * 8 == width:
                bits = values.view(f"u{dtype.itemsize}")
            else:
                bits = values.astype(f"{dtype.kind}{width // 8}").view(f"u{width // 8}")
        if mask is None:
            self.registers[register] = np.broadcast_to(bits, self.block.shape)
            return
        self.registers[register] = np.where(mask, bits, self._bits(register))

    def _bits(self, register: str) -> np.ndarray:
        """Bits of a register, of all threads."""
        if register not in self.registers:
            size = self.program.width(register) // 8
            poison = np.full(max(1, size), POISON, np.uint8)
            poison = poison.view(f"u{size}") if size else poison.astype(bool)
            self.registers[register] = np.broadcast_to(poison, self.block.shape)
        return self.registers[register]

    def _elementwise(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        opcode, modifiers, (to, *sources) = instruction[:3]
        kind = modifiers[-1]
        if kind.endswith("x2"):  # two halves, each by itself
            halves = zip(*(self._halves(source, kind[:-2]) for source in sources), strict=True)
            results = [ELEMENTWISE[opcode](*half) for half in halves]
            return self.write(to, *_together(results), mask)
        values = [self.read(source, kind) for source in sources]
        if "ftz" in modifiers:
            values = [_flushed(value) for value in values]
        result = ELEMENTWISE[opcode](*values)
        if {"approx", "full"} & set(modifiers):
            result = _rough(result, UNITS[opcode])
        if "ftz" in modifiers:
            result = _flushed(result)
        return self.write(to, result, kind, mask)

    def _mul(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        """Mul and mad of integers: the low half of the product, the high one, or both."""
        modifiers, (to, *sources) = instruction[1:3]
        kind, part = modifiers[-1], modifiers[0]
        if kind[0] == "f":
            return self._elementwise(instruction._replace(opcode="times"), mask)
        bits = int(kind[1:])
        wide = f"{kind[0]}{2 * bits}" if part in ("wide", "hi") else kind
        a, b = (self.read(source, kind).astype(_dtype(wide)) for source in sources[:2])
        product = a * b
        if part == "hi":
            product, wide = product >> bits, kind
        if len(sources) == 3:
            product = product + self.read(sources[2], wide)
        return self.write(to, product, wide, mask)

    _mad = _mul

    def _shl(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        kind, (to, value, by) = instruction.modifiers[-1], instruction.operands
        value, by = self.read(value, kind), self.read(by, "u32")
        bits = 8 * value.itemsize
        shift = np.left_shift if instruction.opcode == "shl" else np.right_shift
        # A shift by the width or more leaves only the sign.
        within = shift(value, np.minimum(by, bits - 1).astype(value.dtype))
        beyond = np.right_shift(value, bits - 1) if kind[0] == "s" else np.zeros_like(value)
        self.write(to, np.where(by < bits, within, beyond), kind, mask)

    _shr = _shl

    def _bfe(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        kind, (to, value, *rest) = instruction.modifiers[-1], instruction.operands
        start, length = (self.read(r, "u32").astype(np.int64) for r in rest)
        value = self.read(value, kind)
        above = np.maximum(8 * value.itemsize - start - length, 0).astype(value.dtype)
        field = (value << above) >> (above + start.astype(value.dtype))
        self.write(to, field, kind, mask)

    def _bfi(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        kind, (to, field, into, *rest) = instruction.modifiers[-1], instruction.operands
        field, into = self.read(field, kind), self.read(into, kind)
        start, length = (self.read(r, "u32").astype(np.uint64) for r in rest)
        places = (((np.uint64(1) << length) - np.uint64(1)) << start).astype(into.dtype)
        self.write(to, into & ~places | (field << start.astype(into.dtype)) & places, kind, mask)

    def _prmt(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        to, *sources = instruction.operands
        low, high, chosen = (self.read(s, "u32").astype(np.uint64) for s in sources)
        both, result = high << np.uint64(32) | low, np.uint64(0)
        for byte in range(4):
            choice = chosen >> np.uint64(4 * byte)
            value = both >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            sign = np.where(value >= 128, np.uint64(255), np.uint64(0))
            value = np.where(choice & np.uint64(8) != 0, sign, value)
            result = result | value << np.uint64(8 * byte)
        self.write(to, result, "b32", mask)

    def _shf(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        to, *sources = instruction.operands
        low, high, by = (self.read(s, "u32").astype(np.uint64) for s in sources)
        both, by = high << np.uint64(32) | low, by & np.uint64(31)
        shifted = (both << by) >> np.uint64(32) if "l" in instruction.modifiers else both >> by
        self.write(to, shifted, "b32", mask)

    def _setp(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        (compare, *_, kind), (to, *sources) = instruction.modifiers, instruction.operands
        if kind.endswith("x2"):  # two halves, two predicates
            halves = zip(*(self._halves(source, kind[:-2]) for source in sources), strict=True)
            for register, half in zip(to.split("|"), halves, strict=True):
                self.write(register, _compare(compare, *half), "pred", mask)
            return
        a, b = (self.read(source, kind) for source in sources)
        self.write(to, _compare(compare, a, b), "pred", mask)

    def _halves(self, operand: Operand, kind: str) -> list[np.ndarray]:
        """The lower and the upper half of an operand, each of type `kind`."""
        size = int(kind.lstrip("bsuf"))
        bits = self.read(operand, f"u{2 * size}")
        halves = [(bits >> bits.dtype.type(by)).astype(f"u{size // 8}") for by in (0, size)]
        return [_typed(half, kind) for half in halves]

    def _selp(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        kind, (to, yes, no, choice) = instruction.modifiers[-1], instruction.operands
        kind = f"b{kind[1:]}"
        values = np.where(self.read(choice, "pred"), self.read(yes, kind), self.read(no, kind))
        self.write(to, values, kind, mask)

    def _mov(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        kind, (to, value) = instruction.modifiers[-1], instruction.operands
        if kind == "pred":
            return self.write(to, self.read(value, "pred"), "pred", mask)
        bits = int(kind[1:])
        if isinstance(value, tuple):
            part = bits // len(value)
            parts = [self.read(v, f"u{part}").astype(f"u{bits // 8}") for v in value]
            whole = sum(p << p.dtype.type(part * i) for i, p in enumerate(parts))
            return self.write(to, whole, f"b{bits}", mask)
        whole = self.read(value, f"u{bits}")
        targets = to if isinstance(to, tuple) else (to,)
        part = bits // len(targets)
        for i, register in enumerate(targets):
            piece = (whole >> whole.dtype.type(part * i)).astype(f"u{part // 8}")
            self.write(register, piece, f"b{part}", mask)
        return None

    def _cvt(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        *rounding, target, source = instruction.modifiers
        to, *values = instruction.operands
        values = [self.read(value, source) for value in values]
        if target.endswith("x2"):  # the first is the upper half
            high, low = (_narrow(v, target[:-2]) for v in values)
            return self.write(to, *_together([low, high]), mask)
        if target in ("f16", "bf16"):
            return self.write(to, _narrow(values[0], target), "b16", mask)
        if source[0] != "f" or target[0] == "f":
            return self.write(to, values[0].astype(_dtype(target)), target, mask)
        rounded = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding[0]]
        return self.write(to, rounded(values[0]).astype(_dtype(target)), target, mask)

    def _shfl(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        to, value, by, clamp, _ = instruction.operands
        value, by = (np.broadcast_to(self.read(v, "b32"), self.block.shape) for v in (value, by))
        if (self.read(clamp, "b32") != 31).any():
            raise NotImplementedError("the machine does not implement parts of a warp")
        lane = np.arange(len(value)) % WARP
        other = {"bfly": lane ^ by, "idx": by % WARP}[instruction.modifiers[1]]
        self.write(to, value[np.arange(len(value)) // WARP * WARP + other], "b32", mask)

    def _bar(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        if "warp" in instruction.modifiers or mask is None:
            return
        waiting = (mask | self.exited).reshape(self.count, -1)
        if (waiting.any(1) != waiting.all(1)).any():
            raise RuntimeError("a barrier is not reached by all threads of a block")

    def _ld(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        (space, *_, kind), (targets, place) = instruction.modifiers, instruction.operands
        size = int(kind[1:]) // 8
        if space == "param":
            value = self.parameters[place.base] >> 8 * place.offset
            bits = np.array([value & (2 ** (8 * size) - 1)], f"u{size}")
            return self.write(targets, bits, f"u{8 * size}", mask)
        targets = targets if isinstance(targets, tuple) else (targets,)
        lanes = self._lanes(mask)
        addresses = self._addresses(space, place, size * len(targets), lanes)
        for i, register in enumerate(targets):
            bits = self._loaded(space, addresses + np.uint64(size * i), size, lanes)
            self._put(lanes, register, bits, f"u{8 * size}", mask)
        return None

    def _st(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        (space, *_, kind), (place, values) = instruction.modifiers, instruction.operands
        size = int(kind[1:]) // 8
        values = values if isinstance(values, tuple) else (values,)
        lanes = self._lanes(mask)
        addresses = self._addresses(space, place, size * len(values), lanes)
        for i, value in enumerate(values):
            bits = self._of(lanes, value, f"u{8 * size}")
            self._stored(space, addresses + np.uint64(size * i), bits, lanes)

    def _lanes(self, mask: np.ndarray | None) -> np.ndarray:
        """The threads of a mask."""
        return np.arange(len(self.block)) if mask is None else np.flatnonzero(mask)

    def _warps(self, mask: np.ndarray | None) -> np.ndarray:
        """The threads of a mask, whole warps [warps, 32]."""
        lanes = self._lanes(mask)
        if (
            len(lanes) % WARP
            or (lanes.reshape(-1, WARP) // WARP != lanes[::WARP, None] // WARP).any()
        ):
            raise RuntimeError("not all threads of a warp are active")
        return lanes.reshape(-1, WARP)

    def _of(self, lanes: np.ndarray, operand: Operand, kind: str) -> np.ndarray:
        """The values of an operand in the threads `lanes`, of their shape."""
        return np.broadcast_to(self.read(operand, kind), self.block.shape)[lanes]

    def _put(
        self,
        lanes: np.ndarray,
        register: str,
        values: np.ndarray,
        kind: str,
        mask: np.ndarray | None,
    ) -> None:
        """Values of the shape of `lanes`, the threads of `mask`, into their registers."""
        every = np.zeros(self.block.shape, values.dtype)
        every[lanes] = values
        self.write(register, every, kind, mask)

    def _addresses(self, space: str, place: Address, size: int, lanes: np.ndarray) -> np.ndarray:
        """Addresses of `size` bytes; shared memory of a block follows that of the block before."""
        addresses = self._of(lanes, place.base, "u64" if space == "global" else "u32")
        addresses = addresses.astype(np.uint64) + np.uint64(place.offset % 2**64)
        if (addresses % np.uint64(size)).any():
            raise IndexError(f"an address is not a multiple of {size}")
        if space == "global":
            return addresses
        length = self.shared.shape[1]
        if (addresses >= length).any():
            raise IndexError(f"beyond the {length} bytes of shared memory")
        return self.block[lanes].astype(np.uint64) * np.uint64(length) + addresses

    def _loaded(
        self, space: str, addresses: np.ndarray, size: int, lanes: np.ndarray
    ) -> np.ndarray:
        if space == "shared":
            return self.shared.reshape(-1).view(f"u{size}")[addresses // np.uint64(size)]
        return self.memory.load(addresses, size, self.unordered[lanes])

    def _stored(
        self, space: str, addresses: np.ndarray, bits: np.ndarray, lanes: np.ndarray
    ) -> None:
        if space == "shared":
            whole = self.shared.reshape(-1).view(bits.dtype)
            whole[addresses // np.uint64(bits.itemsize)] = bits
        else:
            self.memory.store(addresses, bits, self.unordered[lanes])

    def _cp(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        """cp.async: bytes from global into shared memory, zeros where there are fewer."""
        if instruction.modifiers[1] not in ("ca", "cg"):
            return  # groups of copies: here a copy is complete at once
        to, source, size, *lengths = instruction.operands
        lanes = self._lanes(mask)
        length = self._of(lanes, lengths[0] if lengths else size, "u32")
        places = self._addresses("shared", to, size, lanes)
        sources = self._addresses("global", source, 1, lanes)
        for start in range(0, size, 4):
            bits = np.zeros(len(lanes), np.uint32)
            copied = length > start
            addresses = sources[copied] + np.uint64(start)
            bits[copied] = self._loaded("global", addresses, 4, lanes[copied])
            self._stored("shared", places + np.uint64(start), bits, lanes)

    def _ldmatrix(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        """8x8 matrices of 16 bits: a thread gives a row's address, and receives two neighbours."""
        registers, place = instruction.operands
        warps = self._warps(mask)
        for register, rows in [*self._rows(registers, place, warps)]:  # one may be the address
            bits = self.shared.reshape(-1)[rows].view(np.uint16).reshape(-1, 8, 8)
            if "trans" in instruction.modifiers:
                bits = bits.transpose(0, 2, 1)
            words = np.ascontiguousarray(bits).view(np.uint32).reshape(warps.shape)
            self._put(warps, register, words, "b32", mask)

    def _stmatrix(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        place, registers = instruction.operands
        warps = self._warps(mask)
        for register, rows in self._rows(registers, place, warps):
            bits = self._of(warps, register, "u32").view(np.uint16).reshape(-1, 8, 8)
            if "trans" in instruction.modifiers:
                bits = bits.transpose(0, 2, 1)
            self.shared.reshape(-1)[rows] = (
                np.ascontiguousarray(bits).view(np.uint8).reshape(-1, 16)
            )

    def _rows(self, registers: tuple, place: Address, warps: np.ndarray):
        """Registers, and bytes of their matrices [8 a warp, 16] at addresses from eight threads."""
        for i, register in enumerate(registers):
            starts = self._addresses("shared", place, 16, warps[:, 8 * i : 8 * i + 8].reshape(-1))
            yield register, starts[:, None] + np.arange(16, dtype=np.uint64)

    def _mma(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        """D = A B + C, a fragment of each in every thread of a warp (section 9.7.14)."""
        warps = self._warps(mask)
        _, _, shape, *_, kind_of_d, kind, _, _ = instruction.modifiers
        if (kind_of_d, kind) not in (("f64", "f64"), ("f32", "tf32")):
            raise NotImplementedError("the machine does not implement this instruction")
        rows, inner = (int(n) for n in shape.lstrip("m").replace("n8k", " ").split())
        lane = np.arange(WARP)
        group, member = lane // 4, lane % 4
        d, *sources = instruction.operands

        def matrix(registers: tuple, places: list, shape: tuple[int, int], kind: str) -> np.ndarray:
            values = np.zeros((len(warps), *shape))
            for register, (i, j) in zip(registers, places, strict=True):
                if kind == "tf32":  # float32 without the last 13 bits
                    bits = self._of(warps, register, "u32") & np.uint32(0xFFFFE000)
                    values[:, i, j] = bits.view(np.float32)
                else:
                    values[:, i, j] = self._of(warps, register, kind)
            return values

        halves = range(rows // 8)
        of_a = [(group + 8 * h, member + 4 * k) for k in range(inner // 4) for h in halves]
        of_b = [(member + 4 * k, group) for k in range(inner // 4)]
        of_c = [(group + 8 * h, 2 * member + j) for h in halves for j in range(2)]
        shapes = ((rows, inner), (inner, 8), (rows, 8))
        a, b, c = map(matrix, sources, (of_a, of_b, of_c), shapes, (kind, kind, kind_of_d))
        result = a @ b + c
        for register, (i, j) in zip(d, of_c, strict=True):
            self._put(warps, register, result[:, i, j], kind_of_d, mask)

    def _atom(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        if instruction.modifiers[-2:] != ("add", "u32"):
            raise NotImplementedError("the machine does not implement this instruction")
        to, place, value = instruction.operands
        lanes = self._lanes(mask)
        before, added = np.zeros(len(lanes), np.uint32), self._of(lanes, value, "u32")
        self.unordered[np.isin(self.block, self.block[lanes])] = 0
        for i, address in enumerate(self._addresses("global", place, 4, lanes)):  # in some order
            before[i] = self.memory.load(address[None], 4, np.zeros(1))[0]
            self.memory.store(address[None], before[i : i + 1] + added[i], np.zeros(1))
        self._put(lanes, to, before, "u32", mask)


def _dtype(kind: str) -> np.dtype:
    size = int(kind[1:]) // 8
    return np.dtype(f"{'f' if kind[0] == 'f' else 'i' if kind[0] == 's' else 'u'}{size}")


def _compare(compare: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare; a floating-point comparison whose name ends with u is also true for NaN."""
    unordered = np.zeros(1, bool)
    if a.dtype.kind == "f":
        unordered = np.isnan(a) | np.isnan(b)
    if compare in ("nan", "num"):
        return unordered == (compare == "nan")
    names = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    names |= {"eq": np.equal, "ne": np.not_equal}
    if compare in names:
        return names[compare](a, b) & ~unordered
    return names[compare[:-1]](a, b) | unordered


def _typed(bits: np.ndarray, kind: str) -> np.ndarray:
    """Bits as numbers; bfloat16 as the float32 that it is the upper half of."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(_dtype(kind))


def _together(halves: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """Bits of a lower and an upper half as one value, and its type."""
    size = 8 * halves[0].itemsize
    low, high = (half.view(f"u{size // 8}").astype(f"u{size // 4}") for half in halves)
    return high << high.dtype.type(size) | low, f"b{2 * size}"


def _bf16(values: np.ndarray) -> np.ndarray:
    """Bits of float32 rounded to bfloat16, to the even of two neighbours."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _narrow(values: np.ndarray, kind: str) -> np.ndarray:
    return _bf16(values) if kind == "bf16" else values.astype(np.float16).view(np.uint16)


def _flushed(values: np.ndarray) -> np.ndarray:
    """Subnormal numbers become zeros."""
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def _rough(values: np.ndarray, units: int) -> np.ndarray:
    """Values with an error of up to `units` in the last place, of an approximate instruction."""
    bits = np.asarray(values, np.float32).view(np.int32)
    drawn = (bits.view(np.uint32) * np.uint32(2654435761)) >> 16
    moved = bits + (drawn % np.uint32(2 * units + 1)).astype(np.int32) - units
    usual = np.isfinite(values) & (np.abs(values) > 1e-37) & (np.abs(values) < 1e37)
    return np.where(usual, moved.view(np.float32), values)


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A b + c, in float32 with one rounding."""
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (a.astype(wide) * b + c).astype(a.dtype)


def _extreme(numbers, poisoned):
    """Min or max: of a number and NaN the number, unless they are integers."""
    return lambda a, b: (numbers if a.dtype.kind == "f" else poisoned)(a, b)


ELEMENTWISE = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "times": lambda a, b: a * b,
    "fma": _fused,
    "div": _divided,
    "rem": lambda a, b: a - _divided(a, b) * b,
    "min": _extreme(np.fmin, np.minimum),
    "max": _extreme(np.fmax, np.maximum),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "neg": lambda a: -a,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "rcp": lambda a: 1 / a,
    "ex2": np.exp2,
    "lg2": np.log2,
}
