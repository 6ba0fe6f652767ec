"""What every autoencoder shares: how a reconstruction is compared with its original.

A decoder ends in raw outputs r, one for each value x of an example. Two losses read them, both
means over values, so that sizes do not matter:

    mse    x̂ = r            loss = (x̂ - x)²                               a Gaussian of fixed width
    bce    x̂ = sigmoid(r)   loss = -x log x̂ - (1 - x) log(1 - x̂)          x in [0, 1]

Source: Goodfellow, Bengio, Courville, Deep Learning (2016), sections 14.1 and 6.2.2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

LossKind = Literal["mse", "bce"]


class Reconstructing(nn.Module):
    """The base of the autoencoders. A model defines `encoder` and `forward`.

    `forward(x, ...)` returns raw outputs in x's shape, then whatever else its losses need.

    Args:
        loss: "mse" or "bce".

    Raises:
        ValueError: another loss.
    """

    def __init__(self, loss: LossKind = "mse") -> None:
        super().__init__()
        if loss not in ("mse", "bce"):
            raise ValueError(f"loss must be mse or bce, got {loss!r}")
        self.loss = loss

    def values(self, raw: Tensor) -> Tensor:
        """x̂ of raw outputs."""
        return raw.sigmoid() if self.loss == "bce" else raw

    def value_losses(self, raw: Tensor, x: Tensor) -> Tensor:
        """The loss of every value, in x's shape."""
        if self.loss == "bce":
            return binary_cross_entropy_with_logits(raw, x, reduction="none")
        return (raw - x).square()

    def reconstruct(self, x: Tensor) -> Tensor:
        """x̂, in x's shape."""
        return self.values(self(x)[0])

    def errors(self, x: Tensor) -> Tensor:
        """Mean squared error of each example [B], whatever the loss: its anomaly score."""
        return (self.reconstruct(x) - x).square().flatten(1).mean(1)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """Named terms, each a mean over the batch; training minimises their sum."""
        return {"reconstruction": self.value_losses(self(x)[0], x).mean()}


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers from the first size to the last, ReLU between them: [B, first] -> [B, last]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def share_kept(shape: torch.Size | tuple[int, ...], code: int) -> float:
    """The compression ratio: values of an example over values of its code."""
    return torch.Size(shape).numel() / code
