"""The layers as functions of explicit weights: `rnn`, `gru` and `lstm`.

The layers of `bptt.nn` call `run` here; it holds every check. Weights come as one flat sequence:
for each layer, and within a layer for each direction, in this order, leaving out what is not used:

| tensor        | shape     | present if      |
|---------------|-----------|-----------------|
| w_ih          | `[G*H, I]`| always          |
| w_hh          | `[G*H, R]`| always          |
| b_ih          | `[G*H]`   | `bias`          |
| b_hh          | `[G*H]`   | `bias`          |
| w_hr          | `[R, H]`  | `proj_size > 0` |
| w_peephole    | `[3*H]`   | `peephole`      |

T steps, B sequences, I input features, H hidden units, R = proj_size or H, G gates (1 for an RNN,
3 for a GRU, 4 for an LSTM), L layers, D directions. Layers after the first take I = D*R features,
or R where the directions are merged by "sum", "mul" or "ave".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks, stack
from .checks import Call
from .grad_norms import GradientNorms, start_norms

Pair = tuple[Tensor, Tensor]
RNN_CELLS = {"tanh": "rnn_tanh", "relu": "rnn_relu", "sigmoid": "rnn_sigmoid"}


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
) -> tuple[Any, Tensor]:
    """Run a simple recurrent network over a batch of sequences.

    At each step, with f = tanh, relu or the logistic function:

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    Args:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]` for a single sequence, or a
            PackedSequence.
        hx: initial hidden state `[L*D, B, H]` (`[L*D, H]` beside a single sequence), zeros if None.
        weights: see the module's description.
        nonlinearity: "tanh", "relu" or "sigmoid".
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

    Returns:
        The output (`[T, B, D*H]`, laid out as the input; a PackedSequence for one; a pair with
        merge_mode None) and the final hidden state `[L*D, B, H]`.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn does; see `bptt.checks`.

    Source: Elman, "Finding Structure in Time", Cognitive Science 14 (1990).
    """
    call = Call(
        "RNN",
        rnn_cell_name(nonlinearity),
        1,
        num_layers,
        2 if bidirectional else 1,
        bias,
        0,
        False,
        merge_mode,
        dropout if training else 0.0,
        batch_first,
        recompute,
    )
    checks.check_call(call)
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
        bias, num_layers, dropout, training, bidirectional, batch_first, merge_mode, lengths,
            resets, recompute, grad_norms: as in `rnn`.

    Returns:
        The output (`[T, B, D*H]`, laid out as the input; a PackedSequence for one; a pair with
        merge_mode None) and the final hidden state `[L*D, B, H]`.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn does; see `bptt.checks`.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation" (2014), equations 5 to 8, whose z is the weight of h_{t-1} as here; the
    variant with the reset gate after the product: ONNX operators, GRU.
    """
    call = Call(
        "GRU",
        gru_cell_name(reset_after),
        3,
        num_layers,
        2 if bidirectional else 1,
        bias,
        0,
        False,
        merge_mode,
        dropout if training else 0.0,
        batch_first,
        recompute,
    )
    checks.check_call(call)
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
) -> tuple[Any, Pair]:
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
        bias, num_layers, dropout, training, bidirectional, batch_first, merge_mode, lengths,
            resets, recompute, grad_norms: as in `rnn`.

    Returns:
        The output (`[T, B, D*R]`, laid out as the input; a PackedSequence for one; a pair with
        merge_mode None) and the final states `(h_n [L*D, B, R], c_n [L*D, B, H])`.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn does; see `bptt.checks`.

    Source: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of
    Gers, Schmidhuber and Cummins, "Learning to Forget" (2000); peepholes: Gers and Schmidhuber,
    "Recurrent Nets that Time and Count" (2000); projection: Sak, Senior and Beaufays, "Long
    Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic Modeling"
    (2014).
    """
    call = Call(
        "LSTM",
        lstm_cell_name(peephole),
        4,
        num_layers,
        2 if bidirectional else 1,
        bias,
        proj_size,
        peephole,
        merge_mode,
        dropout if training else 0.0,
        batch_first,
        recompute,
    )
    checks.check_call(call)
    return run(call, input, hx, weights, lengths, resets, grad_norms)


def rnn_cell_name(nonlinearity: str) -> str:
    """Name the cell of a simple recurrent network, or raise ValueError."""
    if nonlinearity not in RNN_CELLS:
        raise ValueError(
            f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh', 'relu' or 'sigmoid'."
        )
    return RNN_CELLS[nonlinearity]


def gru_cell_name(reset_after: bool) -> str:
    """Name the cell of a gated recurrent unit."""
    return "gru" if reset_after else "gru_reset_before"


def lstm_cell_name(peephole: bool) -> str:
    """Name the cell of a long short-term memory."""
    return "lstm_peephole" if peephole else "lstm"


def run(
    call: Call,
    input: Any,
    hx: Any,
    weights: Sequence[Any],
    lengths: Tensor | None,
    resets: Tensor | None,
    norms: GradientNorms | None = None,
) -> tuple[Any, Any]:
    """Check a call's tensors, run the layers time-major, and hand back the layout that came in."""
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
) -> tuple[Any, Any]:
    """`run`, in eager mode where norms are asked for."""
    kind, packed = call.kind, isinstance(input, PackedSequence)
    has_cell_state = kind == "LSTM"
    batched, places = True, None
    if hx is not None:
        checks.check_state_type(kind, hx, has_cell_state)
        hx = tuple(hx) if has_cell_state else (hx,)
    if packed:
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
    dtype = stack.autocast_dtype(device_type)
    if dtype is not None:
        x = stack.cast(x, dtype)
        hx = None if hx is None else tuple(stack.cast(s, dtype) for s in hx)
        weights = [stack.cast(w, dtype) for w in weights]
    checks.check_input(call, x, weights[0] if len(weights) else None)
    hidden, state = checks.check_weights(call, weights, x.shape[-1])
    if packed:
        x, lengths, places = stack.pad(x, input.batch_sizes)
    elif lengths is not None:
        lengths = checks.check_lengths(kind, lengths, x, batched)
    if resets is not None:
        resets = checks.check_resets(kind, resets, x, batched, call.batch_first)

    rows, batch = call.num_layers * call.directions, x.shape[1]
    sizes = [(rows, batch, state)] + ([(rows, batch, hidden)] if has_cell_state else [])
    if hx is None:
        zeros = torch.zeros(sizes[0], dtype=x.dtype, device=x.device)
        hx = (zeros,)
        if has_cell_state:
            hx = (zeros, x.new_zeros(sizes[1]) if call.proj_size else zeros)
    else:
        if not batched:
            hx = tuple(s.unsqueeze(1) for s in hx)
        checks.check_states(kind, hx, x, sizes)
        if packed and input.sorted_indices is not None:
            hx = tuple(s.index_select(1, input.sorted_indices) for s in hx)

    order = input.unsorted_indices if packed else None
    layer_norms = start_norms(kind, norms, call.num_layers, order)
    with stack.without_autocast(device_type, dtype is not None):
        c0 = hx[1] if has_cell_state else None
        output, h_n, c_n = stack.run(call, x, weights, hx[0], c0, lengths, resets, layer_norms)

    states: tuple[Any, ...] = (h_n, c_n) if has_cell_state else (h_n,)
    if packed:
        output = stack.pack(output, places, input)
        if input.unsorted_indices is not None:
            states = tuple(s.index_select(1, input.unsorted_indices) for s in states)
    elif not batched:
        output = _each(output, lambda y: y.squeeze(1))
        states = tuple(s.squeeze(1) for s in states)
    elif call.batch_first:
        output = _each(output, lambda y: y.transpose(0, 1))
    return output, states if has_cell_state else states[0]


def _each(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change an output, or both of a pair."""
    return tuple(change(y) for y in output) if isinstance(output, tuple) else change(output)
