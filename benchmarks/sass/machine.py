"""One thread's way through a kernel: what it executes, and how long that takes it.

The arithmetic on integers, addresses and predicates is exact, so that branches go where they would;
floating-point numbers are near enough for theirs. Loads from global memory give small numbers, made
from the address. Another thread is never waited for, and nothing is contended for.

Time is that of a processor that issues one instruction a clock, in order, each as soon as what it
reads is there. Latencies are assumed, not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .arithmetic import ARITHMETIC
from .listing import Instruction, Kernel
from .operands import (
    Meaning,
    Source,
    State,
    address,
    following,
    predicate,
    registers_of,
    source,
)

# Clocks until a result can be read; what is not named here takes ALU.
ALU, SHARED, MATRIX, SPECIAL, GLOBAL, BRANCH = 5, 30, 33, 22, 280, 9
LATENCY = {
    "LDS": SHARED, "LDSM": MATRIX, "HMMA": MATRIX, "MUFU": SPECIAL, "I2F": SPECIAL, "F2I": SPECIAL,
    "S2R": SPECIAL, "S2UR": SPECIAL, "R2UR": SPECIAL, "LDG": GLOBAL, "LDL": SHARED, "SHFL": SHARED,
}  # fmt: skip

# One thread has nobody to wait for, and a barrier or fence is over at once.
NOTHING = {
    "NOP", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "YIELD", "BAR", "MEMBAR", "ERRBAR", "CGAERRBAR",
    "CCTL", "REDG", "STG", "STL", "UCGABAR_ARV", "UCGABAR_WAIT", "FENCE", "ST", "STAS",
    "BMOV", "NANOSLEEP",
}  # fmt: skip

SHARED_START = 0x400  # of a block's own shared memory, behind what the system keeps
MOST = 4_000_000  # instructions


@dataclass
class Path:
    """What a thread went through. `counts` are instructions by the first part of their names."""

    clocks: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def instructions(self) -> int:
        return sum(count for name, count in self.counts.items() if name != "taken")

    def __sub__(self, other: Path) -> Path:
        counts = Counter(self.counts)
        counts.subtract(other.counts)
        return Path(self.clocks - other.clocks, counts)


@dataclass
class _Step:
    """An instruction as the machine takes it; `run` returns where to go on, or None."""

    run: Callable[[State], int | None]
    guard: Source | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    latency: int
    name: str


class Ended(Exception):
    """The thread has come to its end."""


class Machine:
    """Runs a kernel for thread `thread` of block 0, whose parameters are `parameters`."""

    def __init__(
        self,
        kernel: Kernel,
        parameters: bytes,
        threads: int,
        grid: tuple[int, int, int],
        cluster: int = 1,
    ) -> None:
        constants = bytearray(0x210 + len(parameters))
        for place, size in enumerate((threads, 1, 1, *grid)):
            constants[4 * place : 4 * place + 4] = size.to_bytes(4, "little")
        constants[0x188:0x18C] = cluster.to_bytes(4, "little")
        constants[0x28:0x2C] = (1 << 16).to_bytes(4, "little")  # of the stack
        constants[0x210:] = parameters
        self.kernel = kernel
        self.state = State(bytearray(SHARED_START + 232448), bytes(constants))
        self._steps: list[_Step | None] = [None] * len(kernel.code)
        self._places = {one.place: at for at, one in enumerate(kernel.code)}

    def run(self) -> Path:
        """From the first instruction to the end."""
        path, now, at = Path(), 0, 0
        ready: dict[str, int] = {}  # when a register can be read
        groups: list[int] = []  # of asynchronous copies: when they have come
        copied = 0
        state = self.state
        for _ in range(MOST):
            step = self._steps[at]
            if step is None:
                step = self._steps[at] = self._decode(self.kernel.code[at], at)
            now += 1
            guard = step.guard
            if guard is not None:
                for name in guard.registers:
                    now = max(now, ready.get(name, 0))
                if not guard.read(state):
                    path.counts["skipped"] += 1
                    at += 1
                    continue
            for name in step.reads:
                if ready.get(name, 0) > now:
                    now = ready[name]
            path.counts[step.name] += 1
            if step.name == "LDGSTS":
                copied = now + GLOBAL
            elif step.name == "LDGDEPBAR":
                groups.append(copied)
            elif step.name == "DEPBAR":
                keep = int(self.kernel.code[at].operands[1], 16)
                now = max([now, *groups[: len(groups) - keep]])
            try:
                to = step.run(state)
            except Ended:
                path.clocks = now
                return path
            for name in step.writes:
                ready[name] = now + step.latency
            if to is not None and to != at + 1:
                path.counts["taken"] += 1
                now += BRANCH
            at = at + 1 if to is None else to
        raise RuntimeError(f"{self.kernel.name} does not end after {MOST} instructions")

    def _decode(self, one: Instruction, at: int) -> _Step:
        name, *modifiers = one.op.split(".")
        guard = predicate(one.guard) if one.guard else None
        try:
            run, reads, writes = _meaning(name, tuple(modifiers), one, self, at)
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise NotImplementedError(f"{one} ({error!r})") from error
        if guard is not None:
            reads = (*reads, *guard.registers)
        return _Step(run, guard, reads, writes, LATENCY.get(name, ALU), name)

    def target(self, text: str) -> int:
        """Where a branch to a label goes."""
        label = text.strip("`() ")
        if label in self.kernel.labels:
            return self.kernel.labels[label]
        return self._places[int(text, 16)]

    def place(self, address: int) -> int:
        return self._places[address]


def _meaning(
    name: str, modifiers: tuple[str, ...], one: Instruction, machine: Machine, at: int
) -> Meaning:
    operands = one.operands
    if name in NOTHING:
        return (lambda state: None), (), ()
    if name in CONTROL:
        return CONTROL[name](modifiers, operands, machine)
    if name in MEMORY:
        return MEMORY[name](modifiers, operands)
    base = name[1:] if name.startswith("U") and name[1:] in ARITHMETIC else name
    return ARITHMETIC[base](modifiers, operands)


# --- control ------------------------------------------------------------------------------------


def _branch(modifiers: tuple[str, ...], operands: tuple[str, ...], machine: Machine) -> Meaning:
    to = machine.target(operands[-1])
    if "DIV" in modifiers:  # where the threads of a warp have parted
        return (lambda state: None), (), ()
    conditions = [predicate(text) for text in operands[:-1]]
    if not conditions:
        return (lambda state: to), (), ()
    taken = conditions[0].read
    return (lambda state: to if taken(state) else None), registers_of(conditions), ()


def _call(modifiers: tuple[str, ...], operands: tuple[str, ...], machine: Machine) -> Meaning:
    to = machine.target(operands[-1])
    return (lambda state: to), (), ()


def _return(modifiers: tuple[str, ...], operands: tuple[str, ...], machine: Machine) -> Meaning:
    name = operands[0].split()[0]
    return (lambda state: machine.place(state.word(name))), (name,), ()


def _exit(modifiers: tuple[str, ...], operands: tuple[str, ...], machine: Machine) -> Meaning:
    def run(state: State) -> None:
        raise Ended

    return run, (), ()


def _no_effect(modifiers: tuple[str, ...], operands: tuple[str, ...], machine: Machine) -> Meaning:
    return (lambda state: None), (), ()


CONTROL: dict[str, Callable[..., Meaning]] = {
    "BRA": _branch, "CALL": _call, "RET": _return, "EXIT": _exit,
    "DEPBAR": _no_effect, "LDGDEPBAR": _no_effect,
}  # fmt: skip


# --- memory -------------------------------------------------------------------------------------


def _bytes(modifiers: tuple[str, ...]) -> int:
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    return next((sizes[part] for part in modifiers if part in sizes), 4)


def _spread(register: str, size: int) -> tuple[str, ...]:
    return tuple(following(register, k) for k in range(max(1, size // 4)))


def small(place: int) -> int:
    """A word that is a small number as float32, as two bfloat16 and as two float16."""
    mixed = place * 2654435761 >> 7
    return (0x3C00 | mixed & 0x80FF) << 16 | 0x3C00 | mixed >> 16 & 0x80FF


def _load_global(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, from_ = operands[0], address(operands[1])
    size = _bytes(modifiers)
    strong = "STRONG" in modifiers

    def run(state: State) -> None:
        place = from_.read(state)
        for k, register in enumerate(_spread(to, size)):
            # Counters of other blocks are always far enough.
            value = 0x3FFFFFFF if strong else small(place + 4 * k)
            state.put(register, value & ((1 << 8 * min(4, size)) - 1))

    return run, from_.registers, _spread(to, size)


def _load_shared(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, from_ = operands[0], address(operands[1])
    size = _bytes(modifiers)
    width = min(4, size)

    def run(state: State) -> None:
        place = from_.read(state)
        for k, register in enumerate(_spread(to, size)):
            start = place + 4 * k
            state.put(register, int.from_bytes(state.shared[start : start + width], "little"))

    return run, from_.registers, _spread(to, size)


def _store_shared(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, size = address(operands[0]), _bytes(modifiers)
    names = [source(register) for register in _spread(operands[1], size)]
    width = min(4, size)

    def run(state: State) -> None:
        place = to.read(state)
        for k, one in enumerate(names):
            value = one.read(state) & ((1 << 8 * width) - 1)
            state.shared[place + 4 * k : place + 4 * k + width] = value.to_bytes(width, "little")

    return run, (*to.registers, *registers_of(names)), ()


def _copy(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, from_ = address(operands[0]), address(operands[1])
    size = _bytes(modifiers)

    def run(state: State) -> None:
        place, start = from_.read(state), to.read(state)
        for k in range(0, size, 4):
            state.shared[start + k : start + k + 4] = small(place + k).to_bytes(4, "little")

    return run, (*to.registers, *from_.registers), ()


def _load_matrices(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, from_ = operands[0], address(operands[1])
    count = int(modifiers[-1])
    registers = tuple(following(to, k) for k in range(count))
    return (lambda state: None), from_.registers, registers


def _load_constant(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    wide = "64" in modifiers
    one = source(operands[1], wide=wide)
    to = operands[0]
    put = State.put_pair if wide else State.put
    width = 0xFF if "U8" in modifiers else 0xFFFF if "U16" in modifiers else (1 << 64) - 1
    written = (to, following(to)) if wide else (to,)
    return (lambda state: put(state, to, one.read(state) & width)), one.registers, written


MEMORY: dict[str, Callable[..., Meaning]] = {
    "LDG": _load_global, "LD": _load_global, "LDL": _load_global, "LDS": _load_shared,
    "STS": _store_shared, "LDGSTS": _copy, "LDSM": _load_matrices, "LDC": _load_constant,
    "ULDC": _load_constant,
}  # fmt: skip
