"""How the programs of one launch wait for one another between the steps of a sequence."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def meet(counter, epoch):
    """Wait until every program has come here for the epoch-th time.

    What any program stored before it came, every program loads after it left: each counts itself
    with a release and looks at the count with an acquire. The count only grows, so nobody resets it
    while others look. All programs must be on the device at once (a cooperative launch).

    Args:
        counter: pointer to an int64 that is zero at the launch and counts nothing else.
        epoch: 1 at the first meeting, one more at each.
    """
    goal = tl.cast(epoch, tl.int64) * tl.num_programs(0)
    # Of a program one thread counts, so the others must have stored by then...
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < goal:
        pass
    # ... and may load no sooner than it has seen the count.
    tl.debug_barrier()


@triton.jit
def tile_at(tile, blocks, width, BB: tl.constexpr, BN: tl.constexpr):
    """Rows b [BB, 1], columns n [1, BN] and direction d of the tile-th tile of a step."""
    tile = tl.cast(tile, tl.int32)
    columns = tl.cdiv(width, BN)
    b = (tile % blocks) * BB + tl.arange(0, BB)[:, None]
    n = (tile // blocks % columns) * BN + tl.arange(0, BN)[None, :]
    return b, n, tile // (blocks * columns)
