"""Export to ONNX: a layer's recurrence as one node of the operator RNN, GRU or LSTM.

torch.onnx.export comes to a model in two ways, and both end here. With dynamo=True the graph is
that of torch.export, and the node is one of torch.onnx.ops; with dynamo=False it is that of
torch.jit.trace, and the node comes from the symbolic of an autograd Function.

Source: ONNX operators RNN, GRU and LSTM, opset 14.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..recurrence.cells import CELLS
from ..recurrence.control import Control
from ..recurrence.gradients import KEEP_NOTHING, Config, LoopInputs, forward_op, reference_outputs
from ..recurrence.reference import Outputs

OPSET = 14  # the operators as they have been since

# The order in which ONNX has the gates, by our names, and the peepholes.
_GATES = {"RNN": ("h",), "GRU": ("z", "r", "n"), "LSTM": ("i", "o", "f", "g")}
_PEEPHOLES = ("i", "o", "f")
# Activations by name, with alpha and beta where ONNX has parameters.
_ACTIVATIONS: dict[str, tuple[str, float, float]] = {
    "sigmoid": ("Sigmoid", 0.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "tanh": ("Tanh", 0.0, 0.0),
    "relu": ("Relu", 0.0, 0.0),
    "softsign": ("Softsign", 0.0, 0.0),
    "identity": ("Affine", 1.0, 0.0),
}
_RNN_ACTIVATIONS = {"rnn_tanh": "tanh", "rnn_relu": "relu", "rnn_sigmoid": "sigmoid"}
_OPERATORS = {
    **dict.fromkeys(_RNN_ACTIVATIONS, "RNN"),
    **dict.fromkeys(("gru", "gru_reset_before"), "GRU"),
    **dict.fromkeys(("lstm", "lstm_peephole"), "LSTM"),
}


def is_exporting() -> bool:
    """Whether torch.onnx.export is at work."""
    onnx = sys.modules.get("torch.onnx")  # importing it takes a while, and exporting needs it
    return onnx is not None and bool(onnx.is_in_onnx_export())


is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Node(NamedTuple):
    """A node: its operator, inputs in ONNX's order, attributes, and how many states it gives."""

    operator: str
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any]
    states: int


def outputs(config: Config, loop: LoopInputs) -> Outputs:
    """What a recurrence gives, as a node in the graph that is exported.

    Raises:
        RuntimeError: ONNX has no such operator; the message names what it lacks.
    """
    missing = _missing(config, loop)
    if missing is not None:
        raise RuntimeError(
            f"bptt: ONNX has no recurrent operator with {missing}; export a model without it"
        )
    node = _node(config, loop)
    if torch._C._is_tracing():
        tensors = (*loop, *node.inputs)
        call = _TracedCall(config, node, tuple(t is not None for t in tensors))
        y, *states = _Traced.apply(call, *(t for t in tensors if t is not None))
    else:
        y, *states = _symbolic(node, loop)
    return Outputs(y.transpose(1, 2), states[0], states[1] if node.states == 2 else None, None)


def _missing(config: Config, loop: LoopInputs) -> str | None:
    """What of a recurrence ONNX lacks, or None."""
    control = _of_inference(config.control)
    absent = {
        f"the cell {config.cell}": config.cell not in _OPERATORS,
        "a projection (proj_size)": loop.w_hr is not None,
        "resets": loop.resets is not None,
        "all cell states as an output (return_cells)": config.keep_cells,
        "heads (num_heads)": len(config.reverse) > 2,
        "zoneout": control.zoneout_h > 0 or control.zoneout_c > 0,
        "recurrent dropout": control.recurrent_dropout > 0,
        "a bound of the cell state (cell_clip)": control.cell_bound > 0,
        "hard_tanh": "hard_tanh" in (control.gates, control.states),
        f"elements of {loop.h0.dtype}": loop.h0.dtype == torch.bfloat16,
    }
    return next((name for name, there in absent.items() if there), None)


def _of_inference(control: Control) -> Control:
    """Without what concerns gradients alone."""
    return control._replace(truncate=0, gradient_bound=0.0, gradient_norm=0.0, sampled=False)


def _node(config: Config, loop: LoopInputs) -> _Node:
    cell = config.cell
    operator = _OPERATORS[cell]
    spec = CELLS[cell]
    gates = [spec.gates.index(name) for name in _GATES[operator]] if len(spec.gates) > 1 else [0]

    def in_order(weights: Tensor | None, order: Sequence[int]) -> Tensor | None:
        """[D, G*H, ...] with the blocks of gates in ONNX's order."""
        if weights is None or len(order) == 1:
            return weights
        blocks = weights.chunk(len(order), 1)
        return torch.cat([blocks[k] for k in order], 1)

    biases = None
    if loop.b_ih is not None:
        pair = (in_order(loop.b_ih, gates), in_order(loop.b_hh, gates))
        biases = torch.cat(pair, 1)  # type: ignore[arg-type]
    lengths = None if loop.lengths is None else loop.lengths.to(torch.int32)
    inputs: list[Tensor | None] = [
        loop.x, in_order(loop.w_ih, gates), in_order(loop.w_hh, gates), biases, lengths, loop.h0
    ]  # fmt: skip
    if operator == "LSTM":
        inputs.append(loop.c0)
        if loop.w_unit is not None:
            places = [("i", "f", "o").index(name) for name in _PEEPHOLES]
            inputs.append(in_order(loop.w_unit, places))
    directions = {(False,): "forward", (True,): "reverse", (False, True): "bidirectional"}
    attributes: dict[str, Any] = {
        "hidden_size": int(loop.w_hh.shape[-1]),
        "direction": directions[tuple(map(bool, config.reverse))],
        **_activations(config, operator),
    }
    if operator == "GRU":
        attributes["linear_before_reset"] = int(cell == "gru")
    return _Node(operator, tuple(inputs), attributes, 2 if operator == "LSTM" else 1)


def _activations(config: Config, operator: str) -> dict[str, Any]:
    """The attributes that name activations, where they are not the operator's own."""
    control = config.control
    if operator == "RNN":
        names = [control.states or _RNN_ACTIVATIONS[config.cell]]
    else:
        count = 1 if operator == "GRU" else 2
        names = [control.gates or "sigmoid", *[control.states or "tanh"] * count]
    rows = [_ACTIVATIONS[name] for name in names] * len(config.reverse)
    attributes: dict[str, Any] = {"activations": [name for name, _, _ in rows]}
    if any(alpha != 0 for _, alpha, _ in rows):
        # ONNX takes these one after another for the activations that have them.
        attributes["activation_alpha"] = [alpha for _, alpha, _ in rows if alpha != 0]
        attributes["activation_beta"] = [beta for _, alpha, beta in rows if alpha != 0]
    return attributes


def _symbolic(node: _Node, loop: LoopInputs) -> Sequence[Tensor]:
    steps, batch = loop.x.shape[:2]
    directions, _, state = loop.h0.shape
    shapes = [(steps, directions, batch, state), *[(directions, batch, state)] * node.states]
    made: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        node.operator,
        node.inputs,
        node.attributes,
        dtypes=[loop.x.dtype] * len(shapes),
        shapes=shapes,
        version=OPSET,
    )
    return made


class _TracedCall:
    """What the tracer is not to look into: it takes tuples apart.

    Attributes:
        present: of the tensors of LoopInputs and the inputs of the node, which there are.
    """

    def __init__(self, config: Config, node: _Node, present: tuple[bool, ...]) -> None:
        self.config, self.present = config, present
        self.operator, self.attributes, self.states = node.operator, node.attributes, node.states

    def tensors(self, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Those of LoopInputs and those of the node, None for what is absent."""
        rest = iter(given)
        every = [next(rest) if there else None for there in self.present]
        count = len(LoopInputs._fields)
        return every[:count], every[count:]


class _Traced(torch.autograd.Function):
    """A node for the exporter of traced graphs. Its values are those of the recurrence."""

    @staticmethod
    def forward(ctx: Any, call: _TracedCall, *given: Tensor) -> tuple[Tensor, ...]:
        loop = LoopInputs(*call.tensors(given)[0])
        states: list[Any]
        if call.config.backend == "cpu":
            y, *states = forward_op(call.config, loop, KEEP_NOTHING)
        else:
            y, *states = reference_outputs(call.config, loop)
        return (y.transpose(1, 2).contiguous(), *states[: call.states])

    @staticmethod
    def symbolic(g: Any, call: _TracedCall, *given: Any) -> Any:
        kinds = {int: "i", float: "f", str: "s"}
        attributes = {
            f"{name}_{kinds[type(value[0] if isinstance(value, list) else value)]}": value
            for name, value in call.attributes.items()
        }
        inputs = [_absent(g) if t is None else t for t in call.tensors(given)[1]]
        return g.op(call.operator, *inputs, outputs=1 + call.states, **attributes)


def _absent(g: Any) -> Any:
    nothing = g.op("prim::Constant")
    nothing.setType(torch._C.OptionalType.ofTensor())
    return nothing
