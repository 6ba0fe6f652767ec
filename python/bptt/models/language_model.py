"""A language model: what symbol comes next, given all before it.

For symbols x_1..x_T of a vocabulary of V, with a learnt embedding e:

    h^1_t = recurrence(e(x_t), h^1_{t-1})        first layer
    h^l_t = recurrence(h^{l-1}_t, h^l_{t-1})     the others, dropout between them
    p(x_{t+1} | x_1..x_t) = softmax(E h^L_t + b)

Tied weights: the output matrix E is the embedding's, after a projection where sizes differ.
A text is read in chunks, the state carried from one to the next but detached there (truncated
backpropagation through time): values are those of one long pass, gradients stop between chunks.

Source: Mikolov et al., Recurrent neural network based language model, Interspeech 2010; Zaremba,
Sutskever, Vinyals (arXiv 1409.2329), for dropout between layers; Press and Wolf (arXiv 1608.05859)
and Inan, Khosravi, Socher (arXiv 1611.01462), for tied weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Impl, recurrent

State = Any  # of the recurrent layers: [L, B, H], or two of them for the LSTM


class LanguageModel(nn.Module):
    """Symbols [T, B] to logits [T, B, symbols] of those that follow.

    Args:
        symbols: V, size of the vocabulary.
        units: H, size of the hidden states.
        embedding: size of the embedding.
        cell: see `recurrent`.
        layers: L.
        dropout: on embeddings, between layers and before the output.
        weight_drop: on hidden-to-hidden weights (Merity, Keskar, Socher, arXiv 1708.02182).
        tied: the output matrix is the embedding's.
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    def __init__(
        self,
        symbols: int,
        *,
        units: int = 256,
        embedding: int = 64,
        cell: str = "lstm",
        layers: int = 1,
        dropout: float = 0.0,
        weight_drop: float = 0.0,
        tied: bool = True,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.layer = recurrent(
            cell,
            embedding,
            units,
            layers=layers,
            dropout=dropout,
            batch_first=False,
            weight_drop=weight_drop,
            impl=impl,
        )
        self.dropout = nn.Dropout(dropout)
        projected = tied and units != embedding
        self.projection = nn.Linear(units, embedding) if projected else nn.Identity()
        self.output = nn.Linear(embedding if tied else units, symbols)
        if tied:
            nn.init.normal_(self.embedding.weight, std=embedding**-0.5)  # as large as an output's
            self.output.weight = self.embedding.weight

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Logits [T, B, symbols] after each of x [T, B], and the state to go on from."""
        embedded = self.dropout(self.embedding(x))  # [T, B, embedding]
        h, state = self.layer(embedded, state)  # [T, B, units]
        return self.output(self.projection(self.dropout(h))), state

    def losses(self, x: Tensor, y: Tensor, state: State = None) -> tuple[dict[str, Tensor], State]:
        """Mean cross-entropy of y [T, B], which follow x [T, B], in nats; and the state after."""
        logits, state = self(x, state)
        return {"entropy": F.cross_entropy(logits.flatten(0, 1), y.flatten())}, state

    @torch.no_grad()
    def step(self, symbols: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities [B, symbols] after one more symbol each [B]; what searches call."""
        logits, state = self(symbols[None], state)
        return logits[0].log_softmax(-1), state


def nats_while_learning(
    model: LanguageModel, x: Tensor, y: Tensor, state: State, *, lr: float, steps: int = 20
) -> Tensor:
    """Nats of every symbol of a text while the model goes on learning from what it has read.

    Dynamic evaluation (Krause et al. 2018, arXiv 1709.07432): each stretch is judged first, then
    learnt from by a step of Adam, so that nothing is judged by what it was learnt from. The model
    given stays as it is.

    Args:
        model: a trained one.
        x, y: symbols [N] and those that follow [N].
        state: after all that came before x.
        lr: learning rate.
        steps: symbols between two updates.
    """
    model = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.0, 0.999))
    nats = []
    with torch.enable_grad():
        for read, next_ones in zip(x.split(steps), y.split(steps), strict=True):
            logits, state = model(read[:, None], detached(state))
            each = F.cross_entropy(logits[:, 0], next_ones, reduction="none")
            nats.append(each.detach())
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
    return torch.cat(nats)


def detached(state: State) -> State:
    """A state that gradients do not pass."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()


def chosen(state: State, rows: Tensor) -> State:
    """The state of some rows of the batch, which may repeat."""
    if isinstance(state, tuple):
        return tuple(part[:, rows] for part in state)
    return None if state is None else state[:, rows]
