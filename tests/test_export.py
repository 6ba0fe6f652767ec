"""Does torch.export keep the layers whole, for any number of steps and any batch, also on disk?"""

import io
import subprocess
import sys

import pytest
import torch
from torch.export import Dim

import bptt

pytestmark = [
    # torch's own, inside export.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

T, B, I, H = 6, 4, 3, 5
LAYERS = {
    "rnn": (bptt.RNN, {}),
    "gru": (bptt.GRU, {"batch_first": True}),
    "gru-reset-before": (bptt.GRU, {"reset_after": False, "merge_mode": "ave"}),
    "lstm": (bptt.LSTM, {"batch_first": True}),
    "lstm-peephole-proj": (bptt.LSTM, {"peephole": True, "proj_size": 2}),
}
layers = pytest.mark.parametrize("name", LAYERS)
strictness = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])


class Model(torch.nn.Module):
    """Two layers, with lengths and resets as inputs when `masked`."""

    def __init__(self, name, masked=False):
        super().__init__()
        cls, options = LAYERS[name]
        self.layer = cls(I, H, 2, bidirectional=True, **options)
        self.masked = masked

    def forward(self, x, lengths=None, resets=None):
        return self.layer(x, lengths=lengths, resets=resets)

    def inputs(self, steps=T, batch=B):
        shape = (batch, steps) if self.layer.batch_first else (steps, batch)
        masks = torch.arange(batch) % (steps + 1), torch.rand(shape) < 0.3
        return (torch.randn(*shape, I), *(masks if self.masked else ()))

    def dynamic_shapes(self):
        steps, batch = Dim("steps"), Dim("batch")
        axes = (batch, steps) if self.layer.batch_first else (steps, batch)
        x = dict(enumerate(axes))
        return (x, {0: batch}, x) if self.masked else (x,)

    def export(self, strict, **inputs):
        return torch.export.export(
            self, self.inputs(**inputs), dynamic_shapes=self.dynamic_shapes(), strict=strict
        )


def assert_equal_for_other_sizes(program, model):
    for steps, batch in [(T, B), (2, 7), (1, 1), (33, 2)]:
        inputs = model.inputs(steps, batch)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


def fused_calls(program):
    return sum("bptt" in str(node.target) for node in program.graph.nodes)


@layers
@strictness
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_steps_and_batch_stay_free(name, strict, masked):
    model = Model(name, masked).eval()
    with torch.no_grad():
        program = model.export(strict)
    assert fused_calls(program) == 2
    assert_equal_for_other_sizes(program, model)


@layers
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_decomposed_saved_and_loaded(name, masked):
    model = Model(name, masked).eval()
    with torch.no_grad():
        program = model.export(strict=False).run_decompositions()
    assert fused_calls(program) == 2
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert fused_calls(loaded) == 2
    assert_equal_for_other_sizes(loaded, model)


@layers
@strictness
def test_an_exported_program_can_be_trained(name, strict):
    model = Model(name)
    module, inputs = model.export(strict).module(), model.inputs(3, 2)
    module(*inputs)[0].sum().backward()
    model(*inputs)[0].sum().backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in module.named_parameters()}, expected)


def test_initial_states_are_inputs_too():
    layer, batch = bptt.LSTM(I, H).eval(), Dim("batch")
    shapes = ({0: Dim("steps"), 1: batch}, ({1: batch}, {1: batch}))
    hx = torch.randn(1, B, H), torch.randn(1, B, H)
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(T, B, I), hx), dynamic_shapes=shapes)
    hx = torch.randn(1, 3, H), torch.randn(1, 3, H)
    x = torch.randn(9, 3, I)
    torch.testing.assert_close(program.module()(x, hx), layer(x, hx))


def test_a_forced_reference_exports_without_our_ops():
    layer = bptt.GRU(I, H, bidirectional=True).eval()
    shapes = ({1: Dim("batch")},)
    with torch.no_grad(), bptt.backend("reference"):
        program = torch.export.export(layer, (torch.randn(3, B, I),), dynamic_shapes=shapes)
    assert fused_calls(program) == 0
    x = torch.randn(3, 9, I)
    torch.testing.assert_close(program.module()(x), layer(x))


PACKAGE = """
import sys
import torch
import bptt

package, answers = sys.argv[1:]
x, expected = torch.load(answers)
torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x)[0], expected)
"""


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_package_of_aotinductor_runs_in_another_process(tmp_path):
    layer, x = bptt.LSTM(4, 8).eval(), torch.randn(9, 3, 4)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "layer.pt2")
        )
        torch.save((x, layer(x)[0]), tmp_path / "answers.pt")
    command = [sys.executable, "-c", PACKAGE, package, str(tmp_path / "answers.pt")]
    subprocess.run(command, check=True)
