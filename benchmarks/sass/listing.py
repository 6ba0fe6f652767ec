"""What nvdisasm prints of a kernel, as instructions."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(
    r"/\*(?P<place>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<op>[A-Z0-9_.]+)\s*(?P<rest>.*);"
)


@dataclass(frozen=True)
class Instruction:
    """`place` is the address from the kernel's first instruction; `op` has its modifiers."""

    place: int
    guard: str | None
    op: str
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel: its mangled name, and where its labels lie in `code`."""

    name: str
    code: tuple[Instruction, ...]
    labels: dict[str, int]


def disassembler() -> Path | None:
    """The nvdisasm that comes with Triton, if that is installed."""
    try:
        import triton
    except ImportError:
        return None
    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return found if found.exists() else None


def kernels(cubin: Path) -> list[Kernel]:
    """The kernels of a compiled file."""
    command = [str(disassembler()), "-c", str(cubin)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [_kernel(section) for section in listing.split("\t.section\t.text.")[1:]]


def _kernel(section: str) -> Kernel:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in section.splitlines():
        if match := _LINE.search(line):
            operands = tuple(_operands(match["rest"]))
            code.append(Instruction(int(match["place"], 16), match["guard"], match["op"], operands))
        elif match := re.fullmatch(r"\s*([.$\w]+):\s*", line):
            labels[match[1]] = len(code)
    return Kernel(section.split(",", 1)[0], tuple(code), labels)


def _operands(text: str) -> Iterator[str]:
    for operand in re.split(r",\s*(?![^\[]*\])", text.strip()):
        if operand:
            yield operand.strip().replace(".reuse", "")


def demangled(names: Sequence[str]) -> list[str]:
    """The names as C++ has them."""
    command = ["c++filt"]
    done = subprocess.run(
        command, input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()
