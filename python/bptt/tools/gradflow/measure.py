"""Networks on the adding problem, the norms of their gradients, and what those come to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...nn import GRU, LSTM, RNN
from ...recurrence.grad_norms import GradientNorms
from .adding import adding_problem
from .settings import PLAIN, Settings

# By name as a reader knows them, in the order of a table.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "RNN tanh": partial(RNN, nonlinearity="tanh"),
    "RNN relu": partial(RNN, nonlinearity="relu"),
    "GRU": GRU,
    "LSTM": LSTM,
}
INITIAL, TRAINED = "initial", "trained"
MAX_NORM = 1.0  # of the gradient of all weights in training (Pascanu et al. 2013, section 3.2)

# Called with a network's name, steps of training done, and the loss.
Progress = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Flow:
    """Norms of one layer of one network.

    Attributes:
        network: a name in `NETWORKS`.
        treatment: "plain", or what is done to gradients on their way (`Settings.treatments`). Norms
            are those that arrive at a step, before they are bounded.
        phase: "initial" or "trained".
        layer: from 0, the bottom one.
        norms: `[T, B]`, ||dL_b/dh_t||_2 for L_b the squared error of sequence b at the last step.
        loss: mean squared error over the batch.
        tiny: the smallest normal number of the gradients' dtype; what is below has underflown.
    """

    network: str
    treatment: str
    phase: str
    layer: int
    norms: Tensor
    loss: float
    tiny: float

    def quartiles(self) -> Tensor:
        """Lower quartile, median and upper quartile over the batch, float64 `[3, T]`."""
        points = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        return torch.quantile(self.norms.double(), points, dim=1)


@dataclass(frozen=True)
class Summary:
    """What the medians of a flow come to.

    Attributes:
        last: the median norm at the last step, where the loss is.
        first: that at the first step.
        rate: factor by which the norm changes with each step away from the loss: exp of the slope
            of log norm over distance, by least squares over all steps whose norm is finite and has
            not underflown. None with fewer than two of those.
        half_life: steps after which it has halved, log(1/2) / log(rate); None where it does not
            fall.
    """

    last: float
    first: float
    rate: float | None
    half_life: float | None


class Network(nn.Module):
    """A recurrent layer or several, and a linear map of the last output to one number."""

    def __init__(self, name: str, settings: Settings, options: dict[str, Any]) -> None:
        super().__init__()
        self.recurrent = NETWORKS[name](2, settings.hidden, num_layers=settings.layers, **options)
        self.head = nn.Linear(settings.hidden, 1)
        with torch.no_grad():
            for key, weight in self.recurrent.named_parameters():
                if key.startswith("weight_hh"):
                    weight.mul_(settings.gain)
                if name == "LSTM" and key.startswith("bias_ih"):
                    weight[settings.hidden : 2 * settings.hidden] += settings.forget_bias

    def forward(self, x: Tensor, norms: GradientNorms | None = None) -> Tensor:
        """`[T, B, 2]` -> `[B]`."""
        outputs, _ = self.recurrent(x, grad_norms=norms)
        return self.head(outputs[-1]).squeeze(-1)


def make_network(name: str, settings: Settings, treatment: str = PLAIN) -> Network:
    """A network in its initial state, the same for the same seed whatever else is asked for."""
    torch.manual_seed(settings.seed)
    network = Network(name, settings, settings.treatments()[treatment])
    return network.to(settings.device, getattr(torch, settings.dtype))


def batch_of(settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs `[T, B, 2]` and targets `[B]`, in the settings' dtype and on their device."""
    dtype = getattr(torch, settings.dtype)
    x, targets = adding_problem(settings.steps, settings.batch, generator)
    return x.to(settings.device, dtype), targets.to(settings.device, dtype)


def measure(network: Network, x: Tensor, targets: Tensor) -> tuple[list[Tensor], float]:
    """The norms ||dL_b/dh_t||_2 of every layer, `[T, B]` on the CPU, and the mean loss.

    L_b is the squared error of sequence b alone, so that a norm does not depend on the batch. Sets
    the gradients of the network's parameters to None.
    """
    norms = GradientNorms()
    errors = (network(x, norms) - targets).square()
    errors.sum().backward()
    network.zero_grad()
    return [layer[:, :, 0].cpu() for layer in norms.layers], errors.mean().item()


def train(name: str, network: Network, settings: Settings, progress: Progress) -> None:
    """Train in place, on fresh sequences at every step.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(settings.seed + 1)
    # Adam's square of a small gradient is no number of float16.
    eps = 1e-8 if settings.dtype in ("float32", "float64") else 1e-4
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, eps=eps)
    for step in range(1, settings.train + 1):
        x, targets = batch_of(settings, generator)
        loss = nn.functional.mse_loss(network(x), targets)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name}: the loss is {value} at training step {step}; "
                "a smaller gain or learning rate may help"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        progress(name, step, value)


def run(settings: Settings, progress: Progress = lambda *_: None) -> list[Flow]:
    """Measure every network as it is initialised and, if asked, once it has been trained.

    Raises:
        FloatingPointError: a training's loss is no longer finite.
    """
    data = batch_of(settings, torch.Generator().manual_seed(settings.seed))
    flows = []
    for name in NETWORKS:
        for treatment in settings.treatments():
            network = make_network(name, settings, treatment)
            flows += _flows(name, treatment, INITIAL, network, *data)
            if settings.train > 0:
                train(name, network, settings, progress)
                flows += _flows(name, treatment, TRAINED, network, *data)
    return flows


def _flows(
    name: str, treatment: str, phase: str, network: Network, x: Tensor, targets: Tensor
) -> list[Flow]:
    layers, loss = measure(network, x, targets)
    tiny: Any = torch.finfo(x.dtype).tiny
    return [Flow(name, treatment, phase, k, norms, loss, tiny) for k, norms in enumerate(layers)]


def summarize(flow: Flow) -> Summary:
    """See `Summary`."""
    medians = flow.quartiles()[1].tolist()
    distances, logs = [], []
    for distance, norm in enumerate(reversed(medians)):
        if math.isfinite(norm) and norm >= flow.tiny:
            distances.append(distance)
            logs.append(math.log(norm))
    rate = half_life = None
    if len(logs) >= 2:
        slope = statistics.linear_regression(distances, logs).slope
        rate = math.exp(slope)
        half_life = math.log(0.5) / slope if slope < 0 else None
    return Summary(medians[-1], medians[0], rate, half_life)
