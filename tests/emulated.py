"""What the tests of both GPU backends without a GPU share: problems, and calls of the raw ops."""

import torch

import bptt
from cases import make_inputs

MASKS = ("none", "lengths", "resets", "both")
# Changes to a case.
EDGES = [
    {"bias": False, "states": False},
    {"batch_first": True, "strided": True, "masks": "both"},
    {"layers": 2, "directions": 2, "steps": 3},
    {"steps": 1, "batch": 1, "inputs": 1, "hidden": 1},
    {"steps": 2, "batch": 17, "hidden": 17},
    {"steps": 2, "batch": 33, "hidden": 32, "masks": "lengths"},
    {"batch": 0},
]


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def change_name(change):
    return ",".join(f"{k}={v}" for k, v in change.items())


def float_inputs(case):
    """The tensors of a case in float32."""
    return {
        name: t.float() if t is not None and t.is_floating_point() else t
        for name, t in make_inputs(case).items()
    }


def transformed_gradients(backend):
    """Per-sample gradients of a layer, and gradients of an ensemble of two."""
    torch.manual_seed(3)
    layer = bptt.GRU(3, 5, bidirectional=True)
    weights = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    x = torch.randn(4, 2, 3)

    def loss(weights, row):
        return torch.func.functional_call(layer, weights, (row.unsqueeze(1),))[0].sum()

    with bptt.backend(backend):
        samples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x)
        models = {name: torch.stack([w, 2 * w]) for name, w in weights.items()}
        ensemble = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(models, x[:, 0])
    return [*samples.values(), *ensemble.values()]


def arguments(backend, **changes):
    """A call of the raw op, T=3, B=2, D=1, H=R=4, with some arguments changed."""
    given = {
        "backend": backend, "cell": "lstm", "gates_x": torch.randn(3, 2, 1, 4, 4), "x": None,
        "w_ih": None, "b_ih": None, "w_hh": torch.randn(1, 16, 4), "b_hh": None, "w_hr": None,
        "w_unit": None, "h0": torch.randn(1, 2, 4), "c0": torch.randn(1, 2, 4),
        "lengths": None, "resets": None, "reverse": [0], "keep": "gates",
    }  # fmt: skip
    return {**given, **changes}


# Changes to those, and what the op says of each.
BAD_ARGUMENTS = [
    ({"cell": "gruu"}, "cell must be one of rnn_tanh.* got .gruu"),
    ({"gates_x": None}, "either gates_x, or x and w_ih"),
    ({"gates_x": torch.zeros(3, 2)}, "gates_x must have 5 dimensions"),
    ({"gates_x": torch.zeros(3, 2, 1, 4, 5)}, r"gates_x must be \[T, B, D, G, H\] = "),
    ({"w_hh": torch.zeros(16, 4)}, "w_hh must have 3 dimensions"),
    ({"w_hh": torch.zeros(1, 16, 4).double()}, "takes float32, float16 and bfloat16"),
    ({"w_hh": torch.zeros(1, 16, 3)}, r"without w_hr, w_hh must be \[D, G\*H, H\]"),
    ({"h0": torch.zeros(1, 3, 4)}, r"h0 must be \[D, B, R\] = \[1, 2, 4\], got \[1, 3, 4\]"),
    ({"h0": torch.zeros(1, 2, 4).half()}, "h0 must have dtype torch.float32"),
    ({"c0": None}, "c0 must be given"),
    ({"w_unit": torch.zeros(1, 12)}, "w_unit must be None for cell lstm"),
    ({"lengths": torch.zeros(3, dtype=torch.int64)}, r"lengths must be \[B\] = \[2\]"),
    ({"lengths": torch.zeros(2)}, "lengths must have dtype torch.int64"),
    ({"resets": torch.zeros(3, 1, dtype=torch.bool)}, r"resets must be \[T, B\]"),
    ({"keep": "all"}, 'keep must be "nothing", "states" or "gates", got "all"'),
    ({"reverse": [0, 1]}, "reverse must have D = 1 flags, got 2"),
    ({"h0": torch.zeros(1, 2, 4, device="meta")}, "h0 must be on cpu"),
]
