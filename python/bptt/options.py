"""What a recurrent layer may do besides running its cell, by the names that its users write."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import TypedDict, Unpack

from .recurrence.control import ACTIVATIONS, Control

ACTIVATION_NAMES = tuple(name for name in ACTIVATIONS if name)


class OptionNames(TypedDict, total=False):
    """The keywords of `Options`."""

    layer_norm: bool
    num_heads: int
    gate_activation: str | None
    activation: str | None
    zoneout: float | tuple[float, float]
    recurrent_dropout: float
    weight_drop: float
    cell_clip: float | None
    truncate: int | None
    clip_grad_value: float | None
    clip_grad_norm: float | None


@dataclass(frozen=True)
class Options:
    """Options of every layer and function, all of them keywords.

    Attributes:
        layer_norm: normalise the gates' two products, each over all gates and units, and an LSTM's
            cell state on its way to the output (Ba, Kiros and Hinton, "Layer Normalization", 2016,
            equations 4 and 20 to 22, and the GRU of its supplement). For RNN (whose products are
            normalised as one sum), GRU and LSTM:

                gates = gain_ih * norm(W_ih x_t) + b_ih + gain_hh * norm(W_hh h_{t-1}) + b_hh
                h_t = o_t * tanh(gain_c * norm(c_t) + bias_c)                         in an LSTM

            with norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5).
        num_heads: N; W_hh is block-diagonal: N heads of H / N units each, which see their own
            hidden states alone (Beck et al., "xLSTM", 2024, section 2.2). `weight_hh` is then
            `[G*H, H/N]`.
        gate_activation: the activation of the gates, one of `ACTIVATION_NAMES`; None for the
            cell's own, the logistic function. "hard_sigmoid" is relu6(x + 3) / 6, as in PyTorch
            and Keras 3.
        activation: that of candidates and of the cell state on its way to the output; None for
            tanh.
        zoneout: probability that an element of the hidden state stays what it was, or a pair of
            them for hidden and cell state (Krueger et al., "Zoneout", 2017), in layers with one
            cell state. In evaluation a state is the mean of both. A single number is for the hidden
            state.
        recurrent_dropout: probability that an element of the hidden state does not enter the
            recurrent product, one mask for a sequence's whole length (Gal and Ghahramani, "A
            Theoretically Grounded Application of Dropout in Recurrent Neural Networks", 2016).
        weight_drop: probability that an element of W_hh is dropped, one mask for a call (Merity,
            Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", 2018).
        cell_clip: c_t is held within [-cell_clip, cell_clip] before it makes h_t (Sak, Senior and
            Beaufays 2014; the name is TensorFlow's).
        truncate: k; no gradient of a state crosses the borders between runs of k steps (t = k,
            2k, ...), as if states were detached there: truncated backpropagation through time
            (Williams and Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of
            Recurrent Network Trajectories", 1990). Values are those of the whole sequence.
        clip_grad_value: the elements of dL/dh_t are held within +-clip_grad_value at every step,
            before they go on through the cell.
        clip_grad_norm: each sequence's dL/dh_t is scaled down to this norm at every step, after
            clip_grad_value. With heads, that of each head. Both bounds act in a second backward
            pass, too, which then gives no exact second derivatives.

    Masks are functions of their place and of a seed that torch's generator draws at each call
    (`bptt.recurrence.random`): `torch.manual_seed` repeats them, the backward pass draws them again
    rather than keep them, and every backend draws the same. Probabilities of zoneout are rounded
    up to multiples of 2^-16, those of the dropouts to multiples of 2^-24.
    """

    layer_norm: bool = False
    num_heads: int = 1
    gate_activation: str | None = None
    activation: str | None = None
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    cell_clip: float | None = None
    truncate: int | None = None
    clip_grad_value: float | None = None
    clip_grad_norm: float | None = None

    def asked(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        values = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in values.items() if value != DEFAULTS[name]}

    def zoneouts(self) -> tuple[float, float]:
        """The probabilities of zoneout, of hidden and cell states."""
        both = self.zoneout
        return (both[0], both[1]) if isinstance(both, tuple) else (both, 0.0)

    def control(self, training: bool, nonlinearity: str = "") -> Control:
        """What the loop is to do.

        Args:
            training: whether masks are drawn.
            nonlinearity: an activation of the states that the cell does not have itself, or "".
        """
        zoneout_h, zoneout_c = self.zoneouts()
        return Control(
            self.gate_activation or "",
            self.activation or nonlinearity,
            float(self.cell_clip or 0.0),
            float(zoneout_h),
            float(zoneout_c),
            training and (zoneout_h > 0 or zoneout_c > 0),
            float(self.recurrent_dropout) if training else 0.0,
            self.truncate or 0,
            float(self.clip_grad_value or 0.0),
            float(self.clip_grad_norm or 0.0),
        )


NAMES = tuple(field.name for field in fields(Options))
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Options)}
PLAIN_OPTIONS = Options()


def make_options(kind: str, cell_states: int, **options: Unpack[OptionNames]) -> Options:
    """Check options that do not depend on a layer's other arguments.

    Args:
        kind: the layer's name in messages.
        cell_states: how many states it has besides the hidden one.

    Raises:
        TypeError: an option that there is not, or one of another type.
        ValueError: a value out of range, or an option that the layer cannot have.
    """
    unknown = [name for name in options if name not in NAMES]
    if unknown:
        raise TypeError(
            f"{kind} got an unexpected keyword argument {unknown[0]!r}; its options are "
            f"{', '.join(NAMES)}"
        )
    if not options:
        return PLAIN_OPTIONS
    made = Options(**options)
    if not isinstance(made.layer_norm, bool):
        raise TypeError(f"{kind}: layer_norm must be a bool, got {made.layer_norm!r}")
    for name in ("gate_activation", "activation"):
        value = getattr(made, name)
        if value is not None and value not in ACTIVATION_NAMES:
            raise ValueError(
                f"{kind}: {name} must be None or one of {', '.join(ACTIVATION_NAMES)}, "
                f"got {value!r}"
            )
    _check_zoneout(kind, made.zoneout, cell_states)
    for name in ("recurrent_dropout", "weight_drop"):
        _check_probability(kind, name, getattr(made, name))
    for name in ("cell_clip", "clip_grad_value", "clip_grad_norm"):
        value = getattr(made, name)
        if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
            raise ValueError(f"{kind}: {name} must be None or a number above 0, got {value!r}")
    for name in ("num_heads", "truncate"):
        value = getattr(made, name)
        if value is None and name == "truncate":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{kind}: {name} must be an int of 1 or more, got {value!r}")
    if made.cell_clip is not None and cell_states != 1:
        raise ValueError(
            f"{kind}: cell_clip must be None, it needs a layer with one cell state, got "
            f"{made.cell_clip!r}"
        )
    return made


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_probability(kind: str, name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{kind}: {name} must be a number in [0, 1], got {value!r}")


def _check_zoneout(kind: str, zoneout: object, cell_states: int) -> None:
    if not isinstance(zoneout, tuple):
        return _check_probability(kind, "zoneout", zoneout)
    # The mean of two states of an sLSTM is none: each is scaled by an exponential of its own.
    if len(zoneout) != 2 or cell_states != 1:
        pair = ", or a pair for hidden and cell state" if cell_states == 1 else ""
        raise ValueError(f"{kind}: zoneout must be a probability{pair}, got {zoneout!r}")
    for value in zoneout:
        _check_probability(kind, "zoneout", value)
    return None
