"""The layers as functions of explicit weights: `rnn`, `gru`, `lstm`, `cifg`, `slstm`, `indrnn`.

The layers of `bptt.nn` call `run` here; it holds every check. Weights come as one flat sequence:
for each layer, and within a layer for each direction, in this order, leaving out what is not used:

| tensor        | shape     | present if      |
|---------------|-----------|-----------------|
| w_ih          | `[G*H, I]`| always          |
| w_hh          | `[G*H, R]`| always; `[G*H, H/N]` with N heads, `[H]` in an IndRNN |
| b_ih          | `[G*H]`   | `bias`          |
| b_hh          | `[G*H]`   | `bias`          |
| w_hr          | `[R, H]`  | `proj_size > 0` |
| w_peephole    | `[3*H]`   | `peephole`      |
| gain_ih       | `[G*H]`   | `layer_norm`, but not in an RNN |
| gain_hh       | `[G*H]`   | `layer_norm`    |
| gain_c        | `[H]`     | `layer_norm`, in an LSTM |
| bias_c        | `[H]`     | `layer_norm` and `bias`, in an LSTM |

T steps, B sequences, I input features, H hidden units, R = proj_size or H, G gates (1 for an RNN,
3 for a GRU, 4 for an LSTM), L layers, D directions. Layers after the first take I = D*R features,
or R where the directions are merged by "sum", "mul" or "ave".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Unpack

from .calls import autocast, checks, packed, single_step, stack
from .calls.checks import Call
from .interop import onnx
from .options import ACTIVATION_NAMES, PLAIN_OPTIONS, OptionNames, Options, make_options
from .recurrence.cells import CELLS, PLAIN_CELLS
from .recurrence.control import PLAIN
from .recurrence.grad_norms import GradientNorms, start_norms

Pair = tuple[Tensor, Tensor]
# The activations with a cell of their own; others run the first one with theirs in its place.
RNN_CELLS = {"tanh": "rnn_tanh", "relu": "rnn_relu", "sigmoid": "rnn_sigmoid"}
_OWN_ACTIVATION = {
    **{cell: activation for activation, cell in RNN_CELLS.items()},
    "rnn_layer_norm": "tanh",
    "indrnn": "relu",
}


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    merge_mode: str | None = "concat",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool | str = False,
    grad_norms: GradientNorms | None = None,
    **options: Unpack[OptionNames],
) -> tuple[Any, Tensor]:
    """Run a simple recurrent network over a batch of sequences.

    At each step, with f = tanh, relu or the logistic function:

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    Args:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]` for a single sequence, or a
            PackedSequence.
        hx: initial hidden state `[L*D, B, H]` (`[L*D, H]` beside a single sequence), zeros if None.
        weights: see the module's description.
        nonlinearity: "tanh", "relu", "sigmoid" or another of `bptt.options.ACTIVATION_NAMES`.
        bias: whether `weights` hold b_ih and b_hh.
        num_layers: L.
        dropout: probability of dropping an element of the output of each layer but the last.
        training: whether dropout acts.
        bidirectional: whether each layer runs forward and backward in time (D = 2).
        batch_first: whether `input`, output and `resets` start with the batch.
        merge_mode: what becomes of the outputs of two directions: "concat" (side by side), "sum",
            "mul", "ave" (their mean), in every layer; or None, a tuple of the two (the layers
            before the last pass theirs on side by side).
        lengths: integer tensor `[B]` on the input's device, in any order, zeros allowed (a scalar
            tensor beside a single sequence). Outputs past a length are zero, the final state is
            the state at the length, and the reverse direction starts there. What the input holds
            past a length is never looked at. Lengths out of 0..T raise where they can be read
            without a stall (CPU tensors in eager mode); elsewhere they are clamped.
        resets: bool tensor shaped like `input` without its features (`[T, B]`; `[B, T]` with
            `batch_first`; `[T]` for a single sequence). Where it is true the state is zeroed
            before that step, in either direction.
        recompute: whether the backward pass rebuilds the gates, by one matrix product over all
            steps, instead of keeping them: between the passes a layer then holds its outputs and,
            if an LSTM, its cell states. (An RNN keeps no more than that anyway.) "auto" does so in
            layers whose gates would take more than 256 MB.
        grad_norms: takes down the norm of dL/dh_t at every step in the backward pass; see
            `bptt.GradientNorms`.
        options: regularisation, normalisation and control of gradients: `bptt.options.Options`.

    Returns:
        The output (`[T, B, D*H]`, laid out as the input; a PackedSequence for one; a pair with
        merge_mode None) and the final hidden state `[L*D, B, H]`.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn does; see `bptt.calls.checks`.

    Source: Elman, "Finding Structure in Time", Cognitive Science 14 (1990).
    """
    made = layer_options("RNN", LayerShape(), **options)
    cell = rnn_cell_name(nonlinearity, made)
    call = _make_call(
        "RNN", cell, made, num_layers, bidirectional, bias, merge_mode, dropout, training,
        batch_first, recompute, chosen_nonlinearity(cell, nonlinearity),
    )  # fmt: skip
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    reset_after: bool = True,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    merge_mode: str | None = "concat",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool | str = False,
    grad_norms: GradientNorms | None = None,
    **options: Unpack[OptionNames],
) -> tuple[Any, Tensor]:
    """Run a network of gated recurrent units over a batch of sequences.

    At each step, with gates in the order r, z, n and * the elementwise product:

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t * (W_hn h_{t-1} + b_hn))      reset_after=True
        n_t = tanh(W_in x_t + b_in + W_hn (r_t * h_{t-1}) + b_hn)      reset_after=False
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    Args:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]` for a single sequence, or a
            PackedSequence.
        hx: initial hidden state `[L*D, B, H]` (`[L*D, H]` beside a single sequence), zeros if None.
        weights: see the module's description.
        reset_after: whether the reset gate acts after the recurrent product, as in torch.nn and
            cuDNN (linear_before_reset=1 in ONNX), or before it, as in the paper.
        bias, num_layers, dropout: as in `rnn`, and so are training, bidirectional, batch_first,
            merge_mode, lengths, resets, recompute, grad_norms and options.

    Returns:
        The output (`[T, B, D*H]`, laid out as the input; a PackedSequence for one; a pair with
        merge_mode None) and the final hidden state `[L*D, B, H]`.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn does; see `bptt.calls.checks`.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation" (2014), equations 5 to 8, whose z is the weight of h_{t-1} as here; the
    variant with the reset gate after the product: ONNX operators, GRU.
    """
    made = layer_options("GRU", LayerShape(reset_before=not reset_after), **options)
    call = _make_call(
        "GRU", gru_cell_name(reset_after, made), made, num_layers, bidirectional, bias, merge_mode,
        dropout, training, batch_first, recompute,
    )  # fmt: skip
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def lstm(
    input: Tensor | PackedSequence,
    hx: Pair | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    proj_size: int = 0,
    peephole: bool = False,
    merge_mode: str | None = "concat",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool | str = False,
    grad_norms: GradientNorms | None = None,
    return_cells: bool = False,
    **options: Unpack[OptionNames],
) -> tuple[Any, ...]:
    """Run a long short-term memory over a batch of sequences.

    At each step, with gates in the order i, f, g, o and * the elementwise product:

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi  [+ p_i * c_{t-1}])
        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf  [+ p_f * c_{t-1}])
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        c_t = f_t * c_{t-1} + i_t * g_t
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho  [+ p_o * c_t])
        h_t = o_t * tanh(c_t)                  or, with proj_size,  W_hr (o_t * tanh(c_t))

    The brackets are the peepholes.

    Args:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]` for a single sequence, or a
            PackedSequence.
        hx: initial hidden state `[L*D, B, R]` and cell state `[L*D, B, H]` (without B beside a
            single sequence), zeros if None.
        weights: see the module's description.
        proj_size: R, the size to which the hidden state is projected; 0 for none.
        peephole: whether `weights` hold the peepholes p_i, p_f, p_o as one vector `[3*H]`. They act
            on the cell state, so they go together with a projection.
        bias, num_layers, dropout: as in `rnn`, and so are training, bidirectional, batch_first,
            merge_mode, lengths, resets, recompute, grad_norms and options.
        return_cells: whether all cell states are returned, too.

    Returns:
        The output (`[T, B, D*R]`, laid out as the input; a PackedSequence for one; a pair with
        merge_mode None) and the final states `(h_n [L*D, B, R], c_n [L*D, B, H])`. With
        return_cells, third, a tuple with the cell states c_t of each layer: `[T, B, D*H]`, laid out
        as the output, zero past a length.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn does; see `bptt.calls.checks`.

    Source: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of
    Gers, Schmidhuber and Cummins, "Learning to Forget" (2000); peepholes: Gers and Schmidhuber,
    "Recurrent Nets that Time and Count" (2000); projection: Sak, Senior and Beaufays, "Long
    Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic Modeling"
    (2014).
    """
    made = layer_options("LSTM", LayerShape(bool(proj_size), peephole), **options)
    call = _make_call(
        "LSTM", lstm_cell_name(peephole, made), made, num_layers, bidirectional, bias, merge_mode,
        dropout, training, batch_first, recompute, "", return_cells, proj_size, peephole,
    )  # fmt: skip
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def cifg(
    input: Tensor | PackedSequence,
    hx: Pair | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    proj_size: int = 0,
    merge_mode: str | None = "concat",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool | str = False,
    grad_norms: GradientNorms | None = None,
    return_cells: bool = False,
    **options: Unpack[OptionNames],
) -> tuple[Any, ...]:
    """Run a long short-term memory whose input and forget gates are coupled.

    At each step, with gates in the order f, g, o and * the elementwise product:

        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t * c_{t-1} + (1 - f_t) * g_t
        h_t = o_t * tanh(c_t)                  or, with proj_size,  W_hr (o_t * tanh(c_t))

    Args, Returns, Raises: as in `lstm`, with G = 3 gates and without peepholes.

    Source: Greff et al., "LSTM: A Search Space Odyssey" (2015), variant CIFG.
    """
    made = layer_options("CIFG", LayerShape(bool(proj_size)), **options)
    call = _make_call(
        "CIFG", "cifg", made, num_layers, bidirectional, bias, merge_mode, dropout, training,
        batch_first, recompute, "", return_cells, proj_size,
    )  # fmt: skip
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def slstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    merge_mode: str | None = "concat",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool | str = False,
    grad_norms: GradientNorms | None = None,
    return_cells: bool = False,
    **options: Unpack[OptionNames],
) -> tuple[Any, ...]:
    """Run an sLSTM: exponential input gate, normaliser n and stabiliser m.

    At each step, with gates in the order i, f, z, o (as pre-activations with a tilde) and * the
    elementwise product:

        m_t = max(log sigmoid(f~_t) + m_{t-1}, i~_t)          i~_t where n_{t-1} = 0
        i_t = exp(i~_t - m_t)
        f_t = exp(log sigmoid(f~_t) + m_{t-1} - m_t)          0 where n_{t-1} = 0
        c_t = f_t * c_{t-1} + i_t * tanh(z~_t)
        n_t = f_t * n_{t-1} + i_t
        h_t = sigmoid(o~_t) * c_t / n_t

    The states c, n, m are c, n scaled by exp(-m): h does not depend on m, which keeps the
    exponentials in range. A state of zeros is an empty one. Of the options, gate_activation is that
    of o, activation that of z.

    Args, Returns, Raises: as in `lstm`, with states (h, c, n, m), all `[L*D, B, H]`, neither
    peepholes nor a projection, and the block-diagonal W_hh of the paper by `num_heads`.

    Source: Beck et al., "xLSTM: Extended Long Short-Term Memory" (2024), equations 8 to 17, with
    the logistic forget gate.
    """
    made = layer_options("SLSTM", LayerShape(), **options)
    call = _make_call(
        "SLSTM", "slstm", made, num_layers, bidirectional, bias, merge_mode, dropout, training,
        batch_first, recompute, "", return_cells,
    )  # fmt: skip
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def indrnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    merge_mode: str | None = "concat",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool | str = False,
    grad_norms: GradientNorms | None = None,
    **options: Unpack[OptionNames],
) -> tuple[Any, Tensor]:
    """Run an independently recurrent network: each unit sees its own hidden state alone.

    At each step, with f the nonlinearity, u a vector and * the elementwise product:

        h_t = f(W_ih x_t + b_ih + u * h_{t-1} + b_hh)

    Args, Returns, Raises: as in `rnn`, where u `[H]` takes the place of w_hh.

    Source: Li et al., "Independently Recurrent Neural Network (IndRNN): Building a Longer and
    Deeper RNN" (2018), equation 4.
    """
    made = layer_options("IndRNN", LayerShape(), **options)
    rnn_cell_name(nonlinearity)
    call = _make_call(
        "IndRNN", "indrnn", made, num_layers, bidirectional, bias, merge_mode, dropout, training,
        batch_first, recompute, chosen_nonlinearity("indrnn", nonlinearity),
    )  # fmt: skip
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def _make_call(
    kind: str,
    cell: str,
    options: Options,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    merge_mode: str | None,
    dropout: float,
    training: bool,
    batch_first: bool,
    recompute: bool | str,
    nonlinearity: str = "",
    return_cells: bool = False,
    proj_size: int = 0,
    peephole: bool = False,
) -> Call:
    """The checked options of a call of a function."""
    control = PLAIN
    if options is not PLAIN_OPTIONS or nonlinearity:
        control = options.control(training, nonlinearity)
    call = Call(
        kind,
        cell,
        len(CELLS[cell].gates),
        num_layers,
        2 if bidirectional else 1,
        bias,
        proj_size,
        peephole,
        merge_mode,
        dropout if training else 0.0,
        batch_first,
        recompute,
        options,
        control,
        float(options.weight_drop) if training else 0.0,
        return_cells,
        control is not PLAIN or cell not in PLAIN_CELLS,
    )
    checks.check_call(call)
    return call


class LayerShape(NamedTuple):
    """What decides which options a layer can have, besides its kind.

    Attributes:
        projected: whether its hidden state is projected.
        peephole: whether its gates see the cell state.
        reset_before: whether a reset gate acts before the recurrent product.
        custom_states: of a cell made by `bptt.cell`, how many states it has; else 0.
        custom_product: of such a cell, how the hidden state enters its gates.
    """

    projected: bool = False
    peephole: bool = False
    reset_before: bool = False
    custom_states: int = 0
    custom_product: str = "dense"


_CELL_STATES = {"LSTM": 1, "CIFG": 1, "SLSTM": 3}
_NORMALIZED_KINDS = ("RNN", "GRU", "LSTM")
_UNGATED_KINDS = ("RNN", "IndRNN")


def layer_options(kind: str, shape: LayerShape, **options: Unpack[OptionNames]) -> Options:
    """Check the options of a layer of a kind.

    Raises:
        TypeError: an option that there is not.
        ValueError: a value out of range, or options that exclude each other.
    """
    own = shape.custom_states
    made = make_options(kind, own - 1 if own else _CELL_STATES.get(kind, 0), **options)
    if own:
        for name in ("gate_activation", "activation", "cell_clip"):
            if getattr(made, name) is not None:
                raise ValueError(
                    f"{kind}: {name} is not for cells made by bptt.cell: write it in the cell; got "
                    f"{name}={getattr(made, name)!r}"
                )
        absent = {"none": ("recurrent_dropout", "weight_drop")}.get(shape.custom_product, ())
        for name in absent:
            if getattr(made, name) > 0:
                raise ValueError(
                    f"{kind}: {name} needs a product with the hidden state, and this cell has none"
                )
        if made.num_heads > 1 and shape.custom_product != "dense":
            raise ValueError(
                f"{kind}: num_heads must be 1, as no unit sees another, got {made.num_heads}"
            )
    if made.layer_norm:
        if kind not in _NORMALIZED_KINDS:
            raise ValueError(
                f"{kind}: layer_norm must be False, it is for {', '.join(_NORMALIZED_KINDS)}"
            )
        excluded = {
            "proj_size": shape.projected,
            "peephole": shape.peephole,
            "reset_after=False": shape.reset_before,
            "num_heads": made.num_heads > 1,
        }
        for name, there in excluded.items():
            if there:
                raise ValueError(f"{kind}: layer_norm and {name} exclude each other")
    if made.num_heads > 1 and (shape.projected or kind == "IndRNN"):
        what = "has a head for each unit already" if kind == "IndRNN" else "takes no proj_size then"
        raise ValueError(f"{kind}: num_heads must be 1, as it {what}, got {made.num_heads}")
    if kind in _UNGATED_KINDS:
        for name in ("gate_activation", "activation"):
            if getattr(made, name) is not None:
                raise ValueError(
                    f"{kind}: {name} is for layers with gates, this one's is chosen by "
                    f"nonlinearity; got {name}={getattr(made, name)!r}"
                )
    return made


def rnn_cell_name(nonlinearity: str, options: Options = PLAIN_OPTIONS) -> str:
    """Name the cell of a simple recurrent network, or raise ValueError."""
    if nonlinearity not in ACTIVATION_NAMES:
        raise ValueError(
            f"Unknown nonlinearity {nonlinearity!r}. Select from "
            f"{', '.join(map(repr, ACTIVATION_NAMES))}."
        )
    return "rnn_layer_norm" if options.layer_norm else RNN_CELLS.get(nonlinearity, "rnn_tanh")


def gru_cell_name(reset_after: bool, options: Options = PLAIN_OPTIONS) -> str:
    """Name the cell of a gated recurrent unit."""
    if options.layer_norm:
        return "gru_layer_norm"
    return "gru" if reset_after else "gru_reset_before"


def lstm_cell_name(peephole: bool, options: Options = PLAIN_OPTIONS) -> str:
    """Name the cell of a long short-term memory."""
    if options.layer_norm:
        return "lstm_layer_norm"
    return "lstm_peephole" if peephole else "lstm"


def chosen_nonlinearity(cell: str, nonlinearity: str) -> str:
    """The activation that a cell is to have in place of its own, or ""."""
    return "" if _OWN_ACTIVATION[cell] == nonlinearity else nonlinearity


def run(
    call: Call,
    input: Any,
    hx: Any,
    weights: Sequence[Any],
    lengths: Tensor | None,
    resets: Tensor | None,
    norms: GradientNorms | None = None,
) -> tuple[Any, ...]:
    """Check a call's tensors, run the layers time-major, and hand back the layout that came in.

    Returns the output and the last states, and with `call.keep_cells` all cell states: for each
    layer `[T, B, D*C*H]`, laid out as the output, zero past a length.
    """
    if isinstance(norms, GradientNorms):
        return norms._eagerly(_run, call, input, hx, weights, lengths, resets, norms)
    return _run(call, input, hx, weights, lengths, resets, norms)


def _run(
    call: Call,
    input: Any,
    hx: Any,
    weights: Sequence[Any],
    lengths: Tensor | None,
    resets: Tensor | None,
    norms: GradientNorms | None,
) -> tuple[Any, ...]:
    """`run`, in eager mode where norms are asked for."""
    kind, is_packed = call.kind, isinstance(input, PackedSequence)
    states = call.states
    has_cell_state = len(states) > 1
    batched = True
    if hx is not None:
        checks.check_state_type(kind, hx, states)
        hx = tuple(hx) if has_cell_state else (hx,)
    if is_packed:
        if onnx.is_exporting():
            raise RuntimeError(
                f"{kind}: a PackedSequence cannot be exported to ONNX, which has no such thing; "
                "export a model that takes padded sequences and lengths="
            )
        checks.check_packed(kind, input.data, input.batch_sizes, lengths, resets)
        x = input.data
    else:
        batched = checks.check_rank(kind, input) == 3
        x = input.transpose(0, 1) if batched and call.batch_first else input
        if not batched:
            x = x.unsqueeze(1)
        if hx is not None:
            checks.check_state_rank(kind, hx, batched)

    device_type = x.device.type
    came, given = x, hx
    by_steps = is_packed and not call.proj_size
    dtype = autocast.layer_dtype(call.cell, x, hx, by_steps)
    if dtype is not None:
        x = autocast.cast(x, dtype)
        hx = None if hx is None else tuple(autocast.cast(s, dtype) for s in hx)
        weights = [autocast.cast(w, dtype) for w in weights]
    checks.check_input(call, x, weights[0] if len(weights) else None)
    hidden, state = checks.check_weights(call, weights, x.shape[-1])
    if lengths is not None:
        lengths = checks.check_lengths(kind, lengths, x, batched)
    if resets is not None:
        resets = checks.check_resets(kind, resets, x, batched, call.batch_first)

    rows = call.num_layers * call.directions
    batch = int(input.batch_sizes[0]) if is_packed else x.shape[1]
    sizes = [(rows, batch, state)] + [(rows, batch, hidden)] * (len(states) - 1)
    if hx is None:
        zeros = torch.zeros(sizes[0], dtype=x.dtype, device=x.device)
        hx = (zeros,)
        if has_cell_state:
            cell_state = x.new_zeros(sizes[1]) if call.proj_size else zeros
            hx = (zeros, *[cell_state] * (len(states) - 1))
    else:
        if not batched:
            hx = tuple(s.unsqueeze(1) for s in hx)
        checks.check_states(kind, hx, x, sizes)
        if is_packed and input.sorted_indices is not None:
            hx = tuple(s.index_select(1, input.sorted_indices) for s in hx)

    order = input.unsorted_indices if is_packed else None
    layer_norms = start_norms(kind, norms, call.num_layers, order)
    with autocast.switched_off(device_type, dtype is not None):
        c0 = None
        if has_cell_state:
            c0 = hx[1] if len(hx) == 2 else torch.cat(hx[1:], -1)
        if is_packed:
            output, h_n, c_n, cells = packed.run(
                call, x, input.batch_sizes, weights, hx[0], c0, layer_norms
            )
        else:
            output, h_n, c_n, cells = stack.run(
                call, x, weights, hx[0], c0, lengths, resets, layer_norms
            )

    last: tuple[Any, ...] = (h_n,)
    if c_n is not None:
        last = (h_n, c_n) if len(states) == 2 else (h_n, *c_n.chunk(len(states) - 1, -1))
    if dtype is not None:
        last = autocast.last_states(call.cell, call.proj_size > 0, came, given, last)
    if is_packed:
        output = _each(output, lambda rows: _packed_like(input, rows))
        if input.unsorted_indices is not None:
            last = tuple(s.index_select(1, input.unsorted_indices) for s in last)
    elif not batched:
        output = _each(output, lambda y: y.squeeze(1))
        last = tuple(s.squeeze(1) for s in last)
    elif call.batch_first:
        output = _each(output, lambda y: y.transpose(0, 1))
    if not call.keep_cells:
        return output, last if has_cell_state else last[0]
    return output, last, tuple(_laid_out(call, layer, input, batched) for layer in cells)


def _packed_like(packed: PackedSequence, rows: Tensor) -> PackedSequence:
    return PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def _laid_out(call: Call, cells: Tensor, input: Any, batched: bool) -> Any:
    """The cell states of all steps of a layer, as the output is laid out."""
    if isinstance(input, PackedSequence):
        return _packed_like(input, cells)
    if not batched:
        return cells.squeeze(1)
    return cells.transpose(0, 1) if call.batch_first else cells


def step(
    call: Call, input: Any, hx: Any, weights: Sequence[Any], resets: Tensor | None
) -> tuple[Tensor, Any]:
    """One time step of every layer; see the layers' method of that name."""
    kind = call.kind
    if not isinstance(input, Tensor):
        came = checks.describe(input)
        raise checks.ArgumentTypeError(f"{kind}: input must be a tensor, got {came}")
    if input.dim() not in (1, 2):
        raise ValueError(f"{kind}: a step's input must be 1D or 2D, got {input.dim()}D tensor")
    if resets is not None and not (
        isinstance(resets, Tensor)
        and resets.dtype == torch.bool
        and resets.shape == input.shape[:-1]
    ):
        raise ValueError(
            f"{kind}: resets of a step must be a bool tensor of shape {list(input.shape[:-1])}, "
            f"got {checks.describe(resets)}"
        )
    plain = single_step.takes(call, input) and autocast.asked_dtype(input.device.type) is None
    if not plain:
        call = call._replace(batch_first=False)
        resets = None if resets is None else resets.unsqueeze(0)
        y, state = run(call, input.unsqueeze(0), hx, weights, None, resets)
        return y.squeeze(0), state
    checks.check_input(call, input.unsqueeze(0), weights[0])
    hidden, size = checks.check_weights(call, weights, input.shape[-1])
    states = _step_states(call, input, hx, hidden, size)
    if resets is not None:
        keep = ~resets.unsqueeze(-1)
        states = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in states)
    output, after = single_step.layer_step(call, input, states, weights)
    return output, after if len(after) > 1 else after[0]


def _step_states(call: Call, x: Tensor, hx: Any, hidden: int, state: int) -> tuple[Tensor, ...]:
    """The checked states before a step, zeros where none are given."""
    names, layers = call.states, call.num_layers
    sizes = [(layers, *x.shape[:-1], size) for size in (state, *[hidden] * (len(names) - 1))]
    if hx is None:
        return tuple(x.new_zeros(size) for size in sizes)
    checks.check_state_type(call.kind, hx, names)
    states = tuple(hx) if len(names) > 1 else (hx,)
    checks.check_state_rank(call.kind, states, x.dim() == 2)
    checks.check_states(call.kind, states, x, sizes)
    return states


def _each(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """Change an output, or both of a pair."""
    return tuple(change(y) for y in output) if isinstance(output, tuple) else change(output)
