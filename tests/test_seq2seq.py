"""Do encoder-decoders learn, and are their attention and searches what their equations say?"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from bptt.data import Vocabulary, cmudict, pad, similar_lengths
from bptt.data.vocabulary import END, PAD, START
from bptt.models import Seq2Seq, score
from bptt.models.attention import repetition

TEXT = (
    "about again below chair dance early first green house inner judge kitchen little money never "
    "other paper queen river seven table under voice water extra young zebra bridge church thing "
    "measure joy"
)
WORDS = TEXT.split()
ATTENTIONS = ("none", "luong", "bahdanau")


class Words:
    """Words and pronunciations as padded tensors, and a model to learn them."""

    def __init__(self, lexicon: cmudict.Lexicon, **options) -> None:
        self.letters = Vocabulary((c for word in lexicon for c in word), "letter")
        self.phonemes = Vocabulary((*cmudict.VOWELS, *cmudict.CONSONANTS), "phoneme")
        self.sources = pad([self.letters.encode(word) for word in lexicon])
        self.targets = pad(
            [[START, *self.phonemes.encode(said[0]), END] for said in lexicon.values()]
        )
        torch.manual_seed(0)
        self.model = Seq2Seq(len(self.letters), len(self.phonemes), **options)

    def train(self, steps: int, batch: int, learning_rate: float) -> None:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)
        generator = torch.Generator().manual_seed(0)
        rows: list[torch.Tensor] = []
        for _ in range(steps):
            lengths = (self.sources.lengths, self.targets.lengths)
            rows = rows or similar_lengths(lengths, batch, generator)
            chosen = rows.pop()
            source, target = self.sources.batch(chosen), self.targets.batch(chosen)
            loss = sum(self.model.losses(source.values, source.lengths, target.values).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def batch(self, words: list[str]):
        return pad([self.letters.encode(word) for word in words]).batch(torch.arange(len(words)))

    def say(self, words: list[str]) -> list[tuple[str, ...]]:
        said = self.model.eval().greedy(*self.batch(words), start=START, end=END, steps=30)
        return [self.phonemes.decode(row) for row in said.tolist()]


@pytest.fixture(scope="module")
def lexicon() -> cmudict.Lexicon:
    return cmudict.load()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"cell": "gru"}, 150),
        ({"cell": "lstm"}, 150),
        ({"cell": "rnn"}, 150),
        ({"cell": "gru", "attention": "bahdanau"}, 150),
        ({"cell": "lstm", "attention": "bahdanau", "layers": 2, "coverage": 0.1}, 200),
        ({"cell": "gru", "attention": "none", "layers": 2}, 250),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_32_words_are_learnt_by_heart(options, steps, lexicon):
    small = {word: lexicon[word][:1] for word in WORDS}
    task = Words(small, hidden=64, embedding=32, **options)
    task.train(steps=steps, batch=32, learning_rate=5e-3)
    assert dict(zip(small, task.say(list(small)), strict=True)) == {
        word: said for word, (said,) in small.items()
    }


def test_it_beats_one_phoneme_per_letter_on_words_it_never_saw(lexicon):
    some = {word: said for word, said in list(lexicon.items())[::40] if word.isalpha()}
    train, held_out = cmudict.split(some, held_out=0.1, seed=0)
    task = Words(train, hidden=64, embedding=32)
    task.train(steps=400, batch=64, learning_rate=1e-2)

    votes: dict[str, Counter[str]] = {}
    for word, pronunciations in train.items():
        if len(word) == len(pronunciations[0]):  # aligned letter by letter
            for letter, phoneme in zip(word, pronunciations[0], strict=True):
                votes.setdefault(letter, Counter())[phoneme] += 1
    likeliest = {letter: counts.most_common(1)[0][0] for letter, counts in votes.items()}
    references = list(held_out.values())
    baseline = score([[likeliest[letter] for letter in word] for word in held_out], references)
    model = score(task.say(list(held_out)), references)
    constant = Counter(said for choices in train.values() for said in choices).most_common(1)[0][0]
    assert (
        baseline.symbol_error_rate < score([constant] * len(held_out), references).symbol_error_rate
    )
    assert model.symbol_error_rate < 0.8 * baseline.symbol_error_rate
    assert model.word_error_rate < 0.9 * baseline.word_error_rate


def tiny(**options) -> Words:
    task = Words(dict.fromkeys(WORDS, (("AH",),)), hidden=16, embedding=8, **options)
    task.model.double().eval()
    for parameter in task.model.parameters():  # far from uniform predictions
        torch.nn.init.normal_(parameter, std=0.5)
    return task


@pytest.fixture(
    scope="module",
    params=[
        {"attention": attention, "cell": cell, "layers": layers, "coverage": coverage}
        for attention, cell, layers, coverage in [
            ("none", "gru", 2, 0.0),
            ("luong", "lstm", 1, 0.5),
            ("luong", "rnn", 2, 0.0),
            ("bahdanau", "gru", 1, 0.0),
            ("bahdanau", "lstm", 2, 0.5),
        ]
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def words(request) -> Words:
    return tiny(**request.param)


def test_padding_is_not_seen(words):
    some = ["joy", "measure"]
    previous = torch.tensor([[START, START], [5, 6], [7, 8]])
    both = words.batch(some)
    garbage = torch.where(both.values == PAD, 9, both.values)
    joined, _ = words.model(garbage, both.lengths, previous)
    for i, word in enumerate(some):
        alone, _ = words.model(*words.batch([word]), previous[:, i : i + 1])
        torch.testing.assert_close(joined[:, i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_attention_is_a_distribution_over_the_source(words):
    batch = words.batch(WORDS)
    previous = torch.randint(3, 9, (5, len(WORDS)))
    weights = words.model.looked(*batch, previous)
    if weights is None:
        assert type(words.model.decoder).__name__ == "PlainDecoder"
        return
    assert weights.shape == (len(WORDS), 5, int(batch.lengths.max()))
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    past = torch.arange(weights.shape[2]) >= batch.lengths[:, None, None]
    assert not weights[past.expand_as(weights)].any()


def test_one_call_is_as_many_as_there_are_steps(words):
    """A decoder that is fed nothing of its own goes all steps at once, or each by itself."""
    batch = words.batch(WORDS[:4])
    previous = torch.randint(3, 9, (6, 4))
    whole = words.model(*batch, previous)
    stepped = words.model(*batch, previous, torch.zeros(6, 4, dtype=torch.bool))
    torch.testing.assert_close(whole, stepped)


def test_fed_its_own_symbols_it_is_greedy(words):
    batch = words.batch(WORDS)
    said = words.model.greedy(*batch, start=START, end=-1, steps=7).t()  # -1: there is no end
    start = torch.full_like(said, START)
    logits, _ = words.model(*batch, start, torch.ones_like(start, dtype=torch.bool))
    assert torch.equal(logits.argmax(-1), said)
    previous = torch.cat([start[:1], said[:-1]])
    torch.testing.assert_close(words.model(*batch, previous)[0], logits)


def test_after_an_end_there_are_only_ends(words):
    batch = words.batch(WORDS)
    free = words.model.greedy(*batch, start=START, end=-1, steps=12)
    end = int(free.flatten().mode().values)  # some symbol that the model likes
    said = words.model.greedy(*batch, start=START, end=end, steps=12)
    ended = (said == end).cummax(1).values
    assert ended.any()
    assert (said[ended] == end).all()
    assert torch.equal(said[~ended], free[:, : said.shape[1]][~ended])


def test_a_wide_beam_is_an_exhaustive_search(words):
    """Over all outputs of up to two symbols, for several sources at once."""
    batch, steps = words.batch(["joy", "measure", "thing"]), 2
    symbols = len(words.phonemes)
    others = [i for i in range(symbols) if i != END]
    found = words.model.beams(
        *batch, start=START, end=END, steps=steps, width=symbols**steps, penalty=0.7
    )
    ends = [path for n in range(steps + 1) for path in itertools.product(others, repeat=n)]
    scores = torch.full((3, len(ends)), float("nan"), dtype=torch.float64)
    for n in range(steps + 1):
        at = [i for i, path in enumerate(ends) if len(path) == n]
        paths = torch.tensor([[START, *ends[i], END] for i in at]).t()  # [n + 2, paths]
        for row in range(3):
            one = [part[..., row : row + 1] for part in batch]
            many = (one[0].expand(-1, len(at)), one[1].expand(len(at)))
            log_p = words.model(*many, paths[:-1])[0].log_softmax(-1)
            total = log_p.gather(-1, paths[1:, :, None]).sum((0, 2)) / (n + 1) ** 0.7
            scores[row, at] = total
    best = scores.topk(20)
    torch.testing.assert_close(found.scores[:, :20], best.values)
    for row in range(3):
        for k in range(20):
            path = ends[int(best.indices[row, k])]
            assert found.symbols[row, k].tolist() == [*path, *[END] * (steps + 1 - len(path))]


def test_samples_end(words):
    batch = words.batch(WORDS)
    drawn = words.model.sample(*batch, start=START, end=END, steps=9, top_k=5)
    assert drawn.shape == (len(WORDS), 9)
    ended = (drawn == END).cummax(1).values
    assert (drawn[ended] == END).all()


def test_an_empty_source_stays_finite(words):
    lengths = torch.tensor([3, 0])
    logits, _ = words.model(torch.full((3, 2), 4), lengths, torch.full((2, 2), START))
    assert logits.isfinite().all()


def test_repetition_by_hand():
    weights = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.0, 0.8], [0.9, 0.1, 0.0]]])
    torch.testing.assert_close(repetition(weights), torch.tensor([[0.0, 0.2, 0.7 + 0.1]]))


def test_losses_leave_padding_out(words):
    batch = words.batch(WORDS[:3])
    target = torch.tensor([[START] * 3, [5, 6, 7], [8, END, 9], [END, PAD, 4], [PAD, PAD, END]])
    terms = words.model.losses(*batch, target)
    logits, weights = words.model(*batch, target[:-1])
    real = target[1:] != PAD
    picked = logits.log_softmax(-1).gather(-1, target[1:, :, None])[..., 0]
    torch.testing.assert_close(terms["entropy"], -picked[real].mean())
    if words.model.coverage:
        again = repetition(weights)[real.t()].mean()
        torch.testing.assert_close(terms["coverage"], words.model.coverage * again)
    else:
        assert set(terms) == {"entropy"}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_both_implementations_agree(attention, cell):
    options = {"hidden": 16, "embedding": 8, "layers": 2, "attention": attention, "cell": cell}
    torch.manual_seed(0)
    ours, theirs = (Seq2Seq(7, 9, impl=impl, **options).double() for impl in ("bptt", "torch"))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    source, lengths = torch.randint(7, (6, 3)), torch.tensor([6, 2, 4])
    target = torch.randint(1, 9, (5, 3))
    for model in (ours, theirs):
        sum(model.losses(source, lengths, target).values()).backward()
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, their.grad)


def test_smoothing_is_for_training_alone():
    model = Seq2Seq(7, 9, hidden=16, embedding=8, smoothing=0.3)
    arguments = (torch.randint(7, (6, 3)), torch.tensor([6, 2, 4]), torch.randint(1, 9, (5, 3)))
    trained = model.losses(*arguments)["entropy"]
    model.eval()
    plain = model.losses(*arguments)["entropy"]
    assert trained != plain
    model.smoothing = 0.0
    assert model.losses(*arguments)["entropy"] == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "elman"}, "rnn, gru, lstm, got 'elman'"),
        ({"hidden": 15}, "even .* got 15"),
        ({"attention": "dot"}, "none, luong, bahdanau, got 'dot'"),
        ({"attention": "none", "coverage": 1.0}, "coverage=1.0 needs an attention"),
        ({"impl": "jax"}, "impl must be bptt or torch"),
    ],
)
def test_it_says_what_is_wrong_with_its_options(options, message):
    with pytest.raises(ValueError, match=message):
        Seq2Seq(5, 6, **options)
