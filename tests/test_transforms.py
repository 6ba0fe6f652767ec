"""Does every transform of PyTorch work on every layer, and give the right numbers?"""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import bptt

# torch's own forward mode, on its first use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

T, B, I, H, N = 4, 2, 2, 3, 3
LAYERS = {
    "rnn": (bptt.RNN, {}),
    "gru": (bptt.GRU, {}),
    "gru-reset-before": (bptt.GRU, {"reset_after": False}),
    "lstm": (bptt.LSTM, {}),
    "lstm-peephole-proj": (bptt.LSTM, {"peephole": True, "proj_size": 2}),
    "lstm-peephole-recompute": (bptt.LSTM, {"peephole": True, "recompute": True}),
}
MASKS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([3, 1])},
    "lengths-resets": {
        "lengths": torch.tensor([2, 4]),
        "resets": torch.tensor([[False, True], [True, False], [False, False], [False, True]]),
    },
}
layers = pytest.mark.parametrize("name", LAYERS)
masks = pytest.mark.parametrize("mask", MASKS)


class Case:
    """A bidirectional float64 layer as a function of inputs, initial states and parameters."""

    def __init__(self, name, seed=0):
        torch.manual_seed(seed)
        cls, options = LAYERS[name]
        self.layer = cls(I, H, bidirectional=True, dtype=torch.float64, **options)
        self.names = [n for n, _ in self.layer.named_parameters()]
        self.params = {n: p.detach().clone() for n, p in self.layer.named_parameters()}
        sizes = (2, B, self.layer.proj_size or H), (2, B, H)
        self.states = tuple(self.random(*s) for s in sizes[: 2 if cls is bptt.LSTM else 1])
        self.x = self.random(T, B, I)
        self.xs = self.random(N, T, B, I)

    @staticmethod
    def random(*shape):
        return torch.randn(shape, dtype=torch.float64)

    def call(self, params, x, states=None, **masks):
        """All outputs, flat."""
        if states is not None and len(states) == 1:
            states = states[0]
        output, final = func.functional_call(self.layer, params, (x, states), masks)
        return output, *(final if isinstance(final, tuple) else (final,))

    def loss(self, params, x, **masks):
        return sum(y.pow(2).sum() for y in self.call(params, x, **masks))

    def flat(self, **masks):
        """The same as a function of tensors only, and tensors to call it with."""

        def run(x, *rest):
            states, weights = rest[: len(self.states)], rest[len(self.states) :]
            return self.call(dict(zip(self.names, weights, strict=True)), x, states, **masks)

        tensors = (self.x, *self.states, *self.params.values())
        return run, tuple(t.clone().requires_grad_() for t in tensors)

    def models(self):
        """Parameters of N models, stacked, and as a list."""
        stacked = {n: torch.stack([p * s for s in (1, 0.5, -0.3)]) for n, p in self.params.items()}
        return stacked, [{n: p[k] for n, p in stacked.items()} for k in range(N)]


@pytest.fixture
def case(name):
    return Case(name)


def same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def stack(results):
    """A list of equal trees as one tree of stacked tensors."""
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


# --- against finite differences -----------------------------------------------------------------


@layers
def test_first_derivatives_forward_reverse_and_batched(case):
    run, tensors = case.flat()
    gradcheck(
        run,
        tensors,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@layers
@pytest.mark.parametrize("mask", [m for m in MASKS if m != "plain"])
def test_first_derivatives_with_masks(case, mask):
    run, tensors = case.flat(**MASKS[mask])
    gradcheck(run, tensors, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@layers
@masks
def test_second_derivatives(case, mask):
    run, tensors = case.flat(**MASKS[mask])
    gradgradcheck(run, tensors, fast_mode=True)


@layers
def test_second_derivatives_of_two_layers_and_a_batch_of_gradients(name):
    cls, options = LAYERS[name]
    layer = cls(I, H, 2, batch_first=True, dtype=torch.float64, **options)
    x = Case.random(B, T, I).requires_grad_()
    gradgradcheck(lambda x: layer(x)[0], (x,), check_batched_grad=True, fast_mode=True)


# --- forward mode -------------------------------------------------------------------------------


@layers
@masks
def test_jvp_is_the_transpose_of_vjp(case, mask):
    run, tensors = case.flat(**MASKS[mask])
    tensors = tuple(t.detach() for t in tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    outputs, forward = func.jvp(run, tensors, tangents)
    plain, pull = func.vjp(run, *tensors)
    same(outputs, plain)
    cotangents = tuple(torch.randn_like(y) for y in plain)
    left = sum((a * b).sum() for a, b in zip(cotangents, forward, strict=True))
    right = sum((a * b).sum() for a, b in zip(pull(cotangents), tangents, strict=True))
    same(left, right)


@layers
def test_dual_tensors_as_input_and_as_parameters(case):
    run, tensors = case.flat()
    tensors = tuple(t.detach() for t in tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    expected = func.jvp(run, tensors, tangents)[1]
    for require in (False, True):
        # Without requires_grad no backward graph is built, and a raw op would drop the tangents.
        primals = [t.clone().requires_grad_(require) for t in tensors]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
            got = tuple(forward_ad.unpack_dual(y).tangent for y in run(*duals))
        same(got, expected)


@layers
def test_jacfwd_equals_jacrev(case):
    def run(x):
        return case.call(case.params, x)

    same(func.jacfwd(run)(case.x), func.jacrev(run)(case.x))


# --- vmap ---------------------------------------------------------------------------------------


@layers
@pytest.mark.parametrize("dim", range(4))
def test_vmap_over_inputs(case, dim):
    def run(x):
        return case.call(case.params, x)

    same(func.vmap(run, in_dims=dim)(case.xs.movedim(0, dim)), stack([run(x) for x in case.xs]))


@layers
@pytest.mark.parametrize("shared", [False, True], ids=["own-inputs", "shared-input"])
def test_vmap_over_models(name, shared):
    case = Case(name)
    models = [Case(name, seed).layer for seed in range(N)]
    params, buffers = func.stack_module_state(models)
    x = case.x if shared else case.xs

    def run(params, buffers, x):
        return func.functional_call(case.layer, (params, buffers), (x,))

    got = func.vmap(run, in_dims=(0, 0, None if shared else 0))(params, buffers, x)
    same(got, stack([m(x if shared else x[k]) for k, m in enumerate(models)]))


@layers
@masks
def test_per_sample_gradients(case, mask):
    def gradient(x):
        return func.grad(case.loss)(case.params, x, **MASKS[mask])

    same(func.vmap(gradient)(case.xs), stack([gradient(x) for x in case.xs]))


@layers
def test_gradients_of_an_ensemble(case):
    stacked, models = case.models()
    got = func.vmap(func.grad(case.loss, argnums=(0, 1)))(stacked, case.xs)
    alone = [
        func.grad(case.loss, argnums=(0, 1))(p, x) for p, x in zip(models, case.xs, strict=True)
    ]
    same(got, stack(alone))


@layers
@pytest.mark.parametrize("batched", ["lengths", "resets", "lengths resets"])
@pytest.mark.parametrize("models", [False, True], ids=["one-model", "models"])
def test_vmap_over_masks(case, batched, models):
    values = {
        "lengths": torch.tensor([[0, 4], [3, 1], [2, 2]]),
        "resets": torch.rand(N, T, B, generator=torch.Generator().manual_seed(0)) < 0.3,
    }
    given = {k: v for k, v in values.items() if k in batched.split()}
    params, each = case.models() if models else (case.params, [case.params] * N)

    def gradient(params, x, masks):
        return func.grad(case.loss)(params, x, **masks), case.call(params, x, **masks)

    got = func.vmap(gradient, in_dims=(0 if models else None, 0, 0))(params, case.xs, given)
    alone = [gradient(each[k], case.xs[k], {n: v[k] for n, v in given.items()}) for k in range(N)]
    same(got, stack(alone))


@layers
def test_nested_vmap(case):
    stacked, models = case.models()
    over_models = func.vmap(func.vmap(case.loss, in_dims=(None, 0)), in_dims=(0, None))
    expected = torch.stack([torch.stack([case.loss(p, x) for x in case.xs]) for p in models])
    same(over_models(stacked, case.xs), expected)


@layers
def test_gradient_through_a_vmapped_inner_gradient(case):
    def adapted(params, x):
        inner = func.grad(case.loss)(params, x)
        return case.loss({n: params[n] - 0.1 * inner[n] for n in params}, x)

    def outer(params):
        return func.vmap(adapted, in_dims=(None, 0))(params, case.xs).sum()

    def loop(params):
        return sum(adapted(params, x) for x in case.xs)

    same(func.grad(outer)(case.params), func.grad(loop)(case.params))


# --- higher order -------------------------------------------------------------------------------


def hessian_by_rows(loss, x):
    """The Hessian from one double backward pass per element: nothing vmapped, no forward mode."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    rows = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in gradient.flatten()]
    return torch.stack(rows).unflatten(0, x.shape)


@layers
@masks
def test_hessian(case, mask):
    def loss(x):
        return case.loss(case.params, x, **MASKS[mask])

    expected = hessian_by_rows(loss, case.x)
    assert expected.abs().max() > 1e-3
    same(func.hessian(loss)(case.x), expected)
    same(func.jacrev(func.jacrev(loss))(case.x), expected)
    same(torch.autograd.functional.hessian(loss, case.x), expected)


@layers
def test_hessian_vector_products(case):
    def loss(x):
        return case.loss(case.params, x)

    v = torch.randn_like(case.x)
    expected = (hessian_by_rows(loss, case.x) * v).sum((-3, -2, -1))
    same(func.jvp(func.grad(loss), (case.x,), (v,))[1], expected)
    same(func.vjp(func.grad(loss), case.x)[1](v)[0], expected)
    same(func.grad(lambda x: func.jvp(loss, (x,), (v,))[1])(case.x), expected)
    same(torch.autograd.functional.hvp(loss, case.x, v)[1], expected)
    same(torch.autograd.functional.vhp(loss, case.x, v)[1], expected)


@layers
def test_third_order(case):
    def along(x, direction):
        return (x * direction).sum()

    a, b, c = (torch.randn_like(case.x) for _ in range(3))
    x = case.x.clone().requires_grad_()
    value = case.loss(case.params, x)
    for direction in (a, b, c):
        (value,) = torch.autograd.grad(value, x, create_graph=True)
        value = along(value, direction)

    def nested(x, directions):
        if not directions:
            return case.loss(case.params, x)
        return func.jvp(lambda x: nested(x, directions[1:]), (x,), (directions[0],))[1]

    assert value.abs() > 1e-3
    same(value, nested(case.x, (a, b, c)))
    assert value.requires_grad


# --- the rules of eager autograd ----------------------------------------------------------------


@layers
def test_backward_in_eval_mode(case):
    run, tensors = case.flat()
    gradients = []
    for training in (True, False):
        case.layer.train(training)
        gradients.append(torch.autograd.grad(run(*tensors)[0].sum(), tensors))
    same(*gradients)


@layers
def test_backward_twice_needs_the_graph_retained(case):
    run, tensors = case.flat()
    loss = run(*tensors)[0].sum()
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    same(torch.autograd.grad(loss, tensors), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, tensors)


@layers
@pytest.mark.parametrize("changed", ["x", "hx", "weight_hh_l0"])
def test_what_was_saved_may_not_be_changed(name, changed):
    cls, options = LAYERS[name]
    layer, x = cls(I, H, dtype=torch.float64, **options), Case.random(T, B, I).requires_grad_()
    hx = Case.random(1, B, layer.proj_size or H).requires_grad_()
    output, _ = layer(x, (hx, Case.random(1, B, H)) if cls is bptt.LSTM else hx)
    victims = {"x": x, "hx": hx, "weight_hh_l0": layer.weight_hh_l0}
    with torch.no_grad():
        victims[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@layers
def test_two_directions_are_safe_from_changed_weights(case):
    # Of a short call the weights themselves are saved, of others a stack of both, a copy: changing
    # one changes no gradient.
    expected = torch.autograd.grad(case.layer(case.x)[0].sum(), case.layer.weight_hh_l0)
    output, _ = case.layer(case.x)
    with torch.no_grad():
        case.layer.weight_hh_l0.mul_(2)
    try:
        found = torch.autograd.grad(output.sum(), case.layer.weight_hh_l0)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        same(found, expected)


@layers
def test_gradients_only_where_they_are_wanted(case):
    full = func.grad(case.loss, argnums=(0, 1))(case.params, case.x)
    for wanted in ("x", *case.names):
        params = {n: p.clone().requires_grad_(n == wanted) for n, p in case.params.items()}
        x = case.x.clone().requires_grad_(wanted == "x")
        case.loss(params, x).backward()
        given = {n: p.grad for n, p in (*params.items(), ("x", x))}
        same(given.pop(wanted), full[1] if wanted == "x" else full[0][wanted])
        assert set(given.values()) == {None}


@layers
def test_a_loss_of_a_single_output(case):
    run, tensors = case.flat()

    def gradients(output):
        return torch.autograd.grad(run(*tensors)[output].sum(), tensors, materialize_grads=True)

    for output in range(len(run(*tensors))):
        with bptt.backend("reference"):
            expected = gradients(output)
        same(gradients(output), expected)


# --- the raw op ---------------------------------------------------------------------------------


class RawOps(TorchDispatchMode):
    """Counts calls of bptt's ops."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.namespace == "bptt"
        return func(*args, **(kwargs or {}))


@layers
def test_the_raw_op_never_runs_under_forward_mode(case):
    run, tensors = case.flat()
    tensors = tuple(t.detach() for t in tensors)
    with RawOps() as plain:
        run(*tensors)
    assert plain.calls == 1
    with RawOps() as forward:
        func.jvp(run, tensors, tensors)
        with forward_ad.dual_level():
            run(*(forward_ad.make_dual(t, t) for t in tensors))
    assert forward.calls == 0


@layers
def test_reverse_mode_and_vmap_stay_on_the_kernel(case):
    with RawOps() as spy:
        func.vmap(func.grad(case.loss), in_dims=(None, 0))(case.params, case.xs)
    assert spy.calls == 2 + case.layer.recompute
