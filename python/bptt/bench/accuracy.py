"""Accuracy of bptt's layers beside torch.nn's, both held against float64.

A `Check` is a layer with its options on a batch of some size. Layers get the same weights and
inputs, rounded to the dtype in question; exact is torch.nn in float64 on the CPU with those
numbers cast up, or, for what torch.nn lacks, bptt's reference loop in float64. Compared are the
output, the final states, and the gradients of input, initial states and every parameter.

**Unit.** The error of a tensor is its largest absolute difference from the exact one, in units of
eps times the exact tensor's largest magnitude; eps is `torch.finfo(dtype).eps`, and 2**-10 where
float32 is multiplied as TF32. A correctly rounded tensor has an error of at most 0.5.

**Verdict.** A tensor passes if bptt's error is at most torch.nn's, or at most the allowance, as
torch.nn may be lucky. NaN and infinity fail. The allowance is sqrt(n) units, n being the number of
roundings in a row that the tensor sees (`roundings`). Why the root: roundings are independent in
sign, so n of them add up like a random walk (Higham and Mary, "A New Approach to Probabilistic
Rounding Error Analysis", 2019). A sum of n terms of random sign has a standard error of about
0.29 sqrt(n / 2) = 0.2 sqrt(n) units: one rounding is uniform within half a unit of the partial sum,
and partial sums grow like the root of the terms so far. The largest of some 10**5 elements lies
4 to 5 standard errors out, hence a factor of 1. Sums of terms of one sign and an activation's own
error of one or two units stay below that for the sizes here.

float64 has no torch.nn beside it, which is the measure itself there and rounds as well: the
allowance is doubled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

import bptt

LAYERS = ("RNN", "GRU", "LSTM")
LAYOUTS = ("time first", "batch first", "unbatched", "packed", "packed sorted")
Values = dict[str, Tensor]  # outputs and gradients of one run by name, float64 on the CPU


@dataclass(frozen=True)
class Precision:
    """How numbers are held and multiplied.

    Attributes:
        name: what the command line and the tables call it.
        dtype: of inputs, weights and results.
        eps: the resolution that errors are measured in.
        products: "ieee" or "tf32", for float32 on a GPU.
        wide_sums: whether sums are wider than `dtype` resolves, so that only what is stored, or
            goes into a product, is rounded.
    """

    name: str
    dtype: torch.dtype
    eps: float
    products: str
    wide_sums: bool


def _precision(name: str, wide_sums: bool) -> Precision:
    dtype = getattr(torch, name)
    return Precision(name, dtype, torch.finfo(dtype).eps, "ieee", wide_sums)


PRECISIONS = {
    "float64": _precision("float64", False),
    "float32": _precision("float32", False),
    "tf32": Precision("tf32", torch.float32, 2.0**-10, "tf32", True),
    "bfloat16": _precision("bfloat16", True),
    "float16": _precision("float16", True),
}


# --- what is checked ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A layer with its options, and the sizes of what goes in.

    Attributes:
        layer: "RNN", "GRU" or "LSTM".
        layout: one of `LAYOUTS`; "packed" has lengths in no order (enforce_sorted=False).
        states: whether initial states are given.
        lengths, resets: whether the call has them; torch.nn does not know them.
        steps, batch, input, hidden: T, B, I and H; B is 1 where the layout is "unbatched".

    The others are options of the layers.
    """

    layer: str
    nonlinearity: str = "tanh"
    proj_size: int = 0
    reset_after: bool = True
    peephole: bool = False
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    merge_mode: str = "concat"
    recompute: bool = False
    layout: str = "time first"
    states: bool = True
    lengths: bool = False
    resets: bool = False
    steps: int = 20
    batch: int = 5
    input: int = 7
    hidden: int = 16

    @property
    def name(self) -> str:
        """Every option that is not the default, and the sizes: one word, for the command line."""
        words = [self.layer]
        for each in fields(self)[1:-4]:
            value = getattr(self, each.name)
            if value != each.default:
                flag = isinstance(value, bool)
                text = each.name if flag else f"{each.name}={value}".replace(" ", "-")
                words.append(f"no-{text}" if value is False else text)
        sizes = f"T{self.steps}.B{self.batch}.I{self.input}.H{self.hidden}"
        return ",".join([*words, sizes])

    @property
    def cell(self) -> str:
        """A name in `bptt.cells.CELLS`."""
        if self.layer == "LSTM":
            return bptt.functional.lstm_cell_name(self.peephole)
        if self.layer == "GRU":
            return bptt.functional.gru_cell_name(self.reset_after)
        return bptt.functional.rnn_cell_name(self.nonlinearity)

    @property
    def beyond_torch(self) -> bool:
        """Whether torch.nn has nothing to compare with."""
        own = self.peephole or not self.reset_after or self.nonlinearity == "sigmoid"
        return own or self.lengths or self.resets or self.merge_mode != "concat"

    @property
    def group(self) -> str:
        """Its row in the summary."""
        return f"{self.layer} beyond torch.nn" if self.beyond_torch else self.layer

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state(self) -> int:
        """R, the size of the hidden state."""
        return self.proj_size or self.hidden

    def options(self, ours: bool) -> dict[str, Any]:
        """Arguments of the layer's constructor."""
        names = ["num_layers", "bidirectional", "bias"]
        names += {"RNN": ["nonlinearity"], "LSTM": ["proj_size"]}.get(self.layer, [])
        if ours:
            names += ["merge_mode", "recompute"]
            names += {"GRU": ["reset_after"], "LSTM": ["peephole"]}.get(self.layer, [])
        batch_first = self.layout == "batch first"
        return {name: getattr(self, name) for name in names} | {
            "batch_first": batch_first, "dropout": 0.0,
        }  # fmt: skip


def roundings(check: Check, precision: Precision, gradient: bool) -> int:
    """How many roundings in a row an element of a tensor sees.

    In each of L layers, a state is rounded once a step, and where sums are as narrow as the dtype,
    so is each term of a product, I + R in all. A gradient has those of the backward pass on top,
    and where it is one of a weight, a sum over all steps of all sequences.
    """
    inputs = max(check.input, check.directions * check.state if check.num_layers > 1 else 0)
    depth = 0 if precision.wide_sums else inputs + check.state
    passes = check.num_layers * (check.steps + depth)
    if not gradient:
        return passes
    return 2 * passes + (0 if precision.wide_sums else check.steps * check.batch)


def allowance(check: Check, precision: Precision, gradient: bool) -> float:
    """The error in units that passes whatever torch.nn's is; see the module's description."""
    doubled = 2.0 if precision.dtype == torch.float64 else 1.0
    return doubled * math.sqrt(roundings(check, precision, gradient))
