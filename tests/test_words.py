"""Words in their sentence: the transformer beside recurrent layers, and words that are hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trained_runs
from bptt.models.transformer import Transformer
from bptt.models.words import MaskedWords, WordEncoder
from trained_runs import refused, train

TINY = ["--units", "16", "--embedding", "16", "--batch", "16", "--dropout", "0.1"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores: teams of two threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """The verb tells the subject, which stands before it: only who sees both ways can know it."""
    generator = np.random.default_rng(0)
    pairs = {"dogs": "bark", "cats": "purr", "birds": "sing", "trees": "grow", "hills": "stand"}
    lines = []
    for _ in range(400):
        one = generator.choice(list(pairs))
        lines.append(f"the/d {one}/n {pairs[one]}/v loudly/r ./w\n")
    path = tmp_path_factory.mktemp("masked") / "pairs.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def masked(tagged, tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "run"
    options = ["--data", tagged, "--epochs", "15", "--lr", "0.01", "--layers", "1", *TINY]
    return path, train("masked", path, *options)


def test_hidden_words_are_told(masked):
    path, result = masked
    metrics = result["metrics"]
    assert metrics["nats of a hidden word"] < 0.5 * metrics["by how often each word is"]
    assert metrics["share of hidden words told"] > 0.8  # the hidden verb's subject tells it, too
    trained_runs.check_report(path, result)
    trained_runs.check_judged_again(path, result)


def test_tags_begin_with_masked_words(masked, tagged, tmp_path):
    run = tmp_path / "run"
    options = ["--data", tagged, "--start", masked[0], "--cell", "transformer", "--epochs", "3"]
    result = train("tag", run, *options, "--layers", "1", *TINY)
    assert result["metrics"]["accuracy"] > 0.99
    from bptt.tasks.runs import of_task

    task, _, _ = of_task(run, None, "tag")
    begun = task.encoder(forget=0.0).state_dict()
    start, _, _ = of_task(masked[0], None, "masked")
    assert start.words.symbols == task.words.symbols
    saved = of_task(masked[0], None, "masked")[1].encoder.state_dict()
    for name, weight in begun.items():
        torch.testing.assert_close(weight, saved[name])


def test_a_start_of_another_task_is_refused(masked, tagged, tmp_path):
    tag = ["--data", tagged, "--epochs", "1", *TINY]
    train("tag", tmp_path / "tag", *tag)
    again = ["train", "tag", "--run", tmp_path / "again", *tag, "--start"]
    assert "is a run of tag: `bptt train masked` makes one" in refused(*again, tmp_path / "tag")
    line = refused(*again, masked[0], "--units", "8")  # the start's are 16
    assert "holds another model's weights" in line


# --- the models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "transformer"])
def test_what_lies_past_a_length_does_not_count(cell):
    torch.manual_seed(0)
    encoder = WordEncoder(9, 5, embedding=6, units=8, cell=cell, layers=2).double().eval()
    words, ends = torch.randint(9, (3, 7)), torch.randint(5, (3, 7, 2))
    lengths = torch.tensor([7, 1, 4])
    h = encoder(words, ends, lengths)
    assert h.shape == (3, 7, encoder.width)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(
            words[row : row + 1, :length], ends[row : row + 1, :length], lengths[row, None]
        )
        torch.testing.assert_close(h[row, :length], alone[0])
        assert not h[row, length:].any()


def test_a_transformer_sees_both_ways():
    torch.manual_seed(0)
    model = Transformer(3, 8, layers=1).double().eval()
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    moved = x.clone()
    moved[0, 4] += 1
    (one, _), (other, _) = model(x), model(moved)
    assert ((one - other).abs() > 1e-6).any(2).all()
    (swapped, _) = model(x.flip(1))
    assert (swapped.flip(1) - one).abs().max() > 1e-3  # positions count
    with pytest.raises(ValueError, match="multiple of 2, got 7"):
        Transformer(3, 7)


def test_hiding_follows_its_shares():
    torch.manual_seed(0)
    model = MaskedWords(WordEncoder(1000, 5, embedding=4, units=2), hidden=0.2, mask=3, character=4)
    words, ends = torch.full((200, 100), 7), torch.zeros(200, 100, 2, dtype=torch.int64)
    lengths = torch.full((200,), 80)
    seen, seen_ends, chosen = model.hide(words, ends, lengths)
    assert not chosen[:, 80:].any()
    count = chosen[:, :80].double().mean().item()
    assert count == pytest.approx(0.2, abs=0.01)
    masked = (seen == 3) & chosen
    kept = (seen == 7) & chosen
    assert (masked.sum() / chosen.sum()).item() == pytest.approx(0.8, abs=0.02)
    assert (kept.sum() / chosen.sum()).item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(seen[~chosen], words[~chosen])
    assert (seen_ends[masked] == 4).all()
    assert not seen_ends[kept].any()
