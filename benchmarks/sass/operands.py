"""Operands of instructions: how they are read, and which registers that takes.

A register is named by what nvdisasm calls it: "R7", "UR4", "P0", "UP1".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

WORD = 0xFFFFFFFF
ZERO = {"RZ", "URZ", "SRZ"}
TRUE = {"PT", "UPT"}


@dataclass
class State:
    """A thread: registers and predicates by name, and memory."""

    shared: bytearray
    constants: bytes
    registers: dict[str, int] = field(default_factory=dict)

    def word(self, name: str) -> int:
        return self.registers.get(name, 0)

    def pair(self, name: str) -> int:
        return self.word(name) | self.word(following(name)) << 32

    def put(self, name: str, value: int) -> None:
        if name not in ZERO and name not in TRUE:
            self.registers[name] = value & WORD

    def put_pair(self, name: str, value: int) -> None:
        self.put(name, value)
        if name not in ZERO:
            self.put(following(name), value >> 32)


def following(name: str, by: int = 1) -> str:
    """The register `by` places after one."""
    if name in ZERO:
        return name
    kind, number = re.fullmatch(r"(U?R)(\d+)", name).groups()  # type: ignore[union-attr]
    return f"{kind}{int(number) + by}"


def signed(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


def signed_long(value: int) -> int:
    return value - (1 << 64) if value >> 63 & 1 else value


def to_float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & WORD))[0]


def to_bits(value: float) -> int:
    try:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        return 0x7F800000 | (0x80000000 if value < 0 else 0)


@dataclass(frozen=True)
class Source:
    """A value that an instruction reads, as 32 bits, and the registers it reads for that."""

    read: Callable[[State], int]
    registers: tuple[str, ...]


_REGISTER = re.compile(r"(U?R(?:\d+|Z)|SRZ)(\.[\w.]+)?")
_CONSTANT = re.compile(r"c\[0x(?P<bank>[0-9a-f]+)\]\[(?P<place>[^\]]+)\]")


def source(text: str, *, as_float: bool = False, wide: bool = False) -> Source:
    """An operand with its sign, complement or magnitude; of 64 bits where `wide`."""
    text = text.strip()
    if text[0] in "-~" and not re.match(r"-(0x|\d|INF|QNAN)", text):
        inner = source(text[1:], as_float=as_float, wide=wide)
        mask = (1 << 64) - 1 if wide else WORD
        change: Callable[[int], int]
        if text[0] == "~":
            change = lambda value: value ^ mask  # noqa: E731
        elif as_float:
            change = lambda value: value ^ 0x80000000  # noqa: E731
        else:
            change = lambda value: -value & mask  # noqa: E731
        return Source(lambda state: change(inner.read(state)), inner.registers)
    if text[0] == "|":
        inner = source(text.strip("|"), as_float=as_float)
        if as_float:
            return Source(lambda state: inner.read(state) & 0x7FFFFFFF, inner.registers)
        return Source(lambda state: abs(signed(inner.read(state))), inner.registers)
    if match := _REGISTER.fullmatch(text):
        return _register(match[1], match[2] or "", wide)
    if match := _CONSTANT.match(text):
        return _constant(match["place"], wide)
    value = _immediate(text, as_float)
    return Source(lambda state: value, ())


def _register(name: str, part: str, wide: bool) -> Source:
    if name in ZERO:
        return Source(lambda state: 0, ())
    if wide:
        return Source(lambda state: state.pair(name), (name, following(name)))
    shift, mask = 0, WORD
    if match := re.search(r"\.B(\d)", part):
        shift, mask = 8 * int(match[1]), 0xFF
    elif match := re.search(r"\.H(\d)", part):
        shift, mask = 16 * int(match[1]), 0xFFFF
    return Source(lambda state: state.word(name) >> shift & mask, (name,))


def _constant(place: str, wide: bool) -> Source:
    base, offset = None, 0
    for term in place.split("+"):
        if term.startswith(("R", "UR")):
            base = term
        else:
            offset = int(term, 16)
    size = 8 if wide else 4

    def read(state: State) -> int:
        at = offset + (state.word(base) if base else 0)
        return int.from_bytes(state.constants[at : at + size], "little")

    return Source(read, (base,) if base else ())


def _immediate(text: str, as_float: bool) -> int:
    if text.startswith(("32@", "fun@")):  # filled in when it is linked
        return 0
    if "INF" in text or "QNAN" in text:
        return to_bits(float("-inf" if text[0] == "-" else "inf" if "INF" in text else "nan"))
    if "0x" in text:
        return int(text, 16) & WORD
    return to_bits(float(text)) if as_float else int(text) & WORD


def predicate(text: str) -> Source:
    """A predicate, perhaps negated, as 0 or 1."""
    name = text.lstrip("!")
    wrong = text.startswith("!")
    if name in TRUE:
        return Source(lambda state: 0 if wrong else 1, ())
    return Source(lambda state: state.word(name) ^ wrong, (name,))


@dataclass(frozen=True)
class Address:
    """[R2.64+UR4+0x10] and its like."""

    read: Callable[[State], int]
    registers: tuple[str, ...]


def address(text: str) -> Address:
    """The address in the last brackets of an operand."""
    inside = re.findall(r"\[([^\]]*)\]", text)[-1]
    terms, registers, offset = [], [], 0
    for term in re.findall(r"-?[^+]+", inside):
        if match := re.fullmatch(r"(U?R(?:\d+|Z))(\.\w+)*", term):
            name, scale = match[1], 1
            if match := re.search(r"\.X(\d+)", term):
                scale = int(match[1])
            if name in ZERO:
                continue
            wide = ".64" in term
            terms.append((name, scale, wide))
            registers += [name, following(name)] if wide else [name]
        else:
            offset += int(term, 16)

    def read(state: State) -> int:
        total = offset
        for name, scale, wide in terms:
            total += (state.pair(name) if wide else state.word(name)) * scale
        return total

    return Address(read, tuple(registers))


# What an instruction does to a thread, returning where to go on or None, and the registers that it
# reads and writes.
Meaning = tuple[Callable[[State], "int | None"], tuple[str, ...], tuple[str, ...]]


def registers_of(sources: list[Source]) -> tuple[str, ...]:
    return tuple(name for one in sources for name in one.registers)
