"""Makes every launch of the Triton kernels take one tier, with tiles smaller than the problems."""

from bptt.kernels.plan import BLOCK, PERSISTENT, RESIDENT, STEP, Plan
from bptt.recurrence.cells import CELLS
from bptt.recurrence.control import PLAIN

TIERS = (RESIDENT, BLOCK, STEP, PERSISTENT)
TILED = TIERS[1:]  # those that take two products in a step


def force_tier(monkeypatch, name):
    """Tiles are 16 x 16 x 16, or hold the whole hidden state where it stays on chip.

    Of a cell without a product, the tile of one program is 16 units wide unless rows must be whole.
    """
    from bptt.kernels import launch  # imports Triton

    def plan(cell, dtype, hidden, state, backward, device, control=PLAIN):
        whole = CELLS[cell].stages > 0 or control.gradient_norm > 0
        units = max(16, 1 << (hidden - 1).bit_length()) if name == RESIDENT and whole else 16
        return Plan(name, 16, units, 16, 4)

    monkeypatch.setattr(launch, "plan_for", plan)
