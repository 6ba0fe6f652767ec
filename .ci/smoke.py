"""Does an installed bptt compute, and compile a cell?  Where torch and bptt are all there is."""

import sys

import torch

import bptt

x = torch.randn(20, 4, 8)
theirs = torch.nn.LSTM(8, 16, num_layers=2, bidirectional=True)
ours = bptt.LSTM(8, 16, num_layers=2, bidirectional=True)
ours.load_state_dict(theirs.state_dict())
for layer in (theirs, ours):
    layer(x)[0].square().mean().backward()
torch.testing.assert_close(ours(x)[0], theirs(x)[0])
for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
    torch.testing.assert_close(mine.grad, other.grad)

layer = bptt.MinGRU(8, 16)  # compiled here, out of the headers in the package
with bptt.backend("cpu"):
    y, _ = layer(x)
with bptt.backend("reference"):
    torch.testing.assert_close(y, layer(x)[0])
print(bptt.explain(ours, x))
print(
    f"bptt {bptt.__version__} computes: torch {torch.__version__}, Python {sys.version.split()[0]}"
)
