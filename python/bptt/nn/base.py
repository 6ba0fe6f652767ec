"""What recurrent layers share: parameters by name, one call, one step, options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy
from torch.nn.utils.rnn import PackedSequence

from .. import functional
from ..calls import checks, plain
from ..calls.checks import Call, check_merge_mode, check_recompute
from ..interop.tracing import Traced
from ..options import PLAIN_OPTIONS, OptionNames, Options
from ..recurrence.cells import CELLS, PLAIN_CELLS
from ..recurrence.control import PLAIN
from ..recurrence.grad_norms import GradientNorms

Device = torch.device | str | int | None
Pair = tuple[Tensor, Tensor]


class RecurrentLayer(Traced, nn.RNNBase):
    """What all layers share; use RNN, GRU, LSTM or one of those beside them.

    Weights are looked up by name at each call, so parametrizations, weight_norm,
    `torch.func.functional_call`, weight tying and plain assignment all act at once. There is no
    packed copy of them to keep up to date.
    """

    # Class attributes, so that a pickle older than an option loads with the option's default.
    merge_mode: str | None = "concat"
    peephole: bool = False
    recompute: bool | str = False
    options: Options = PLAIN_OPTIONS
    learn_initial_state: bool = False
    _has_options = False
    _unfinished = False
    _kind = ""
    _gates = 0

    def __init__(
        self,
        mode: str,
        *args: Any,
        merge_mode: str | None,
        recompute: bool | str,
        learn_initial_state: bool,
        options: OptionNames,
        **kwargs: Any,
    ) -> None:
        bidirectional = kwargs["bidirectional"]
        check_merge_mode(merge_mode, bidirectional)
        self.merge_mode = merge_mode
        check_recompute(recompute)
        self.recompute = recompute
        if not isinstance(learn_initial_state, bool):
            raise TypeError(
                f"{self._kind}: learn_initial_state must be a bool, got {learn_initial_state!r}"
            )
        self.learn_initial_state = learn_initial_state
        if options:
            self.options = functional.layer_options(self._kind, self._shape(kwargs), **options)
            self._has_options = self.options != PLAIN_OPTIONS
        self._unfinished = True
        super().__init__(mode, *args, **kwargs)
        if self.hidden_size % self.options.num_heads:
            raise ValueError(
                f"{self._kind}: num_heads must divide hidden_size = {self.hidden_size}, got "
                f"{self.options.num_heads}"
            )
        del self._unfinished

    def _shape(self, arguments: dict[str, Any]) -> functional.LayerShape:
        """What decides which options a layer can have, besides its kind."""
        reset_before = not getattr(self, "reset_after", True)
        return functional.LayerShape(
            bool(arguments.get("proj_size")), bool(self.peephole), reset_before
        )

    @property
    def _cell_name(self) -> str:
        """The layer's cell, a name in `bptt.recurrence.cells.CELLS`."""
        raise NotImplementedError

    # Each class has a forward of its own that calls this: torch.compile counts what it compiles by
    # function, and gives up on one that it compiled too often.
    def _forward(
        self,
        input: Any,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
        grad_norms: GradientNorms | None,
        return_cells: bool,
        mask: Tensor | None,
    ) -> Any:
        eager = not torch.compiler.is_compiling()
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            return self._node(
                input,
                hx,
                lengths=lengths,
                resets=resets,
                grad_norms=grad_norms,
                return_cells=return_cells,
                mask=mask,
            )
        weights = self._weights(eager)
        bare = eager and resets is None and mask is None
        if bare and lengths is not None:
            bare = plain.leave_nothing_out(lengths, input, self.batch_first)
        if bare and grad_norms is None and not return_cells:
            answer = self._plain_forward(input, hx, weights)
            if answer is not None:
                return answer
        call = self._call(return_cells)
        if mask is not None:
            lengths = checks.lengths_of_mask(self._kind, mask, input, lengths, self.batch_first)
        if hx is None and self.learn_initial_state:
            hx = self._initial_state(input, 3, 0 if self.batch_first else 1)
        return functional.run(call, input, hx, weights, lengths, resets, grad_norms)

    def _weights(self, eager: bool) -> list[Any]:
        """The flat weights; where nothing replaced a parameter, without nn.Module's search."""
        names = self._flat_weights_names
        if eager:
            try:
                return list(map(self._parameters.__getitem__, names))
            except KeyError:
                pass
        return [getattr(self, name) for name in names]

    def _plain_cell(self, hx: Any) -> str:
        """The cell of a call that is one for `calls.plain`, as far as the layer goes, or ""."""
        if (
            self.merge_mode != "concat"
            or self._has_options
            or self.proj_size
            or self._nonlinearity
            or (self.dropout and self.training)
            or (self.recompute and torch.is_grad_enabled())
            or (hx is None and self.learn_initial_state)
        ):
            return ""
        cell = self._cell_name
        return cell if cell in plain.CELLS else ""

    def _plain_forward(self, input: Any, hx: Any, weights: Sequence[Any]) -> Any:
        """See `calls.plain.forward`."""
        cell = self._plain_cell(hx)
        if not cell:
            return None
        if not self.batch_first:
            return plain.forward(cell, input, hx, weights, self.bias, self.bidirectional)
        x = input.transpose(0, 1) if isinstance(input, Tensor) and input.dim() == 3 else input
        answer = plain.forward(cell, x, hx, weights, self.bias, self.bidirectional)
        return None if answer is None else (answer[0].transpose(0, 1), answer[1])

    def step(
        self, input: Tensor, hx: Any = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Take one time step of a stream.

            state = None
            for x_t in stream:
                y_t, state = layer.step(x_t, state)

        In training each step draws masks of its own, also of `recurrent_dropout`.

        Args:
            input: `[B, I]`, or `[I]` for a single sequence.
            hx: the state as the layer takes and returns it, `[L, B, R]` (`[L, R]`); None at the
                start.
            resets: bool `[B]` (`[]`); true where the state is zeroed before the step.

        Returns:
            The output `[B, R]` (`[R]`) and the state after the step.

        Raises:
            ValueError: the layer is bidirectional: its second direction starts at the end.
        """
        if self.bidirectional:
            raise ValueError(
                f"{self._kind}: step needs a layer of one direction; the reverse one starts at the "
                "end of a sequence"
            )
        if hx is None and self.learn_initial_state:
            hx = self._initial_state(input, 2, 0)
        eager = not torch.compiler.is_compiling()
        weights = self._weights(eager)
        bare = eager and resets is None and type(input) is Tensor and input.dim() == 2
        cell = self._plain_cell(hx) if bare else ""
        if cell:
            answer = plain.forward(cell, input.unsqueeze(0), hx, weights, self.bias, False)
            if answer is not None:
                return answer[0][0], answer[1]
        return functional.step(self._call(False), input, hx, weights, resets)

    def _call(self, return_cells: bool) -> Call:
        """The options of a call."""
        if return_cells and not CELLS[self._cell_name].has_cell_state:
            raise ValueError(f"{self._kind}: return_cells needs a layer with a cell state")
        options, control = self.options, PLAIN
        controlled = self._has_options or self._nonlinearity != ""
        if controlled:
            control = options.control(self.training, self._nonlinearity)
        return Call(
            self._kind,
            self._cell_name,
            self._gates,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.bias,
            self.proj_size,
            self.peephole,
            self.merge_mode,
            self.dropout if self.training else 0.0,
            self.batch_first,
            self.recompute,
            options,
            control,
            float(options.weight_drop) if self.training else 0.0,
            return_cells,
            controlled or self._cell_name not in PLAIN_CELLS,
        )

    @property
    def _nonlinearity(self) -> str:
        """An activation of the hidden state that is not the cell's own, or ""."""
        return ""

    def _initial_state(self, input: Any, rank: int, axis: int) -> Any:
        """The learned initial state for an input, whose batch is an axis of that rank.

        None for what is no input: the checks to come say why.
        """
        states = [getattr(self, name) for name in self._initial_names()]
        batch: int | None = None
        if isinstance(input, PackedSequence):
            batch = int(input.batch_sizes[0])
        elif not isinstance(input, Tensor) or input.dim() not in (rank - 1, rank):
            return None
        elif input.dim() == rank:
            batch = input.shape[axis]
        if batch is not None:
            states = [s.unsqueeze(1).expand(-1, batch, -1) for s in states]
        return states[0] if len(states) == 1 else tuple(states)

    def _initial_names(self) -> list[str]:
        return [f"initial_{name}" for name in CELLS[self._cell_name].states]

    def flatten_parameters(self) -> None:
        """Do nothing: no backend needs the weights in one chunk of memory. Kept for torch.nn."""

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self.merge_mode != "concat":
            shown += f", merge_mode={self.merge_mode}"
        if self.recompute:
            shown += f", recompute={self.recompute}"
        for name, value in self.options.asked().items():
            shown += f", {name}={value}"
        return f"{shown}, learn_initial_state=True" if self.learn_initial_state else shown

    def reset_parameters(self) -> None:
        """Draw the weights as torch.nn does; gains start at one, learned initial states at zero."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("gain_"):
                nn.init.ones_(parameter)
            elif name.startswith(("initial_", "bias_c")):
                nn.init.zeros_(parameter)

    # --- what subclasses of torch.nn's layers call ---

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The shape of a cell state for an input, `(L*D, B, H)`, as nn.LSTM has it."""
        rows, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return rows, batch, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Check an input and states of full rank, as torch.nn's layer of the kind does.

        Raises:
            ValueError, RuntimeError: as in torch.nn.
        """
        if len(CELLS[self._cell_name].states) == 1:
            super().check_forward_args(input, hidden, batch_sizes)
            return
        self.check_input(input, batch_sizes)
        sizes = (self.get_expected_hidden_size, self.get_expected_cell_size)
        for k, state in enumerate(hidden):
            size = sizes[min(k, 1)](input, batch_sizes)
            self.check_hidden_size(state, size, f"Expected hidden[{k}] size {{}}, got {{}}")

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """The states with their batch in another order."""
        if permutation is None or isinstance(hx, Tensor):
            return super().permute_hidden(hx, permutation)
        return tuple(super(RecurrentLayer, self).permute_hidden(s, permutation) for s in hx)

    # --- nn.RNNBase's bookkeeping ---

    @property
    def _flat_weights(self) -> list[Any]:
        """The weights as they are now. nn.RNNBase keeps a list that can go stale."""
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Any]) -> None:
        """Make the attributes what is assigned; None leaves one as it is.

        Raises:
            ValueError: not as many as the layer has weights.
        """
        names = self._flat_weights_names
        if len(weights) != len(names):
            raise ValueError(
                f"{self._kind}: _flat_weights must hold {len(names)} tensors "
                f"({', '.join(names)}), got {len(weights)}"
            )
        for name, weight in zip(names, weights, strict=True):
            if weight is None or weight is getattr(self, name, None):
                continue
            if not isinstance(weight, nn.Parameter):  # torch refuses it in a parameter's place
                self._parameters.pop(name, None)
            setattr(self, name, weight)

    def __setattr__(self, name: str, value: Any) -> None:
        # Past nn.RNNBase, which would enter the value in its list of weights.
        super(nn.RNNBase, self).__setattr__(name, value)

    def _update_flat_weights(self) -> None:
        """Nothing to update: see `_flat_weights`."""

    def _init_flat_weights(self) -> None:
        # nn.RNNBase's constructor calls this when its parameters exist and before it draws their
        # values: the moment to add our own, so that they are drawn like the rest and after them.
        if self._unfinished:
            self._add_parameters()

    def _add_parameters(self) -> None:
        if self.merge_mode in ("sum", "mul", "ave"):
            # Merged directions are as wide as one, and so is the next layer's input.
            directions = 2 if self.bidirectional else 1
            for name in self._flat_weights_names:
                weight = getattr(self, name)
                if name.startswith("weight_ih_l") and not name.startswith("weight_ih_l0"):
                    rows, width = weight.shape
                    setattr(self, name, nn.Parameter(weight.new_empty(rows, width // directions)))
        self._add_own_parameters()
        if self.learn_initial_state:
            directions = 2 if self.bidirectional else 1
            for k, name in enumerate(self._initial_names()):
                width = self.proj_size if k == 0 and self.proj_size else self.hidden_size
                like = getattr(self, self._flat_weights_names[0])
                state = like.new_empty(self.num_layers * directions, width)
                setattr(self, name, nn.Parameter(state))

    def _add_own_parameters(self) -> None:
        """Give each layer and direction the weights that torch.nn does not know of."""
        call = self._call(False)
        wanted = call.names()
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            for name in [n for n in names if n.removesuffix(suffix) not in wanted]:
                names.remove(name)
                delattr(self, name)
            first = getattr(self, names[0])
            for kind, shape in zip(
                wanted, call.shapes(self.hidden_size, first.shape[1]), strict=True
            ):
                name = kind + suffix
                if name not in names:
                    names.append(name)
                elif getattr(self, name).shape == shape:
                    continue
                setattr(self, name, nn.Parameter(first.new_empty(shape)))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
