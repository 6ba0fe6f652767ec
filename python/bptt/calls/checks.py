"""Every check of what a caller hands to a layer, a cell or a function, and the words it fails with.

A message names the argument, what was expected and what came. The exception type is the one
torch.nn raises for the same mistake, so that code written against torch.nn keeps working. Where
torch.nn has no check of its own and fails with whatever comes first (an AttributeError here, an
IndexError there), the classes below stand for all of them.

The engines trust what passed here. Only shapes, dtypes and devices are looked at: reading values
would stall an accelerator. The one exception are lengths on the CPU, see `lengths_within`.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..options import PLAIN_OPTIONS, Options
from ..recurrence.cells import CELLS
from ..recurrence.control import PLAIN, Control

MERGE_MODES = ("concat", "sum", "mul", "ave", None)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ArgumentTypeError(TypeError, AttributeError, IndexError, RuntimeError):
    """An argument is no tensor, or not the pair of tensors an LSTM's state is.

    It is a TypeError. torch.nn runs into an AttributeError, an IndexError or a RuntimeError,
    depending on the layer and on what came instead; code that catches those catches this too.
    """


class DtypeError(ValueError, RuntimeError):
    """Two arguments differ in dtype.

    torch.nn raises a ValueError from its layers and a RuntimeError from its cells, from a packed
    LSTM, under autocast and for a state; this is both.
    """


class Call(NamedTuple):
    """What a call of a layer is about besides its tensors.

    Attributes:
        kind: the layer's name, such as "LSTM", for messages.
        cell: a name in `bptt.recurrence.cells.CELLS`.
        gates: number of gates G of that cell.
        num_layers: number of layers L.
        directions: number of directions D, 1 or 2.
        bias: whether the weights hold two bias vectors per layer and direction.
        proj_size: size of the projected hidden state, or 0.
        peephole: whether the weights hold peepholes.
        merge_mode: how two directions become one output.
        dropout: probability of dropping an output between layers; 0 outside of training.
        batch_first: whether input, output and resets start with the batch.
        recompute: whether the backward pass rebuilds the gates instead of keeping them; "auto" for
            where they are large.
        options: what else was asked for.
        control: what the loop does of that.
        weight_drop: probability of dropping an element of weight_hh; 0 outside of training.
        keep_cells: whether all cell states are an output.
        varied: whether the cell or an option takes the call off the plain path. It is known where
            a layer is made: of floats, which torch.compile may take for symbols, nothing is asked.
    """

    kind: str
    cell: str
    gates: int
    num_layers: int
    directions: int
    bias: bool
    proj_size: int
    peephole: bool
    merge_mode: str | None
    dropout: float
    batch_first: bool
    recompute: bool | str = False
    options: Options = PLAIN_OPTIONS
    control: Control = PLAIN
    weight_drop: float = 0.0
    keep_cells: bool = False
    varied: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """The states of the cell, the hidden one first."""
        return CELLS[self.cell].states

    @property
    def tensors(self) -> int:
        """How many weights a layer has in one direction."""
        parts = 1 if CELLS[self.cell].free else 2
        count = parts + parts * bool(self.bias) + (self.proj_size > 0) + bool(self.peephole)
        return count + len(self._gains()) if self.options.layer_norm else count

    def names(self) -> list[str]:
        """The weights of one layer and direction, in order, by their name in the layers."""
        parts = ("ih",) if CELLS[self.cell].free else ("ih", "hh")
        names = [f"weight_{part}" for part in parts]
        names += [f"bias_{part}" for part in parts] if self.bias else []
        names += ["weight_hr"] if self.proj_size > 0 else []
        if self.peephole:
            names.append("weight_peephole" if CELLS[self.cell].custom is None else "weight_unit")
        return names + (self._gains() if self.options.layer_norm else [])

    def _gains(self) -> list[str]:
        """The weights of a layer normalisation."""
        names = ["gain_hh"] if self.gates == 1 else ["gain_ih", "gain_hh"]
        if len(self.states) > 1:
            names += ["gain_c", "bias_c"] if self.bias else ["gain_c"]
        return names

    def shapes(self, hidden: int, width: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the weights that `names` lists, for H and the input's features I."""
        rows, state = self.gates * hidden, self.proj_size or hidden
        spec = CELLS[self.cell]
        shapes: list[tuple[int, ...]] = [(rows, width)]
        if not spec.free:
            own = spec.own_products  # a unit sees no other
            shapes.append((rows,) if own else (rows, state // self.options.num_heads))
        if self.bias:
            shapes += [(rows,)] if spec.free else [(rows,), (rows,)]
        if self.proj_size:
            shapes.append((state, hidden))
        if self.peephole:
            shapes.append((len(spec.cell_weights) * hidden,))
        if self.options.layer_norm:
            shapes += [(rows,) if "hh" in n or "ih" in n else (hidden,) for n in self._gains()]
        return tuple(shapes)


# --- options ------------------------------------------------------------------------------------


def check_merge_mode(merge_mode: str | None, bidirectional: bool) -> None:
    """Raise ValueError unless the merge mode is known, and "concat" beside a single direction."""
    if merge_mode not in MERGE_MODES:
        known = ", ".join(map(repr, MERGE_MODES))
        raise ValueError(f"merge_mode must be one of {known}, got {merge_mode!r}")
    if merge_mode != "concat" and not bidirectional:
        raise ValueError(
            "merge_mode merges two directions: it must be 'concat' (the default) unless "
            f"bidirectional=True, got merge_mode={merge_mode!r}, bidirectional={bidirectional!r}"
        )


def check_recompute(recompute: bool | str) -> None:
    """Raise ValueError unless `recompute` is True, False or "auto"."""
    if recompute not in (True, False, "auto"):
        raise ValueError(f'recompute must be True, False or "auto", got {recompute!r}')


def check_call(call: Call) -> None:
    """Check the options of a call on explicit weights; the layers check them when they are built.

    Raises:
        TypeError: num_layers or proj_size is no integer.
        ValueError: a number out of range, or an unknown merge mode or `recompute`.
    """
    for name in ("num_layers", "proj_size"):
        value = getattr(call, name)
        if not isinstance(value, int):
            raise TypeError(f"{call.kind}: {name} must be an int, got {type(value).__name__}")
    if call.num_layers <= 0:
        raise ValueError(
            f"{call.kind}: num_layers must be greater than zero, got {call.num_layers}"
        )
    if call.proj_size < 0:
        raise ValueError(f"{call.kind}: proj_size must be zero or more, got {call.proj_size}")
    dropout = call.dropout
    number = isinstance(dropout, numbers.Number) and not isinstance(dropout, bool)
    if not number or not 0 <= dropout <= 1:
        raise ValueError(f"{call.kind}: dropout must be a number in [0, 1], got {dropout!r}")
    check_merge_mode(call.merge_mode, call.directions == 2)
    check_recompute(call.recompute)


# --- tensors ------------------------------------------------------------------------------------


def describe(value: object) -> str:
    """Say what came: a tensor by dtype, shape and device, anything else by its type."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"


def check_rank(kind: str, input: Any) -> int:
    """Return the rank of a layer's input: 3 for a batch, 2 for one sequence."""
    if not isinstance(input, Tensor):
        raise ArgumentTypeError(
            f"{kind}: input must be a tensor or a PackedSequence, got {describe(input)}"
        )
    rank = input.dim()
    if rank != 3 and rank != 2:
        raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {rank}D tensor instead")
    return rank


def check_input(call: Call, x: Tensor, weight: Any) -> None:
    """Check a time-major input `[T, B, I]` against the first weight `[G*H, I]`."""
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ArgumentTypeError(
            f"{call.kind}: weight_ih_l0 must be a tensor [{call.gates}*H, I], "
            f"got {describe(weight)}"
        )
    if x.dtype != weight.dtype:
        raise DtypeError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype}) "
            f"({call.kind})"
        )
    if not x.is_floating_point() and not x.is_complex():
        raise DtypeError(
            f"{call.kind}: input and weights must be of a floating-point dtype, got {x.dtype}"
        )
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"{call.kind}: input.size(-1) must be equal to input_size. "
            f"Expected {weight.shape[1]}, got {x.shape[-1]}"
        )
    if x.device != weight.device:
        raise RuntimeError(
            f"{call.kind}: Input and parameter tensors are not at the same device, found input "
            f"tensor at {x.device} and parameter tensor at {weight.device}"
        )
    if x.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_weights(call: Call, weights: Sequence[Any], input_size: int) -> tuple[int, int]:
    """Check the flat list of weights, each against the sizes the first ones set.

    Returns:
        The hidden size H and the size of the hidden state R (proj_size, or H).
    """
    count = call.num_layers * call.directions * call.tensors
    if len(weights) != count:
        raise ValueError(
            f"{call.kind}: weights must hold {count} tensors ({call.num_layers} layers x "
            f"{call.directions} directions x {', '.join(call.names())}), got {len(weights)}"
        )
    first = weights[0]
    rows, dtype, device = first.shape[0], first.dtype, first.device
    hidden = rows // call.gates
    if hidden * call.gates != rows or hidden == 0:
        raise RuntimeError(
            f"{call.kind}: weight_ih_l0 must have {call.gates}*H rows with H >= 1, got {rows}"
        )
    if call.proj_size >= hidden:
        raise ValueError(
            f"{call.kind}: proj_size must be smaller than hidden_size = {hidden}, "
            f"got {call.proj_size}"
        )
    if hidden % call.options.num_heads:
        raise ValueError(
            f"{call.kind}: num_heads must divide hidden_size = {hidden}, "
            f"got {call.options.num_heads}"
        )
    state = call.proj_size or hidden
    _, *tail = call.shapes(hidden, input_size)
    position, width = 0, input_size
    for _ in range(call.num_layers):
        shapes = ((rows, width), *tail)
        for _ in range(call.directions):
            for shape in shapes:
                w = weights[position]
                if (
                    not isinstance(w, Tensor)
                    or w.shape != shape
                    or w.dtype != dtype
                    or w.device != device
                ):
                    _reject_weight(call, position, w, shape, first)
                position += 1
        wide = call.merge_mode == "concat" or call.merge_mode is None
        width = state * call.directions if wide else state
    return hidden, state


def _reject_weight(
    call: Call, position: int, weight: object, shape: tuple[int, ...], first: Tensor
) -> NoReturn:
    layer, place = divmod(position, call.directions * call.tensors)
    direction, which = divmod(place, call.tensors)
    name = f"{call.names()[which]}_l{layer}{'_reverse' if direction else ''}"
    message = (
        f"{call.kind}: {name} must be a {first.dtype} tensor of shape {list(shape)} on "
        f"{first.device}, got {describe(weight)}"
    )
    raise (RuntimeError if isinstance(weight, Tensor) else TypeError)(message)


def check_state_type(kind: str, hx: Any, states: Sequence[str]) -> None:
    """Check that a state is a tensor, or for an LSTM and its kin a tuple of them."""
    if len(states) == 1:
        if not isinstance(hx, Tensor):
            raise ArgumentTypeError(f"{kind}: hx must be a tensor, got {describe(hx)}")
        return
    names = ", ".join(f"{name}_0" for name in states)
    wanted = f"a {'pair' if len(states) == 2 else 'tuple'} of tensors ({names})"
    if not isinstance(hx, (tuple, list)):
        raise ArgumentTypeError(f"{kind}: hx must be {wanted}, got {describe(hx)}")
    if len(hx) != len(states) or not all(isinstance(s, Tensor) for s in hx):
        came = ", ".join(describe(s) for s in hx)
        raise ArgumentTypeError(f"{kind}: hx must be {wanted}, got {len(hx)}: ({came})")


def check_state_rank(kind: str, states: Sequence[Tensor], batched: bool) -> None:
    """Check that states are 3-D beside a batch and 2-D beside a single sequence."""
    rank = 3 if batched else 2
    if all(s.dim() == rank for s in states):
        return
    head = f"{kind}: For {'batched' if batched else 'unbatched'} {rank}-D input, hx "
    if len(states) == 1:
        raise RuntimeError(f"{head}should also be {rank}-D but got {states[0].dim()}-D tensor")
    came = ", ".join(f"{s.dim()}-D" for s in states)
    raise RuntimeError(f"{head}and cx should also be {rank}-D but got ({came}) tensors")


def check_states(
    kind: str, states: Sequence[Tensor], x: Tensor, sizes: Sequence[tuple[int, ...]]
) -> None:
    """Check size, dtype and device of the states against the input `x`."""
    for k, (state, size) in enumerate(zip(states, sizes, strict=True)):
        if state.shape == size and state.dtype == x.dtype and state.device == x.device:
            continue
        name = f"hidden[{k}]" if len(states) > 1 else "hidden"
        if state.shape != size:
            raise RuntimeError(
                f"{kind}: Expected {name} size {tuple(size)}, got {list(state.shape)}"
            )
        if state.dtype != x.dtype:
            raise DtypeError(f"{kind}: Expected {name} dtype {x.dtype}, got {state.dtype}")
        raise RuntimeError(
            f"{kind}: Input and hidden tensors are not at the same device, found input tensor at "
            f"{x.device} and hidden tensor at {state.device}"
        )


def check_packed(kind: str, data: Any, batch_sizes: Any, lengths: object, resets: object) -> None:
    """Check what makes up a PackedSequence, and that nothing else speaks about lengths."""
    for name, value in (("lengths", lengths), ("resets", resets)):
        if value is not None:
            raise ValueError(
                f"{kind}: {name} cannot be combined with a PackedSequence, which brings its own "
                f"lengths; pass the padded tensor instead, got {describe(value)}"
            )
    if not isinstance(data, Tensor):
        raise ArgumentTypeError(f"{kind}: packed data must be a tensor, got {describe(data)}")
    if data.dim() != 2:
        raise RuntimeError(f"{kind}: input must have 2 dimensions, got {data.dim()} (packed data)")
    if (
        not isinstance(batch_sizes, Tensor)
        or batch_sizes.dtype != torch.int64
        or batch_sizes.device.type != "cpu"
        or batch_sizes.dim() != 1
    ):
        raise TypeError(
            f"{kind}: batch_sizes of a PackedSequence must be a 1-D torch.int64 tensor on the CPU, "
            f"got {describe(batch_sizes)}"
        )
    sizes = batch_sizes.tolist()
    if not sizes:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    falling = all(a >= b for a, b in pairwise(sizes)) and sizes[-1] >= 0
    if not falling or sum(sizes) != data.shape[0]:
        raise RuntimeError(
            f"{kind}: batch_sizes of a PackedSequence must never rise and add up to the "
            f"{data.shape[0]} rows of its data, got {sizes[:10]}{'...' if sizes[10:] else ''}"
        )


# --- lengths and resets -------------------------------------------------------------------------


def check_lengths(kind: str, lengths: Any, x: Tensor, batched: bool) -> Tensor | None:
    """Check lengths beside a time-major input `[T, B, I]` and return them as int64 `[B]`.

    None where they can be read and are T, all of them: a sentence by itself has no padding.

    Raises:
        TypeError: no tensor.
        ValueError: not of an integer dtype, not of shape `[B]`, or out of range (see
            `lengths_within`).
        RuntimeError: on another device than the input.
    """
    steps, batch = x.shape[0], x.shape[1]
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{kind}: lengths must be an integer tensor [B], got {describe(lengths)}")
    if lengths.dtype not in _INTEGERS:
        raise ValueError(f"{kind}: lengths must be of an integer dtype, got {lengths.dtype}")
    expected = (batch,) if batched else ()
    if lengths.shape != expected:
        what = "[B]" if batched else "[] (one sequence)"
        raise ValueError(
            f"{kind}: lengths must have shape {what} = {list(expected)}, got {list(lengths.shape)}"
        )
    _check_device(kind, "lengths", lengths, x)
    if not batched:
        lengths = lengths.unsqueeze(0)
    return lengths_within(kind, lengths.to(torch.int64), steps)


def lengths_within(kind: str, lengths: Tensor, steps: int) -> Tensor | None:
    """Hold lengths to 0..T: an error where the values can be read for nothing, else a clamp.

    None where they can be read and no sequence is shorter.

    Values are read for tensors on the CPU in eager mode. On an accelerator that would stall the
    device, and under torch.compile, torch.export or a function transform there are no values to
    read: there, lengths are clamped to 0..T instead.
    """
    if lengths.device.type != "cpu" or type(lengths) is not Tensor or _traced(lengths):
        return lengths.clamp(0, steps)
    if lengths.numel() > 0:
        low, high = (int(bound) for bound in torch.aminmax(lengths.detach()))
        if low < 0 or high > steps:
            raise ValueError(
                f"{kind}: lengths must lie between 0 and the {steps} steps of the input, got "
                f"values from {low} to {high}"
            )
        if low == steps > 0:
            return None
    return lengths


def lengths_of_mask(kind: str, mask: Any, input: Any, lengths: object, batch_first: bool) -> Tensor:
    """The lengths that a mask of valid steps stands for.

    Raises:
        TypeError: no tensor.
        ValueError: not bool, not shaped like the input without its features, beside lengths, or
            with a valid step after one that is not (where that can be read for nothing: see
            `lengths_within`).
    """
    if lengths is not None:
        raise ValueError(f"{kind}: lengths and mask say the same; pass one of them")
    if not isinstance(mask, Tensor):
        raise TypeError(f"{kind}: mask must be a bool tensor, got {describe(mask)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"{kind}: mask must be of dtype torch.bool, got {mask.dtype}")
    if not isinstance(input, Tensor):
        raise ValueError(f"{kind}: mask goes with a padded tensor, got {describe(input)}")
    if mask.shape != input.shape[:-1]:
        raise ValueError(
            f"{kind}: mask must have the input's shape without its features, "
            f"{list(input.shape[:-1])}, got {list(mask.shape)}"
        )
    by_step = mask.t() if batch_first and mask.dim() == 2 else mask
    readable = mask.device.type == "cpu" and type(mask) is Tensor and not _traced(mask)
    if readable and bool((by_step[1:] > by_step[:-1]).any()):
        raise ValueError(
            f"{kind}: mask must be true in the first steps of each sequence and false after them"
        )
    return by_step.sum(0)


def _traced(tensor: Tensor) -> bool:
    """Whether a tensor's values are nobody's to read."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def check_resets(kind: str, resets: Any, x: Tensor, batched: bool, batch_first: bool) -> Tensor:
    """Check resets beside a time-major input `[T, B, I]` and return them as bool `[T, B]`.

    Raises:
        TypeError: no tensor.
        ValueError: not bool, or not shaped like the input without its features.
        RuntimeError: on another device than the input.
    """
    steps, batch = x.shape[0], x.shape[1]
    if not isinstance(resets, Tensor):
        raise TypeError(f"{kind}: resets must be a bool tensor [T, B], got {describe(resets)}")
    if resets.dtype != torch.bool:
        raise ValueError(f"{kind}: resets must be of dtype torch.bool, got {resets.dtype}")
    expected: tuple[int, ...]
    if not batched:
        what, expected = "[T]", (steps,)
    elif batch_first:
        what, expected = "[B, T] (batch_first)", (batch, steps)
    else:
        what, expected = "[T, B]", (steps, batch)
    if resets.shape != expected:
        raise ValueError(
            f"{kind}: resets must have shape {what} = {list(expected)}, got {list(resets.shape)}"
        )
    _check_device(kind, "resets", resets, x)
    if not batched:
        return resets.unsqueeze(1)
    return resets.transpose(0, 1) if batch_first else resets


def _check_device(kind: str, name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise RuntimeError(
            f"{kind}: {name} must be on the input's device {x.device}, got {tensor.device}"
        )


# --- cells --------------------------------------------------------------------------------------


def check_cell_input(kind: str, input: Any) -> None:
    """Check the rank of a cell's input: 2 for a batch, 1 for a single one."""
    if not isinstance(input, Tensor):
        raise ArgumentTypeError(f"{kind}: input must be a tensor, got {describe(input)}")
    rank = input.dim()
    if rank != 1 and rank != 2:
        raise ValueError(f"{kind}: Expected input to be 1D or 2D, got {rank}D instead")


def check_cell_state_rank(kind: str, states: Sequence[Tensor], batched: bool) -> None:
    """Check that a cell's states are 2-D beside a batch and 1-D beside a single input."""
    rank = 2 if batched else 1
    for k, state in enumerate(states):
        if state.dim() == rank:
            continue
        if state.dim() not in (1, 2):
            name = "hidden" if len(states) == 1 else f"hx[{k}]"
            raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
        raise RuntimeError(
            f"{kind}: For {'batched' if batched else 'unbatched'} {rank}-D input, hidden{k} should "
            f"also be {rank}-D, got {describe(state)}"
        )


def check_cell(
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Any],
    shapes: Sequence[tuple[int, ...]],
    names: Sequence[str],
) -> None:
    """Check `x [..., I]`, states `[..., H]` and the weights of a cell against each other.

    Args:
        weights: weight_ih, weight_hh and what else the cell has.
        shapes: the shape of each weight.
        names: the name of each weight.
    """
    first = weights[0]
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{kind}: {name} must be a tensor, got {describe(weight)}")
        if weight.shape != shape or weight.dtype != first.dtype or weight.device != first.device:
            raise RuntimeError(
                f"{kind}: {name} must be a {first.dtype} tensor of shape {list(shape)} on "
                f"{first.device}, got {describe(weight)}"
            )
    if x.dtype != first.dtype:
        raise DtypeError(
            f"{kind}: input dtype ({x.dtype}) does not match weight dtype ({first.dtype})"
        )
    if x.device != first.device:
        raise RuntimeError(
            f"{kind}: input must be on the weights' device {first.device}, got {x.device}"
        )
    *batch, features = x.shape
    if features != shapes[0][1]:
        raise RuntimeError(
            f"{kind}: input has inconsistent input_size: got {features} expected {shapes[0][1]}"
        )
    size = (*batch, shapes[1][1])
    for k, state in enumerate(states):
        if state.shape[-1] != size[-1]:
            raise RuntimeError(
                f"{kind}: hidden{k} has inconsistent hidden_size: got {state.shape[-1]}, "
                f"expected {size[-1]}"
            )
        if state.shape != size:
            raise RuntimeError(
                f"{kind}: Input batch size {size[0]} doesn't match hidden{k} batch size "
                f"{state.shape[0]}"
            )
    check_states(kind, states, x, [size] * len(states))
