"""`bptt.cell`: a step of one hidden unit, written in PyTorch, as a cell of every backend."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..recurrence.cells import CELLS, PLAIN_MATH, CellMath, CellSpec, Recur, States
from . import cpp, triton_code
from .program import CellError, Program

_MOST_GATES, _MOST_STATES = 4, 4
_FORM = "`def cell(gates_x, gates_h, h, ..., *, weight, ...)`"
_FORM_WITHOUT = "`def cell(gates_x, h, ..., *, weight, ...)`"
PRODUCTS = ("dense", "diagonal", "none")


def cell(
    gates: int | Sequence[str], *, product: str = "dense"
) -> Callable[[Callable[..., Any]], UserCell]:
    """Make a cell of a function: one time step of one hidden unit.

        @bptt.cell(gates=3)
        def my_gru(gates_x, gates_h, h):
            r = torch.sigmoid(gates_x[0] + gates_h[0])
            z = torch.sigmoid(gates_x[1] + gates_h[1])
            n = torch.tanh(gates_x[2] + r * gates_h[2])
            return n + z * (h - n)

        layer = bptt.Recurrent(my_gru, 64, 128, num_layers=2, bidirectional=True)

    The function is called `function(gates_x, gates_h, *states, **weights)`:

    - `gates_x` and `gates_h`, tuples of G tensors: the gates' parts of the input,
      `W_ih x_t + b_ih`, and of the hidden state, `W_hh h_{t-1} + b_hh`;
    - the states before the step, the hidden state first, one for each further positional parameter:
      `h, c` are two;
    - unit weights, one for each keyword-only parameter: what a unit has to itself, as peepholes.

    It returns the states after the step, in the same order: a tensor, or a tuple. All tensors have
    one value for each unit, and the function computes them by elementwise operations of PyTorch
    (torch.where, exp, softplus, gelu, clamp, maximum, ...). It is run once, where it is defined;
    its derivative comes from autograd, and what the backward pass keeps of the forward pass is what
    is cheapest (`bptt.custom.partition`). The first layer that runs on a CPU compiles the cell,
    which takes some seconds, once for a machine: see BPTT_CACHE in `bptt.custom.native`.

    Args:
        gates: how many gates G there are, 1 to 4, or their names.
        product: how the hidden state enters the gates. "dense": `gates_h` is a matrix times it.
            "diagonal": each unit's own weights times it, `weight_hh_l{k}` is `[G*H]`, as in
            independently recurrent networks. "none": in no way but the function's own, which is
            then called `function(gates_x, *states, **weights)`, and the layer has no `weight_hh`
            and no `bias_hh`. The last two are bound by memory, not by arithmetic.

    Raises:
        TypeError: what is decorated is no function, or `gates` is of another type.
        ValueError: an unknown product; a signature, a number of gates or of states that no cell
            has; an operation that no step has. The message has the line of the function, and what
            to write instead.
    """
    if isinstance(gates, bool) or not isinstance(gates, (int, tuple, list)):
        raise TypeError(f"bptt.cell: gates must be an int or names, got {gates!r}")
    names = tuple(map(str, range(gates))) if isinstance(gates, int) else tuple(map(str, gates))
    if not 1 <= len(names) <= _MOST_GATES:
        raise ValueError(f"bptt.cell: gates must be 1 to {_MOST_GATES}, got {gates!r}")

    if product not in PRODUCTS:
        known = ", ".join(map(repr, PRODUCTS))
        raise ValueError(f"bptt.cell: product must be one of {known}, got {product!r}")

    def decorate(function: Callable[..., Any]) -> UserCell:
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"bptt.cell: it decorates a function, got {function!r}")
        return UserCell(function, names, product)

    return decorate


class UserCell:
    """What `bptt.cell` makes of a function; calling it calls the function.

    Attributes:
        name: what backends know the cell by: the function's name and a digest of what it computes.
        spec: its row in `bptt.recurrence.cells.CELLS`.
        packaged: whether the CUDA kernels know it.
    """

    packaged: ClassVar[bool] = False

    def __init__(
        self, function: Callable[..., Any], gates: tuple[str, ...], product: str = "dense"
    ) -> None:
        self.function, self.product = function, product
        self.__name__ = getattr(function, "__name__", "cell")
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", "__main__")
        self.__doc__ = function.__doc__
        from . import partition  # here, as what it imports takes a while

        states, weights, program = traced(self.__name__, function, len(gates), product)
        kept, reads_hidden = partition.kept_values(program)
        text = cpp.file(self.__name__, program, kept, reads_hidden, product)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.name = f"{re.sub('[^A-Za-z0-9_]', '', self.__name__) or 'cell'}_{digest}"
        self.spec = CellSpec(
            self.name,
            gates,
            states,
            tuple(f"kept{k}" for k in range(len(kept))),
            self._step,
            (*(f"u_{gate}" for gate in gates if product == "diagonal"), *weights),
            stages=1 if product == "dense" else 0,
            shared_gates=program.dgates_x == program.dgates_h,
            free=product == "none",
            packaged=self.packaged,
            custom={
                "struct.h": text,
                "triton.py": triton_code.module(self.__name__, program, kept, reads_hidden),
            },
        )
        CELLS.setdefault(self.name, self.spec)

    def __call__(self, *arguments: Any, **weights: Any) -> Any:
        return self.function(*arguments, **weights)

    def __repr__(self) -> str:
        return f"<bptt.cell {self.__qualname__}: gates {', '.join(self.spec.gates)}>"

    def __reduce__(self) -> str:
        # As functions are pickled: by name.
        return self.__qualname__

    def __deepcopy__(self, memo: Any) -> UserCell:
        return self

    def _step(
        self,
        gates_x: Sequence[Tensor],
        recur: Recur,
        states: States,
        unit_weights: Sequence[Tensor] | None,
        math: CellMath = PLAIN_MATH,
    ) -> States:
        """The step as the reference loop runs it."""
        weights = dict(zip(self.spec.cell_weights, unit_weights or (), strict=True))
        given: list[Any] = [tuple(gates_x)]
        if not self.spec.free:
            given.append(tuple(recur(states[0])))
        after = self.function(*given, *states, **weights)
        return tuple(after) if isinstance(after, (tuple, list)) else (after,)


def traced(
    name: str, function: Callable[..., Any], gates: int, product: str
) -> tuple[tuple[str, ...], tuple[str, ...], Program]:
    """The names of a cell's states and of its unit weights, and what its function computes."""
    from . import tracing  # here, as what it imports takes a while

    products = product != "none"
    states, weights = _signature(name, function, products)
    return states, weights, tracing.trace(function, gates, len(states), weights, products)


def _signature(
    name: str, function: Callable[..., Any], products: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the states and of the unit weights, out of a function's parameters."""
    form, gates = (_FORM, 2) if products else (_FORM_WITHOUT, 1)
    positional, weights = [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            weights.append(parameter.name)
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CellError(f"{name}: takes {parameter}, but a cell is {form}")
        else:
            positional.append(parameter.name)
    states = tuple(positional[gates:])
    if not 1 <= len(states) <= _MOST_STATES:
        raise CellError(
            f"{name}: a cell has 1 to {_MOST_STATES} states, parameters after its gates; it is "
            f"{form}, got ({', '.join(positional)})"
        )
    return states, tuple(weights)
