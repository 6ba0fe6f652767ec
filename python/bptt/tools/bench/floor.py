"""The least time that a device allows a problem, by what was measured of it in the same run.

    floor = max(operations / speed of a large matrix product, bytes / speed of a large copy)
            + T * L * the least time of a dependent step

The last term is for a GPU only, where the hidden state must travel between processors in each step
unless one block holds all weights: the measured time of the cheapest exchange among as many
blocks as the weights need, or of a block's barrier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .layers import KINDS
from .problems import PRECISIONS, Problem
from .timing import Failure, milliseconds

_CPU_SIZE, _GPU_SIZE = 2048, 8192  # of the matrices


def peaks(device: str, precisions: list[str]) -> dict[str, float]:
    """GFLOP/s of a matrix product in each precision ("gemm_fp32"), GB/s of a copy ("copy")."""
    answer = {"copy": _copy_speed(device)}
    for precision in dict.fromkeys(precisions):
        answer[f"gemm_{precision}"] = _gemm_speed(device, precision)
    return answer


def _copy_speed(device: str) -> float:
    source = torch.empty(2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source), device) / 1e6


def _gemm_speed(device: str, precision: str) -> float:
    size = _GPU_SIZE if device == "cuda" else _CPU_SIZE
    dtype, how = PRECISIONS[precision]
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    with multiplied_as(how):
        return 2 * size**3 / milliseconds(lambda: a @ b, device) / 1e6


@contextmanager
def multiplied_as(precision: str) -> Iterator[None]:
    """How float32 is multiplied, in recurrences and around them: "ieee" or "tf32"."""
    modules: list[Any] = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    before = [module.fp32_precision for module in modules]
    for module in modules:
        module.fp32_precision = precision
    try:
        yield
    finally:
        for module, name in zip(modules, before, strict=True):
            module.fp32_precision = name


def exchanges(rounds: int = 20_000) -> dict[str, float]:
    """Microseconds of one exchange among the blocks of a team of a GPU: {"cluster of 8": ...}.

    A team that the device has no room for is left out.
    """
    answer: dict[str, float] = {}
    teams = {"block": (1,), "cluster": (2, 4, 8, 16), "grid": (2, 8, 32, 64, 128)}
    for tier, sizes in teams.items():
        for blocks in sizes:
            out = torch.zeros(blocks, dtype=torch.int32, device="cuda")
            call = partial(torch.ops.bptt.gpu_exchange, tier, rounds, out)
            try:
                ms = milliseconds(call, "cuda", 3)
            except Failure:
                continue
            if bool((out == rounds).all()):
                answer[f"{tier} of {blocks}"] = ms * 1e3 / rounds
    return answer


def floor_ms(problem: Problem, figures: dict[str, Any]) -> float:
    """The floor in milliseconds, from what `peaks` and `exchanges` measured."""
    products = problem.flop / figures[f"gemm_{problem.precision}"] / 1e6
    travel = problem.bytes / figures["copy"] / 1e6
    passes = {"inference": 1, "forward": 1, "backward": 1, "step": 2}[problem.which]
    steps = problem.steps * problem.layers * passes
    return max(products, travel) + steps * _least_step_us(problem, figures) / 1e3


def _least_step_us(problem: Problem, figures: dict[str, Any]) -> float:
    measured = figures.get("exchanges_us") or {}
    if not measured:
        return 0.0
    kind = KINDS[problem.layer]
    weights = kind.gates * kind.share * problem.hidden**2 * problem.dtype.itemsize
    blocks = math.ceil(weights / _BLOCK_BYTES)
    enough = [us for name, us in measured.items() if int(name.rpartition(" ")[2]) >= blocks]
    return min(enough or measured.values())


_BLOCK_BYTES = 227 * 2**10 + 128 * 2**10  # shared memory and registers of a processor for weights
