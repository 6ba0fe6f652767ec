"""What instructions on registers compute."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from .operands import (
    TRUE,
    WORD,
    ZERO,
    Meaning,
    State,
    following,
    predicate,
    registers_of,
    signed,
    signed_long,
    source,
    to_bits,
    to_float,
)


def is_predicate(text: str) -> bool:
    return text.lstrip("!") in TRUE or text.lstrip("!").lstrip("U").startswith("P")


def _split(operands: tuple[str, ...]) -> tuple[str, list[str], list[str], list[str]]:
    """Register written, predicates written, values read, predicates read."""
    first = 1
    while first < len(operands) and is_predicate(operands[first]):
        first += 1
    last = len(operands)
    while last > first and is_predicate(operands[last - 1]):
        last -= 1
    return operands[0], list(operands[1:first]), list(operands[first:last]), list(operands[last:])


def _word(compute: Callable[..., int], *, as_float: bool = False) -> Callable[..., Meaning]:
    """An instruction that writes one register from words and, last, predicates."""

    def meaning(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
        to, _, values, conditions = _split(operands)
        sources = [source(text, as_float=as_float) for text in values]
        sources += [predicate(text) for text in conditions]
        reads = [one.read for one in sources]
        return (
            lambda state: state.put(to, compute(modifiers, *[read(state) for read in reads])),
            registers_of(sources),
            (to,),
        )

    return meaning


def _float(compute: Callable[..., float]) -> Callable[..., Meaning]:
    """The same of float32 numbers."""

    def on_bits(modifiers: tuple[str, ...], *words: int) -> int:
        try:
            value = compute(modifiers, *[to_float(word) for word in words])
        except (OverflowError, ValueError, ZeroDivisionError):
            value = math.inf
        if "SAT" in modifiers:
            value = min(1.0, max(0.0, value))
        return to_bits(value)

    return _word(on_bits, as_float=True)


def _add_three(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    """IADD3 and VIADD: sums with their carries; -x is 2**32 - x, whose carry tells x <= y."""
    to, carries, values, conditions = _split(operands)
    extended = "X" in modifiers
    plain = [source(text.lstrip("-")) if text[0] == "-" and text[1] != "0" else source(text)
             for text in values]  # fmt: skip
    negative = [text[0] == "-" and text[1] != "0" for text in values]
    given = [predicate(text) for text in conditions] if extended else []

    def run(state: State) -> None:
        total = sum(
            (1 << 32) - one.read(state) if minus else one.read(state)
            for one, minus in zip(plain, negative, strict=True)
        )
        total += sum(one.read(state) for one in given)
        state.put(to, total)
        for k, carry in enumerate(carries):
            state.put(carry, int(total >> 32 > k))

    return run, registers_of([*plain, *given]), (to, *carries)


def _multiply_add(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, carries, values, conditions = _split(operands)
    wide, high = "WIDE" in modifiers, "HI" in modifiers
    a, b = source(values[0]), source(values[1])
    c = source(values[2], wide=wide or high)
    given = [predicate(text) for text in conditions] if "X" in modifiers else []
    as_signed = "U32" not in modifiers and (wide or high)

    def run(state: State) -> None:
        left, right = a.read(state), b.read(state)
        if as_signed:
            left, right = signed(left), signed(right)
        product = left * right
        if wide or high:
            product &= (1 << 64) - 1
        total = product + c.read(state) + sum(one.read(state) for one in given)
        if wide:
            state.put_pair(to, total)
        else:
            state.put(to, total >> 32 if high else total)
        for carry in carries:
            state.put(carry, int(total >> (64 if wide else 32) > 0))

    written = (to, following(to)) if wide else (to,)
    return run, registers_of([a, b, c, *given]), (*written, *carries)


def _shift_add(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    """LEA: (a << s) + b, or the high word of that, where a goes on in c."""
    to, carries, values, conditions = _split(operands)
    given = [predicate(text) for text in conditions] if "X" in modifiers else []
    by = int(values[-1], 16)
    sources = [source(text) for text in values[:-1]]
    high, extended = "HI" in modifiers, "SX32" in modifiers

    def run(state: State) -> None:
        read = [one.read(state) for one in sources]
        if not high:
            total = (read[0] << by & WORD) + read[1]
        else:
            upper = (signed(read[0]) >> 31 & WORD) if extended else read[2]
            total = ((upper << 32 | read[0]) >> (32 - by) & WORD) + read[1]
        total += sum(one.read(state) for one in given)
        state.put(to, total)
        for carry in carries:
            state.put(carry, total >> 32 & 1)

    return run, registers_of([*sources, *given]), (to, *carries)


def _shift(modifiers: tuple[str, ...], low: int, by: int, upper: int) -> int:
    by = by & 31 if "W" in modifiers else min(by, 64 if "U64" in modifiers else 32)
    whole = upper << 32 | low
    if modifiers[0] == "L":
        whole <<= by
        return whole >> 32 if "HI" in modifiers else whole
    if "S32" in modifiers or "S64" in modifiers:
        whole = signed_long(whole)
    return whole >> by >> (32 if "HI" in modifiers else 0)


def _permute(modifiers: tuple[str, ...], low: int, selector: int, high: int) -> int:
    pool = (high << 32 | low).to_bytes(8, "little")
    value = 0
    for k in range(4):
        pick = selector >> 4 * k & 0xF
        byte = pool[pick & 7]
        if pick & 8:
            byte = 0xFF if byte & 0x80 else 0
        value |= byte << 8 * k
    return value


def _table(words: list[int], table: int) -> int:
    a, b, c = words
    value = 0
    for k in range(8):
        if table >> k & 1:
            value |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return value & WORD


def _logic(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    found = []
    if is_predicate(operands[0]):
        found, operands = [operands[0]], operands[1:]
    to, values = operands[0], operands[1:4]
    sources = [source(text) for text in values]
    table = int(operands[4], 16)

    def run(state: State) -> None:
        value = _table([one.read(state) for one in sources], table)
        state.put(to, value)
        for name in found:
            state.put(name, int(value != 0))

    return run, registers_of(sources), (to, *found)


def _predicate_logic(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, sources = operands[:2], [predicate(text) for text in operands[2:5]]
    tables = [int(text, 16) for text in operands[5:7]]

    def run(state: State) -> None:
        a, b, c = (one.read(state) for one in sources)
        for name, table in zip(to, tables, strict=False):
            state.put(name, table >> (a << 2 | b << 1 | c) & 1)

    return run, registers_of(sources), tuple(to)


COMPARE: dict[str, Callable[[float, float], bool]] = {
    "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b, "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b, "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b,
    "NEU": lambda a, b: a != b, "GEU": lambda a, b: not a < b, "LTU": lambda a, b: not a >= b,
    "GTU": lambda a, b: not a <= b, "LEU": lambda a, b: not a > b, "EQU": lambda a, b: a == b,
}  # fmt: skip
JOIN: dict[str, Callable[[bool, bool], bool]] = {
    "AND": lambda a, b: a and b, "OR": lambda a, b: a or b, "XOR": lambda a, b: a != b,
}  # fmt: skip


def _compare(as_float: bool) -> Callable[..., Meaning]:
    def meaning(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
        to, other = operands[:2]
        a, b = (source(text, as_float=as_float) for text in operands[2:4])
        given = [predicate(text) for text in operands[4:]]
        compare = COMPARE[modifiers[0]]
        join = next(JOIN[part] for part in modifiers if part in JOIN)
        unsigned, extended = "U32" in modifiers, "EX" in modifiers

        def number(word: int) -> float:
            return to_float(word) if as_float else word if unsigned else signed(word)

        def run(state: State) -> None:
            left, right = number(a.read(state)), number(b.read(state))
            truth = compare(left, right)
            if extended:  # the lower words have been compared
                lower = bool(given[1].read(state))
                if modifiers[0] == "NE":
                    truth = truth or lower
                elif left == right:
                    truth = lower
            before = bool(given[0].read(state))
            state.put(to, int(join(truth, before)))
            state.put(other, int(join(not truth, before)))

        return run, registers_of([a, b, *given]), (to, other)

    return meaning


def _matrix(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to = operands[0]
    sizes = {"16816": (4, 2), "1688": (4, 2) if "TF32" in modifiers else (2, 1)}
    first, second = sizes[modifiers[0]]
    reads = [following(operands[1], k) for k in range(first)]
    reads += [following(operands[2], k) for k in range(second)]
    reads += [following(operands[3], k) for k in range(4)]
    written = tuple(following(to, k) for k in range(4))
    return (lambda state: None), tuple(set(reads) - ZERO), written


def _pair_of_zeros(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to = operands[0]
    return (lambda state: state.put_pair(to, 0)), (), (to, following(to))


def _predicates_to_register(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    to, mask = operands[0], int(operands[3], 16)
    names = [(k, f"{'U' if to[0] == 'U' else ''}P{k}") for k in range(7) if mask >> k & 1]

    def run(state: State) -> None:
        state.put(to, sum(state.word(name) << k for k, name in names))

    return run, tuple(name for _, name in names), (to,)


def _register_to_predicates(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    one, mask = source(operands[1]), int(operands[2], 16)
    kind = "UP" if operands[0] == "UPR" else "P"
    names = [(k, f"{kind}{k}") for k in range(7) if mask >> k & 1]

    def run(state: State) -> None:
        for k, name in names:
            state.put(name, one.read(state) >> k & 1)

    return run, one.registers, tuple(name for _, name in names)


def _special(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    return (lambda state: state.put(operands[0], 0)), (), (operands[0],)


def _answer(truth: int) -> Callable[..., Meaning]:
    """An instruction whose predicate is known."""

    def meaning(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
        to = operands[0] if operands and is_predicate(operands[0]) else "PT"
        return (lambda state: state.put(to, truth)), (), (to,)

    return meaning


def _all_of_block(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    """What a barrier found to be so for all threads: taken for true."""
    return (lambda state: state.put(operands[1], 1)), (), (operands[1],)


def _smaller(modifiers: tuple[str, ...], a: int, b: int, least: int) -> int:
    unsigned = "U32" in modifiers
    pair = (a, b) if unsigned else (signed(a), signed(b))
    return min(pair) if least else max(pair)


def _special_function(modifiers: tuple[str, ...], x: float) -> float:
    functions: dict[str, Callable[[float], float]] = {
        "RCP": lambda value: 1 / value if value else math.inf,
        "RSQ": lambda value: value**-0.5 if value else math.inf,
        "SQRT": math.sqrt,
        "EX2": lambda value: 2.0**value,
        "LG2": lambda value: math.log2(value) if value else -math.inf,
        "TANH": math.tanh,
        "SIN": math.sin,
        "COS": math.cos,
    }
    return functions[modifiers[0]](x)


def _to_float_rounded(modifiers: tuple[str, ...], value: int) -> int:
    number = value if any(part.startswith("U") for part in modifiers) else signed(value)
    bits = to_bits(float(number))
    # .RP rounds up.
    return bits + 1 if "RP" in modifiers and to_float(bits) < number else bits


def _to_integer(modifiers: tuple[str, ...], bits: int) -> int:
    value = to_float(bits)
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return WORD if value > 0 else 0
    return int(value)


def _halves(modifiers: tuple[str, ...], high: int, low: int) -> int:
    if "BF16" in modifiers:
        return (high & 0xFFFF0000) | low >> 16
    return _half(to_float(high)) << 16 | _half(to_float(low))


def _half(value: float) -> int:
    return int(struct.unpack("<H", struct.pack("<e", max(-65504.0, min(65504.0, value))))[0])


def _widened(bits: int) -> float:
    return float(struct.unpack("<e", struct.pack("<H", bits & 0xFFFF))[0])


def _two_halves(modifiers: tuple[str, ...], operands: tuple[str, ...]) -> Meaning:
    """What a product with zero is taken for: to write a constant."""
    if operands[1].lstrip("-") not in ZERO:
        raise ValueError("no constant")
    value = _half(float(operands[3])) << 16 | _half(float(operands[4]))
    return (lambda state: state.put(operands[0], value)), (), (operands[0],)


def _fused(modifiers: tuple[str, ...], a: float, b: float, c: float) -> float:
    value = a * b + c
    if "RM" in modifiers and to_float(to_bits(value)) > value:
        return to_float(to_bits(value) - (1 if value > 0 else -1))
    return value


ARITHMETIC: dict[str, Callable[..., Meaning]] = {
    "IADD3": _add_three, "VIADD": _add_three, "IMAD": _multiply_add, "LEA": _shift_add,
    "SHF": _word(_shift), "PRMT": _word(_permute), "LOP3": _logic, "PLOP3": _predicate_logic,
    "ISETP": _compare(False), "FSETP": _compare(True), "HMMA": _matrix, "CS2R": _pair_of_zeros,
    "P2R": _predicates_to_register, "R2P": _register_to_predicates,
    "UP2UR": _predicates_to_register, "UR2UP": _register_to_predicates, "S2R": _special,
    "S2UR": _special, "R2UR": _word(lambda m, a: a), "MOV": _word(lambda m, a, *_: a),
    "SEL": _word(lambda m, a, b, p: a if p else b), "IABS": _word(lambda m, a: abs(signed(a))),
    "FSEL": _word(lambda m, a, b, p: a if p else b, as_float=True),
    "VIMNMX": _word(_smaller),
    "VIADDMNMX": _word(lambda m, a, b, c, p: _smaller(m, a + b & WORD, c, p)),
    "FADD": _float(lambda m, a, b: a + b), "FMUL": _float(lambda m, a, b: a * b),
    "FFMA": _float(_fused),
    "FMNMX": _word(lambda m, a, b, p: min(a, b, key=to_float) if p else max(a, b, key=to_float),
                   as_float=True),
    "MUFU": _float(_special_function), "I2F": _word(_to_float_rounded),
    "I2FP": _word(_to_float_rounded), "F2I": _word(_to_integer, as_float=True),
    "F2FP": _word(_halves, as_float=True),
    "F2F": _word(lambda m, a: _halves(m, 0, a), as_float=True),
    "FCHK": _answer(0), "SYNCS": _answer(1),
    "HADD2": _word(lambda m, a, b: to_bits(_widened(b))), "HFMA2": _two_halves,
    "MAPA": _word(lambda m, a, b: a), "B2R": _all_of_block,
}  # fmt: skip
