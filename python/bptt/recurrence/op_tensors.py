"""What both GPU backends do with tensors before and after their kernels."""

from __future__ import annotations

import os

import torch
from torch import Tensor

_POISON = os.environ.get("BPTT_POISON") == "1"  # as in csrc/torch/memory.h


def new(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory that a kernel will fill; NaN for a start where tests ask for it."""
    tensor = like.new_empty(shape, dtype=dtype)
    return tensor.fill_(torch.nan) if _POISON else tensor


def dense(tensor: Tensor | None) -> Tensor | None:
    """The tensor for a kernel; None where there is nothing in it."""
    return None if tensor is None or not tensor.numel() else tensor.contiguous()
