"""Makes every launch of the CUDA kernels take one tier, cut finer than a planner would."""

from dataclasses import replace

from bptt.engines import gpu
from bptt.recurrence.cells import CELLS

# A name that ends in "held" wants weights in registers where they fit; full float32 ones never do.
HELD = ("block held", "cluster held", "grid held")
TIERS = (*gpu.TIERS, *HELD)


def force_tier(monkeypatch, tier):
    """Blocks own a few units and 8 sequences, so that small problems take teams and slices.

    In the grid tier 16 sequences in two passes, in the block tier all units; in the step tier one,
    two or four blocks share a tile.
    """
    tier, _, held = tier.partition(" ")

    planned_for = gpu.plan_for

    def plan(cell, dtype, sizes, projected, backward, device, *asked):
        number = gpu.number_of(dtype)
        limits = gpu.device_limits(device)
        if gpu.reason_for_step_tier(cell, *asked[:1], projected, *asked[1:]) is not None:
            planned = planned_for(cell, dtype, sizes, projected, backward, device, *asked)
            return replace(planned, team=(1, 2, 4)[sizes.hidden % 3])
        if tier == "step":
            planned = gpu.make_plan(cell, number, sizes, projected, backward, limits, "step")
            return replace(planned, team=(1, 2, 4)[sizes.hidden % 3])
        planned = gpu.make_plan(cell, number, sizes, projected, backward, limits, "block")
        even = sizes.hidden + sizes.hidden % 2
        # Teams of at least two, and few enough for all slices and directions to be resident.
        team = 1 if tier == "block" else min(4, max(2, -(-even // 6)))
        units = -(-even // team)
        units += units % 2
        team = -(-sizes.hidden // units)
        if tier != "block" and team == 1:
            return planned
        passes = 2 if tier == "grid" else 1
        depth = units * team * (len(CELLS[cell].gates) if backward else 1)
        parts = 2 if depth > 64 else 1
        rows = units * (1 if backward else len(CELLS[cell].gates))
        warps = parts * (1 if rows <= 8 else -(-rows // 16))  # if they hold the weights
        cut = {"team": team, "units": units, "rows": 8, "passes": passes, "parts": parts}
        if held and warps <= 8 and number != "fp32":
            return replace(planned, tier=tier, **cut, held=1, threads=max(64, 32 * warps), waves=1)
        return replace(planned, tier=tier, **cut, held=0, threads=64, waves=1)

    monkeypatch.setattr(gpu, "plan_for", plan)


def share_tiles(monkeypatch):
    """Takes the step tier, with one, two or four blocks to a tile: which, a cell's name says."""

    planned_for = gpu.plan_for

    def plan(cell, dtype, sizes, projected, backward, device, *asked):
        planned = planned_for(cell, dtype, sizes, projected, backward, device, *asked)
        if planned.tier != "step":
            number, limits = gpu.number_of(dtype), gpu.device_limits(device)
            planned = gpu.make_plan(cell, number, sizes, projected, backward, limits, "step")
        return replace(planned, team=(1, 2, 4)[len(cell) % 3])

    monkeypatch.setattr(gpu, "plan_for", plan)
