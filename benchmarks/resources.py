"""What the compiled CUDA kernels take: registers and spills, as ptxas reports them; and plans.

    make check-archs                    every architecture that a wheel has; writes the tables
    python benchmarks/resources.py      the same, from what was compiled last

The reports lie beside the objects (setup.py), so that reading them compiles nothing. The exit code
is 1 where a kernel spills.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bptt.engines import gpu
from bptt.recurrence.op_checks import Sizes

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "native" / "cuda"
RESULTS = ROOT / "benchmarks" / "results" / "cuda-compiled"

_KERNEL = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """A row: one kernel on one architecture. `stack` and `spilled` are bytes."""

    arch: str
    name: str
    registers: int
    stack: int
    spilled: int


def reports(every_architecture: bool) -> list[Path]:
    """What ptxas said of the objects of a wheel, or of those in place."""
    found = [path for path in OBJECTS.glob("*.ptxas") if "simulated" not in path.name]
    found = [path for path in found if ("virtual" in path.name) == every_architecture]
    # Builds for other targets, or for one kind of numbers, leave reports beside the last one's.
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    variant = "" if newest is None else newest.name.split(".", 1)[1]
    return sorted(path for path in found if path.name.split(".", 1)[1] == variant)


def read(paths: Sequence[Path]) -> list[Kernel]:
    """The kernels of some reports, in the order of architecture and name."""
    kernels = [kernel for path in paths for kernel in _kernels(path.read_text())]
    return sorted(kernels, key=lambda kernel: (kernel.arch, kernel.name))


def _kernels(report: str) -> Iterator[Kernel]:
    matches = list(_KERNEL.finditer(report))
    symbols = "\n".join(match["symbol"] for match in matches)
    names = subprocess.run(["c++filt"], input=symbols, capture_output=True, text=True, check=True)
    for match, name in zip(matches, names.stdout.splitlines(), strict=True):
        spilled = int(match["stores"]) + int(match["loads"])
        yield Kernel(
            match["arch"], plain(name), int(match["registers"]), int(match["stack"]), spilled
        )


def plain(name: str) -> str:
    """A kernel's name and what it is made of, without namespaces and arguments."""
    name = re.sub(r"(bptt|gpu)::|\(bool\)|^void ", "", name)
    depth = 0
    for place, letter in enumerate(name):  # up to its argument list
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def table(kernels: Sequence[Kernel]) -> str:
    """A Markdown table of one architecture."""
    lines = ["| kernel | registers | stack, bytes | spilled, bytes |", "|---|---|---|---|"]
    lines += [f"| `{k.name}` | {k.registers} | {k.stack} | {k.spilled} |" for k in kernels]
    return "\n".join(lines)


def write(kernels: Sequence[Kernel], folder: Path = RESULTS) -> None:
    """One file per architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    for arch in sorted({kernel.arch for kernel in kernels}):
        rows = [kernel for kernel in kernels if kernel.arch == arch]
        head = (
            f"# CUDA kernels for {arch}\n\n"
            "Made by `make check-archs`. Shared memory is given at the launch: `bptt.explain` and "
            "the planner say how much. Stack is for the message before a trap.\n\n"
        )
        (folder / f"{arch}.md").write_text(head + table(rows) + "\n")


# Capability, processors, bytes of shared memory of a block, MHz.
DEVICES = {"H200": (90, 132, 232448, 1980), "A100": (80, 108, 166912, 1410)}


def plans(device: tuple[int, ...]) -> str:
    """A Markdown table of what the planner takes for layers of one direction, 512 steps."""
    lines = ["| cell | number | H | B | forward | backward |", "|---|---|---|---|---|---|"]
    for cell in ("lstm", "gru", "rnn_tanh"):
        for number in ("bf16", "tf32"):
            for hidden in (64, 128, 256, 512, 768, 1024, 2048):
                for batch in (1, 16, 64, 256):
                    sizes = Sizes(512, batch, 1, hidden, hidden)
                    ways = [
                        str(gpu.make_plan(cell, number, sizes, False, backward, device))
                        for backward in (False, True)
                    ]
                    lines.append(f"| {cell} | {number} | {hidden} | {batch} | {' | '.join(ways)} |")
    return "\n".join(lines)


def write_plans(folder: Path = RESULTS) -> None:
    """One file per device."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, device in DEVICES.items():
        head = (
            f"# Plans for an {name}\n\nMade by `make check-archs`. Times are the model's, of "
            "`csrc/cuda/planner_model.cpp`; none has been measured yet.\n\n"
        )
        (folder / f"plans-{name}.md").write_text(head + plans(device) + "\n")


def main() -> int:
    """Write the tables and name what spills."""
    write_plans()
    paths = reports(every_architecture=True)
    if not paths:
        print("nothing was compiled for every architecture; run `make check-archs`")
        return 1
    kernels = read(paths)
    write(kernels)
    spilling = [kernel for kernel in kernels if kernel.spilled]
    for kernel in spilling:
        print(f"{kernel.arch}: {kernel.name} spills {kernel.spilled} bytes")
    archs = sorted({kernel.arch for kernel in kernels})
    print(f"{len(kernels)} kernels for {', '.join(archs)}; {len(spilling)} spill")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
