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

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from bptt.custom.files import load_cell
from bptt.engines import dispatch, vendor
from bptt.recurrence.gradients import LoopInputs

from .accuracy_cases import Check, Precision, allowance
from .floor import multiplied_as
from .timing import short

Values = dict[str, Tensor]  # outputs and gradients of one run by name, float64 on the CPU


@dataclass(frozen=True)
class Given:
    """What all layers of a check are given: float64 on the CPU, rounded to the precision's dtype.

    Attributes:
        weights: a state_dict.
        inputs: "input", and "h_0" and "c_0" where initial states are given.
        lengths: int64 [B], for packing or for the call; or None.
        resets: bool, shaped like the input without its features; or None.
        draw: a tensor of a shape, the same for the same key.
        seed: of the masks that a call draws.
    """

    check: Check
    weights: Values
    inputs: Values
    lengths: Tensor | None
    resets: Tensor | None
    draw: Callable[..., Tensor]
    seed: int

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
        if check.states and check.layer in ("LSTM", "CIFG"):
            inputs["c_0"] = draw(3, rows, *batch, check.hidden)
        if check.nonlinearity == "relu" or check.layer == "IndRNN":
            _keep_from_kinks(rounded, inputs)
        resets = draw(4, *leading) > 1.0 if check.resets else None
        return cls(check, rounded, inputs, _lengths(check, seed), resets, draw, seed)


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
        if name.startswith("weight_hh") and tensor.dim() == 2:
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
    made: Any = partial(bptt.Recurrent, load_cell(check.layer)) if check.is_own else None
    made = made or getattr(bptt if ours else nn, check.layer)
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
    with torch.random.fork_rng():
        torch.manual_seed(given.seed)  # of masks
        y, last = layer(source, hx, **extra)
    outputs = {"output": y.data if isinstance(y, PackedSequence) else y}
    outputs |= dict(
        zip(
            ("h_n", "c_n", "n_n", "m_n"), last if isinstance(last, tuple) else (last,), strict=False
        )
    )
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
    if check.control == "cell-clip" and precision.wide_sums:
        return "rounding decides on which side of the bound a cell state is"
    nothing = LoopInputs(*[None] * len(LoopInputs._fields))
    masked = torch.empty(0)  # only whether there is one counts
    packed = check.layout.startswith("packed")
    loop = nothing._replace(
        lengths=masked if packed or check.lengths else None, resets=masked if check.resets else None
    )
    reverse = (False, True)[: check.directions]
    beyond = vendor.reason_against(check.cell, loop, reverse)
    if check.control:
        beyond = "torch.nn has no such option"
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
