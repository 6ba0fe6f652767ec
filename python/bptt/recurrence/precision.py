"""float32 products around a loop on a GPU, at the precision of the loop's own.

cuDNN multiplies a whole layer as `torch.backends.cudnn.rnn.fp32_precision` says: in TF32 unless
somebody chose otherwise. torch's matrix products follow another flag, which is full float32 by
default. A layer that followed both would be as inexact as TF32 and as slow as float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

_lock = threading.Lock()
_inside = 0
_before = ""


def is_tf32() -> bool:
    """Whether recurrences multiply float32 in TF32, as `torch.nn` has it."""
    precision: str = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


@contextmanager
def as_recurrence(dtype: torch.dtype) -> Iterator[None]:
    """Let torch's matrix products of `dtype` on a GPU be as exact as the recurrence's.

    The flag is the process's: what other threads multiply in float32 meanwhile is in TF32, too.
    """
    global _inside, _before
    if dtype != torch.float32 or not is_tf32():
        yield
        return
    matmul = torch.backends.cuda.matmul
    with _lock:  # the first to come remembers what was, the last to go puts it back
        if _inside == 0:
            _before = matmul.fp32_precision
            matmul.fp32_precision = "tf32"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                matmul.fp32_precision = _before


def around(operand: Tensor) -> AbstractContextManager[None]:
    """`as_recurrence` for products of `operand` where it lies on a GPU.

    Not in a graph that torch.compile traces: the flag is none of a graph's operations.
    """
    on_gpu = operand.device.type == "cuda" and not torch.compiler.is_compiling()
    return as_recurrence(operand.dtype) if on_gpu else nullcontext()


def product_on_gpu(a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
    """`bptt::matrix_product` for CUDA tensors."""
    with as_recurrence(a.dtype), torch.autocast(a.device.type, enabled=False):
        return a @ b if start is None else torch.addmm(start, a, b)
