"""Do converted models work in packages that take hold of recurrent layers?

The packages are the extra `neighbours`; without one of them its tests are skipped.
"""

import copy

import pytest
import torch
from torch import nn

import bptt
from cases import F64

pytestmark = pytest.mark.filterwarnings("ignore")  # those packages' own


def rl_batch(keys):
    """Three rows of steps with two episodes that start inside."""
    from tensordict import TensorDict

    batch, steps = 3, 7
    data = TensorDict({"observation": torch.randn(batch, steps, 5)}, [batch, steps])
    data["is_init"] = torch.zeros(batch, steps, 1, dtype=torch.bool)
    data["is_init"][:, 0] = data["is_init"][1, 3] = data["is_init"][2, 5] = True
    for key in keys:
        data[key] = torch.zeros(batch, steps, 1, 6)
    return data


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl_modules_with_resets_inside_a_batch(kind):
    modules = pytest.importorskip("torchrl.modules")
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    theirs = getattr(modules, f"{kind}Module")(
        input_size=5,
        hidden_size=6,
        in_keys=["observation", *states],
        out_keys=["y", *(("next", state) for state in states)],
    )
    ours = bptt.convert(copy.deepcopy(theirs))
    assert any(isinstance(m, getattr(bptt, kind)) for m in ours.modules())
    data = rl_batch(states)
    with modules.set_recurrent_mode(True):
        expected, got = theirs(data.clone()), ours(data.clone())
    torch.testing.assert_close(got["y"], expected["y"])
    for state in states:
        torch.testing.assert_close(got["next", state], expected["next", state])
    step = data[:, 0]
    torch.testing.assert_close(ours(step.clone())["y"], theirs(step.clone())["y"])


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_opacus_trains_on_per_sample_gradients_of_torch_func(kind):
    pytest.importorskip("opacus")
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(nn, kind)(5, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model = bptt.convert(Classifier())
    data = TensorDataset(torch.randn(32, 7, 5), torch.randint(0, 2, (32,)))
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode="no_op",
    )
    plain = model._module

    def loss(parameters, x, label):
        out = torch.func.functional_call(plain, parameters, (x.unsqueeze(0),))
        return nn.functional.cross_entropy(out, label.unsqueeze(0))

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    before = plain.rnn.weight_hh_l0.detach().clone()
    for x, label in loader:
        parameters = {name: p.detach() for name, p in plain.named_parameters()}
        for name, grads in per_sample(parameters, x, label).items():
            plain.get_parameter(name).grad_sample = grads
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(plain.rnn.weight_hh_l0, before)


# --- the mask that TorchRL passes ---------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_mask_is_lengths(batch_first):
    layer = bptt.LSTM(5, 6, bidirectional=True, batch_first=batch_first, dtype=F64)
    x, lengths = torch.randn(3, 7, 5, dtype=F64), torch.tensor([7, 0, 4])
    mask = torch.arange(7) < lengths[:, None]
    if not batch_first:
        x, mask = x.transpose(0, 1), mask.t()
    torch.testing.assert_close(layer(x, mask=mask), layer(x, lengths=lengths))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask=mask), layer(x, lengths=lengths))


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ([True], TypeError, "mask must be a bool tensor, got a list"),
        (torch.ones(7, 3), ValueError, "mask must be of dtype torch.bool"),
        (torch.ones(3, 7, dtype=torch.bool), ValueError, r"\[7, 3\], got \[3, 7\]"),
        (torch.arange(21).view(7, 3) % 2 == 0, ValueError, "true in the first steps"),
    ],
    ids=["list", "dtype", "shape", "holes"],
)
def test_a_mask_that_is_none(mask, error, words):
    with pytest.raises(error, match=words):
        bptt.GRU(5, 6)(torch.randn(7, 3, 5), mask=mask)


def test_a_mask_of_no_steps():
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        bptt.GRU(5, 6)(torch.randn(0, 3, 5), mask=torch.ones(0, 3, dtype=torch.bool))


def test_a_mask_beside_lengths():
    with pytest.raises(ValueError, match="lengths and mask say the same"):
        bptt.GRU(5, 6)(
            torch.randn(7, 3, 5),
            mask=torch.ones(7, 3, dtype=torch.bool),
            lengths=torch.tensor([7, 7, 7]),
        )
