"""One thread's way through a step of the CUDA kernels, read from their machine code.

python benchmarks/step_path.py       writes results/cuda-compiled/step-path.json and step-path.md

Needs nvcc, and the nvdisasm that comes with Triton; no GPU. A kernel is compiled for an H200, and
`sass.machine` follows the first thread of its first block, which also signals and waits for the
others, through two runs that differ by one step. Its latencies are assumed, waiting for other
blocks takes no time, and instruction caches always hit: the figures compare kernels and tell of
growth. They are no measurements.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from resources import DEVICES
from rich.progress import track
from sass.listing import Kernel, disassembler, kernels
from sass.machine import Machine
from sass.machine import Path as Way

from bptt.engines import gpu
from bptt.recurrence.op_checks import Sizes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cuda-compiled"
ARCH, DEVICE = "sm_90a", "H200"

CELLS = {"lstm": "Lstm<false>", "gru": "Gru", "rnn_tanh": "Rnn<Tanh>"}
NUMBERS = {"fp16": "HalfNumber<Fp16>", "bf16": "HalfNumber<Bf16>", "tf32": "Tf32"}
STORAGE = {"fp16": "Fp16", "bf16": "Bf16", "tf32": "float"}
TEAMS = {"block": "BlockTeam", "cluster": "ClusterTeam", "grid": "GridTeam"}
# Arguments that a layer without lengths, resets and other options leaves out.
ABSENT = {
    "w_hr", "w_unit", "lengths", "resets", "b_ih", "dh_n", "dc_n", "dcells", "dw_unit", "operand",
    "dh",
}  # fmt: skip
OF_TWO_STATES = {"c0", "c_n", "cells", "dc0"}


@dataclass(frozen=True)
class Case:
    """A pass of a layer of one direction in a tier. `number` is how it multiplies."""

    tier: str
    cell: str
    number: str
    batch: int
    hidden: int
    way: str


@dataclass(frozen=True)
class Row(Case):
    """What a step takes one thread. `prologue` is what comes before the first, in clocks."""

    clocks: int
    instructions: int
    branches: int
    shared: int
    globally: int
    barriers: int
    prologue: int


WAYS = ("forward", "backward")
PATIENCE_NS = 20 * 10**9
# Where cuDNN is at its best, as `bptt bench hard-case` has it.
HARD = tuple(Case("grid", "lstm", "fp16", 16, 768, way) for way in WAYS)
# What only the step tier holds.
LARGE = tuple(Case("step", "lstm", "tf32", 64, 1024, way) for way in WAYS)
CASES = (
    *HARD,
    *(Case("grid", cell, "bf16", 16, 768, way) for cell in ("gru", "rnn_tanh") for way in WAYS),
    *(Case("cluster", cell, "bf16", 64, 512, way) for cell in CELLS for way in WAYS),
    *(Case("block", cell, "bf16", 64, 64, way) for cell in CELLS for way in WAYS),
    *LARGE,
    *(Case("step", cell, "bf16", 64, 1024, way) for cell in CELLS for way in WAYS),
)


def plan_of(case: Case) -> gpu.Plan:
    sizes = Sizes(512, case.batch, 1, case.hidden, case.hidden)
    back = case.way == "backward"
    return gpu.make_plan(case.cell, case.number, sizes, False, back, DEVICES[DEVICE], case.tier)


def compiled(cases: Sequence[Case], folder: Path) -> Path:
    """The kernels of some cases in one file."""
    lines = [f'#include "{ROOT}/csrc/{name}"' for name in (
        "cells/gru.h", "cells/lstm.h", "cells/rnn.h", "cuda/backward.cuh", "cuda/forward.cuh",
        "cuda/step.cuh",
    )]  # fmt: skip
    lines.append("namespace bptt::gpu {")
    for template, arguments in sorted({signature(case) for case in cases}):
        lines.append(f"template __global__ void {template}({arguments});")
    lines.append("}")
    source, cubin = folder / "kernels.cu", folder / "kernels.cubin"
    source.write_text("\n".join(lines) + "\n")
    command = [
        "nvcc",
        "-std=c++20",
        f"-arch={ARCH}",
        "-O3",
        "-cubin",
        "-o",
        str(cubin),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return cubin


def signature(case: Case) -> tuple[str, str]:
    """The instance of a kernel's template, and the types of its parameters."""
    number, storage, way = NUMBERS[case.number], STORAGE[case.number], case.way.capitalize()
    if case.tier == "step":
        of_step = f"{way}Args<{storage}>, Step{way}Scratch<{storage}>, PlainLoop, int"
        return f"step_{case.way}<{CELLS[case.cell]}, {number}, PlainLoop, false>", of_step
    weights = "HeldWeights" if plan_of(case).held else "SharedWeights"
    parts = (CELLS[case.cell], number, TEAMS[case.tier], weights)
    arguments = f"{way}Args<{storage}>, Cut, ExchangeArgs"
    return f"recurrence_{case.way}<{', '.join(parts)}>", arguments


def kernel_of(case: Case, found: Iterable[Kernel]) -> Kernel:
    """By what its mangled name is made of."""
    cell = CELLS[case.cell].split("<")[0]
    number = {"tf32": "Tf32"}.get(case.number, STORAGE[case.number])
    parts = [cell, number]
    if case.tier == "step":
        parts.append(f"step_{case.way}")
    else:
        held = "HeldWeights" if plan_of(case).held else "SharedWeights"
        parts += [f"recurrence_{case.way}", TEAMS[case.tier], held]
    return next(kernel for kernel in found if all(part in kernel.name for part in parts))


def arguments_of(case: Case, steps: int) -> bytes:
    """The parameters of a launch as csrc/cuda/args.cuh lays them out; arrays lie far apart."""
    text = (ROOT / "csrc" / "cuda" / "args.cuh").read_text()
    absent = ABSENT | (OF_TWO_STATES if case.cell != "lstm" else set())
    absent |= {"dgates_h"} if case.cell != "gru" else set()
    fields = [
        name
        for struct_name in ("InputArgs", f"{case.way.capitalize()}Args")
        for body in re.findall(rf"struct {struct_name}\b[^{{]*{{(.*?)}};", text, re.DOTALL)
        for name in re.findall(r"View<[^;]*> (\w+);", body)
    ]
    sizes = struct.pack("<5iI", steps, case.batch, 1, case.hidden, case.hidden, 1 << 24)
    places = [0 if name in absent else (k + 1) << 32 for k, name in enumerate(fields)]
    common = [sizes, *(struct.pack("<Q", place) for place in places)]
    if case.tier == "step":
        # Scratch memory's arrays, as many as the kernel's struct has; then the loop, a struct
        # without members, and the number of the step.
        scratch = re.search(
            rf"struct Step{case.way.capitalize()}Scratch {{(.*?)}};", _scratch_header(case)
        )
        count = len(re.findall(r"View<", scratch[1])) if scratch else 0
        far = [struct.pack("<Q", (k + 101) << 32) for k in range(count)]
        return b"".join([*common, *far, struct.pack("<2i", 0, steps // 2)])
    plan = plan_of(case)
    cut = (plan.team, plan.units, plan.rows, plan.passes, plan.parts, plan.held)
    words = (1 << 40, 1 << 41) if case.tier == "grid" else (0, 0)
    return b"".join([*common, struct.pack("<6i", *cut), struct.pack("<3Q", *words, PATIENCE_NS)])


def _scratch_header(case: Case) -> str:
    """Where a pass of the step tier lays out its scratch memory, in one line."""
    text = (ROOT / "csrc" / "cuda" / f"{case.way}_units.cuh").read_text()
    return " ".join(text.split())


def run(case: Case, kernel: Kernel, steps: int) -> Way:
    plan = plan_of(case)
    slices = -(-case.batch // (plan.rows * plan.passes))
    grid = (plan.team, slices, 1)
    if case.tier == "step":
        grid = (slices * plan.team, -(-case.hidden // plan.units), 1)
    return Machine(kernel, arguments_of(case, steps), plan.threads, grid, plan.team).run()


def row_of(case: Case, kernel: Kernel) -> Row:
    """A step in the middle: the first and the last ones have less to do."""
    few, more = run(case, kernel, 4), run(case, kernel, 5)
    # In the step tier a step is a launch of its own.
    step = more if case.tier == "step" else more - few

    def count(*names: str) -> int:
        return sum(step.counts[name] for name in names)

    return Row(
        **asdict(case),
        clocks=step.clocks,
        instructions=step.instructions,
        branches=step.counts["taken"],
        shared=count("LDS", "STS", "LDSM", "STAS"),
        globally=count("LDG", "STG", "LDGSTS", "REDG"),
        barriers=count("BAR", "SYNCS"),
        prologue=0 if case.tier == "step" else more.clocks - 5 * step.clocks,
    )


def measured(cases: Sequence[Case]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = kernels(compiled(cases, Path(folder)))
    return [row_of(case, kernel_of(case, found)) for case in track(cases, "kernels")]


def table(rows: Sequence[Row]) -> str:
    head = (
        "| tier | cell | number | B | H | pass | clocks | instructions | branches taken | shared | "
        "global | barriers | prologue, clocks |"
    )
    lines = [head, "|" + "---|" * 13]
    lines += [
        "| " + " | ".join(str(value) for value in asdict(row).values()) + " |" for row in rows
    ]
    return "\n".join(lines)


def unavailable() -> str | None:
    """Why nothing can be compiled or read here, or None."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc on the PATH"
    return None if disassembler() is not None else "there is no nvdisasm, which Triton brings"


def read() -> list[Row]:
    """The committed table."""
    return [Row(**row) for row in json.loads((RESULTS / "step-path.json").read_text())]


def main() -> None:
    if reason := unavailable():
        raise SystemExit(reason)
    rows = measured(CASES)
    text = (
        f"# A step of the CUDA kernels, one thread's way ({ARCH})\n\n"
        "Made by `benchmarks/step_path.py`, which says how. Cuts are the planner's for an "
        f"{DEVICE}. Latencies are assumed; nothing here was measured on a GPU.\n\n"
    )
    (RESULTS / "step-path.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=1) + "\n"
    )
    (RESULTS / "step-path.md").write_text(text + table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
