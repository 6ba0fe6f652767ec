"""Is a step function made a fused loop the same as a loop over it? What does it refuse?"""

import pytest
import torch
from torch.nn import functional as F

import bptt

pytestmark = [  # torch's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

T, B, I, H = 7, 3, 5, 6
CHUNK = 3  # so that T is two chunks and a single step


def elman(x, h, w):
    return torch.tanh(x + h @ w.t())


def peephole_lstm(x, h, c, w, p):
    i, f, g, o = (x + h @ w.t()).chunk(4, -1)
    c = torch.sigmoid(f + p[1] * c) * c + torch.sigmoid(i + p[0] * c) * torch.tanh(g)
    return torch.sigmoid(o + p[2] * c) * torch.tanh(c), c


def layer_norm_gru(x, h, w, gain):
    r_x, z_x, n_x = x.chunk(3, -1)
    r_h, z_h, n_h = (F.layer_norm(h @ w.t(), (3 * H,)) * gain).chunk(3, -1)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return n + z * (h - n)


CELLS = {
    "elman": (elman, 1, 1, [(H, H)]),
    "peephole_lstm": (peephole_lstm, 4, 2, [(4 * H, H), (3, H)]),
    "layer_norm_gru": (layer_norm_gru, 3, 1, [(3 * H, H), (3 * H,)]),
}


def draw(gates, states, shapes, steps=T):
    x = torch.randn(steps, B, gates * H, dtype=torch.float64)
    given = [torch.randn(B, H, dtype=torch.float64) for _ in range(states)]
    params = [0.4 * torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [t.requires_grad_() for t in (x, *given, *params)]


def loop(fn, x, states, params, lengths=None, resets=None, reverse=False):
    """The definition, written out once more."""
    outputs = {}
    order = range(len(x))
    for t in reversed(order) if reverse else order:
        held = states
        if resets is not None:
            states = [torch.where(resets[t, :, None], 0.0, s) for s in states]
        new = fn(x[t], *states, *params)
        states = list(new) if isinstance(new, tuple) else [new]
        outputs[t] = states[0]
        if lengths is not None:
            inside = (t < lengths)[:, None]
            outputs[t] = torch.where(inside, outputs[t], 0.0)
            states = [torch.where(inside, s, old) for s, old in zip(states, held, strict=True)]
    return torch.stack([outputs[t] for t in order]), tuple(states)


MASKS = {
    "plain": {},
    "masked": {
        "lengths": torch.tensor([4, 7, 0]),
        "resets": torch.arange(T * B).reshape(T, B) % 4 == 1,
        "reverse": True,
    },
}


# Compiling takes seconds.
@pytest.mark.parametrize(
    ("cell", "masks"), [("layer_norm_gru", "plain"), ("peephole_lstm", "masked")]
)
def test_values_and_gradients_are_those_of_a_loop(cell, masks):
    fn, gates, states, shapes = CELLS[cell]
    compiled = bptt.compile_cell(fn, chunk=CHUNK)
    tensors = draw(gates, states, shapes)

    def run(function):
        x, *rest = tensors
        given, params = rest[:states], rest[states:]
        y, last = function(x, given, params)
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        loss = loss + sum(s.square().sum() for s in last)
        return y, torch.autograd.grad(loss, tensors)

    y, grads = run(lambda x, s, p: compiled(x, tuple(s), p, **MASKS[masks]))
    expected, expected_grads = run(lambda x, s, p: loop(fn, x, s, p, **MASKS[masks]))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grads, expected_grads)
    again, grads_again = run(lambda x, s, p: compiled(x, tuple(s), p, **MASKS[masks]))
    assert torch.equal(again, y)
    assert all(map(torch.equal, grads_again, grads))


def test_the_number_of_steps_compiles_nothing_new():
    compiled = bptt.compile_cell(elman, chunk=2)
    with torch.no_grad():
        for steps in (3, 5, 8, 1):
            x, h, w = draw(1, 1, [(H, H)], steps)
            y, h_n = compiled(x, h, (w,))
            assert y.shape == (steps, B, H) and torch.equal(y[-1], h_n)
            torch.testing.assert_close(y, loop(elman, x, [h], [w])[0])
            assert not y.requires_grad
        assert len(compiled._loop.graphs) == 2  # two steps, and one


def test_gradients_that_nobody_asked_for():
    compiled = bptt.compile_cell(elman, chunk=CHUNK)
    x, h, w = (t.detach() for t in draw(1, 1, [(H, H)]))
    w.requires_grad_()
    (dw,) = torch.autograd.grad(compiled(x, h, (w,))[0].sum(), w)
    (expected,) = torch.autograd.grad(loop(elman, x, [h], [w])[0].sum(), w)
    torch.testing.assert_close(dw, expected)


def test_the_plain_loop_under_transforms_and_for_an_empty_batch():
    compiled = bptt.compile_cell(elman, chunk=2)
    x, h, w = (t.detach() for t in draw(1, 1, [(H, H)]))
    tangent = torch.ones_like(w)
    _, got = torch.func.jvp(lambda w: compiled(x, h, (w,))[0], (w,), (tangent,))
    _, expected = torch.func.jvp(lambda w: loop(elman, x, [h], [w])[0], (w,), (tangent,))
    torch.testing.assert_close(got, expected)
    torch.func.vmap(lambda h: _explained(compiled, x, h, w))(torch.stack([h, h]))
    assert compiled(x[:, :0], h[:0], (w,))[0].shape == (T, 0, H)
    assert compiled.explain(x) is None and not compiled._loop.graphs


def _explained(compiled, x, h, w):
    assert "no rule" in compiled.explain(x)
    return compiled(x, h, (w,))[0]


def test_a_gradient_of_a_gradient():
    compiled = bptt.compile_cell(elman, chunk=2)
    tensors = draw(1, 1, [(H, H)], 2)
    direction = torch.randn(H, H, dtype=torch.float64)

    def second(function):
        x, h, w = tensors
        y, _ = function(x, h, w)
        (dw,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
        return torch.autograd.grad((dw * direction).sum(), tensors)

    got = second(lambda x, h, w: compiled(x, h, (w,)))
    torch.testing.assert_close(got, second(lambda x, h, w: loop(elman, x, [h], [w])))


def in_place(x, h, w):
    return h.mul_(2)


def random(x, h, w):
    return F.dropout(x + h, 0.5)


def two_states(x, h, w):
    return h, h


def narrower(x, h, w):
    return h[:, :-1]


def number(x, h, w):
    return 3.0


def branching(x, h, w):
    return torch.tanh(x + h) if h.sum() > 0 else h


CAPTURED = torch.ones(H, dtype=torch.float64, requires_grad=True)


def capturing(x, h, w):
    return x + h * CAPTURED


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (in_place, "in_place changes its arguments in place"),
        (random, "random draws random numbers"),
        (two_states, "two_states must return as many states as it gets, 1, got 2"),
        (narrower, r"narrower must leave state 0 as torch.float64 \[3, 6\], got .* \[3, 5\]"),
        (number, "number must return tensors, got a float as state 0"),
        (branching, "branching cannot be compiled: .*"),
        (capturing, "capturing uses a tensor that requires a gradient .* pass it in `params`"),
    ],
)
def test_functions_that_cannot_be(fn, message):
    x, h, w = draw(1, 1, [(H, H)])
    with pytest.raises(RuntimeError, match=message):
        bptt.compile_cell(fn, chunk=2)(x, h, (w,))


def test_bad_arguments():
    compiled = bptt.compile_cell(elman)
    x, h, w = draw(1, 1, [(H, H)])
    with pytest.raises(TypeError, match="fn must be a function, got int"):
        bptt.compile_cell(3)
    with pytest.raises(ValueError, match="chunk must be an int of 1 or more, got 0"):
        bptt.compile_cell(elman, chunk=0)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        compiled(x[:0], h, (w,))
    with pytest.raises(TypeError, match=r"params\[0\] must be a tensor, got float"):
        compiled(x, h, (1.0,))
    with pytest.raises(ValueError, match=r"states\[0\] must be \[B, ...\] with B = 3"):
        compiled(x, h[:2], (w,))
    with pytest.raises(ValueError, match=r"lengths must be integers \[B\] = \[3\]"):
        compiled(x, h, (w,), lengths=torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"resets must be bool \[T, B\] = \[7, 3\]"):
        compiled(x, h, (w,), resets=torch.ones(7, 2, dtype=torch.bool))
