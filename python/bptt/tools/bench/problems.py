"""What is measured: a layer on a batch of sequences, in one pass; and grids of that by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .layers import KINDS, LAYERS, OTHERS

# Name: dtype of the tensors, and how float32 is multiplied.
PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
# inference: without gradients. forward: with all that a backward pass will need. backward: that
# alone. step: both, as training does them.
PASSES = ("inference", "forward", "backward", "step")
# Products of one, of the recurrence and of the input projection: a backward pass has two for each.
_PRODUCTS = {"inference": 1, "forward": 1, "backward": 2, "step": 3}


@dataclass(frozen=True)
class Problem:
    """One layer, or a stack of equal ones, on one batch.

    Attributes:
        layer: a name in `layers.KINDS`: "RNN" (tanh), "GRU", "LSTM", or another of bptt's.
        precision: a name in `PRECISIONS`.
        steps, batch, input, hidden: T, B, I and H.
        layers: L.
        directions: 1 or 2.
        which: one of `PASSES`.
    """

    layer: str
    precision: str
    steps: int
    batch: int
    input: int
    hidden: int
    layers: int = 1
    directions: int = 1
    which: str = "step"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("layer", self.layer, tuple(KINDS)),
            ("precision", self.precision, tuple(PRECISIONS)),
            ("pass", self.which, PASSES),
            ("directions", self.directions, (1, 2)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        for name in ("steps", "batch", "input", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    @property
    def flop(self) -> int:
        """Operations of the matrix products; pointwise work is not counted."""
        return 2 * self.steps * self.batch * self._weights * _PRODUCTS[self.which]

    @property
    def _weights(self) -> int:
        """How many weights there are in products."""
        kind = KINDS[self.layer]
        inputs = self.input + (self.layers - 1) * self.directions * self.hidden
        read = inputs + self.layers * int(self.hidden * kind.share)
        return self.directions * kind.gates * self.hidden * read

    @property
    def bytes(self) -> int:
        """What must travel to or from memory: weights, inputs and outputs once, and no more.

        A backward pass reads the output's gradient and what the forward pass read and wrote, and
        writes as many gradients as there are inputs and weights. Saved gates are a choice, and not
        counted.
        """
        rows, width = self.steps * self.batch, self.directions * self.hidden
        inputs = self.input + (self.layers - 1) * width
        weights = self._weights
        outputs = rows * width * self.layers
        forward = weights + rows * inputs + outputs
        backward = forward + outputs + weights + rows * inputs
        counts = {"inference": forward, "forward": forward, "backward": backward}
        return counts.get(self.which, forward + backward) * self.dtype.itemsize

    @property
    def cudnn_class(self) -> str:
        """The kind of kernel that cuDNN takes for it through torch.nn on an NVIDIA GPU.

        SMALL_H and PERSIST_STATIC are persistent, STANDARD is a product and a pointwise kernel per
        step. Source: `get_algo` in torch's aten/src/ATen/native/cudnn/RNN.cpp.
        """
        rnn = self.layer == "RNN"
        small = {"inference": (192, 384), "forward": (192, 384)}.get(self.which, (128, 256))
        if self.hidden <= small[rnn]:
            return "SMALL_H"
        if self.precision != "fp16" or self.layer == "GRU":
            return "STANDARD"
        fits = self.layers == 1 and self.directions == 1
        fits = fits and self.batch % 8 == 0 and self.batch <= 128
        fits = fits and self.hidden % 128 == 0 and self.hidden <= 1024 and self.input % 128 == 0
        fits = fits and (not rnn or self.batch < 96 or self.hidden < 896)
        return "PERSIST_STATIC" if fits else "STANDARD"

    def __str__(self) -> str:
        kind = "bidirectional " if self.directions == 2 else ""
        stack = f" x{self.layers}" if self.layers > 1 else ""
        shape = f"T={self.steps} B={self.batch} I={self.input} H={self.hidden}"
        return f"{kind}{self.layer}{stack} {self.precision} {shape} {self.which}"

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def product(
    layers: Iterable[str], precisions: Iterable[str], shapes: Iterable[Sequence[int]],
    directions: Iterable[int] = (1,), passes: Iterable[str] = PASSES, depths: Iterable[int] = (1,),
) -> list[Problem]:  # fmt: skip
    """Every combination; shapes are (T, B, I, H), or (T, B, H) for as many inputs as units.

    The pass changes fastest, so that all passes of a layer are checked against one exact run.
    """
    problems = []
    for layer, precision, depth, shape, way, which in itertools.product(
        layers, precisions, depths, shapes, directions, passes
    ):
        steps, batch, *rest = shape
        problems.append(
            Problem(layer, precision, steps, batch, rest[0], rest[-1], depth, way, which)
        )
    return problems


_CPU_SHAPES = ((100, 32, 128), (100, 32, 512), (512, 1, 256), (50, 256, 256), (100, 16, 64))
_GPU_SHAPES = (
    *((256, 16, 64), (256, 64, 128), (256, 1, 256), (256, 16, 256), (256, 64, 256)),
    *((256, 16, 512), (256, 64, 512), (256, 256, 512), (256, 16, 1024), (256, 64, 1024)),
)
_HARD = (1024, 16, 768)  # the shape on which cuDNN is at its best
_TRAINING = ("inference", "step")
GRIDS = ("quick", "standard", "hard-case", "short", "bf16", "cells", "full")


def grid(name: str, device: str) -> list[Problem]:
    """A grid by name, for "cpu" or "cuda".

    quick: a few minutes at most. standard: what the README shows. hard-case: where cuDNN is at its
    best. short: calls of 1 to 16 steps, as decoders, policies and streams make them. bf16: the
    shapes of standard in bfloat16. cells: the layers that torch.nn lacks, beside a loop in
    Python. full: every pass, precision and size, stacks and long sequences;
    hours on a CPU.

    Raises:
        ValueError: there is no such grid.
    """
    gpu = device != "cpu"
    if name == "quick":
        few = ((256, 16, 256), (256, 64, 512)) if gpu else ((50, 16, 64), (100, 8, 128))
        return product(LAYERS, ("bf16", "tf32") if gpu else ("fp32",), few, passes=_TRAINING)
    if name == "standard":
        if not gpu:
            return product(LAYERS, ("fp32",), _CPU_SHAPES, (1, 2), _TRAINING)
        most = product(("LSTM", "GRU"), PRECISIONS, _GPU_SHAPES, passes=_TRAINING)
        some = product(("RNN",), ("bf16", "tf32"), _GPU_SHAPES[1::3], passes=_TRAINING)
        both = product(("LSTM", "GRU"), ("bf16", "tf32"), _GPU_SHAPES[1::3], (2,), passes=_TRAINING)
        return [*most, *some, *both]
    if name == "hard-case":
        return product(
            ("LSTM", "GRU"), ("fp16", "bf16") if gpu else ("fp32",),
            (_HARD if gpu else (256, 16, 768),),
        )  # fmt: skip
    if name == "short":
        calls = tuple(itertools.product((1, 2, 4, 8, 16), (1, 4, 16, 64)))
        usual = ("bf16",) if gpu else ("fp32",)
        single = [(*call, hidden) for call in calls for hidden in (64, 256, 1024)]
        stacked = [(*call, 256) for call in calls]
        return [
            *product(LAYERS, usual, single, passes=_TRAINING),
            *product(LAYERS, usual, stacked, passes=_TRAINING, depths=(2,)),
        ]
    if name == "bf16":
        return product(LAYERS, ("bf16",), _GPU_SHAPES if gpu else _CPU_SHAPES, (1, 2), _TRAINING)
    if name == "cells":
        shape = (256, 64, 256) if gpu else (100, 32, 256)
        return product(OTHERS, ("bf16", "tf32") if gpu else ("fp32",), (shape,), passes=_TRAINING)
    if name == "full":
        sizes = [64, 128, 256, 512, 768, 1024, 2048] if gpu else [32, 64, 128, 256, 512]
        shapes = [(256 if gpu else 64, b, h) for h in sizes for b in (1, 16, 64, 256)]
        long = [(t, 16, 256) for t in (1, 16, 64, 1024, 4096)]
        precisions = list(PRECISIONS) if gpu else ["fp32", "bf16"]
        return [
            *product(LAYERS, precisions, dict.fromkeys([*shapes, *long]), (1, 2)),
            *product(LAYERS, precisions, (shapes[5], shapes[10]), depths=(2, 4)),
        ]
    raise ValueError(f"grid must be one of {GRIDS}, got {name!r}")
