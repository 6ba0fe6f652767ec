"""What the tasks share that turn one sequence of symbols into another: g2p, inflect, translate.

A task gives vocabularies, pairs, test examples and a judgement; here are options, model, batches,
decoding, and what reports show.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.data import pad
from bptt.data.batches import SimilarLengths
from bptt.data.errors import BadInput
from bptt.data.vocabulary import END, PAD, START
from bptt.models import Seq2Seq
from bptt.train.lengths import by_length
from bptt.train.settings import Settings
from bptt.train.task import Batch, Fitting, Rows, Task, device_of

EXAMPLES = 12
_DECODED = 4096  # rows of a batch that is decoded, beams counted


class PairSettings(Settings):
    cell: Literal["rnn", "gru", "lstm"] = Field("gru", description="Of encoder and decoder.")
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    attention: Literal["none", "luong", "bahdanau"] = Field(
        "luong", description="How the decoder looks at the source."
    )
    layers: int = Field(1, ge=1, description="Of encoder and of decoder.")
    units: int = Field(256, ge=2, multiple_of=2, description="Hidden state of the decoder.")
    embedding: int = Field(64, ge=1, description="Size of the symbols' embeddings.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Around and between the layers.")
    coverage: float = Field(0.0, ge=0, description="Weight of the loss for looking twice.")
    smoothing: float = Field(0.0, ge=0, lt=1, description="Probability spread over all symbols.")
    forcing: float = Field(
        1.0, ge=0, le=1, description="Share of true symbols fed at the end; it falls from 1."
    )
    beam: int = Field(1, ge=1, description="Width of the search when judged; 1 is greedy.")
    penalty: float = Field(1.0, ge=0, description="Power of the length that scores are divided by.")
    clip: float = Field(1.0, ge=0, description="Bound on the norm of all gradients (0: none).")


Input = TypeVar("Input")


class Answer(NamedTuple):
    """One output: its numbers without start and end, and its score (see `search.beam_search`)."""

    numbers: list[int]
    score: float


class Pairing(Fitting):
    """The model's losses; a share of the symbols that the decoder is fed are its own.

    The share rises from 0 in a straight line, to 1 - `forcing` at the last step (Bengio et al.
    2015, arXiv 1506.03099).
    """

    def __init__(self, model: Seq2Seq, *, lr: float, forcing: float) -> None:
        super().__init__(model, lr=lr)
        self.forcing = forcing

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        model: Any = self.model
        source, target = batch["source"].t(), batch["target"].t()  # [T, B], [U + 1, B]
        own = self._own(target[1:]) if self.training and self.forcing < 1 else None
        found: dict[str, Tensor] = model.losses(source, batch["source_length"], target, own)
        return found

    def _own(self, target: Tensor) -> Tensor:
        through = self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)
        return torch.rand(target.shape, device=target.device) < (1 - self.forcing) * through


class PairTask(Task, Generic[Input]):
    """A task of pairs; a subclass has `load`, `encode_source`, `words`, `judge` and the rest.

    `load` sets `source` and `target`, the vocabularies, and calls `take`; `validation` may stay
    None, then a part of what is there to train on is kept for it.
    """

    longest: ClassVar[int]  # symbols of an output
    never: ClassVar[tuple[int, ...]] = ()  # symbols that no output may have

    source: Any
    target: Any
    rows: Rows
    validation: Rows | None = None

    @abstractmethod
    def encode_source(self, given: Input) -> list[int]:
        """Numbers of one input.

        Raises:
            BadInput: it is empty, or holds what the model does not know.
        """

    @abstractmethod
    def source_names(self, given: Input) -> list[str]:
        """The symbols of one input, for pictures."""

    @abstractmethod
    def target_names(self, numbers: Sequence[int]) -> list[str]:
        """The symbols of one output, for pictures."""

    @abstractmethod
    def shown(self) -> list[tuple[Input, str, str]]:
        """Test examples for reports: input, its text, the reference's text."""

    @abstractmethod
    def text(self, answer: Answer) -> str:
        """An output as text."""

    def table(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Rows:
        """Pairs of numbers as columns; start and end are put around the targets."""
        sources = pad([source for source, _ in pairs])
        targets = pad([[START, *target, END] for _, target in pairs])
        return Rows(
            source=sources.values,
            source_length=sources.lengths,
            target=targets.values,
            target_length=targets.lengths,
        )

    def sets(self) -> tuple[Rows, Rows]:
        s = self.settings
        if self.validation is None:
            return self.rows.split(0.02, s.seed, s.examples)
        if s.examples and s.examples < len(self.rows):
            order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(s.seed))
            return Rows(**self.rows[order[: s.examples]]), self.validation
        return self.rows, self.validation

    def batches(self, rows: Rows, shuffle: bool) -> SimilarLengths:
        return by_length(rows, ("source_length", "target_length"), self.settings, shuffle)

    def collate(self, batch: Any) -> Batch:
        """As long as the longest of the batch; here, where the lengths are on the host."""
        cut = {name: int(batch[f"{name}_length"].max()) for name in ("source", "target")}
        return {**batch, **{name: batch[name][:, :longest] for name, longest in cut.items()}}

    def build(self) -> Fitting:
        s = self.settings
        if s.coverage and s.attention == "none":
            raise BadInput("coverage: needs an attention, got attention 'none'")
        model = Seq2Seq(
            len(self.source),
            len(self.target),
            hidden=s.units,
            embedding=s.embedding,
            layers=s.layers,
            cell=s.cell,
            attention=s.attention,
            coverage=s.coverage,
            dropout=s.dropout,
            smoothing=s.smoothing,
            padding=PAD,
            impl=s.impl,
        )
        return Pairing(model, lr=s.lr, forcing=s.forcing)

    def answers(
        self, model: Any, inputs: Sequence[Input], *, beam: int = 0, penalty: float | None = None
    ) -> list[list[Answer]]:
        """The best outputs of each input, best first: as many as the beam is wide.

        Args:
            model: a `Seq2Seq`.
            inputs: see `encode_source`.
            beam: width of the search; 0 for the settings', 1 is greedy.
            penalty: see `search.beam_search`; the settings' if not given.

        Raises:
            BadInput: see `encode_source`.
        """
        width = beam or self.settings.beam
        penalty = self.settings.penalty if penalty is None else penalty
        sources = pad([self.encode_source(given) for given in inputs])
        device = device_of(model)
        found: list[list[Answer]] = [[] for _ in inputs]
        limits = {"start": START, "end": END, "steps": self.longest, "never": self.never}
        # Inputs of like length decode together: a batch takes as many steps as its longest.
        for rows in sources.lengths.argsort(stable=True).split(max(1, _DECODED // width)):
            batch = [part.to(device) for part in sources.batch(rows)]
            if width == 1:
                numbers = model.greedy(*batch, **limits)[:, None]  # [B, 1, U]
                scores = torch.zeros(len(rows), 1)
            else:
                numbers, scores = model.beams(*batch, width=width, penalty=penalty, **limits)
            for row, many, each in zip(
                rows.tolist(), numbers.tolist(), scores.tolist(), strict=True
            ):
                found[row] = [
                    Answer(_until_end(one), score)
                    for one, score in zip(many, each, strict=True)
                    if score > float("-inf")
                ]
        return found

    def attention(self, model: Any, given: Input, answer: Answer) -> Tensor | None:
        """Where the model looks while it writes an answer and its end: [U + 1, T], or None."""
        source = pad([self.encode_source(given)])
        previous = torch.tensor([START, *answer.numbers])[:, None]
        taken = (source.values.t(), source.lengths, previous)
        weights = model.looked(*(part.to(device_of(model)) for part in taken))
        return None if weights is None else weights[0].cpu()

    def attention_figure(self, model: Any, given: Input, answer: Answer) -> Figure | None:
        """A picture of `attention`; None for a model without one."""
        weights = self.attention(model, given, answer)
        if weights is None:
            return None
        return map_figure(weights, self.source_names(given), self.target_names(answer.numbers))

    def glimpse(self, model: Any) -> dict[str, str]:
        shown = self.shown()[:3]
        answers = self.answers(model, [given for given, _, _ in shown], beam=1)
        pairs = zip(shown, answers, strict=True)
        return {f"{text} ({reference})": self.text(best[0]) for (_, text, reference), best in pairs}

    def figures(self, model: Any) -> dict[str, Figure]:
        made = {}
        shown = sorted(self.shown(), key=lambda example: len(example[1]))[-2:]
        for given, text, _ in shown:
            picture = self.attention_figure(model, given, self.answers(model, [given])[0][0])
            if picture is not None:
                made[f"Where it looks in “{text}”"] = picture
        return made

    def vocabularies(self) -> dict[str, Any]:
        return {"source": self.source.dump(), "target": self.target.dump()}


def _until_end(numbers: list[int]) -> list[int]:
    return numbers[: numbers.index(END)] if END in numbers else numbers


def map_figure(weights: Tensor, columns: Sequence[str], rows: Sequence[str]) -> Figure:
    """A map of attention [U + 1, T] with its symbols; the last row is the end's."""
    rows = [*rows, "end"]
    slanted = max(map(len, columns)) > 2
    size = 0.4 * len(columns) + 1.8, 0.3 * len(rows) + (1.5 if slanted else 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.imshow(weights.numpy(), cmap="viridis", aspect="auto", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), list(columns), rotation=60 if slanted else 0)
    axis.set_yticks(range(len(rows)), rows)
    return figure
