"""From a user's step function to a `Program`: recorded once, with its derivative.

What cannot become a program is told with the line of the function that asked for it.
"""

from __future__ import annotations

import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .operations import AS_THEY_ARE, BUILDERS, SAME
from .program import GATES_H, GATES_X, GRADIENT, PREVIOUS, WEIGHT, CellError, Program

_UNITS = 3  # of the tensors that a function is traced on

_REDUCTION, _PRODUCT, _DRAW = "a reduction", "a product of matrices", "a random number"
_READ, _BRANCH, _IN_PLACE = "a number read out of a tensor", "a branch", "a change in place"
_ADVICE = {
    _REDUCTION: "a step sees one unit at a time; bptt.compile_cell takes steps that see all",
    _READ: "write torch.where in place of `if`, and no .item()",
    _BRANCH: "write torch.where in place of `if`",
    _DRAW: "the layer's options zoneout, recurrent_dropout and dropout draw them",
    _PRODUCT: "the layer multiplies, and hands over gates_x and gates_h",
    _IN_PLACE: "write x = x + 1 in place of x += 1",
}
_WHAT = {
    _REDUCTION: (
        "sum mean amax amin max min norm linalg_vector_norm var std softmax _softmax cumsum "
        "native_layer_norm"
    ),
    _READ: "_local_scalar_dense",
    _BRANCH: "is_nonzero",
    _DRAW: "bernoulli rand_like randn_like native_dropout empty_permuted rand randn",
    _PRODUCT: "mm addmm dot mv bmm",
}
_REFUSED = {operation: what for what, names in _WHAT.items() for operation in names.split()}


def trace(
    function: Callable[..., Any], gates: int, states: int, weights: Sequence[str], products: bool
) -> Program:
    """Trace a step function.

    Args:
        function: `function(gates_x, gates_h, *states, **weights)`.
        gates: how many tensors `gates_x` and `gates_h` hold.
        states: how many states there are.
        weights: the names of the unit weights.
        products: whether there is `gates_h`; without it what reaches the gates is one gradient.

    Raises:
        CellError: the function does what no program can.
    """
    name = getattr(function, "__name__", "cell")
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[Tensor]:
        return [
            torch.rand(_UNITS, dtype=torch.float64, generator=generator, requires_grad=True)
            for _ in range(count)
        ]

    gates_x, gates_h, before, own = draw(gates), draw(gates), draw(states), draw(len(weights))
    gradients = [g.detach() for g in draw(states)]
    recorder = _Recorder(name, getattr(inspect.unwrap(function), "__code__", None))
    groups = {
        GATES_X: gates_x, GATES_H: gates_h, PREVIOUS: before, WEIGHT: own, GRADIENT: gradients
    }  # fmt: skip
    for group, tensors in groups.items():
        for place, tensor in enumerate(tensors):
            recorder.know(tensor, recorder.made.leaf(group, place))
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), recorder:
        own_weights = dict(zip(weights, own, strict=True))
        # Copies, as a change in place of the leaves themselves would be torch's error, not ours.
        copies = [[t.clone() for t in tensors] for tensors in (gates_x, gates_h, before)]
        into_gates = (tuple(copies[0]), tuple(copies[1]))[: 2 if products else 1]
        answer = recorder.call(function, *into_gates, *copies[2], **own_weights)
        after = _as_states(name, answer, states)
    recorder.code = None
    inputs = [*gates_x, *gates_h, *before, *own]
    made: Sequence[Tensor | None] = [None] * len(inputs)
    # A sum, as torch.autograd.grad imports sympy where it is given the gradients of its outputs.
    total: Any = sum((s * d).sum() for s, d in zip(after, gradients, strict=True))
    if total.requires_grad:
        with recorder:
            made = torch.autograd.grad(total, inputs, allow_unused=True)
    program, values = recorder.made, recorder.value
    program.states = [values(s) for s in after]
    all_ = iter([program.constant(0) if g is None else values(g) for g in made])
    program.dgates_x, program.dgates_h, program.dprevious, program.dweights = (
        [next(all_) for _ in range(count)] for count in (gates, gates, states, len(weights))
    )
    if not products:
        program.dgates_h = program.dgates_x
    return program


def _as_states(name: str, answer: Any, count: int) -> tuple[Tensor, ...]:
    states = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
    if len(states) != count:
        raise CellError(
            f"{name}: must return its states in the order it takes them, {count} of them, got "
            f"{len(states)}"
        )
    for k, state in enumerate(states):
        if not isinstance(state, Tensor):
            raise CellError(f"{name}: state {k} must be a tensor, got {type(state).__name__}")
        if state.shape != (_UNITS,) or state.dtype != torch.float64:
            raise CellError(
                f"{name}: state {k} must have one value for each unit, of the dtype it came in; "
                "what the function returns has another shape or dtype"
            )
    return states


class _Recorder(TorchDispatchMode):
    """Writes a `Program` while a function runs, and its derivative after it.

    While `code`, the function's own, is given, operations are the user's: what no program has is a
    CellError with its line.
    """

    def __init__(self, name: str, code: CodeType | None) -> None:
        super().__init__()
        self.name, self.code = name, code
        self.made = Program()
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no two tensors have one id

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds

    def know(self, tensor: Tensor, value: int) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def call(self, function: Callable[..., Any], *arguments: Any, **weights: Any) -> Any:
        """Run the user's function; whatever it raises becomes a CellError."""
        try:
            return function(*arguments, **weights)
        except CellError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if self.code and f.name == self.code.co_name]
            where = _place(own[-1].lineno, own[-1].line) if own else ""
            raise CellError(f"{self.name}{where}: {error}") from error

    def value(self, given: Any) -> int:
        """The value of an operand."""
        if not isinstance(given, Tensor):
            return self.made.constant(float(given))
        if id(given) in self._values:
            return self._values[id(given)]
        if given.numel() != 1 or given.requires_grad:
            raise CellError(
                f"{self.name}{self._line()}: uses a tensor of shape {list(given.shape)} that is "
                "not among its arguments; pass it as a weight, a keyword-only argument: one value "
                "for each unit"
            )
        return self.made.constant(float(given))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func._schema.name.split("::")[1]
        in_place = func._schema.is_mutable
        if self.code is not None:
            self._refuse(_IN_PLACE if in_place else _REFUSED.get(operation), operation)
        name = operation.removesuffix("_") if in_place else operation
        if name not in _KNOWN:
            with self:
                if func in _TABLE:
                    made = _TABLE[func](*args, **kwargs)
                else:
                    made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        answer = func(*args, **kwargs)
        leaves = [a for a in pytree.tree_leaves((args, kwargs, answer)) if isinstance(a, Tensor)]
        if any(a.shape not in ((), (1,), (_UNITS,)) for a in leaves if a.numel() > 0):
            self._refuse("something other than one value for each unit", operation)
        if name not in _KNOWN:
            self._refuse("an operation without a kernel of its own", operation)
        value = self._value_of(name, self._arguments(func, args, kwargs))
        # logsigmoid has a second result, which is empty on a CPU.
        first = answer[0] if isinstance(answer, tuple) else answer
        self.know(args[0] if in_place else first, value)
        return answer

    @staticmethod
    def _arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments by name, in the order of the schema."""
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        return {a.name: given.get(a.name, a.default_value) for a in func._schema.arguments}

    def _value_of(self, operation: str, arguments: dict[str, Any]) -> int:
        if operation in BUILDERS:
            return BUILDERS[operation](self, arguments)
        operands = list(arguments.values())
        if operation in AS_THEY_ARE:
            return self.value(operands[0])
        return self.made.add(SAME[operation], *map(self.value, operands))

    def _refuse(self, what: str | None, operation: str) -> None:
        if what is not None:
            advice = _ADVICE.get(what, "a step is made of elementwise operations")
            raise CellError(
                f"{self.name}{self._line()}: {what} ({operation}) is nothing that a step can do: "
                f"{advice}"
            )

    def _line(self) -> str:
        """Where in the user's function the program is now."""
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return ""
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        return _place(frame.f_lineno, source)


def _place(number: int | None, source: str | None) -> str:
    """A line, with its text where there is a file to read it from."""
    return f", line {number} ({source})" if source else f", line {number}"


_TABLE = decomposition_table  # torch's list of core operations is longer, and imports sympy
_KNOWN = {*SAME, *AS_THEY_ARE, *BUILDERS}
