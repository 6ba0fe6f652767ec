"""The sparse autoencoder: few units of the code are active for any one input.

The code may be larger than the input (overcomplete); what keeps it from copying is a penalty, or a
rule, on activities. With z = activation(encoder(x)) of C units:

    l1    z = relu(.)       penalty  w · mean |z|
    kl    z = sigmoid(.)    penalty  w · mean over units of  KL(q ‖ m), m a unit's mean activity:
                            KL(q ‖ m) = q log(q / m) + (1 - q) log((1 - q) / (1 - m))
    k     z = relu(.), of which the k largest of an example are kept and the others 0; no penalty

Source: Ng, Sparse autoencoder, CS294A lecture notes (2011), for KL; Makhzani and Frey, k-sparse
autoencoders (arXiv 1312.5663), for k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .reconstruction import LossKind, Reconstructing, perceptron

Sparsity = Literal["l1", "kl", "k"]


class SparseCode(nn.Module):
    """Images [B, height, width] to sparse activities [B, code]."""

    def __init__(self, sizes: Sequence[int], sparsity: Sparsity, active: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), perceptron(*sizes))
        self.sparsity, self.active = sparsity, active

    def forward(self, x: Tensor) -> Tensor:
        before = self.layers(x)  # [B, code]
        if self.sparsity == "kl":
            return before.sigmoid()
        activity = before.relu()
        if self.sparsity == "k":
            kept = activity.topk(self.active, dim=1)  # [B, active]
            activity = torch.zeros_like(activity).scatter(1, kept.indices, kept.values)
        return activity


class SparseAutoencoder(Reconstructing):
    """Images [B, height, width] to sparse codes [B, code] and back.

    Args:
        height, width, code, hidden, loss: as in `Autoencoder`.
        sparsity: "l1", "kl" or "k".
        weight: w, of the penalties.
        target: q, the mean activity that "kl" asks of every unit, between 0 and 1.
        active: k, units that "k" keeps.

    Raises:
        ValueError: an unknown sparsity; weight below 0; target not between 0 and 1; k-sparse codes
            with `active` not in 1..code.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code: int = 1024,
        hidden: Sequence[int] = (),
        loss: LossKind = "mse",
        sparsity: Sparsity = "l1",
        weight: float = 0.1,
        target: float = 0.05,
        active: int = 32,
    ) -> None:
        super().__init__(loss)
        if sparsity not in ("l1", "kl", "k"):
            raise ValueError(f"sparsity must be l1, kl or k, got {sparsity!r}")
        if weight < 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if not 0 < target < 1:
            raise ValueError(f"target must lie between 0 and 1, got {target}")
        if sparsity == "k" and not 1 <= active <= code:
            raise ValueError(f"active must be in 1..{code}, the size of the code, got {active}")
        self.sparsity, self.weight, self.target = sparsity, weight, target
        pixels = height * width
        self.encoder = SparseCode((pixels, *hidden, code), sparsity, active)
        self.decoder = nn.Sequential(
            perceptron(code, *reversed(hidden), pixels), nn.Unflatten(1, (height, width))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs [B, height, width] and activities [B, code]."""
        code = self.encoder(x)
        return self.decoder(code), code

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        raw, code = self(x)
        terms = {"reconstruction": self.value_losses(raw, x).mean()}
        if self.sparsity == "l1":
            terms["sparsity"] = self.weight * code.mean()  # relu made all of it positive
        elif self.sparsity == "kl":
            terms["sparsity"] = self.weight * self.divergence(code.mean(0)).mean()
        return terms

    def divergence(self, mean: Tensor) -> Tensor:
        """KL(target ‖ mean) of mean activities [code]."""
        target = torch.as_tensor(self.target, dtype=mean.dtype, device=mean.device)
        mean = mean.clamp(1e-6, 1 - 1e-6)  # a unit that is never, or always, on
        on = torch.xlogy(target, target / mean)
        return on + torch.xlogy(1 - target, (1 - target) / (1 - mean))

    @torch.no_grad()
    def activity(self, x: Tensor, threshold: float = 1e-3) -> tuple[float, float]:
        """Share of the code that is active in an example, and share that is so in no example of x.

        The second are dormant units: the code could do without them.
        """
        active = self.encoder(x) > threshold
        return active.float().mean().item(), (~active.any(0)).float().mean().item()
