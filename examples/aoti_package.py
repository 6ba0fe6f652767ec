"""AOTInductor: a package of an exported model, loaded by a process of its own.

The other process imports bptt before it loads, for the operator; it needs no model code.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import bptt
import gain

LOADER = """
import sys, torch, bptt
model = torch._inductor.aoti_load_package(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


class Tagger(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, torch.nn.Linear(layer.hidden_size, 10)

    def forward(self, x):
        return self.head(self.layer(x)[0]).log_softmax(-1)


def packaged(model, x, folder):
    axes = {0: torch.export.Dim("steps", min=2), 1: torch.export.Dim("batch", min=2)}
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=(axes,))
        path = str(Path(folder) / "model.pt2")
        return torch._inductor.aoti_compile_and_package(program, package_path=path)


def loaded_elsewhere(package, x, folder):
    """What another process makes of x."""
    here, there = Path(folder) / "x.pt", Path(folder) / "y.pt"
    torch.save(x, here)
    subprocess.run([sys.executable, "-c", LOADER, package, here, there], check=True)
    return torch.load(there)


def pair(steps=100, batch=16, hidden=128):
    """The eager model on torch.nn's layer, and the package of it on bptt's."""
    theirs = Tagger(torch.nn.LSTM(32, hidden)).eval()
    ours = Tagger(bptt.LSTM(32, hidden)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, 32)
    with tempfile.TemporaryDirectory() as folder:
        package = packaged(ours, x, folder)
        torch.testing.assert_close(loaded_elsewhere(package, x, folder), theirs(x).detach())
        model = torch._inductor.aoti_load_package(package)

    def before():
        with torch.no_grad():
            return theirs(x)

    return before, lambda: model(x)


if __name__ == "__main__":
    gain.show(pair())
