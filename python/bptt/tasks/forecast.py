"""Task `forecast`: the next steps of a series with intervals, against what is simpler.

The last fifth of a series is for the test, the eighth before it for validation. Forecasts are made
from steps spread over a part, each from what lay before it.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.data.errors import BadInput
from bptt.data.timeline import Timeline, load_timeline
from bptt.models.forecaster import Curve, Forecaster
from bptt.train.settings import RecurrentSettings
from bptt.train.task import Anchor, Fitting, Judgement, Rows, Task, batched

_TEST, _VALIDATION = 0.2, 0.125
_SUNSPOTS = 11  # years of a cycle
_MOST_ORIGINS = 200  # of forecasts that are judged
_MOST_SEASON = 400  # steps that a season is looked for in


class ForecastSettings(RecurrentSettings):
    column: str = Field("", description="Of the CSV file (nothing: its last one of numbers).")
    season: int = Field(0, ge=0, description="Steps of a season (0: found by autocorrelation).")
    horizon: int = Field(0, ge=0, description="Steps to forecast (0: a season, at most 48).")
    context: int = Field(
        0, ge=0, description="Steps that are read (0: all seasons, and 24 to 96 more)."
    )
    seasons: int = Field(2, ge=1, description="How many seasons are mixed to tell the next one.")
    lags: int = Field(4, ge=1, description="Steps that a linear part sees beside the layers.")
    interval: float = Field(0.8, gt=0, lt=1, description="Share that an interval shall cover.")
    curve: Curve = Field("none", description="Of numbers, first: root for counts, log for growth.")
    units: int = Field(64, ge=1, description="Hidden state of a layer.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Between layers, and at the end.")


class ForecastTask(Task):
    name = "forecast"
    model = "Recurrent forecaster with quantiles; many to one, several steps at once"
    data: ClassVar[str] = "a column of a CSV file (--data); sunspots a year from statsmodels"
    metric = "mean absolute error, and share within the intervals"
    anchor = "seasonal naive, and an autoregression by statsmodels"
    minutes: ClassVar[float] = 1
    steps: ClassVar[int] = 2000
    Settings = ForecastSettings

    season: int
    horizon: int
    context: int

    def load(self) -> int:
        s = self.settings
        self.timeline: Timeline = load_timeline(s.data, s.column)
        x = self.timeline.values
        found = _SUNSPOTS if s.data is None else season_of(x.numpy())
        self.season = s.season or found
        self.horizon = s.horizon or min(self.season, 48)
        before = s.seasons * self.season
        self.context = s.context or before + min(max(2 * self.season, 24), 96)
        if self.context <= before:
            seasons = f"--seasons {s.seasons}, of {self.season} steps"
            raise BadInput(f"--context {s.context}: it must exceed {seasons}")
        self.starts = self._starts(len(x))
        self.check(x)
        return len(self.starts["train"])

    def check(self, x: Tensor) -> None:
        """That the curve takes such numbers.

        Raises:
            BadInput: it does not.
        """
        least, curve = float(x.min()), self.settings.curve
        if (curve == "root" and least < 0) or (curve == "log" and least <= 0):
            raise BadInput(f"--curve {curve} takes no number such as {least:g} of the series")

    def _starts(self, count: int) -> dict[str, Tensor]:
        """The steps from which on forecasts of each part are made.

        Raises:
            BadInput: the series is too short for one in each part.
        """
        test = count - round(_TEST * count)
        validation = test - round(_VALIDATION * count)
        ends = {"train": validation, "validation": test, "test": count}
        firsts = {"train": self.context, "validation": validation, "test": test}
        starts = {
            part: torch.tensor(range(max(firsts[part], self.context), end - self.horizon + 1))
            for part, end in ends.items()
        }
        if any(len(each) == 0 for each in starts.values()):
            least = (self.context + self.horizon) / (1 - _TEST - _VALIDATION)
            least = max(least, self.horizon / _VALIDATION) + 2
            raise BadInput(
                f"the series holds {count} numbers: {least:.0f} or more are needed to read "
                f"{self.context} steps and forecast {self.horizon} (--context, --horizon)"
            )
        return starts

    def vocabularies(self) -> dict[str, Any]:
        return {"season": self.season, "horizon": self.horizon, "context": self.context}

    def use(self, vocabularies: dict[str, Any]) -> None:
        self.season, self.horizon, self.context = (
            vocabularies[name] for name in ("season", "horizon", "context")
        )
        self.timeline = Timeline("", torch.zeros(0))

    def data_name(self) -> str:
        return self.timeline.name

    def rows(self, part: str) -> Rows:
        """Columns past [N, context] and future [N, horizon]."""
        starts = self.starts[part]
        if part == "test" and len(starts) > _MOST_ORIGINS:
            starts = starts[torch.linspace(0, len(starts) - 1, _MOST_ORIGINS).long()]
        windows = self.timeline.values.unfold(0, self.context + self.horizon, 1)[
            starts - self.context
        ]
        return Rows(past=windows[:, : self.context], future=windows[:, self.context :])

    def sets(self) -> tuple[Rows, Rows]:
        train = self.rows("train")
        most = self.settings.examples
        return (Rows(**train[-most:]) if most else train), self.rows("validation")

    def levels(self) -> tuple[float, float, float]:
        """Probabilities of the lower bound, the middle and the upper bound."""
        share = self.settings.interval
        return (1 - share) / 2, 0.5, (1 + share) / 2

    def build(self) -> Fitting:
        s = self.settings
        model = Forecaster(
            self.season,
            self.horizon,
            self.levels(),
            seasons=s.seasons,
            lags=min(s.lags, self.context - s.seasons * self.season),
            units=s.units,
            cell=s.cell,
            layers=s.layers,
            dropout=s.dropout,
            curve=s.curve,
            impl=s.impl,
        )
        return Fitting(model, lr=s.lr, arguments=("past", "future"))

    def _known(self) -> Tensor:
        """What precedes the first forecast of validation."""
        return self.timeline.values[: int(self.starts["validation"][0])]

    def finish(self, model: Any) -> None:
        model.calibrate(*self.rows("validation").columns.values())

    def judge(self, model: Any) -> Judgement:
        from sklearn.metrics import mean_absolute_error, mean_pinball_loss

        past, future = self.rows("test").columns.values()
        made = batched(model.forecast, past)
        low, middle, high = made.unbind(2)
        naive = past[:, -self.season :][:, torch.arange(self.horizon) % self.season]
        simpler = {
            "seasonal naive": naive,
            "autoregression": torch.from_numpy(
                autoregressed(self._known().numpy(), past.numpy(), self.season, self.horizon)
            ),
        }
        error = mean_absolute_error(future, middle)
        errors = {name: mean_absolute_error(future, by) for name, by in simpler.items()}
        share = self.settings.interval
        metrics = {
            "mean absolute error": error,
            **{f"error of {name}": value for name, value in errors.items()},
            "share within the interval": ((future >= low) & (future <= high))
            .double()
            .mean()
            .item(),
            "mean width of the interval": (high - low).mean().item(),
            **{
                f"loss of quantile {level:g}": mean_pinball_loss(future, made[..., k], alpha=level)
                for k, level in enumerate(self.levels())
            },
            "forecasts judged": float(len(past)),
        }
        within = "share within the interval"
        anchors = [
            *(Anchor("mean absolute error", "below", by, name) for name, by in errors.items()),
            Anchor(within, "above", share - 0.05, f"{share:.0%} less 5 points"),
            Anchor(within, "below", share + 0.05, f"{share:.0%} and 5 points"),
        ]
        filled = self.timeline.filled
        notes = {"filled in": f"{filled} missing numbers, on a line"} if filled else {}
        return Judgement(metrics, anchors, notes)

    def next_steps(self, model: Any, series: Tensor, source: str) -> Tensor:
        """Quantiles [horizon, 3] of what follows a series [N].

        Raises:
            BadInput: it is too short, or holds numbers that the curve does not take.
        """
        if len(series) < self.context:
            raise BadInput(
                f"{source} holds {len(series)} numbers: the model reads {self.context} or more"
            )
        self.check(series)
        made: Tensor = model.forecast(series[None, -self.context :])[0]
        return made

    def drawn(self, series: Tensor, told: Tensor) -> Figure:
        """A series [N] and the quantiles of what follows it."""
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axis = figure.subplots()
        draw(axis, series[-max(self.context, 3 * self.horizon) :], told)
        axis.legend(fontsize=8)
        return figure

    def figures(self, model: Any) -> dict[str, Figure]:
        past, future = self.rows("test").columns.values()
        shown = torch.linspace(0, len(past) - 1, 4).long()
        made = model.forecast(past[shown])
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots(2, 2).flatten()
        for axis, one, came, told in zip(axes, past[shown], future[shown], made, strict=True):
            draw(axis, one[-3 * self.horizon :], told, came)
        axes[0].legend(fontsize=8)
        return {"Forecasts of the test part": figure}

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        past, future = self.rows("test").columns.values()
        made = batched(model.forecast, past)
        errors = (future - made[..., 1]).abs().mean(0)
        within = ((future >= made[..., 0]) & (future <= made[..., 2])).double().mean(0)
        rows = [
            [str(k + 1), f"{error:.4g}", f"{share:.1%}"]
            for k, (error, share) in enumerate(zip(errors.tolist(), within.tolist(), strict=True))
        ]
        first = [["steps ahead", "mean absolute error", "within the interval"]]
        return {"By steps ahead": first + rows}


def season_of(x: np.ndarray) -> int:
    """The number of steps after which a series is most like itself; 1 where there is none.

    That is where its autocorrelation, past its first fall below 0, is greatest.
    """
    from statsmodels.tsa.stattools import acf

    most = min(_MOST_SEASON, len(x) // 3)
    if most < 2 or np.ptp(x) == 0:
        return 1
    like = acf(x, nlags=most, fft=True)
    below = np.flatnonzero(like < 0)
    return int(below[0] + like[below[0] :].argmax()) if len(below) else 1


def autoregressed(known: np.ndarray, past: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The next steps [B, horizon] of each past [B, T] by statsmodels' autoregression.

    It is fitted to what is known, with as many lags, up to a season and one, as BIC says.
    """
    from statsmodels.tsa.ar_model import AutoReg, ar_select_order

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        most = min(season + 1, past.shape[1], len(known) // 3)
        lags = ar_select_order(known.astype(float), most, ic="bic").ar_lags or [1]
        fitted = AutoReg(known.astype(float), lags).fit()
        constant, weights = fitted.params[0], fitted.params[1:]
    series = past.astype(float)
    for _ in range(horizon):
        following = constant + series[:, [-lag for lag in lags]] @ weights
        series = np.concatenate([series, following[:, None]], 1)
    return series[:, -horizon:].astype(np.float32)


def draw(axis: Any, past: Tensor, told: Tensor, came: Tensor | None = None) -> None:
    """A past [T], quantiles [K, 3] of what follows it, and what came [K]."""
    ahead = np.arange(1, len(told) + 1)
    axis.plot(np.arange(1 - len(past), 1), past.numpy(), color="0.4", label="past")
    axis.fill_between(ahead, told[:, 0], told[:, 2], alpha=0.3, color="C0", label="interval")
    axis.plot(ahead, told[:, 1].numpy(), color="C0", label="forecast")
    if came is not None:
        axis.plot(ahead, came.numpy(), color="C1", label="what came")
    axis.set_xlabel("steps")
    axis.grid(alpha=0.3)
