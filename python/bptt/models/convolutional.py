"""The convolutional autoencoder: convolutions down, mirrored transposed convolutions up.

    [B, 1, H, W] -> [B, c, H/2, W/2] -> [B, 2c, H/4, W/4] -> [B, code]      stride 2, sizes rounded
    up [B, code] -> [B, 2c, H/4, W/4] -> [B, c, H/2, W/2] -> [B, 1, H, W]      the same sizes
    backwards

A transposed convolution of stride 2 reaches either of two sizes; `output_padding` says which, so
that every layer gives back the size that its mirror image took. Trained with a rectangle of each
image masked out, the network fills in what it does not see:

    loss = |decoder(encoder(mask · x)) - x|²

Source: Masci et al., Stacked convolutional auto-encoders, ICANN 2011; Dumoulin and Visin, A guide
to convolution arithmetic (arXiv 1603.07285), chapter 4; Pathak et al., Context encoders (arXiv
1604.07379), for the masked rectangle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .reconstruction import LossKind, Reconstructing


def rectangles(x: Tensor, share: float) -> Tensor:
    """Masks like x [B, H, W]: 0 in a rectangle of `share` of each image's height and width."""
    count, height, width = x.shape
    size = (round(share * height), round(share * width))

    def inside(length: int, extent: int) -> Tensor:
        start = (torch.rand(count, 1, device=x.device) * (length - extent + 1)).long()  # [B, 1]
        place = torch.arange(length, device=x.device)
        return (place >= start) & (place < start + extent)  # [B, length]

    hole = inside(height, size[0])[:, :, None] & inside(width, size[1])[:, None, :]  # [B, H, W]
    return (~hole).to(x.dtype)


class ConvolutionalAutoencoder(Reconstructing):
    """Images [B, height, width] to codes [B, code] and back.

    Args:
        height, width, code, loss: as in `Autoencoder`.
        channels: c, of the first convolution.
        masked: share of height and width that training masks out; 0 for none.

    Raises:
        ValueError: masked not in [0, 1).
    """

    def __init__(
        self,
        height: int,
        width: int,
        code: int = 64,
        channels: int = 16,
        loss: LossKind = "mse",
        masked: float = 0.5,
    ) -> None:
        super().__init__(loss)
        if not 0 <= masked < 1:
            raise ValueError(f"masked must be at least 0 and below 1, got {masked}")
        self.masked = masked
        half = ((height + 1) // 2, (width + 1) // 2)
        quarter = ((half[0] + 1) // 2, (half[1] + 1) // 2)
        inner = 2 * channels * quarter[0] * quarter[1]
        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, height)),  # [B, 1, H, W]
            nn.Conv2d(1, channels, 3, stride=2, padding=1),  # [B, c, H/2, W/2]
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),  # [B, 2c, H/4, W/4]
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(inner, code),  # [B, code]
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, inner),
            nn.ReLU(),
            nn.Unflatten(1, (2 * channels, *quarter)),  # [B, 2c, H/4, W/4]
            _mirrored(2 * channels, channels, quarter, half),  # [B, c, H/2, W/2]
            nn.ReLU(),
            _mirrored(channels, 1, half, (height, width)),  # [B, 1, H, W]
            nn.Flatten(1, 2),  # [B, H, W]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs [B, height, width] and codes [B, code]."""
        code = self.encoder(x)
        return self.decoder(code), code

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        seen = x * rectangles(x, self.masked) if self.masked else x
        return {"reconstruction": self.value_losses(self(seen)[0], x).mean()}

    @torch.no_grad()
    def fill(self, x: Tensor, mask: Tensor) -> Tensor:
        """x where the mask is 1, else what the network makes of it; all [B, height, width]."""
        return torch.where(mask > 0, x, self.reconstruct(x * mask))


def _mirrored(
    inputs: int, outputs: int, size: tuple[int, int], wanted: tuple[int, int]
) -> nn.ConvTranspose2d:
    """The transposed convolution to the size `wanted`, from which one of stride 2 made `size`."""
    # Without output_padding it reaches 2 n - 1.
    padding = (wanted[0] - (2 * size[0] - 1), wanted[1] - (2 * size[1] - 1))
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=padding)
