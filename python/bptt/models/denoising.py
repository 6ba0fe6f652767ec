"""The denoising autoencoder: trained to undo a corruption of its input.

    x' ~ noise(x)
    loss = |decoder(encoder(x')) - x|²

The code may then be larger than the input: copying no longer pays. Three corruptions of values in
[0, 1], none of which is clipped:

    gaussian(s)      x' = x + s e,  e ~ N(0, 1)
    masking(p)       x' = 0 with probability p, else x
    salt_pepper(p)   x' = 0 or 1, each with probability p / 2, else x

Source: Vincent et al., Stacked denoising autoencoders, JMLR 11 (2010), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .reconstruction import LossKind


def gaussian(x: Tensor, amount: float) -> Tensor:
    """x plus a normal deviate of standard deviation `amount`."""
    return x + amount * torch.randn_like(x)


def masking(x: Tensor, amount: float) -> Tensor:
    """x with a share `amount` of its values set to 0."""
    return x.masked_fill(torch.rand_like(x) < amount, 0.0)


def salt_pepper(x: Tensor, amount: float) -> Tensor:
    """x with a share `amount` of its values set to 0 or to 1."""
    drawn = torch.rand_like(x)
    return x.masked_fill(drawn < amount, 0.0).masked_fill(drawn < amount / 2, 1.0)


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": gaussian,
    "masking": masking,
    "salt-pepper": salt_pepper,
}


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder of corrupted images [B, height, width].

    Args:
        noise: "gaussian", "masking" or "salt-pepper".
        amount: standard deviation, or share of the values; at least 0, a share at most 1.
        height, width, code, hidden, loss: as in `Autoencoder`.

    Raises:
        ValueError: an unknown noise, or an amount out of range.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code: int = 128,
        hidden: Sequence[int] = (512, 256),
        loss: LossKind = "mse",
        noise: str = "gaussian",
        amount: float = 0.3,
    ) -> None:
        super().__init__(height, width, code, hidden, loss)
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
        if amount < 0 or (noise != "gaussian" and amount > 1):
            raise ValueError(f"amount of {noise} noise is out of range: {amount}")
        self.noise, self.amount = noise, amount

    def corrupt(self, x: Tensor) -> Tensor:
        """x' from torch's random numbers."""
        return NOISES[self.noise](x, self.amount)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        raw, _ = self(self.corrupt(x))
        return {"reconstruction": self.value_losses(raw, x).mean()}
