"""What a bug report needs: versions, devices, backends, settings, and a check of a few seconds."""

from __future__ import annotations

import copy
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bptt

from .bench import machine

KINDS = ("RNN", "GRU", "LSTM")
# Environment variables that change what runs.
_SETTINGS = ("BPTT_", "TORCH_", "PYTORCH_", "TRITON_", "CUDA_", "CUDNN_", "OMP_", "MKL_")
# The folders of an absolute path, of Linux or Windows.
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"]+)+[/\\](?=[^\s/\\])")
# Of the largest value: float32 against float64, TF32 where a GPU multiplies in it.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}


@dataclass(frozen=True)
class Check:
    """One layer on one backend, forward and backward, against torch.nn in float64.

    Attributes:
        backend: its name.
        layer: "RNN", "GRU" or "LSTM".
        error: the largest one, as a part of the largest value; infinite where it raised.
        trouble: what it raised, in one line, or "".
        fine: whether the error is within `TOLERANCE`.
    """

    backend: str
    layer: str
    error: float
    trouble: str
    fine: bool


def report() -> dict[str, Any]:
    """All of it, for a JSON file; no path of the user's is in it."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "facts": {device: machine.facts(device) for device in devices},
        "backends": [
            {name: _masked(value) for name, value in vars(status).items()}
            for status in bptt.backends()
        ],
        "settings": settings(),
        "checks": [vars(check) for check in checks()],
    }


def settings() -> dict[str, str]:
    """Environment variables that change what runs; of paths only their last part."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    return {name: _without_folders(value) for name, value in sorted(found.items())}


def _without_folders(value: str) -> str:
    return ":".join(Path(part).name if "/" in part else part for part in value.split(":"))


def _masked(text: Any) -> Any:
    """A text without the folders of paths in it."""
    return _FOLDERS.sub("", text) if isinstance(text, str) else text


def checks() -> list[Check]:
    """Every backend that can run here, on every layer of torch.nn."""
    made = []
    for status in bptt.backends():
        if not status.available:
            continue
        device = "cuda" if status.name in ("cuda", "triton") else "cpu"
        made += [_check(status.name, kind, device) for kind in KINDS]
    return made


def _check(backend: str, kind: str, device: str) -> Check:
    torch.manual_seed(0)
    exact = getattr(nn, kind)(20, 40, num_layers=2, bidirectional=True).double()
    layer = getattr(bptt, kind)(20, 40, num_layers=2, bidirectional=True)
    layer.load_state_dict(copy.deepcopy(exact).float().state_dict())
    x = torch.randn(30, 6, 20, dtype=torch.float64)
    wanted = _pass(exact, x)
    try:
        with bptt.backend(backend):
            found = _pass(layer.to(device), x.float().to(device))
    except Exception as error:  # whatever it is, the report shall have it
        trouble = _masked(" ".join(f"{type(error).__name__}: {error}".split()))
        return Check(backend, kind, float("inf"), trouble, False)
    errors = [
        ((mine.cpu().double() - their).abs().max() / their.abs().max()).item()
        for mine, their in zip(found, wanted, strict=True)
    ]
    worst = max(errors, key=lambda error: float("inf") if error != error else error)
    return Check(backend, kind, worst, "", worst < TOLERANCE[device])


def _pass(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and gradients of input and weights."""
    x = x.clone().requires_grad_()
    y = layer(x)[0]
    weights = list(layer.parameters())
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *weights])]
