"""The recurrent autoencoder: a sequence of any length into one vector, and back.

For x_1..x_T of F features each:

    h_t = recurrence(x_t, h_{t-1})              encoder, bidirectional by option
    z   = W [h_T forwards; h_1 backwards]       the code
    s_t = recurrence(z, s_{t-1}),  s_0 = 0      decoder: the code is its input at every step
    x̂_t = V s_t

The decoder sees none of x, so that all it knows has passed through z. Its input does not depend on
what it has put out: encoder and decoder are one call of a fused layer each.

Source: Srivastava, Mansimov, Salakhutdinov, Unsupervised learning of video representations using
LSTMs (arXiv 1502.04681), without condition; Cho et al. (arXiv 1406.1078), for the code at every
step.
"""

from __future__ import annotations

from torch import Tensor, nn

from .reconstruction import LossKind, Reconstructing
from .recurrent import Impl, last_hidden, recurrent, valid


class SequenceEncoder(nn.Module):
    """Sequences [B, T, features], with lengths [B] or without, to [B, code]."""

    def __init__(
        self,
        features: int,
        code: int,
        *,
        hidden: int,
        cell: str,
        layers: int,
        bidirectional: bool,
        impl: Impl,
    ) -> None:
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.layer = recurrent(
            cell, features, hidden, layers=layers, bidirectional=bidirectional, impl=impl
        )
        self.code = nn.Linear(self.directions * hidden, code)  # W

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        _, state = self.layer(x, lengths=lengths)
        return self.code(last_hidden(state, self.directions))  # [B, D * H] -> [B, code]


class SequenceDecoder(nn.Module):
    """Codes [B, code] to sequences [B, steps, features]."""

    def __init__(
        self, features: int, code: int, *, hidden: int, cell: str, layers: int, impl: Impl
    ) -> None:
        super().__init__()
        self.layer = recurrent(cell, code, hidden, layers=layers, impl=impl)
        self.output = nn.Linear(hidden, features)  # V

    def forward(self, code: Tensor, steps: int) -> Tensor:
        states, _ = self.layer(code[:, None].expand(-1, steps, -1))  # [B, steps, H]
        return self.output(states)  # [B, steps, features]


class SequenceReconstructing(Reconstructing):
    """Losses and errors of sequences [B, T, features], of which `lengths` [B] steps count.

    A value's loss is averaged over all steps within the lengths, so that long sequences weigh more.
    """

    def reconstruct(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.values(self(x, lengths)[0])

    def errors(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        within = valid(x, lengths)  # [B, T, 1]
        squared = (self.reconstruct(x, lengths) - x).square() * within
        return squared.sum((1, 2)) / (within.sum((1, 2)) * x.shape[2])

    def losses(self, x: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        return {"reconstruction": self.mean_loss(self(x, lengths)[0], x, lengths)}

    def mean_loss(self, raw: Tensor, x: Tensor, lengths: Tensor | None) -> Tensor:
        within = valid(x, lengths)
        return (self.value_losses(raw, x) * within).sum() / (within.sum() * x.shape[2])


class RecurrentAutoencoder(SequenceReconstructing):
    """Sequences [B, T, features] to codes [B, code] and back, on bptt's fused layers.

    Args:
        features: F, values of a step.
        code: size of the code.
        hidden: size of the hidden state, of the encoder (in each direction) and of the decoder.
        cell: see `recurrent`.
        layers: recurrent layers on top of each other, in each half.
        bidirectional: the encoder reads both ways.
        impl: "bptt", or "torch" for torch.nn's layers.
        loss: as in `Reconstructing`.
    """

    def __init__(
        self,
        features: int,
        code: int = 32,
        hidden: int = 128,
        cell: str = "gru",
        layers: int = 1,
        bidirectional: bool = True,
        impl: Impl = "bptt",
        loss: LossKind = "mse",
    ) -> None:
        super().__init__(loss)
        self.encoder = SequenceEncoder(
            features,
            code,
            hidden=hidden,
            cell=cell,
            layers=layers,
            bidirectional=bidirectional,
            impl=impl,
        )
        self.decoder = SequenceDecoder(
            features, code, hidden=hidden, cell=cell, layers=layers, impl=impl
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw outputs [B, T, features] and codes [B, code]."""
        code = self.encoder(x, lengths)
        return self.decoder(code, x.shape[1]), code
