"""The recurrent variational autoencoder: a distribution of codes of whole sequences.

    h       final hidden state of a recurrent encoder over x_1..x_T
    q(z | x) = N(m, diag s²),   [m; log s²] = W h
    z = m + s e,  e ~ N(0, I)
    s_t = recurrence(z, s_{t-1}),   x̂_t = V s_t,   as in the recurrent autoencoder

Minimised, per sequence, is -ELBO = -log p(x | z) + beta · KL(q(z | x) ‖ N(0, I)), the first term a
sum over all values within the length; see the variational autoencoder for both.

Source: Kingma and Welling (arXiv 1312.6114); Fabius and van Amersfoort, Variational recurrent
auto-encoders (arXiv 1412.6581).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reconstruction import LossKind
from .recurrent import Impl, valid
from .recurrent_autoencoder import SequenceDecoder, SequenceEncoder, SequenceReconstructing
from .variational import divergence, draw


class RecurrentVariationalAutoencoder(SequenceReconstructing):
    """Sequences [B, T, features], their distribution of codes, and sequences drawn anew.

    In evaluation mode the code is m: nothing is drawn.

    Args:
        features, code, hidden, cell, layers, bidirectional, impl: as in `RecurrentAutoencoder`.
        loss: "mse" (the default) or "bce".
        beta: weight of the divergence; 1 is the bound itself.

    Raises:
        ValueError: beta below 0.
    """

    def __init__(
        self,
        features: int,
        code: int = 8,
        hidden: int = 128,
        cell: str = "gru",
        layers: int = 1,
        bidirectional: bool = True,
        impl: Impl = "bptt",
        loss: LossKind = "mse",
        beta: float = 1.0,
    ) -> None:
        super().__init__(loss)
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.code, self.beta = code, beta
        self.encoder = SequenceEncoder(
            features,
            2 * code,
            hidden=hidden,
            cell=cell,
            layers=layers,
            bidirectional=bidirectional,
            impl=impl,
        )
        self.decoder = SequenceDecoder(
            features, code, hidden=hidden, cell=cell, layers=layers, impl=impl
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Raw outputs [B, T, features], m and log s² [B, code]."""
        mean, log_variance = self.encoder(x, lengths).chunk(
            2, dim=1
        )  # [B, 2 code] -> 2 x [B, code]
        z = draw(mean, log_variance) if self.training else mean
        return self.decoder(z, x.shape[1]), mean, log_variance

    def losses(self, x: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The two terms of the bound, per sequence."""
        raw, mean, log_variance = self(x, lengths)
        summed = (self.value_losses(raw, x) * valid(x, lengths)).sum((1, 2))  # [B]
        return {
            "reconstruction": summed.mean(),
            "divergence": self.beta * divergence(mean, log_variance).mean(),
        }

    @torch.no_grad()
    def sample(self, count: int, steps: int) -> Tensor:
        """Sequences [count, steps, features] of codes drawn from N(0, I)."""
        parameter = next(self.parameters())
        z = torch.randn(count, self.code, dtype=parameter.dtype, device=parameter.device)
        return self.values(self.decoder(z, steps))
