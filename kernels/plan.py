"""Which tier and tile a recurrence takes: plain arithmetic, without Triton and without a GPU.

Neither T nor B has a say, so that changing them compiles nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch

from bptt.recurrence.cells import CELLS, CellSpec
from bptt.recurrence.control import PLAIN, Control

RESIDENT, BLOCK = "block, weights on chip", "block, weights from L2"
STEP, PERSISTENT = "step", "persistent step"

ROWS = 16  # the fewest that tensor cores take
STREAMED_BYTES = 512 * 1024  # of weights; above, a launch per step is expected to be cheaper
# Whether programs of one launch wait for one another after each step, rather than a launch be made
# for each. Off until it has been measured on a GPU.
_ONE_LAUNCH = os.environ.get("BPTT_TRITON_PERSISTENT") == "1"
WHOLE_ROW = 1024  # units that a program without weights holds of a row
LARGEST_WEIGHT = 2**31  # elements of one gate's matrix


@dataclass(frozen=True)
class Chip:
    """What a plan needs to know of a GPU.

    Attributes:
        shared: bytes of shared memory that one program may have.
        processors: how many programs run at once at least: streaming multiprocessors.
        amd: whether Triton keeps weights in registers there rather than in shared memory.
    """

    shared: int
    processors: int
    amd: bool = False


# CUDA C++ Programming Guide, table of technical specifications per compute capability; AMD: CDNA 3
# instruction set, local data share. Processors of A100, H200, B200, RTX 5090 and MI300X.
CHIPS = {
    "sm_80": Chip(163 * 1024, 108),
    "sm_90": Chip(227 * 1024, 132),
    "sm_100": Chip(227 * 1024, 148),
    "sm_120": Chip(99 * 1024, 170),
    "gfx942": Chip(64 * 1024, 304, amd=True),
}


@dataclass(frozen=True)
class Plan:
    """How a problem is cut.

    Attributes:
        tier: RESIDENT, BLOCK, STEP or PERSISTENT.
        rows: rows of the batch in a tile.
        units: hidden units in a tile.
        depth: terms of the product in a tile.
        warps: warps of a program.
    """

    tier: str
    rows: int
    units: int
    depth: int
    warps: int

    def __str__(self) -> str:
        tile = f"{self.rows} rows x {self.units} units"
        if self.tier != RESIDENT:
            tile += f" x {self.depth} deep"
        return f"{self.tier} tier, tiles of {tile}, {self.warps} warps"


def make_plan(
    cell: str, dtype: torch.dtype, hidden: int, state: int, backward: bool, chip: Chip,
    control: Control = PLAIN,
) -> Plan:  # fmt: skip
    """Plan one pass of a recurrence of `hidden` units, whose hidden state has `state` elements.

    A cell with two products per step, and a projected one, keep their state in memory: the second
    product needs all of what the first one made. The passes may take different tiers; what they
    hand over is the same.
    """
    spec = CELLS[cell]
    padded = max(16, 1 << (hidden - 1).bit_length())
    weights = len(spec.gates) * padded * padded * dtype.itemsize
    two_products = spec.stages == 2 or state != hidden
    if spec.stages == 0:
        return _plan_without_product(padded, backward and control.gradient_norm > 0)
    if (
        not two_products
        and padded <= _most_units_on_chip(spec, hidden, chip)
        and _stays_on_chip(weights, padded, dtype, backward, chip)
    ):
        wide = weights > 32 * 1024 or (spec.normalized and padded > 32)
        return Plan(RESIDENT, ROWS, padded, padded, 8 if wide else 4)
    # Rows that do not start at 16 bytes are loaded one element at a time, which takes registers.
    depth = 32 if dtype.itemsize == 4 or hidden % 16 else 64
    units = 32
    if spec.normalized and hidden % 16:
        units = 16  # as many planes again are kept, each with its own addresses
    elif weights <= STREAMED_BYTES and len(spec.gates) == 1:
        units = 64
    if weights <= STREAMED_BYTES:
        return Plan(BLOCK, ROWS, min(padded, units), depth, 4)
    return Plan(PERSISTENT if _ONE_LAUNCH else STEP, ROWS, units, depth, 4)


def _plan_without_product(padded: int, whole_rows: bool) -> Plan:
    """Units that see only themselves: programs share them and exchange nothing."""
    if not whole_rows:
        units = min(padded, 64)
        return Plan(RESIDENT, ROWS, units, units, 4)
    if padded <= WHOLE_ROW:
        return Plan(RESIDENT, min(ROWS, 2 * WHOLE_ROW // padded), padded, padded, 4)
    return Plan(BLOCK, ROWS, 64, 64, 4)


def _most_units_on_chip(spec: CellSpec, hidden: int, chip: Chip) -> int:
    """Above, a program's registers run over: by what compiled kernels were seen to need."""
    if not spec.normalized:
        return 128
    return 32 if hidden % 16 or chip.amd else 64


def _stays_on_chip(
    weights: int, padded: int, dtype: torch.dtype, backward: bool, chip: Chip
) -> bool:
    """Whether a program holds all recurrent weights, by what compiled kernels were seen to need."""
    if chip.amd:
        return weights <= (16 if dtype.itemsize == 4 else 96) * 1024
    # Tiles of the state and its gradients that change their layout on the way to the product.
    tiles = (12 if backward else 5) * ROWS * padded * dtype.itemsize
    return weights + tiles <= min(chip.shared, 192 * 1024)


def reason_against(cell: str, hidden: int, state: int) -> str | None:
    """Why no plan takes these sizes, or None."""
    if hidden * state >= LARGEST_WEIGHT:
        return f"{hidden} x {state} weights per gate are more than the kernels address"
    return None


def plan_for(
    cell: str, dtype: torch.dtype, hidden: int, state: int, backward: bool, device: torch.device,
    control: Control = PLAIN,
) -> Plan:  # fmt: skip
    """The plan on a device that is here; under the interpreter that of an H200."""
    return make_plan(cell, dtype, hidden, state, backward, chip_of(device), control)


def why_not_resident(
    cell: str, dtype: torch.dtype, hidden: int, state: int, backward: bool, device: torch.device,
    control: Control = PLAIN,
) -> str:  # fmt: skip
    """Why a pass leaves the fastest tier, the block tier with weights on chip; "" if it does not.

    Where the cell, or what is asked of its loop, makes a step exchange more often than a plain one
    does, that is said as well.
    """
    plan = plan_for(cell, dtype, hidden, state, backward, device, control)
    if plan.tier == RESIDENT:
        return ""
    spec = CELLS[cell]
    norms = backward and control.gradient_norm > 0
    if state != hidden:
        why = "a projection is a second product per step"
    elif spec.stages == 2:
        why = "the reset gate before the product makes two products per step"
    elif spec.stages == 0:
        why = f"gradient_norm needs whole rows of {hidden} units"
    else:
        why = f"recurrent weights of {hidden} units do not stay on chip"
    phases = []
    if norms and spec.stages > 0:
        phases.append("gradient_norm")
    if spec.normalized:
        phases.append("layer normalisation")
    if phases:
        why += f"; {' and '.join(phases)} then exchange sums over rows in each step"
    return why


@lru_cache
def chip_of(device: torch.device) -> Chip:
    """A GPU's limits, as its driver states them."""
    if device.type != "cuda":
        return CHIPS["sm_90"]
    properties = torch.cuda.get_device_properties(device)
    amd = torch.version.hip is not None
    return Chip(properties.shared_memory_per_block_optin, properties.multi_processor_count, amd)
