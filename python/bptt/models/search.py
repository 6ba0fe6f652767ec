"""From probabilities of the next symbol to whole sequences: greedy, sampling and beam search.

All call a step function: symbols [N] and a state in, log-probabilities [N, V] and the next state
out; `select(state, rows)` gives the state of some rows, in their order.

Sampling draws each symbol from p^(1/temperature), of which top-k keeps the k likeliest symbols and
the nucleus of p the fewest whose probabilities sum to it.

Beam search keeps the K best beginnings of each sequence. One that takes the end symbol is finished;
its score is the sum of its log-probabilities over its length (end included) to the power `penalty`.
The search ends when the K best finished ones cannot be beaten any more, or at the longest length.

Source: Holtzman et al., The curious case of neural text degeneration (arXiv 1904.09751), for the
nucleus; Wu et al. (arXiv 1609.08144), section 7, for a length penalty, here without its constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = Any
Step = Callable[[Tensor, State], tuple[Tensor, State]]
Select = Callable[[State, Tensor], State]

_LOOK = 4  # steps between two looks at whether all is found: each waits for the device


def narrowed(
    log_p: Tensor, *, temperature: float = 1.0, top_k: int = 0, nucleus: float = 1.0
) -> Tensor:
    """Log-probabilities [N, V] to draw from; minus infinity for symbols that are left out.

    Args:
        log_p: [N, V].
        temperature: above 0; below 1 sharpens.
        top_k: symbols to keep, 0 for all.
        nucleus: probability to keep, in (0, 1].

    Raises:
        ValueError: one of them is out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {top_k}")
    if not 0 < nucleus <= 1:
        raise ValueError(f"nucleus must be in (0, 1], got {nucleus}")
    log_p = (log_p / temperature).log_softmax(-1)
    ordered, places = log_p.sort(-1, descending=True)  # [N, V] both
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        kept[:, top_k:] = False
    # A symbol stays if those likelier than it do not reach the nucleus yet.
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept &= before < nucleus
    ordered = ordered.masked_fill(~kept, -math.inf)
    return torch.empty_like(log_p).scatter(-1, places, ordered).log_softmax(-1)


@torch.no_grad()
def sample(
    step: Step,
    state: State,
    first: Tensor,
    *,
    steps: int,
    end: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    nucleus: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Symbols [steps, N] drawn one after another; after an end, only ends.

    Args:
        step: see the module.
        state: before the first symbol.
        first: int64 [N], the symbols that come before what is drawn.
        steps: how many to draw.
        end: the symbol that ends a sequence, if there is one.
        temperature, top_k, nucleus: see `narrowed`.
        generator: of the random numbers; torch's own if it is None.

    Raises:
        ValueError: an argument is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    symbol, drawn = first, []
    ended = torch.zeros_like(first, dtype=torch.bool)
    for _ in range(steps):
        log_p, state = step(symbol, state)
        p = narrowed(log_p, temperature=temperature, top_k=top_k, nucleus=nucleus).exp()
        symbol = torch.multinomial(p, 1, generator=generator)[:, 0]  # [N]
        if end is not None:
            symbol = symbol.masked_fill(ended, end)
            ended = ended | (symbol == end)
        drawn.append(symbol)
    return torch.stack(drawn)


@torch.no_grad()
def greedy(step: Step, state: State, first: Tensor, *, end: int, steps: int) -> Tensor:
    """The likeliest symbol at each step: int64 [N, U], U at most `steps`; after an end, only ends.

    Args:
        step: see the module.
        state: before the first symbol.
        first: int64 [N], the start symbols.
        end: the symbol that ends a sequence.
        steps: the longest sequence.

    Raises:
        ValueError: steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    symbol, found = first, []
    ended = torch.zeros_like(first, dtype=torch.bool)
    for length in range(1, steps + 1):
        log_p, state = step(symbol, state)
        symbol = log_p.argmax(-1).masked_fill(ended, end)
        ended = ended | (symbol == end)
        found.append(symbol)
        if length % _LOOK == 0 and bool(ended.all()):
            break
    return torch.stack(found, 1)


class Beams(NamedTuple):
    """What a beam search found, best first.

    Attributes:
        symbols: int64 [B, n, steps], without the start; ends from a sequence's end on.
        scores: [B, n], sums of log-probabilities over length ** penalty; minus infinity where there
            are fewer than n.
    """

    symbols: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(
    step: Step,
    select: Select,
    state: State,
    first: Tensor,
    *,
    end: int,
    width: int,
    steps: int,
    penalty: float = 1.0,
) -> Beams:
    """The `width` best sequences of each row, all rows at once.

    Args:
        step, select: see the module.
        state: of B rows, before the first symbol.
        first: int64 [B], the start symbols.
        end: the symbol that ends a sequence.
        width: K, beginnings kept for each row.
        steps: the longest sequence, its end not counted; there, what is not finished is cut.
        penalty: power of the length that a score is divided by; 0 favours short ones, 1: a mean.

    Raises:
        ValueError: width or steps below 1, or a penalty below 0.
    """
    for name, value in (("width", width), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if penalty < 0:
        raise ValueError(f"penalty must be at least 0, got {penalty}")
    rows, device = len(first), first.device
    base = torch.arange(rows, device=device)[:, None] * width  # [B, 1]
    state = select(state, torch.arange(rows, device=device).repeat_interleave(width))
    symbol = first.repeat_interleave(width)  # [B * K]
    scores = torch.full((rows, width), -math.inf, device=device)
    scores[:, 0] = 0.0  # all K beginnings are the same one
    history = torch.full((rows, width, steps + 1), end, device=device)
    done = Beams(history.clone(), torch.full_like(scores, -math.inf))
    for length in range(1, steps + 2):
        log_p, state = step(symbol, state)
        ended = log_p[:, end].reshape(rows, width)
        done = _with_ended(done, history, (scores + ended) / length**penalty)
        if length > steps:
            break
        # The K best of a row's beginnings are among the K best of each: no sum with all of [N, V].
        likely = log_p.topk(min(width + 1, log_p.shape[1]))  # one of them may be the end
        goes_on = likely.values.masked_fill(likely.indices == end, -math.inf)
        total = scores[:, :, None] + goes_on.reshape(rows, width, -1)  # [B, K, K + 1]
        best = total.flatten(1).topk(width)
        parent = best.indices // total.shape[2]
        last = likely.indices.reshape(rows, -1).gather(1, best.indices)
        scores = best.values
        history = history.gather(1, parent[:, :, None].expand_as(history))
        history[:, :, length - 1] = last
        chosen = (base + parent).flatten()
        state, symbol = select(state, chosen), last.flatten()
        # What a beginning may still reach at best: log-probabilities only fall.
        reachable = scores[:, 0] / (steps + 1) ** penalty
        if length % _LOOK == 0 and bool((done.scores[:, -1] >= reachable).all()):
            break
    return done


def _with_ended(done: Beams, history: Tensor, scores: Tensor) -> Beams:
    """The best of what was finished before and what ends now, `history` [B, K, steps + 1]."""
    width = scores.shape[1]
    best = torch.cat([done.scores, scores], 1).topk(width)
    symbols = torch.cat([done.symbols, history], 1)
    place = best.indices[:, :, None].expand(-1, -1, symbols.shape[2])
    return Beams(symbols.gather(1, place), best.values)
