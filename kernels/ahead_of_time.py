"""Compile the kernels for GPUs that are not here: registers, spills and shared memory.

    python -m bptt.kernels.ahead_of_time sm_90     a line of JSON per kernel; see --help

A variant is a kernel with a cell, dtype and plan, all options on (lengths, resets, bias, initial
states), for hidden sizes divisible by 16 and for odd ones. Triton compiles for one target per
process only, and not in one that interprets.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bptt.cells import CELLS

from . import backward, forward
from .cells import KERNEL_CELLS
from .plan import BLOCK, CHIPS, PERSISTENT, RESIDENT, Chip, Plan, make_plan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PRECISIONS = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
COLUMNS = (
    "kernel", "cell", "precision", "hidden", "projected", "second",
    "registers", "spilled", "shared", "plan",
)  # fmt: skip
ALIGNED, ODD = (1024, 512, 256, 128, 64, 32), (1023, 255, 127, 63, 31, 1)
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_WIDE = {"c", "cells", "c0", "dh", "dc", "dpeephole"}


@dataclass(frozen=True)
class Variant:
    """A kernel, and what it is compiled for.

    Attributes:
        kernel: its name in `forward` or `backward`.
        hidden: H, of which only divisibility and the plan are compiled in.
        plan: the tier and tile.
        projected: whether the LSTM's output is projected.
        second: the step tier's second launch.
        gradients: whether the gradients of all hidden states are asked for.
    """

    kernel: str
    cell: str
    precision: str
    hidden: int
    plan: Plan
    projected: bool = False
    second: bool = False
    gradients: bool = False

    @property
    def state(self) -> int:
        """R of a launch; a projection to one unit shows that such sizes compile too."""
        if not self.projected:
            return self.hidden
        return 1 if self.hidden in ODD else 16


def variants(chip: Chip) -> Iterator[Variant]:
    """Every cell and precision in every tier, at the tier's largest tile, both passes.

    bfloat16 also for a hidden size that 16 does not divide, whose loads are not vectorised.
    """
    for cell, spec in CELLS.items():
        for precision, (dtype, _) in PRECISIONS.items():
            sizes = ALIGNED + ODD if precision == "bf16" else ALIGNED
            for projected in (False, True) if spec.has_cell_state else (False,):
                seen = set()
                for hidden in [size for size in sizes if size > 1 or not projected]:
                    for way in ("forward", "backward"):
                        state = 16 if projected else hidden
                        plan = make_plan(cell, dtype, hidden, state, way == "backward", chip)
                        key = (plan.tier, way, hidden == 1, hidden in ODD)
                        if key not in seen:
                            seen.add(key)
                            yield from _kernels(way, cell, precision, hidden, projected, plan)


def asking(chip: Chip) -> Iterator[Variant]:
    """Those that can be asked for the gradients of all hidden states, and are."""
    for variant in variants(chip):
        if variant.kernel.startswith("backward") and not variant.projected and not variant.second:
            yield replace(variant, gradients=True)


def _kernels(
    way: str, cell: str, precision: str, hidden: int, projected: bool, plan: Plan
) -> Iterator[Variant]:
    kernel = {RESIDENT: "resident", BLOCK: "block"}.get(plan.tier, "step")
    first = Variant(f"{way}_{kernel}", cell, precision, hidden, plan, projected)
    yield first
    if kernel == "step" and (projected or CELLS[cell].stages == 2):
        yield replace(first, second=True)
    if kernel == "step":
        yield replace(first, kernel=f"{way}_persistent", plan=replace(plan, tier=PERSISTENT))


def source(variant: Variant) -> ASTSource:
    """The variant as Triton's compiler takes it."""
    way = variant.kernel.partition("_")[0]
    kernel = getattr(forward if way == "forward" else backward, variant.kernel)
    io_type = forward.ForwardIO if way == "forward" else backward.BackwardIO
    constants = _constants(variant, way)
    dtype = _TYPES[PRECISIONS[variant.precision][0]]
    absent = _absent(variant)
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values: dict[tuple[int, ...], Any] = {}
    aligned = [["tt.divisibility", 16]]
    for place, name in enumerate(kernel.arg_names):
        if name == "io":
            types = []
            for field, entry in enumerate(io_type._fields):
                if entry in absent:
                    types.append("constexpr")
                    values[place, field] = None
                    continue
                size = {"H": variant.hidden, "R": variant.state}.get(entry)
                if size == 1:  # Triton makes a constant of it
                    types.append("constexpr")
                    values[place, field] = 1
                    continue
                types.append("i32" if size else _field_type(entry, dtype))
                if size is None or size % 16 == 0:
                    attributes[place, field] = aligned
            signature[name] = io_type(*types)
        elif name == "counter":
            signature[name] = "*i64"
            attributes[(place,)] = aligned
        elif name in constants:
            signature[name] = "constexpr"
            values[(place,)] = constants[name]
        else:
            signature[name] = "i32"
    return ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)


def _field_type(name: str, dtype: str) -> str:
    if name == "lengths":
        return "*i64"
    if name == "resets":
        return "*u8"
    return "*fp32" if name in _WIDE else f"*{dtype}"


def _absent(variant: Variant) -> set[str]:
    """Options that a launch of this cell passes as None."""
    spec = CELLS[variant.cell]
    absent = {"scratch"}
    if not variant.projected:
        absent.add("w_hr")
        if not variant.gradients:
            absent.add("dh_all")
        if spec.stages == 1:
            absent.add("operand")
    if not spec.peepholes:
        absent |= {"peephole", "dpeephole"}
    if not spec.has_cell_state:
        absent |= {"c", "cells", "c0", "dc"}
    if not spec.saved:
        absent.add("saved")
    if spec.shared_gates:
        absent.add("dgates_h")
    return absent


def _constants(variant: Variant, way: str) -> dict[str, Any]:
    spec, functions, plan = CELLS[variant.cell], KERNEL_CELLS[variant.cell], variant.plan
    return {
        "FORWARD": functions.forward,
        "FIRST": functions.first,
        "BACKWARD": functions.backward,
        "OPERAND": functions.operand,
        "BACKWARD_FIRST": functions.backward_first,
        "SECOND": variant.second,
        "G": len(spec.gates),
        "STATES": len(spec.states),
        "SAVED": len(spec.saved),
        "PEEPHOLES": len(spec.peepholes),
        "BB": plan.rows,
        "BN": plan.units,
        "BK": plan.depth,
        "PRECISION": PRECISIONS[variant.precision][1],
    }


def measure(variant: Variant, target: str) -> dict[str, Any]:
    """Compile a variant; returns it with its registers, spilled bytes and shared memory."""
    options = {"num_warps": variant.plan.warps}
    compiled = triton.compile(source(variant), target=TARGETS[target], options=options)
    row = {"target": target, **asdict(variant), "plan": str(variant.plan)}
    if target.startswith("sm"):
        used = _nvidia(compiled.asm["cubin"])
    else:
        used = _amd(compiled.asm["amdgcn"])
    return {**row, **used, "shared": compiled.metadata.shared}


def _nvidia(cubin: bytes) -> dict[str, int]:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [program, "--dump-resource-usage", path]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # These kernels have no arrays of their own: what lies on the stack was spilled.
    return {
        "registers": int(_number(r"REG:(\d+)", usage)),
        "spilled": int(_number(r"STACK:(\d+)", usage)),
    }


def _amd(assembly: str) -> dict[str, int]:
    return {
        "registers": int(_number(r"\.vgpr_count:\s*(\d+)", assembly)),
        "spilled": 4 * int(_number(r"\.vgpr_spill_count:\s*(\d+)", assembly)),
    }


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return found.group(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Registers, spills, shared memory of each kernel.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--markdown", action="store_true", help="a table rather than JSON")
    parser.add_argument("--every", type=int, default=1, help="2: every second variant, and so on")
    parser.add_argument(
        "--first", type=int, default=0, help="how many variants to leave out before"
    )
    parser.add_argument(
        "--gradients", action="store_true", help="backward kernels that write dL/dh_t as well"
    )
    arguments = parser.parse_args()
    chosen = asking if arguments.gradients else variants
    if arguments.markdown:
        print(f"Triton {triton.__version__}, {arguments.target}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for variant in islice(chosen(CHIPS[arguments.target]), arguments.first, None, arguments.every):
        row = measure(variant, arguments.target)
        if arguments.markdown:
            print(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |", flush=True)
        else:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
