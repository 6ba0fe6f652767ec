"""Do the tasks of the four shapes of recurrent network learn, and refuse what they cannot read?

Models here are tiny and train for seconds; each has to beat a guess.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trained_runs
from bptt.data.errors import BadInput
from bptt.data.topics import load_topics
from bptt.models.classifier import FlatClassifier, SequenceClassifier
from trained_runs import refused, train


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores: teams of two threads would wait for each other."""
    torch.set_num_threads(1)


# --- many to one: classes -------------------------------------------------------------------------

CLASSIFIED = ["classify-series", "classify-images", "classify-texts"]


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """Waves of two periods and any length."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 200), ("test", 60)):
        labels = generator.integers(0, 2, count)
        period, phase = np.where(labels, 4.0, 9.0), generator.uniform(0, 6, count)
        angle = phase[:, None] + 2 * np.pi * np.arange(14) / period[:, None]
        arrays[part] = np.sin(angle)[..., None]
        arrays[f"{part}_lengths"] = generator.integers(6, 15, count)
        arrays[f"{part}_labels"] = labels
    path = tmp_path_factory.mktemp("waves") / "waves.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Texts that praise and blame: what they end with counts."""
    folder = tmp_path_factory.mktemp("reviews")
    generator = np.random.default_rng(0)
    words = {"good": ["fine", "lovely", "bright"], "bad": ["dull", "poor", "grey"]}
    for part, count in (("train", 400), ("test", 80)):
        lines = []
        for _ in range(count):
            first, last = generator.permutation(list(words))
            start = " ".join(generator.choice(["the", "film", "was", "so"], 3))
            text = f"{start} {generator.choice(words[first])} but {generator.choice(words[last])}"
            lines.append(f"{last}\t{text}\n")
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, waves, reviews):
    options = {
        "classify-series": ["--data", waves, "--epochs", "12", "--units", "16", "--lr", "0.02"],
        "classify-images": ["--epochs", "6", "--units", "32", "--layers", "1", "--lr", "0.01"],
        "classify-texts": ["--data", reviews, "--epochs", "8", "--units", "16", "--lr", "0.02"]
        + ["--embedding", "16", "--dropout", "0.1"],
    }
    return trained_runs.Runs(tmp_path_factory.mktemp("runs"), options)


@pytest.mark.parametrize("task", CLASSIFIED)
def test_classes_are_learnt(task, runs):
    run, result = runs(task)
    guess = {"classify-series": 0.6, "classify-images": 0.15, "classify-texts": 0.6}[task]
    assert result["metrics"]["accuracy"] > (1 + guess) / 2
    trained_runs.check_report(run, result)
    trained_runs.check_judged_again(run, result)


def test_order_counts(runs, reviews, tmp_path):
    """A bag of words cannot know what came last."""
    _, result = runs("classify-texts")
    options = ["--data", reviews, "--epochs", "8", "--lr", "0.02", "--cell", "none"]
    flat = train("classify-texts", tmp_path / "run", *options)
    assert result["metrics"]["accuracy"] > 0.95
    assert flat["metrics"]["accuracy"] < 0.7


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_lies_past_a_length_does_not_count(pooling, bidirectional):
    model = SequenceClassifier(3, 4, units=8, pooling=pooling, bidirectional=bidirectional).eval()
    x, lengths = torch.randn(5, 7, 3), torch.tensor([7, 1, 3, 5, 2])
    logits = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[row], model(x[row : row + 1, :length])[0])


def test_a_flat_classifier_takes_shorter_batches():
    model = FlatClassifier(3, 4, steps=7).eval()
    x, lengths = torch.randn(5, 7, 3), torch.tensor([4, 1, 3, 4, 2])
    torch.testing.assert_close(model(x, lengths), model(x[:, :4], lengths))


@pytest.mark.parametrize("impl", ["bptt", "torch"])
def test_both_implementations_agree(impl):
    torch.manual_seed(0)
    models = [SequenceClassifier(3, 4, units=8, impl=i).double().eval() for i in ("bptt", impl)]
    weights = zip(models[1].state_dict(), models[0].state_dict().values(), strict=True)
    models[1].load_state_dict(dict(weights))
    x, lengths = torch.randn(5, 7, 3, dtype=torch.float64), torch.tensor([7, 1, 3, 5, 2])
    torch.testing.assert_close(*(model(x, lengths) for model in models))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "train.tsv is no file"),
        ({"train.tsv": "a\tx\n", "test.tsv": "a\tx\n"}, "two classes or more"),
        ({"train.tsv": "a\tx\nb\ty\n", "test.tsv": "c\tx\n"}, "has class 'c'"),
        ({"train.tsv": "a x\n", "test.tsv": "a\tx\n"}, "line 1: expected 2 columns"),
    ],
)
def test_bad_texts_are_named(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert message in refused(
        "train", "classify-texts", "--run", tmp_path / "r", "--data", tmp_path
    )


def test_series_of_one_class_are_refused(tmp_path):
    np.savez(tmp_path / "one.npz", train=np.random.randn(9, 4, 2), test=np.random.randn(3, 4, 2))
    line = refused(
        "train", "classify-series", "--run", tmp_path / "r", "--data", tmp_path / "one.npz"
    )
    assert "labels of 2 classes or more" in line


def test_r8_is_read_where_it_is_installed():
    try:
        topics = load_topics(None)
    except BadInput as error:
        pytest.skip(str(error))
    assert (len(topics.train), len(topics.test), len(topics.classes)) == (5485, 2189, 8)
