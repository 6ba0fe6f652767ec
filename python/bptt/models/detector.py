"""Is there a face, and where? A small convolutional network, slid over a picture; one to one.

    [1, 25, 25] -> 4x4 -> [c, 22, 22] -> halved -> [c, 11, 11] -> 4x4 -> [2c, 8, 8] -> halved
    -> [2c, 4, 4] -> 4x4 -> [4c, 1, 1] -> 1x1 -> logit

Without padding, so that a larger picture gives a map of logits: the one at (i, j) is that of the
window at (4 i, 4 j). Smaller copies of the picture show larger faces. Of windows that overlap, the
surest stays (non-maximum suppression).

    loss    = cross entropy of patches + that of the worst windows of pictures without faces

Sources: Vaillant, Monrocq, LeCun 1994, Original approach for the localisation of objects in images
(IEE Proceedings 141); the worst windows, Shrivastava, Gupta, Girshick 2016 (arXiv 1604.03540).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW, STRIDE = 25, 4


class Found(NamedTuple):
    """A window in pixels of the picture, and how probable a face is there."""

    left: int
    top: int
    size: int
    probability: float


class Detector(nn.Module):
    """Grey pictures [B, height, width] in [0, 1] to logits [B, rows, columns] of their windows.

    Args:
        channels: c.
        dropout: before the last layer.
        moved: in training, share of a patch that it moves by chance, at most; in size likewise.
        turned: in training, degrees that a patch turns by chance, at most.
        light: in training, how much contrast and brightness change, at most.
        worst: share of the windows without faces that count.
    """

    def __init__(
        self,
        channels: int = 16,
        *,
        dropout: float = 0.3,
        moved: float = 0.1,
        turned: float = 15.0,
        light: float = 0.4,
        worst: float = 0.003,
    ) -> None:
        super().__init__()
        self.moved, self.turned, self.light, self.worst = moved, turned, light, worst
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * channels, 4 * channels, 4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(4 * channels, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(2 * x[:, None] - 1)[:, 0]
        return logits

    def losses(self, x: Tensor, faces: Tensor, others: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropies, in nats.

        Args:
            x: patches [B, 25, 25].
            faces: float [B], 1 or 0.
            others: pictures without faces [B, height, width].
        """
        if self.training:
            x, others = self._lit(self._moved(x)), self._lit(others)
        patches = F.binary_cross_entropy_with_logits(self(x)[:, 0, 0], faces)
        logits = self(others).flatten()
        hard = logits.topk(max(1, round(self.worst * len(logits)))).values
        return {"patches": patches, "windows": F.softplus(hard).mean()}

    def _moved(self, x: Tensor) -> Tensor:
        """Each patch mirrored or not, turned, moved and scaled a little."""
        turn, scale, down, right = 2 * torch.rand(4, len(x), device=x.device) - 1
        mirror = torch.rand(len(x), device=x.device).round() * 2 - 1
        angle, scale = math.radians(self.turned) * turn, 1 + self.moved * scale
        sine, cosine = scale * angle.sin(), scale * angle.cos()
        rows = [mirror * cosine, -sine, 2 * self.moved * right]
        rows += [mirror * sine, cosine, 2 * self.moved * down]
        places = torch.stack(rows, 1).unflatten(1, (2, 3))
        grid = F.affine_grid(places, [len(x), 1, *x.shape[1:]], align_corners=False)
        return F.grid_sample(x[:, None], grid, padding_mode="border", align_corners=False)[:, 0]

    def _lit(self, x: Tensor) -> Tensor:
        """In another light."""
        contrast, light = self.light * (2 * torch.rand(2, len(x), 1, 1, device=x.device) - 1)
        return ((x - 0.5) * (1 + contrast) + 0.5 + light / 2).clamp(0, 1)

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Of a face in each patch [N, 25, 25]: [N]."""
        return self(x)[:, 0, 0].sigmoid()

    @torch.no_grad()
    def find(
        self, picture: Tensor, *, least: float = 0.9, step: float = 1.2, overlap: float = 0.3
    ) -> list[Found]:
        """The faces in a grey picture [height, width] of 25 pixels or more each way, surest first.

        Args:
            least: probability that a window must have.
            step: each copy of the picture is smaller than the one before by this.
            overlap: share of their union that two windows may have in common.
        """
        from cv2 import dnn

        boxes, sure = [], []
        scale = 1.0
        while min(picture.shape) / scale >= WINDOW:
            size = [max(WINDOW, round(length / scale)) for length in picture.shape]
            smaller = F.interpolate(
                picture[None, None], size, mode="bilinear", antialias=True, align_corners=False
            )[0]
            p = self(smaller)[0].sigmoid()
            for row, column in (p >= least).nonzero().tolist():
                boxes.append([round(STRIDE * at * scale) for at in (column, row)])
                boxes[-1] += [round(WINDOW * scale)] * 2
                sure.append(float(p[row, column]))
            scale *= step
        kept = dnn.NMSBoxes(boxes, sure, least, overlap) if boxes else []
        return [Found(*(boxes[k][0], boxes[k][1], boxes[k][2]), sure[k]) for k in kept]
