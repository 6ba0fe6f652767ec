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

from bptt.custom.files import load_cell
from bptt.recurrence.cells import CELLS, PLAIN_CELLS
from bptt.recurrence.control import PLAIN, Control

from . import backward, backward_tiles, forward, forward_tiles
from .cells import kernel_cell
from .launch import parts_of, phase_widths
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
    "kernel", "cell", "control", "precision", "hidden", "projected", "phase",
    "registers", "spilled", "shared", "plan",
)  # fmt: skip
ALIGNED, ODD = (1024, 512, 256, 128, 64, 32), (1023, 255, 127, 63, 31, 1)
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_WIDE = {
    "c", "cells", "c0", "dh", "dc", "dw_unit", "dcells", "made", "parts", "stats", "dwhole",
    "dnormal", "kept",
}  # fmt: skip
# What is asked of a loop, by a name for the tables.
CONTROLS = {
    "": PLAIN,
    "zoneout": Control(zoneout_h=0.1, zoneout_c=0.1, sampled=True),
    "dropout": Control(recurrent_dropout=0.1),
    "norm": Control(gradient_norm=1.0),
    "all": Control(
        "hard_sigmoid", "softsign", cell_bound=1.0, zoneout_h=0.1, zoneout_c=0.1, sampled=True,
        recurrent_dropout=0.1, truncate=50, gradient_bound=1.0, gradient_norm=1.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A kernel, and what it is compiled for.

    Attributes:
        kernel: its name in `forward` or `backward`.
        hidden: H, of which only divisibility and the plan are compiled in.
        plan: the tier and tile.
        projected: whether the LSTM's output is projected.
        phase: which of a step's launches, in the step tier.
        gradients: whether the gradients of all hidden states are asked for.
        control: a name in CONTROLS.
    """

    kernel: str
    cell: str
    precision: str
    hidden: int
    plan: Plan
    projected: bool = False
    phase: int = 0
    gradients: bool = False
    control: str = ""

    @property
    def state(self) -> int:
        """R of a launch; a projection to one unit shows that such sizes compile too."""
        if not self.projected:
            return self.hidden
        return 1 if self.hidden in ODD else 16


def variants(chip: Chip) -> Iterator[Variant]:
    """Every cell and precision in every tier, at the tier's largest tile, both passes.

    bfloat16 also for a hidden size that 16 does not divide, whose loads are not vectorised. Of the
    cells that are not torch.nn's, bfloat16 and float32.
    """
    for cell, spec in CELLS.items():
        precisions = PRECISIONS if cell in PLAIN_CELLS else ("bf16", "fp32")
        for precision in precisions:
            for projected in (False, True) if spec.projects else (False,):
                yield from _of_every_tier(cell, precision, projected, "", chip)


def controlled(chip: Chip) -> Iterator[Variant]:
    """Those whose loops are asked for more than to run their cells."""
    for cell in CELLS:
        for control in CONTROLS if cell in ("lstm", "gru") else ("all",):
            if control:
                yield from _of_every_tier(cell, "bf16", False, control, chip)
    yield from _of_every_tier("lstm", "bf16", True, "all", chip)


def _of_every_tier(
    cell: str, precision: str, projected: bool, control: str, chip: Chip
) -> Iterator[Variant]:
    dtype = PRECISIONS[precision][0]
    asked = CONTROLS[control]
    seen = set()
    for hidden in ALIGNED + ODD if precision == "bf16" and not control else ALIGNED:
        if hidden == 1 and projected:
            continue
        for way in ("forward", "backward"):
            state = 16 if projected else hidden
            plan = make_plan(cell, dtype, hidden, state, way == "backward", chip, asked)
            key = (plan.tier, way, hidden == 1, hidden in ODD)
            if key not in seen:
                seen.add(key)
                first = Variant(way, cell, precision, hidden, plan, projected, control=control)
                yield from _kernels(first, way)


def asking(chip: Chip) -> Iterator[Variant]:
    """Those that can be asked for the gradients of all hidden states, and are."""
    for variant in variants(chip):
        if (
            variant.kernel.startswith("backward")
            and not variant.projected
            and not variant.phase
            and variant.cell in PLAIN_CELLS
        ):
            yield replace(variant, gradients=True)


def _kernels(first: Variant, way: str) -> Iterator[Variant]:
    """The kernels of one pass."""
    kernel = {RESIDENT: "resident", BLOCK: "block"}.get(first.plan.tier, "step")
    phases = 1
    if kernel == "step":
        phases = len(_widths(first, way))
    for phase in range(phases):
        yield replace(first, kernel=f"{way}_{kernel}", phase=phase)
    if kernel == "step":
        plan = replace(first.plan, tier=PERSISTENT)
        yield replace(first, kernel=f"{way}_persistent", plan=plan)
    if way == "backward" and CELLS[first.cell].normalized:
        yield replace(first, kernel="row_statistics")


def _widths(variant: Variant, way: str) -> list[int]:
    sizes, norms = (variant.hidden, variant.state), CONTROLS[variant.control].gradient_norm > 0
    return phase_widths(variant.cell, *sizes, variant.projected, norms, way == "backward")


def source(variant: Variant) -> ASTSource:
    """The variant as Triton's compiler takes it."""
    way = "forward" if variant.kernel.startswith("forward") else "backward"
    modules = (forward, forward_tiles) if way == "forward" else (backward, backward_tiles)
    kernel = next(getattr(m, variant.kernel) for m in modules if hasattr(m, variant.kernel))
    io_type = forward.ForwardIO if way == "forward" else backward.BackwardIO
    described = _Described(variant, way)
    constants = _constants(variant, way)
    signature: dict[str, Any] = {}
    for place, name in enumerate(kernel.arg_names):
        if name == "io":
            fields = enumerate(io_type._fields)
            signature[name] = io_type(*(described.field(f, (place, at)) for at, f in fields))
        elif name == "counter":
            signature[name] = "*i64"
            described.attributes[(place,)] = _ALIGNED
        elif name in constants:
            signature[name] = "constexpr"
            described.values[(place,)] = constants[name]
        else:
            signature[name] = "i32"
    return ASTSource(
        fn=kernel, signature=signature, constexprs=described.values, attrs=described.attributes
    )


_ALIGNED = [["tt.divisibility", 16]]


class _Described:
    """Types, attributes and constants of the fields of a launch's named tuples."""

    def __init__(self, variant: Variant, way: str) -> None:
        self.dtype = _TYPES[PRECISIONS[variant.precision][0]]
        self.absent = _absent(variant, way)
        self.sizes = {"H": variant.hidden, "R": variant.state}
        asked, cell = CONTROLS[variant.control], kernel_cell(variant.cell)
        self.names = {"gate": asked.gates or "sigmoid", "state": asked.states or cell.own_state}
        self.attributes: dict[tuple[int, ...], list[list[Any]]] = {}
        self.values: dict[tuple[int, ...], Any] = {}

    def field(self, name: str, path: tuple[int, ...]) -> str:
        size = self.sizes.get(name)
        if name in self.absent or name in self.names or size == 1:
            # Triton makes a constant of a one.
            self.values[path] = self.names.get(name, size)
            return "constexpr"
        if name in _NUMBERS:
            return _NUMBERS[name]
        if size is None or size % 16 == 0:
            self.attributes[path] = _ALIGNED
        return "i32" if size else _field_type(name, self.dtype)


_NUMBERS = {
    "truncate": "i32",
    **dict.fromkeys(
        ("cell_bound", "zoneout_h", "zoneout_c", "gradient_bound", "gradient_norm"), "fp32"
    ),
}


def _field_type(name: str, dtype: str) -> str:
    if name in ("lengths", "seed"):
        return "*i64"
    if name == "resets":
        return "*u8"
    return "*fp32" if name in _WIDE else f"*{dtype}"


def _absent(variant: Variant, way: str) -> set[str]:
    """Options that a launch of this cell passes as None."""
    spec, asked = CELLS[variant.cell], CONTROLS[variant.control]
    resident = variant.plan.tier == RESIDENT
    norms = asked.gradient_norm > 0 and way == "backward"
    present = {
        "scratch": False,
        "w_hr": variant.projected,
        "dprojected": variant.projected and bool(variant.control),
        "dh_all": variant.projected or variant.gradients,
        "operand": variant.projected or spec.stages == 2,
        "saved": bool(spec.saved),
        "dgates_h": not spec.shared_gates,
        "dcells": bool(variant.control) and spec.has_cell_state,
        "w_hh": spec.stages > 0,
        "b_hh": not spec.normalized,
        "stats": spec.normalized,
        "dnormal": spec.normalized and not resident,
        "made": spec.normalized and spec.has_cell_state and not resident,
        "dwhole": norms and not resident,
        "parts": (norms or spec.normalized) and not resident,
        "seed": asked.sampled,
        "kept": asked.recurrent_dropout > 0,
        **dict.fromkeys(("w_unit", "dw_unit"), bool(spec.unit_weights)),
        **dict.fromkeys(("c", "cells", "c0", "dc"), spec.has_cell_state),
        **{name: getattr(asked, name) > 0 for name in _NUMBERS},
    }
    if not spec.has_cell_state:
        present.update(cell_bound=False, zoneout_c=False)
    return {name for name, here in present.items() if not here}


def _constants(variant: Variant, way: str) -> dict[str, Any]:
    plan = variant.plan
    return {
        "CELL": kernel_cell(variant.cell),
        "PHASE": variant.phase,
        "PHASES": len(_widths(variant, way)),
        "PARTS": parts_of(plan, variant.hidden),
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
    parser.add_argument(
        "--control", action="store_true", help="loops that do more than run their cells"
    )
    parser.add_argument("--cell", default="", help="one of your own alone, as file.py:name")
    parser.add_argument("--kernel", default="", help="kernels whose names hold this, alone")
    arguments = parser.parse_args()
    chosen = asking if arguments.gradients else controlled if arguments.control else variants
    own = load_cell(arguments.cell).name if arguments.cell else ""
    found = (
        v
        for v in chosen(CHIPS[arguments.target])
        if (not own or v.cell == own) and arguments.kernel in v.kernel
    )
    if arguments.markdown:
        print(f"Triton {triton.__version__}, {arguments.target}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for variant in islice(found, arguments.first, None, arguments.every):
        row = measure(variant, arguments.target)
        if arguments.markdown:
            print(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |", flush=True)
        else:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
