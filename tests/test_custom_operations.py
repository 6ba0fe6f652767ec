"""Is what `bptt.cell` records of an operation that operation, and its derivative?

Programs are computed here by Python's own math, one number at a time.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bptt.custom import partition, tracing
from bptt.custom.program import BINARY, CONSTANT, LEAF, UNARY

F64 = torch.float64
POINTS = (-7.0, -1.3, -0.2, 0.4, 0.9, 1.7, 6.0, 25.0)
OPERATIONS = {
    "relu": torch.relu, "gelu": F.gelu, "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu, "softplus": F.softplus, "softplus-2": lambda x: F.softplus(x, 2.0, 1.0),
    "elu": F.elu, "selu": F.selu, "celu": F.celu, "mish": F.mish, "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid, "relu6": F.relu6, "softsign": F.softsign,
    "tanhshrink": F.tanhshrink, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "exp": lambda x: torch.exp(-x), "expm1": lambda x: torch.expm1(-x),
    "log": lambda x: torch.log(x + 8), "log1p": lambda x: torch.log1p(x.abs()),
    "sqrt": lambda x: (x + 8).sqrt(), "rsqrt": lambda x: (x + 8).rsqrt(), "erf": torch.erf,
    "sin": torch.sin, "cos": torch.cos, "abs": torch.abs, "sign": lambda x: x * torch.sign(x),
    "square": torch.square, "cube": lambda x: x**3, "root": lambda x: (x + 8) ** 0.5,
    "power": lambda x: (x + 8) ** 1.7, "inverse": lambda x: (x + 8) ** -1,
    "to-the": lambda x: 2**x, "clamp": lambda x: x.clamp(-1, 1.5),
    "clamp_min": lambda x: x.clamp_min(0.5), "mask": lambda x: (x <= 0.4).to(x.dtype) * x,
    "where": lambda x: torch.where(x > 0.5, x * x, -x), "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "logical": lambda x: torch.where(((x > -1) & (x < 1)) | ~(x < 2), x, 3 * x),
    "maximum": lambda x: torch.maximum(x, 2 * x - 1), "minimum": lambda x: torch.minimum(x, x * x),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=2),
    "rsub": lambda x: torch.rsub(x, 1.0, alpha=2), "div": lambda x: 1 / (x * x + 1) - x / 3,
    "constant": lambda x: x * torch.tensor(2.5) + torch.ones_like(x) * torch.pi,
}  # fmt: skip


def computed(program, x, outputs):
    """The values of a program of one gate, at a point."""
    leaves = {("gates_x", 0): x, ("gates_h", 0): 0.0, ("prev", 0): 0.0, ("dstates", 0): 1.0}
    made = []
    for op, args in program.nodes:
        if op == LEAF:
            made.append(leaves[args])
        elif op == CONSTANT:
            made.append(float(args[0]))
        elif op == "where":
            made.append(made[args[1]] if made[args[0]] else made[args[2]])
        else:
            function = UNARY[op] if op in UNARY else BINARY[op]
            made.append(function(*(made[a] for a in args)))
    return [made[v] for v in outputs]


@pytest.mark.parametrize("name", OPERATIONS)
def test_value_and_derivative(name):
    function = OPERATIONS[name]
    program = tracing.trace(
        lambda gates_x, gates_h, h: function(gates_x[0]), 1, 1, (), products=True
    )
    for point in POINTS:
        x = torch.tensor(point, dtype=F64, requires_grad=True)
        y = function(x)
        (slope,) = torch.autograd.grad(y, x)
        ours = computed(program, point, [program.states[0], program.dgates_x[0]])
        # torch's own derivative of hardsigmoid has a sixth in float32.
        assert ours == pytest.approx([y.item(), slope.item()], rel=1e-7, abs=1e-12), point


def test_what_is_kept_is_as_little_as_by_hand():
    def lstm(gates_x, gates_h, h, c):
        i, f, g, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    kept, reads_hidden = partition.kept_values(tracing.trace(lstm, 4, 2, (), products=True))
    assert len(kept) == 4 and not reads_hidden

    def elman(gates_x, gates_h, h):
        return torch.tanh(gates_x[0] + gates_h[0])

    assert partition.kept_values(tracing.trace(elman, 1, 1, (), products=True)) == ([], True)

    def expensive(gates_x, gates_h, h):  # its lanes are computed one by one: worth a plane
        return torch.erf(gates_x[0] + gates_h[0]) * torch.erf(h)

    assert len(partition.kept_values(tracing.trace(expensive, 1, 1, (), products=True))[0]) == 3
