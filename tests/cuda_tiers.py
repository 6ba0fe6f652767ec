"""Makes every launch of the CUDA kernels take one tier, cut finer than a planner would."""

from dataclasses import replace

from bptt import gpu
from bptt.cells import CELLS

TIERS = gpu.TIERS


def force_tier(monkeypatch, tier):
    """Blocks own a few units and 8 sequences, so that small problems take teams and slices.

    In the grid tier 16 sequences in two passes, in the block tier all units.
    """

    def plan(cell, dtype, sizes, projected, backward, device):
        number = gpu.number_of(dtype)
        limits = gpu.device_limits(device)
        if tier == "step" or CELLS[cell].stages == 2 or projected:
            return gpu.make_plan(cell, number, sizes, projected, backward, limits, "step")
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
        cut = {"team": team, "units": units, "rows": 8, "passes": passes}
        return replace(planned, tier=tier, **cut, parts=2 if depth > 64 else 1, threads=64, waves=1)

    monkeypatch.setattr(gpu, "plan_for", plan)
