"""Does swapping layers keep everything that refers to them, and say what it did?"""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import bptt.nn as ours
from bptt.convert import Conversion, convert, to_torch

T, B, I, H = 6, 3, 4, 5
X = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I)
KINDS = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]


class Model(nn.Module):
    """A little of everything a swap could break."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(I, I), nn.GRU(I, H, 2, bidirectional=True))
        self.rnn = nn.RNN(I, H, nonlinearity="relu")
        self.table = nn.ModuleDict({"lstm": nn.LSTM(I, H, proj_size=2)})
        self.again = self.table["lstm"]
        self.cells = nn.ModuleList([nn.RNNCell(I, H), nn.GRUCell(I, H), nn.LSTMCell(I, H)])

    def forward(self, x):
        outputs = [self.encoder(x)[0], self.rnn(x)[0], self.table["lstm"](x)[0], self.again(x)[0]]
        steps = [cell(x[0]) for cell in self.cells]
        return torch.cat([t.flatten() for t in [*outputs, *steps[:2], steps[2][0]]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().double()


PATHS = ["encoder.1", "rnn", "table.lstm", "cells.0", "cells.1", "cells.2"]


def test_a_model_goes_there_and_back(model):
    plain = copy.deepcopy(model)
    expected, parameters = plain(X), list(model.parameters())
    there, report = convert(model, report=True)
    assert there is model
    assert [c.name for c in report.changed] == PATHS
    assert report.left == ()
    assert all(type(model.get_submodule(p)).__module__.startswith("bptt.nn") for p in PATHS)
    assert type(model.encoder[0]) is nn.Linear
    assert "_flat_weights" not in vars(model.rnn)  # it would keep old weights alive
    torch.testing.assert_close(model(X), expected)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    plain.load_state_dict(model.state_dict(), strict=True)

    back, report = to_torch(model, report=True)
    assert back is model
    assert [c.name for c in report.changed] == PATHS
    for path in PATHS:
        module, original = model.get_submodule(path), plain.get_submodule(path)
        assert type(module) is type(original)
        assert vars(module).keys() == vars(original).keys()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_itself(kind):
    torch.manual_seed(0)
    module = getattr(nn, kind)(I, H).double()
    shown, original = repr(module), copy.deepcopy(module)
    swapped = convert(module)
    assert swapped is module
    assert type(swapped) is getattr(ours, kind)
    assert repr(swapped) == shown
    x = X if kind in KINDS[:3] else X[0]
    torch.testing.assert_close(swapped(x), original(x))
    assert type(to_torch(swapped)) is getattr(nn, kind)
    built = to_torch(getattr(ours, kind)(I, H))
    assert type(built) is getattr(nn, kind)
    assert vars(built).keys() == vars(getattr(nn, kind)(I, H)).keys()


def test_one_line_training_continues_with_the_same_optimizer(model):
    plain = copy.deepcopy(model)
    runs = []
    for network in (model, plain):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for step in range(4):
            if step == 2 and network is model:
                model = convert(model)
            optimizer.zero_grad()
            network(X).square().mean().backward()
            optimizer.step()
        runs.append(network(X))
    torch.testing.assert_close(*runs)


def test_a_module_used_in_two_places_stays_one(model):
    convert(model)
    assert model.again is model.table["lstm"]
    assert type(model.again) is ours.LSTM


def test_tied_weights_stay_tied(model):
    model.rnn.weight_hh_l0 = nn.Parameter(model.cells[0].weight_hh.detach().clone())
    model.cells[0].weight_hh = model.rnn.weight_hh_l0
    convert(model)
    assert model.cells[0].weight_hh is model.rnn.weight_hh_l0
    model(X).sum().backward()
    model.zero_grad(set_to_none=True)
    model.rnn(X)[0].sum().backward()
    assert model.cells[0].weight_hh.grad is model.rnn.weight_hh_l0.grad


def test_hooks_survive(model):
    seen, lstm = [], model.again

    def note(name, result=None):
        return lambda *_: seen.append(name) or result

    removed = lstm.register_forward_hook(note("removed"))
    lstm.register_forward_pre_hook(lambda m, args, kwargs: seen.append("pre"), with_kwargs=True)
    lstm.register_forward_hook(note("forward"))
    lstm.register_full_backward_pre_hook(note("backward pre"))
    lstm.register_full_backward_hook(note("backward"))
    lstm.register_state_dict_pre_hook(note("saved"))
    lstm.register_load_state_dict_post_hook(note("loaded"))
    lstm.weight_hh_l0.register_hook(note("gradient"))
    convert(model)
    removed.remove()
    lstm(X.clone().requires_grad_())[0].sum().backward()
    model.load_state_dict(model.state_dict())
    counts = {name: seen.count(name) for name in dict.fromkeys(seen)}
    assert set(counts) == {
        "pre", "forward", "backward pre", "backward", "saved", "loaded", "gradient"
    }  # fmt: skip
    assert counts["forward"] == counts["backward"] == counts["gradient"] == 1


def test_state_of_the_module_survives(model):
    rnn = model.rnn.eval()
    rnn.weight_ih_l0.requires_grad_(False)
    rnn.register_buffer("counter", torch.tensor(3))
    rnn.note = {"kept": True}
    convert(model)
    assert model.rnn is rnn
    assert not rnn.training
    assert model.table.training
    assert not rnn.weight_ih_l0.requires_grad
    assert rnn.weight_hh_l0.requires_grad
    assert rnn.counter == 3
    assert rnn.note == {"kept": True}


@pytest.mark.parametrize("kind", KINDS)
def test_parametrizations_survive(kind):
    torch.manual_seed(0)
    module = getattr(nn, kind)(I, H).double()
    suffix = "_l0" if kind in KINDS[:3] else ""
    parametrizations.weight_norm(module, f"weight_hh{suffix}")
    parametrizations.orthogonal(module, f"weight_ih{suffix}")
    x = X if suffix else X[0]
    original, parameters = copy.deepcopy(module), list(module.parameters())
    convert(module)
    assert isinstance(module, getattr(ours, kind))
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    torch.testing.assert_close(module(x), original(x))
    torch.testing.assert_close(copy.deepcopy(module)(x), original(x))
    with torch.no_grad():  # the weight in use follows its parametrization
        for network in (module, original):
            network.parametrizations[f"weight_hh{suffix}"].original0.mul_(3)
    torch.testing.assert_close(module(x), original(x))
    parametrize.remove_parametrizations(module, f"weight_hh{suffix}")
    parametrize.remove_parametrizations(module, f"weight_ih{suffix}")
    assert type(module) is getattr(ours, kind)
    torch.testing.assert_close(module(x), original(x))
    to_torch(original)  # nothing to do
    assert isinstance(to_torch(convert(original)), getattr(nn, kind))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_legacy_weight_norm_survives():
    module = nn.utils.weight_norm(nn.GRU(I, H).double(), "weight_hh_l0")
    expected = module(X)
    convert(module)
    torch.testing.assert_close(module(X), expected)
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)
    changed = module(X)
    assert not torch.allclose(changed[0], expected[0])
    to_torch(module)
    torch.testing.assert_close(module(X), changed)
    nn.utils.remove_weight_norm(module, "weight_hh_l0")
    torch.testing.assert_close(module(X), changed)


class Overriding(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Renamed(nn.GRUCell):
    pass


class Handmade(nn.RNNBase):
    def __init__(self):
        super().__init__("LSTM", I, H)


def patched():
    module = nn.RNN(I, H)
    module.forward = lambda x: x
    return module


def scripted():
    return torch.jit.script(nn.Sequential(nn.LSTM(I, H)))


def quantized():
    with torch.device("cpu"):
        return torch.ao.nn.quantized.dynamic.LSTM(I, H)


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript and quantization
@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        (lambda: Overriding(I, H), "0", "forward of its own"),
        (lambda: Renamed(I, H), "0", "subclass of torch.nn.GRUCell"),
        (Handmade, "0", "none of the layers"),
        (patched, "0", "forward was replaced"),
        (scripted, "0.0", "TorchScript"),
        (quantized, "0", "quantized"),
    ],
    ids=["overriding", "subclass", "base", "patched", "scripted", "quantized"],
)
def test_what_cannot_be_swapped_is_left_and_reported(make, name, why, caplog):
    module = make()
    before = type(module)
    model, report = convert(nn.Sequential(module, nn.GRU(I, H)), report=True)
    assert type(model[0]) is before
    assert type(model[1]) is ours.GRU
    assert [row.name for row in report.left] == [name]
    assert why in report.left[0].why
    assert f"{name}: " in str(report)
    assert why in str(report)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"bptt.convert: {report.left[0]}"
    ]


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (ours.LSTM(I, H, peephole=True), "peephole=True"),
        (ours.GRU(I, H, reset_after=False), "reset_after=False"),
        (ours.RNN(I, H, nonlinearity="sigmoid"), "nonlinearity='sigmoid'"),
        (ours.GRU(I, H, bidirectional=True, merge_mode=None), "merge_mode=None"),
        (ours.RNN(I, H, bidirectional=True, merge_mode="sum"), "merge_mode='sum'"),
        (ours.LSTMCell(I, H, peephole=True), "peephole=True"),
        (ours.GRUCell(I, H, reset_after=False), "reset_after=False"),
        (ours.RNNCell(I, H, nonlinearity="sigmoid"), "nonlinearity='sigmoid'"),
        (type("Mine", (ours.LSTM,), {})(I, H), "subclass of bptt.LSTM"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else type(value).__name__,
)
def test_extras_have_no_way_back(module, why):
    before = type(module)
    model, report = to_torch(nn.ModuleList([module, ours.RNN(I, H)]), report=True)
    assert type(model[0]) is before
    assert type(model[1]) is nn.RNN
    assert why in report.left[0].why


def test_the_log_names_what_changed(model, caplog):
    with caplog.at_level(logging.INFO, logger="bptt"):
        convert(model)
    lines = [record.getMessage() for record in caplog.records]
    assert "bptt.convert: rnn: torch.nn.RNN -> bptt.RNN" in lines
    assert len(lines) == len(PATHS)


def test_converting_twice_changes_nothing_more(model):
    convert(model)
    assert convert(model, report=True)[1] == Conversion((), ())
    assert to_torch(nn.Linear(2, 2), report=True)[1] == Conversion((), ())


def test_a_converted_model_copies_moves_and_saves(model, tmp_path):
    convert(model)
    expected = model(X)
    copied = copy.deepcopy(model).float().double()
    copied.load_state_dict(model.state_dict())
    torch.testing.assert_close(copied(X), expected)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(loaded(X), expected)
    assert type(loaded.rnn) is ours.RNN


@pytest.mark.parametrize("function", [convert, to_torch])
def test_only_modules(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        function({})
