"""Accuracy of bptt's layers beside torch.nn's, both held against float64.

A `Check` is a layer with its options on a batch of some size. Layers get the same weights and
inputs, rounded to the dtype in question; exact is torch.nn in float64 on the CPU with those
numbers cast up, or, for what torch.nn lacks, bptt's reference loop in float64. Compared are the
output, the final states, and the gradients of input, initial states and every parameter.

**Unit.** The error of a tensor is its largest absolute difference from the exact one, in units of
eps times the exact tensor's largest magnitude; eps is `torch.finfo(dtype).eps`, and 2**-10 where
float32 is multiplied as TF32. A correctly rounded tensor has an error of at most 0.5.

**Verdict.** A tensor passes if bptt's error is at most torch.nn's, or at most the allowance, as
torch.nn may be lucky. NaN and infinity fail. The allowance is 1 + sqrt(n) units, n being the number
of roundings in a row that an element sees (`roundings`). Why the root: roundings are independent in
sign, so n of them add up like a random walk (Higham and Mary, "A New Approach to Probabilistic
Rounding Error Analysis", 2019). A sum of n terms of random sign has a standard error of about
0.29 sqrt(n / 2) = 0.2 sqrt(n) units: one rounding is uniform within half a unit of the partial sum,
and partial sums grow like the root of the terms so far. The largest of some 10**5 elements lies
4 to 5 standard errors out, hence sqrt(n). The 1 is for what no averaging makes small: an
activation's own error, and the rounding of the result. In practice every backend, and torch.nn
itself, stays at about half of it; a wrong term in an equation is off by hundreds of units.

float64 has no torch.nn beside it, which is the measure itself there and rounds as well: the
allowance is doubled.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from bptt import dispatch, vendor
from bptt.gradients import LoopInputs

from .floor import multiplied_as

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
    return doubled * (1.0 + math.sqrt(roundings(check, precision, gradient)))


_KINDS: tuple[dict[str, Any], ...] = (
    {"layer": "RNN"}, {"layer": "RNN", "nonlinearity": "relu"}, {"layer": "GRU"},
    {"layer": "LSTM"}, {"layer": "LSTM", "proj_size": 6},
)  # fmt: skip
_OWN_KINDS: tuple[dict[str, Any], ...] = (
    {"layer": "RNN", "nonlinearity": "sigmoid"}, {"layer": "GRU", "reset_after": False},
    {"layer": "LSTM", "peephole": True}, {"layer": "LSTM", "peephole": True, "proj_size": 6},
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
    {**_BOTH, "resets": True, "merge_mode": "sum", "layout": "batch first", "hidden": 13},
)
_SIZES = ((1, 1, 5, 8), (7, 3, 10, 15), (33, 17, 6, 31), (16, 8, 32, 32))  # T, B, I, H
_LARGE = ((512, 1, 16, 32), (200, 4, 24, 40), (12, 64, 128, 96), (20, 32, 512, 512))


def checks(full: bool = False, layers: Sequence[str] = LAYERS) -> list[Check]:
    """The set of `--quick`, or that and more: every combination of the options that torch.nn has.

    Sizes of the combinations take turns.
    """
    kinds = [kind for kind in _KINDS if kind["layer"] in layers]
    own = [kind for kind in (*_OWN_KINDS, *_KINDS) if kind["layer"] in layers]
    found = [Check(**kind, **rest) for kind in kinds for rest in _QUICK]
    found += [Check(**kind, **rest) for kind in own for rest in _OWN_QUICK]
    found += [Check(**kind) for kind in own if kind in _OWN_KINDS]
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


@dataclass(frozen=True)
class Given:
    """What all layers of a check are given: float64 on the CPU, rounded to the precision's dtype.

    Attributes:
        weights: a state_dict.
        inputs: "input", and "h_0" and "c_0" where initial states are given.
        lengths: int64 [B], for packing or for the call; or None.
        resets: bool, shaped like the input without its features; or None.
        draw: a tensor of a shape, the same for the same key.
    """

    check: Check
    weights: Values
    inputs: Values
    lengths: Tensor | None
    resets: Tensor | None
    draw: Callable[..., Tensor]

    @classmethod
    def of(cls, check: Check, precision: Precision, seed: int) -> Given:
        def draw(key: int, *shape: int) -> Tensor:
            generator = torch.Generator().manual_seed(1000 * seed + key)
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return drawn.to(precision.dtype).double()

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = _new_layer(check, check.beyond_torch, "cpu", torch.float64).state_dict()
        rounded = {name: each.to(precision.dtype).double() for name, each in weights.items()}
        batch = () if check.layout == "unbatched" else (check.batch,)
        rows = check.num_layers * check.directions
        leading = (check.steps, *batch)[:: -1 if check.layout == "batch first" else 1]
        inputs = {"input": draw(1, *leading, check.input)}
        if check.states:
            inputs["h_0"] = draw(2, rows, *batch, check.state)
        if check.states and check.layer == "LSTM":
            inputs["c_0"] = draw(3, rows, *batch, check.hidden)
        if check.nonlinearity == "relu":
            _keep_from_kinks(rounded, inputs)
        resets = draw(4, *leading) > 1.0 if check.resets else None
        return cls(check, rounded, inputs, _lengths(check, seed), resets, draw)


def _keep_from_kinks(weights: Values, inputs: Values) -> None:
    """Switch every second relu unit on and the others off, in place.

    At a kink the derivative jumps between 0 and 1, and rounding would decide on which side a unit
    is. A sum of terms of one sign has that sign, however it is rounded. Recurrent weights are made
    small, by a power of two, as states of one sign would grow from step to step.
    """
    for tensor in inputs.values():
        tensor.abs_()
    for name, tensor in weights.items():
        tensor.abs_()[1::2] *= -1
        if name.startswith("weight_hh"):
            tensor *= 2.0 ** -math.ceil(math.log2(tensor.shape[1]) / 2)


def _lengths(check: Check, seed: int) -> Tensor | None:
    """One as long as the input, the others random; the call's own may be 0."""
    packed = check.layout.startswith("packed")
    if not packed and not check.lengths:
        return None
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(int(packed), check.steps + 1, (check.batch,), generator=generator)
    lengths[-1] = check.steps
    return lengths.sort(descending=True).values if check.layout == "packed sorted" else lengths


def _new_layer(check: Check, ours: bool, device: str, dtype: torch.dtype) -> nn.RNNBase:
    made = getattr(bptt if ours else nn, check.layer)
    return made(
        check.input, check.hidden, device=device, dtype=dtype, **check.options(ours)
    )  # fmt: skip


def run(given: Given, ours: bool, device: str, dtype: torch.dtype) -> Values:
    """Outputs and gradients of one layer, bptt's or torch.nn's, on the backend in force."""
    check = given.check
    layer = _new_layer(check, ours, device, dtype)
    layer.load_state_dict(given.weights)
    leaves = {n: t.to(device, dtype).requires_grad_() for n, t in given.inputs.items()}
    source: Any = leaves["input"]
    extra: dict[str, Any] = {}
    if check.layout.startswith("packed"):
        in_order = check.layout == "packed sorted"
        assert given.lengths is not None
        source = pack_padded_sequence(source, given.lengths, enforce_sorted=in_order)
    elif given.lengths is not None:
        extra["lengths"] = given.lengths.to(device)
    if given.resets is not None:
        extra["resets"] = given.resets.to(device)
    hx: Any = (leaves["h_0"], leaves["c_0"]) if "c_0" in leaves else leaves.get("h_0")
    y, last = layer(source, hx, **extra)
    outputs = {"output": y.data if isinstance(y, PackedSequence) else y}
    outputs |= dict(zip(("h_n", "c_n"), last if isinstance(last, tuple) else (last,), strict=False))
    leaves |= dict(layer.named_parameters())
    upstream = [given.draw(9 + i, *t.shape) for i, t in enumerate(outputs.values())]
    gradients = torch.autograd.grad(
        list(outputs.values()), list(leaves.values()), [t.to(device, dtype) for t in upstream]
    )
    named = {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}
    return {n: t.detach().to("cpu", torch.float64) for n, t in (outputs | named).items()}


# --- errors and verdicts --------------------------------------------------------------------------


@dataclass(frozen=True)
class Error:
    """Of one tensor, in units; infinite where a value is NaN or infinite, or the shape is wrong.

    Attributes:
        tensor: its name.
        bptt: bptt's error.
        torch_nn: torch.nn's, or None where there is none.
        allowed: what passes whatever torch.nn's is.
    """

    tensor: str
    bptt: float
    torch_nn: float | None
    allowed: float

    @property
    def gradient(self) -> bool:
        return self.tensor.startswith("gradient")

    @property
    def passed(self) -> bool:
        theirs = self.torch_nn if self.torch_nn is not None else 0.0
        return math.isfinite(self.bptt) and self.bptt <= max(theirs, self.allowed)


@dataclass(frozen=True)
class Outcome:
    """What came of a check in one precision on one backend.

    Attributes:
        errors: of every tensor, empty where it raised.
        raised: what bptt raised, or the exact side; or "".
        no_torch_nn: why torch.nn has no errors here, or "".
    """

    check: Check
    precision: Precision
    backend: str
    errors: tuple[Error, ...]
    raised: str = ""
    no_torch_nn: str = ""

    @property
    def passed(self) -> bool:
        return not self.raised and all(error.passed for error in self.errors)

    def worst(self, gradient: bool, torch_nn: bool = False) -> float | None:
        """The largest error of its outputs or gradients; None where there is none."""
        chosen = [e for e in self.errors if e.gradient == gradient]
        found = [e.torch_nn if torch_nn else e.bptt for e in chosen]
        return max((each for each in found if each is not None), default=None)

    @property
    def reason(self) -> str:
        """Why it failed, in words; "" if it passed."""
        if self.raised:
            return f"raised {self.raised}"
        bad = [error for error in self.errors if not error.passed]
        shown = []
        for error in sorted(bad, key=lambda e: e.bptt / e.allowed, reverse=True)[:3]:
            theirs = "none" if error.torch_nn is None else f"{error.torch_nn:.3g}"
            shown.append(
                f"{error.tensor}: {error.bptt:.3g} units, torch.nn {theirs}, "
                f"allowed {error.allowed:.3g}"
            )
        more = [f"and {len(bad) - 3} more tensors"] if len(bad) > 3 else []
        return "; ".join([*shown, *more])


def units(got: Tensor, exact: Tensor, eps: float) -> float:
    """The largest difference in units of eps times the largest exact magnitude."""
    if got.shape != exact.shape or not got.isfinite().all():
        return math.inf
    error = (got - exact).abs().max().item()
    return error / (eps * exact.abs().max().item() or math.ulp(0.0)) if error else 0.0


def why_not(check: Check, precision: Precision, backend: str, device: str) -> str:
    """Why a backend does not take a check, in words; "" if it does.

    Raises:
        ValueError, RuntimeError: there is no such backend, or it cannot run here at all.
    """
    if check.beyond_torch and precision.dtype == torch.float64 and backend == "reference":
        return "in float64 it is itself the measure of what torch.nn lacks"
    nothing = LoopInputs(*[None] * len(LoopInputs._fields))
    masked = torch.empty(0)  # only whether there is one counts
    packed = check.layout.startswith("packed")
    loop = nothing._replace(
        lengths=masked if packed or check.lengths else None, resets=masked if check.resets else None
    )
    reverse = (False, True)[: check.directions]
    beyond = vendor.reason_against(check.cell, loop, reverse)
    problem = dispatch.Problem(check.cell, device, precision.dtype, None, beyond)
    with bptt.backend(backend):
        return dispatch.reasons(problem)[backend]


def measure(
    check: Check, precision: Precision, backends: Iterable[str], device: str, seed: int
) -> list[Outcome]:
    """Run one check in one precision: exact, torch.nn, and every backend that takes it."""
    taken = [name for name in backends if not why_not(check, precision, name, device)]
    if not taken:
        return []
    outcome = partial(Outcome, check, precision)
    threads = torch.get_num_threads()
    with quiet(), on_threads(1), multiplied_as(precision.products):
        try:
            given = Given.of(check, precision, seed)
            exact = _exact(given)
        except Exception as error:  # every other check goes on
            return [outcome(name, (), f"{short(error)} in float64") for name in taken]
        theirs, none = _torch_nn(given, precision, device)
        outcomes = []
        for name in taken:
            try:
                with bptt.backend(name), on_threads(1 if name in _SMALL else threads):
                    ours = run(given, True, device, precision.dtype)
            except Exception as error:
                outcomes.append(outcome(name, (), short(error), none))
                continue
            errors = _errors(check, precision, ours, theirs, exact)
            outcomes.append(outcome(name, errors, no_torch_nn=none))
    return outcomes


def _exact(given: Given) -> Values:
    with bptt.backend("reference"):
        return run(given, given.check.beyond_torch, "cpu", torch.float64)


def _torch_nn(given: Given, precision: Precision, device: str) -> tuple[Values | None, str]:
    """What torch.nn makes of it in this precision; or None, and why."""
    if given.check.beyond_torch:
        return None, "torch.nn lacks it"
    if precision.dtype == torch.float64:
        return None, "torch.nn is the measure"
    try:
        return run(given, False, device, precision.dtype), ""
    except Exception as error:  # a dtype or an option that this device has no kernel for
        return None, short(error)


def _errors(
    check: Check, precision: Precision, ours: Values, theirs: Values | None, exact: Values
) -> tuple[Error, ...]:
    errors = []
    for name, truth in exact.items():
        reference = None if theirs is None else units(theirs[name], truth, precision.eps)
        if reference is not None and not math.isfinite(reference):
            reference = None  # an overflow of torch.nn's allows none of ours
        own = units(ours[name], truth, precision.eps)
        gradient = name.startswith("gradient")
        errors.append(Error(name, own, reference, allowance(check, precision, gradient)))
    return tuple(errors)


# Made of operations that are too small for several threads: waiting for them takes far longer.
_SMALL = ("torch", "reference")


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """With so many of torch's threads on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch.nn has to say about the kernels it takes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def short(error: BaseException) -> str:
    """One line of an exception."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
