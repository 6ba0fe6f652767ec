"""The variational autoencoder: a distribution of codes, from which new examples can be drawn.

    q(z | x) = N(m(x), diag s²(x))          encoder, which gives m and log s²
    z = m + s e,  e ~ N(0, I)               reparametrised: gradients pass through m and s
    p(x | z)                                decoder; Bernoulli for "bce", N(x̂, 1/2) for "mse"

Maximised is the evidence lower bound; minimised, per example and up to a constant,

    -ELBO = -log p(x | z)  +  beta · KL(q(z | x) ‖ N(0, I))
    KL    = 1/2 sum over the code of (m² + s² - 1 - log s²)

both as sums over an example (not means over pixels: their balance is what the bound says).

Source: Kingma and Welling, Auto-encoding variational Bayes (arXiv 1312.6114), appendix B for KL;
Higgins et al., beta-VAE (ICLR 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .reconstruction import LossKind, Reconstructing, perceptron


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """z ~ N(mean, exp(log_variance)), differentiable in both."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) ‖ N(0, I)) of each example: [B, C] -> [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class Posterior(nn.Module):
    """Images [B, height, width] to m and log s², both [B, code]."""

    def __init__(self, sizes: Sequence[int], code: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), perceptron(*sizes, 2 * code))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.layers(x).chunk(2, dim=1)  # [B, 2 code] -> 2 x [B, code]
        return mean, log_variance


class VariationalAutoencoder(Reconstructing):
    """Images [B, height, width], their distribution of codes, and images drawn anew.

    In evaluation mode the code is m: nothing is drawn.

    Args:
        height, width, code, hidden: as in `Autoencoder`.
        loss: "bce" (the default, for grey values in [0, 1]) or "mse".
        beta: weight of the divergence; 1 is the bound itself.

    Raises:
        ValueError: beta below 0.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code: int = 16,
        hidden: Sequence[int] = (512, 256),
        loss: LossKind = "bce",
        beta: float = 1.0,
    ) -> None:
        super().__init__(loss)
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.code, self.beta = code, beta
        pixels = height * width
        self.encoder = Posterior((pixels, *hidden), code)
        self.decoder = nn.Sequential(
            perceptron(code, *reversed(hidden), pixels), nn.Unflatten(1, (height, width))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw outputs [B, height, width], m and log s² [B, code]."""
        mean, log_variance = self.encoder(x)
        z = draw(mean, log_variance) if self.training else mean  # [B, code]
        return self.decoder(z), mean, log_variance

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """The two terms of the bound, per example."""
        raw, mean, log_variance = self(x)
        return {
            "reconstruction": self.value_losses(raw, x).flatten(1).sum(1).mean(),
            "divergence": self.beta * divergence(mean, log_variance).mean(),
        }

    @torch.no_grad()
    def bound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x | z) for one drawn z, and KL, both [B]; minus their sum is the ELBO."""
        mean, log_variance = self.encoder(x)
        raw = self.decoder(draw(mean, log_variance))
        return self.value_losses(raw, x).flatten(1).sum(1), divergence(mean, log_variance)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Images [count, height, width] of codes drawn from N(0, I)."""
        parameter = next(self.parameters())
        z = torch.randn(count, self.code, dtype=parameter.dtype, device=parameter.device)
        return self.values(self.decoder(z))

    @torch.no_grad()
    def interpolate(self, first: Tensor, last: Tensor, steps: int) -> Tensor:
        """Images [steps, height, width] on the straight line between the codes of two images."""
        ends, _ = self.encoder(torch.stack([first, last]))  # [2, code]
        share = torch.linspace(0, 1, steps, dtype=ends.dtype, device=ends.device)[:, None]
        return self.values(self.decoder(torch.lerp(ends[:1], ends[1:], share)))
