"""Task `inflect`: learn how words change, and inflect lemmas never seen.

An encoder reads a lemma's letters and, as one more symbol, the tags of the wanted form; a decoder
with attention writes the form. Split by lemma. Beside the model stand rules that change endings the
usual way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

from pydantic import Field
from rapidfuzz.distance import Levenshtein

from bptt.data import Vocabulary, inflections
from bptt.data.errors import BadInput
from bptt.data.inflections import Entry, SuffixRules
from bptt.train.task import Anchor, Judgement

from .pairs import EXAMPLES, Answer, PairSettings, PairTask

LEAST_FORMS = 100


class InflectSettings(PairSettings):
    forms: int = Field(0, ge=0, description="Use so many forms of the table (0: all).")
    judged: int = Field(5000, ge=1, description="Held-out forms to judge on, at most.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Around and between the layers.")
    lr: float = Field(3e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")


class InflectTask(PairTask[Entry]):
    name = "inflect"
    model = "Encoder-decoder with attention: lemma and tags to an inflected form"
    data: ClassVar[str] = "English from lemminflect; or a file of UniMorph's (--data)"
    metric = "accuracy of forms"
    anchor = "rules of endings, in the same run"
    minutes: ClassVar[float] = 4
    steps: ClassVar[int] = 3000
    longest = 40  # letters
    Settings = InflectSettings

    def load(self) -> int:
        s = self.settings
        forms = inflections.load(s.data)
        if s.forms:
            forms = dict(islice(forms.items(), s.forms))
        if len(forms) < LEAST_FORMS:
            raise BadInput(f"{s.data or '--forms'}: {LEAST_FORMS} forms or more are needed")
        self.training, self.held_out = inflections.split(forms, s.seed)
        words = {word for (lemma, _), choices in forms.items() for word in (lemma, *choices)}
        letters = set().union(*words)
        self.source = Vocabulary([*letters, *(tags for _, tags in forms)], "letter or tags")
        self.target = Vocabulary(letters, "letter")
        self.rows = self.table(
            [
                (self.encode_source(entry), self.target.encode(choices[0]))
                for entry, choices in self.training.items()
            ]
        )
        return len(self.rows)

    def use(self, vocabularies: dict[str, Any]) -> None:
        self.source = Vocabulary.load(vocabularies["source"])
        self.target = Vocabulary.load(vocabularies["target"])

    def data_name(self) -> str:
        return "lemminflect's English" if self.settings.data is None else "a table of forms"

    def read(self, text: str) -> Entry:
        """Lemma and tags of a text such as "walk V;PST".

        Raises:
            BadInput: it is not of that form.
        """
        lemma, _, tags = text.strip().rpartition(" ")
        if not lemma:
            known = [one for one in self.source.symbols if len(one) > 1]
            raise BadInput(f"expected a word and tags such as “walk {known[0]}”, got {text!r}")
        return lemma, tags

    def encode_source(self, given: Entry) -> list[int]:
        lemma, tags = given
        try:
            return self.source.encode([*lemma, tags])
        except ValueError as error:
            raise BadInput(str(error)) from None

    def source_names(self, given: Entry) -> list[str]:
        return [*given[0], given[1]]

    def target_names(self, numbers: Sequence[int]) -> list[str]:
        return list(self.target.decode(numbers))

    def text(self, answer: Answer) -> str:
        return "".join(self.target.decode(answer.numbers))

    def _judged(self) -> list[Entry]:
        """Entries in an order that mixes the alphabet."""
        entries = list(self.held_out)
        return entries[:: max(1, len(entries) // self.settings.judged)][: self.settings.judged]

    def judge(self, model: Any) -> Judgement:
        entries, rules = self._judged(), SuffixRules(self.training)
        made = [self.text(best[0]) for best in self.answers(model, entries)]
        ruled = [rules.form(*entry) for entry in entries]
        shares = [
            sum(form in self.held_out[entry] for entry, form in zip(entries, forms, strict=True))
            / len(entries)
            for forms in (made, ruled)
        ]
        metrics = {
            "accuracy": shares[0],
            "accuracy of rules": shares[1],
            "forms judged": float(len(entries)),
        }
        source = "rules of endings, the same forms"
        return Judgement(metrics, [Anchor("accuracy", "above", shares[1], source)])

    def shown(self) -> list[tuple[Entry, str, str]]:
        entries = self._judged()
        entries = entries[:: max(1, len(entries) // EXAMPLES)][:EXAMPLES]
        return [(entry, " ".join(entry), self.held_out[entry][0]) for entry in entries]

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        entries, rules = self._judged()[:1000], SuffixRules(self.training)
        answers = zip(entries, self.answers(model, entries), strict=True)
        made = {entry: self.text(best[0]) for entry, best in answers}

        def row(entry: Entry) -> list[str]:
            right = "right" if made[entry] in self.held_out[entry] else "wrong"
            known = " or ".join(self.held_out[entry])
            return [" ".join(entry), made[entry], rules.form(*entry), known, right]

        def distance(entry: Entry) -> int:
            return min(Levenshtein.distance(made[entry], form) for form in self.held_out[entry])

        first = [["lemma and tags", "the model", "rules", "the table", ""]]
        worst = sorted(entries, key=distance, reverse=True)[:EXAMPLES]
        better = [e for e in entries if distance(e) == 0 and rules.form(*e) not in self.held_out[e]]
        shown = [entry for entry, _, _ in self.shown() if entry in made]
        return {
            "Lemmas it never saw": first + [row(entry) for entry in shown],
            "The worst of a thousand": first + [row(entry) for entry in worst],
            "Right where the rules are wrong": first + [row(e) for e in better[:EXAMPLES]],
        }
