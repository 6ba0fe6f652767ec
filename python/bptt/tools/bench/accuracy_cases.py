"""What `bptt check` runs: layers, options and precisions; and how far each may err."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

import bptt
from bptt.custom.files import is_named, load_cell

LAYERS = ("RNN", "GRU", "LSTM", "CIFG", "SLSTM", "IndRNN")
# Options of a layer by the name of a check; probabilities draw masks, the same in every backend.
CONTROLS: dict[str, dict[str, Any]] = {
    "zoneout": {"zoneout": 0.3},
    "dropouts": {"recurrent_dropout": 0.4, "weight_drop": 0.3},
    "truncate": {"truncate": 5},
    "clip-values": {"clip_grad_value": 0.5},
    "clip-norms": {"clip_grad_norm": 1.0},
    "cell-clip": {"cell_clip": 0.4},
    "layer-norm": {"layer_norm": True},
    "heads": {"num_heads": 2},
    "softsign": {"activation": "softsign"},
}
LAYOUTS = ("time first", "batch first", "unbatched", "packed", "packed sorted")


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
        layer: one of `LAYERS`, or a cell of one's own as `file.py:name`.
        control: a name in `CONTROLS`, or "".
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
    control: str = ""
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
        """A name in `bptt.recurrence.cells.CELLS`."""
        options = bptt.options.Options(**CONTROLS.get(self.control, {}))
        if self.is_own:
            return load_cell(self.layer).name
        if self.layer == "LSTM":
            return bptt.functional.lstm_cell_name(self.peephole, options)
        if self.layer == "GRU":
            return bptt.functional.gru_cell_name(self.reset_after, options)
        if self.layer == "RNN":
            return bptt.functional.rnn_cell_name(self.nonlinearity, options)
        return self.layer.lower()

    @property
    def is_own(self) -> bool:
        """Whether it is of a cell made by `bptt.cell`."""
        return is_named(self.layer)

    @property
    def beyond_torch(self) -> bool:
        """Whether torch.nn has nothing to compare with."""
        own = self.peephole or not self.reset_after or self.nonlinearity == "sigmoid"
        own = own or self.control != "" or not hasattr(torch.nn, self.layer)
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
        names += {"RNN": ["nonlinearity"], "LSTM": ["proj_size"], "CIFG": ["proj_size"]}.get(
            self.layer, []
        )
        if ours:
            names += ["merge_mode", "recompute"]
            names += {"GRU": ["reset_after"], "LSTM": ["peephole"]}.get(self.layer, [])
        more = {"batch_first": self.layout == "batch first", "dropout": 0.0}
        more |= CONTROLS.get(self.control, {})
        return {name: getattr(self, name) for name in names} | more


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
    if check.control == "layer-norm":  # divides roundings by a spread that may be small
        doubled *= 4.0
    return doubled * (1.0 + math.sqrt(roundings(check, precision, gradient)))


_KINDS: tuple[dict[str, Any], ...] = (
    {"layer": "RNN"}, {"layer": "RNN", "nonlinearity": "relu"}, {"layer": "GRU"},
    {"layer": "LSTM"}, {"layer": "LSTM", "proj_size": 6},
)  # fmt: skip
_OWN_KINDS: tuple[dict[str, Any], ...] = (
    {"layer": "RNN", "nonlinearity": "sigmoid"}, {"layer": "GRU", "reset_after": False},
    {"layer": "LSTM", "peephole": True}, {"layer": "LSTM", "peephole": True, "proj_size": 6},
)  # fmt: skip
_NEW_KINDS: tuple[dict[str, Any], ...] = (
    {"layer": "CIFG"}, {"layer": "CIFG", "proj_size": 6}, {"layer": "SLSTM", "states": False},
    {"layer": "SLSTM", "states": False, "control": "heads"}, {"layer": "IndRNN"},
)  # fmt: skip
_BOTH: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
_QUICK: tuple[dict[str, Any], ...] = (
    {},
    {**_BOTH, "layout": "packed", "steps": 11, "batch": 6, "input": 9, "hidden": 13},
    {"layout": "packed sorted", "bidirectional": True, "states": False, "steps": 8},
    {"layout": "batch first", "bias": False, "states": False, "steps": 1, "batch": 3},
    {"layout": "unbatched", "num_layers": 2, "steps": 30, "batch": 1, "hidden": 17},
    {"recompute": True, "steps": 24, "batch": 33, "input": 40, "hidden": 48},
)
_OWN_QUICK: tuple[dict[str, Any], ...] = (
    {"lengths": True, "batch": 9},
    {**_BOTH, "resets": True, "merge_mode": "sum", "layout": "batch first", "hidden": 14},
)
_OWN_CELL: tuple[dict[str, Any], ...] = (
    *_QUICK,
    *_OWN_QUICK,
    *({"control": name} for name in ("zoneout", "dropouts", "truncate", "clip-norms", "heads")),
    {"steps": 100, "batch": 8, "input": 24, "hidden": 40},
)
_SIZES = ((1, 1, 5, 8), (7, 3, 10, 15), (33, 17, 6, 31), (16, 8, 32, 32))  # T, B, I, H
_LARGE = ((512, 1, 16, 32), (200, 4, 24, 40), (12, 64, 128, 96), (20, 32, 512, 512))


def own_checks(name: str) -> list[Check]:
    """What a cell of one's own is held to, `file.py:name`; options that it cannot have are not."""
    product = load_cell(name).product
    absent = {"none": ("dropouts", "heads"), "diagonal": ("heads",)}.get(product, ())
    kinds = [kind for kind in _OWN_CELL if kind.get("control") not in absent]
    return [Check(name, **{**kind, "states": False}) for kind in kinds]


def checks(full: bool = False, layers: Sequence[str] = LAYERS) -> list[Check]:
    """The set of `--quick`, or that and more: every combination of the options that torch.nn has.

    Sizes of the combinations take turns.
    """
    kinds = [kind for kind in _KINDS if kind["layer"] in layers]
    own = [kind for kind in (*_OWN_KINDS, *_KINDS) if kind["layer"] in layers]
    found = [Check(**kind, **rest) for kind in kinds for rest in _QUICK]
    found += [Check(**kind, **rest) for kind in own for rest in _OWN_QUICK]
    found += [Check(**kind) for kind in own if kind in _OWN_KINDS]
    new = [kind for kind in _NEW_KINDS if kind["layer"] in layers]
    found += [Check(**kind, **rest) for kind in new for rest in ({}, *_OWN_QUICK)]
    found += [
        Check(layer, control=control, **rest)
        for layer in ("RNN", "GRU", "LSTM")
        for control in CONTROLS
        if layer in layers and _takes(layer, control)
        for rest in _OWN_QUICK
        # After a reset a product is zero, and the floor of its variance is all that its roundings
        # are divided by: they say nothing of a kernel.
        if not (control == "layer-norm" and rest.get("resets"))
    ]
    if full:
        found += [check for kind in kinds for check in _combinations(kind)]
        found += [Check(**kind, **_sized(size)) for kind in (*kinds, *own) for size in _LARGE]
        found += [
            Check(**kind, **_BOTH, merge_mode=mode, lengths=True, resets=True, **_sized(size))
            for kind in own
            for mode in ("sum", "mul", "ave")
            for size in _SIZES[1:3]
        ]
    return list(dict.fromkeys(found))


def _takes(layer: str, control: str) -> bool:
    """Whether a layer has an option."""
    return not (control == "cell-clip" and layer != "LSTM") and not (
        control == "softsign" and layer == "RNN"
    )


def _combinations(kind: dict[str, Any]) -> Iterator[Check]:
    sizes = itertools.cycle(_SIZES)
    for depth, both, bias, layout, states in itertools.product(
        (1, 2), (False, True), (True, False), LAYOUTS, (True, False)
    ):
        size = _sized(next(sizes)) | ({"batch": 1} if layout == "unbatched" else {})
        yield Check(
            **kind, num_layers=depth, bidirectional=both, bias=bias, layout=layout, states=states,
            **size,
        )  # fmt: skip


def _sized(size: Sequence[int]) -> dict[str, Any]:
    return dict(zip(("steps", "batch", "input", "hidden"), size, strict=True))


# --- one run --------------------------------------------------------------------------------------
