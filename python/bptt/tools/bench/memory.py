"""What a call takes beside time: memory that it saves and needs, and launches of kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .timing import Call


@contextmanager
def _profiled(activity: ProfilerActivity) -> Iterator[Any]:
    """torch's profiler without the lines that its library writes to stderr by itself."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with profile(activities=[activity], profile_memory=True) as seen:
            yield seen
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def saved_bytes(call: Call) -> int:
    """Bytes kept between forward and backward, without inputs, weights and the output.

    A storage counts once, however many tensors look at it. What cuDNN calls its reserve is among
    them.
    """
    if call.which == "inference":
        return 0
    storages: dict[int, Any] = {}

    @torch.compiler.disable
    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    @torch.compiler.disable
    def give_back(tensor: Tensor) -> Tensor:
        return tensor

    with call.context(), torch.autograd.graph.saved_tensors_hooks(keep, give_back):
        y = call.module(call.x)
    for own in (*call.leaves, y):
        storages.pop(own.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def peak_bytes(call: Call, device: str) -> int:
    """The most memory that a run has at a time, beyond what was there before."""
    call.prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with call.context():
            call.run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with call.context(), _profiled(ProfilerActivity.CPU) as seen:
        call.run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def launches(call: Call, device: str) -> int | None:
    """Kernels that a run launches on a GPU; None on a CPU."""
    if device != "cuda":
        return None
    call.prepare()
    torch.cuda.synchronize()
    with call.context(), _profiled(ProfilerActivity.CUDA) as seen:
        call.run()
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if e.device_type == DeviceType.CUDA]
    return sum(not e.name.startswith(("Memcpy", "Memset")) for e in kernels)
