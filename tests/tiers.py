"""Makes every launch of the Triton kernels take one tier, with tiles smaller than the problems."""

from bptt.kernels.plan import BLOCK, PERSISTENT, RESIDENT, STEP, Plan

TIERS = (RESIDENT, BLOCK, STEP, PERSISTENT)
TILED = TIERS[1:]  # those that take two products in a step


def force_tier(monkeypatch, name):
    """Tiles are 16 x 16 x 16, or hold the whole hidden state where it stays on chip."""
    from bptt.kernels import launch  # imports Triton

    def plan(cell, dtype, hidden, *_):
        units = max(16, 1 << (hidden - 1).bit_length()) if name == RESIDENT else 16
        return Plan(name, 16, units, 16, 4)

    monkeypatch.setattr(launch, "plan_for", plan)
