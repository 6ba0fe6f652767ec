"""The undercomplete autoencoder: through a bottleneck and back.

With P pixels and C < P numbers for the code:

    z = encoder(x)      [B, P] -> [B, C]       linear layers, ReLU between them
    x̂ = decoder(z)      [B, C] -> [B, P]       the same sizes mirrored

A linear encoder and decoder with squared error span what principal component analysis finds;
whatever is better than PCA at the same C comes from the layers between.

Source: Hinton and Salakhutdinov, Reducing the dimensionality of data with neural networks, Science
313 (2006); Baldi and Hornik, Neural Networks 2 (1989), for the linear case.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .reconstruction import LossKind, Reconstructing, perceptron


class Autoencoder(Reconstructing):
    """Images [B, height, width] to codes [B, code] and back.

    Args:
        height, width: size of an image.
        code: size of the code.
        hidden: sizes between pixels and code, outermost first.
        loss: see `Reconstructing`.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code: int = 32,
        hidden: Sequence[int] = (512, 256),
        loss: LossKind = "mse",
    ) -> None:
        super().__init__(loss)
        pixels = height * width
        self.encoder = nn.Sequential(nn.Flatten(), perceptron(pixels, *hidden, code))
        self.decoder = nn.Sequential(
            perceptron(code, *reversed(hidden), pixels), nn.Unflatten(1, (height, width))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs [B, height, width] and codes [B, code]."""
        code = self.encoder(x)  # [B, height, width] -> [B, code]
        return self.decoder(code), code  # [B, code] -> [B, height, width]
