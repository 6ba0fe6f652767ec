"""What comes next in a series of numbers, and how sure that is: many to one, several steps at once.

    z_t     = (f(x_t) - m) / s,  f the identity, a root or a logarithm; m, s of the past itself
    a_t     = w_1 z_{t-P} + .. + w_S z_{t-SP},  with P steps in a season; what seasons before say
    d_t     = z_t - a_t
    h_T     = recurrent layers over [z_t; d_t], t = SP + 1..T
    c_k     = a_{T+k} + (V d_{T-N+1..T} + W h_T + b)_k,  k = 1..K
    q_k     = c_k, moved up and down by sums of softplus(U h_T + e): quantiles that do not cross
    loss    = max(tau (z - q), (tau - 1) (z - q)), summed over the quantiles tau

Once trained, the outer quantiles move by one margin, such that on what it was not trained on they
hold as large a share as they should.

At first w_1 is 1, and all other w, V, W, b are 0: the forecast is what was a season ago.

Sources: mean and deviation of the past itself, Kim et al. 2022, Reversible instance normalization
(ICLR); the linear part beside the recurrent one, Lai et al. 2018 (arXiv 1703.07015); quantiles of
all steps from one state, Wen et al. 2017 (arXiv 1711.11053); the margin, Romano, Patterson, Candes
2019 (arXiv 1905.03222).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Impl, last_hidden, recurrent

Curve = Literal["none", "root", "log"]
_FORWARD = {"none": lambda x: x, "root": torch.sqrt, "log": torch.log}
_BACK = {"none": lambda z: z, "root": lambda z: z.clamp_min(0).square(), "log": torch.exp}


class Forecaster(nn.Module):
    """Series [B, T] to quantiles of the next steps [B, K, Q].

    Args:
        season: P, steps after which a series is like itself; T is SP + N or more.
        horizon: K, steps to tell.
        levels: rising probabilities of the quantiles; 0.5 is one of them.
        seasons: S, how many are mixed.
        lags: N, steps that the linear part sees.
        units: H.
        cell: see `recurrent`.
        layers: of recurrence.
        dropout: between layers and before the output.
        curve: f: "none", "root" (for counts) or "log" (for what grows by a share).
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    levels: Tensor
    margin: Tensor

    def __init__(
        self,
        season: int,
        horizon: int,
        levels: Sequence[float],
        *,
        seasons: int = 2,
        lags: int = 4,
        units: int = 64,
        cell: str = "gru",
        layers: int = 1,
        dropout: float = 0.0,
        curve: Curve = "none",
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        self.season, self.horizon, self.lags, self.curve = season, horizon, lags, curve
        self.middle = list(levels).index(0.5)
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("margin", torch.zeros(()))
        self.layer = recurrent(cell, 2, units, layers=layers, dropout=dropout, impl=impl)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Parameter(torch.eye(seasons)[0].clone())
        self.linear = nn.Linear(lags, horizon, bias=False)
        self.center = nn.Linear(units, horizon)
        self.spread = nn.Linear(units, horizon * (len(levels) - 1))
        for zero in (self.linear.weight, self.center.weight, self.center.bias):
            nn.init.zeros_(zero)

    def forward(self, z: Tensor) -> Tensor:
        """Quantiles [B, K, Q] of a scaled series' next steps, from its past [B, T]."""
        first = len(self.mix) * self.season
        d = z[:, first:] - self._seasons(z, first, z.shape[1])
        h = last_hidden(self.layer(torch.stack([z[:, first:], d], 2))[1], 1)
        h = self.dropout(h)
        ahead = torch.arange(self.horizon, device=z.device) % self.season
        ago = self._seasons(z, z.shape[1], z.shape[1] + self.season)[:, ahead]
        center = (ago + self.linear(d[:, -self.lags :]) + self.center(h))[..., None]
        spread = F.softplus(self.spread(h).unflatten(1, (self.horizon, -1)))
        below = spread[..., : self.middle].flip(2).cumsum(2).flip(2)
        above = spread[..., self.middle :].cumsum(2)
        return torch.cat([center - below, center, center + above], 2)

    def _seasons(self, z: Tensor, start: int, stop: int) -> Tensor:
        """a_t for t from start up to stop, counted from 0: [B, stop - start]."""
        return sum(
            weight * z[:, start - ago * self.season : stop - ago * self.season]
            for ago, weight in enumerate(self.mix, start=1)
        )

    def _scaled(self, past: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Mean and deviation [B, 1] of the past, and all series by these."""
        curved = _FORWARD[self.curve](past)
        mean = curved.mean(1, keepdim=True)
        deviation = curved.std(1, keepdim=True).clamp_min(1e-6)
        series = ((_FORWARD[self.curve](x) - mean) / deviation for x in (past, *others))
        return mean, deviation, *series

    def losses(self, past: Tensor, future: Tensor) -> dict[str, Tensor]:
        """Mean quantile loss; past [B, T] and future [B, K] of the series itself."""
        _, _, z, ahead = self._scaled(past, future)
        error = ahead[..., None] - self(z)
        return {"quantiles": torch.maximum(self.levels * error, (self.levels - 1) * error).mean()}

    @torch.no_grad()
    def calibrate(self, past: Tensor, future: Tensor) -> None:
        """Moves the outer quantiles so that they hold their share of these series; see `losses`."""
        _, _, z, ahead = self._scaled(past, future)
        told = self(z)
        beyond = torch.maximum(told[..., 0] - ahead, ahead - told[..., -1])
        self.margin.copy_(beyond.quantile(float(self.levels[-1] - self.levels[0])))

    @torch.no_grad()
    def forecast(self, past: Tensor) -> Tensor:
        """Quantiles [B, K, Q] of the series' next steps, from its past [B, T]."""
        mean, deviation, z = self._scaled(past)
        told = self(z)
        middle = told[..., self.middle]
        told[..., 0] = torch.minimum(told[..., 0] - self.margin, middle)
        told[..., -1] = torch.maximum(told[..., -1] + self.margin, middle)
        return _BACK[self.curve](told * deviation[..., None] + mean[..., None])
