"""Do the tasks of the four shapes of recurrent network learn, and refuse what they cannot read?

Models here are tiny and train for seconds; each has to beat a guess.
"""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
import torch

import trained_runs
from bptt.data.chorales import load_chorales
from bptt.data.errors import BadInput
from bptt.data.tagged import load_tagged
from bptt.data.topics import load_topics
from bptt.models.classifier import FlatClassifier, SequenceClassifier
from bptt.models.music import MusicModel
from bptt.models.recogniser import Listening, Recogniser, collapsed
from bptt.tasks.tag import told_later
from trained_runs import invoke, refused, train


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
def scales(tmp_path_factory):
    """Two voices that climb, one key apart at each step, and begin anywhere."""
    generator = np.random.default_rng(0)
    pieces = {
        part: [
            [
                [int(first) + t % 8, int(first) + 12 + t % 8]
                for t in range(generator.integers(5, 20))
            ]
            for first in generator.integers(40, 60, count)
        ]
        for part, count in (("train", 80), ("valid", 10), ("test", 10))
    }
    path = tmp_path_factory.mktemp("scales") / "scales.json"
    path.write_text(json.dumps(pieces))
    return path


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Words of letters, and "saw", which is a noun before a full stop and a verb before a word."""
    generator = np.random.default_rng(0)
    nouns, lines = ["dogs", "cats", "birds", "trees", "hills"], []
    for _ in range(400):
        one, other = generator.choice(nouns, 2)
        saw = "saw/v" if generator.integers(2) else "saw/n"
        rest = f"{other}/n ./w" if saw == "saw/v" else "./w"
        lines.append(f"the/d {one}/n {saw} {rest}\n")
    path = tmp_path_factory.mktemp("tagged") / "tagged.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, waves, reviews, scales, tagged):
    options = {
        "classify-series": ["--data", waves, "--epochs", "12", "--units", "16", "--lr", "0.02"],
        "classify-images": ["--epochs", "6", "--units", "32", "--layers", "1", "--lr", "0.01"],
        "classify-texts": ["--data", reviews, "--epochs", "8", "--units", "16", "--lr", "0.02"]
        + ["--embedding", "16", "--dropout", "0.1"],
    }
    options["music"] = ["--data", scales, "--epochs", "60", "--units", "32", "--lr", "0.02"]
    options["music"] += ["--dropout", "0", "--weight-drop", "0"]
    options["tag"] = ["--data", tagged, "--epochs", "8", "--units", "16", "--lr", "0.02"]
    options["tag"] += ["--embedding", "16", "--batch", "16", "--dropout", "0.1"]
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


# --- many to many, and one to many: music ---------------------------------------------------------


def test_music_is_learnt(runs):
    run, result = runs("music")
    guess = result["anchors"][0]["bound"]
    assert result["metrics"]["nats of a step"] < 0.6 * guess
    trained_runs.check_report(run, result)
    trained_runs.check_judged_again(run, result)


def test_a_piece_is_composed_from_its_first_chord(runs, tmp_path):
    run, _ = runs("music")
    told = invoke("sample", run, "--count", 16, "--output", tmp_path / "piece.png")
    assert told.exit_code == 0, told.output
    model = MusicModel(88, units=8).eval()
    chord = torch.zeros(88, dtype=torch.bool)
    chord[[30, 34]] = True
    piece = model.compose(chord, 12)
    assert piece.shape == (12, 88)
    assert torch.equal(piece[0], chord)


def test_music_moves_whole():
    model = MusicModel(88, transpose=5).train()
    x = torch.zeros(40, 6, 88)
    x[:, torch.arange(6), 30 + torch.arange(6)] = 1
    moved = model._moved(x)
    shifts = moved[:, 0].argmax(1) - 30
    assert set(shifts.tolist()) == set(range(-5, 6))
    for one, shift in zip(moved, shifts.tolist(), strict=True):
        assert torch.equal(one, x[0].roll(shift, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected lists of pieces under train, valid and test"),
        ("{", "is no JSON file"),
        ('{"train": [], "valid": [], "test": []}', "train: expected a list of pieces"),
        ('{"train": [[[60]]], "valid": [], "test": []}', "piece 0 is no list of two steps"),
        ('{"train": [[[60], [5]]], "valid": [], "test": []}', "piece 0, step 1: expected MIDI"),
    ],
)
def test_bad_music_is_named(content, message, tmp_path):
    (tmp_path / "music.json").write_text(content)
    with pytest.raises(BadInput, match=message.replace("[", r"\[")):
        load_chorales(tmp_path / "music.json")
    assert "--data is needed" in refused("train", "music", "--run", tmp_path / "r")


# --- many to many, aligned: tags ------------------------------------------------------------------


def test_tags_are_learnt(runs, tagged, tmp_path):
    run, result = runs("tag")
    assert result["metrics"]["accuracy"] > 0.99
    trained_runs.check_report(run, result)
    trained_runs.check_judged_again(run, result)
    # One direction cannot know what follows.
    assert told_later(load_tagged(tagged).train) == {"saw"}
    one_way = ["--data", tagged, "--epochs", "8", "--units", "16", "--lr", "0.02"]
    one_way += ["--no-bidirectional", "--batch", "16"]
    blind = train("tag", tmp_path / "run", *one_way)["metrics"]
    assert blind["where what follows tells"] < 0.7
    assert result["metrics"]["where what follows tells"] > 0.99


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_tagging_a_text(kind, runs, tmp_path):
    run, _ = runs("tag")
    output = tmp_path / f"tags.{kind}"
    told = invoke("tag", run, "the wugs saw dogs .", "--output", output)
    assert told.exit_code == 0, told.output
    read = (
        json.loads(output.read_text())
        if kind == "json"
        else list(csv.DictReader(output.read_text().splitlines()))
    )
    assert [row["word"] for row in read] == ["the", "wugs", "saw", "dogs", "."]
    assert [row["tag"] for row in read][2:] == ["v", "n", "w"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "there is no text"),
        ("a b", ["--output", "tags.txt"], "expected a name that ends in .json or .csv"),
    ],
)
def test_bad_texts_for_tags_are_named(text, options, message, runs):
    run, _ = runs("tag")
    assert message in refused("tag", run, text, *options)


def test_bad_tags_are_named(tmp_path):
    path = tmp_path / "tags.txt"
    path.write_text("a/n b/v\n" * 5)
    with pytest.raises(BadInput, match="20 lines or more are needed, got 5"):
        load_tagged(path)
    path.write_text("a/n b/v\n" * 30 + "a b/v\n")
    with pytest.raises(BadInput, match="line 31: expected words as word/tag, got 'a'"):
        load_tagged(path)


# --- speech ---------------------------------------------------------------------------------------


def tone(digit, generator, samples=1600):
    """A "digit": a tone of its own, louder in the middle."""
    time = np.arange(samples) / 8000
    wave = np.sin(2 * np.pi * (300 + 250 * digit) * time) * np.hanning(samples)
    return 0.5 * wave + 0.01 * generator.standard_normal(samples)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    soundfile = pytest.importorskip("soundfile", reason="the package soundfile is not installed")
    pytest.importorskip("librosa.filters", reason="the package librosa is not installed")
    folder, generator = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for digit in range(10):
        for take in range(40):
            wave = tone(digit, generator, int(generator.integers(1000, 2000)))
            soundfile.write(folder / f"{digit}_ann_{take}.wav", wave, 8000)
    return folder


SPOKEN = ["--epochs", "8", "--units", "32", "--layers", "1", "--strings", "300", "--batch", "16"]
SPOKEN += ["--lr", "0.02", "--dropout", "0.1"]


@pytest.fixture(scope="module")
def speech_run(recordings, tmp_path_factory):
    """One direction, which can listen chunk by chunk."""
    run = tmp_path_factory.mktemp("speech") / "run"
    return run, train("digits", run, "--data", recordings, "--no-bidirectional", *SPOKEN)


def test_digits_are_heard(recordings, tmp_path):
    run = tmp_path / "run"
    result = train("digits", run, "--data", recordings, *SPOKEN)
    assert result["metrics"]["accuracy"] > 0.9
    assert result["metrics"]["digit error rate in rows of several"] < 0.1
    trained_runs.check_report(run, result)
    trained_runs.check_judged_again(run, result)


def test_one_direction_hears_better_than_a_guess(speech_run):
    assert speech_run[1]["metrics"]["accuracy"] > 0.4  # a guess is 0.1


def test_chunk_by_chunk_is_the_whole(recordings):
    torch.manual_seed(0)
    model = Recogniser(10, units=16, layers=2).double().eval()
    sound = torch.randn(5000, dtype=torch.float64)
    features = model.features(sound)
    whole = model(features[None])[0][0]
    heard = model.hear(features[None], torch.tensor([len(features)]))[0]
    for size in (1, 79, 80, 333, 5000):
        listening, parts = Listening(model), []
        listening.rest = listening.rest.double()
        pieces = [listening.feed(chunk) for chunk in sound.split(size)]
        assert [one for piece in pieces for one in piece] == heard
        state, parts = None, []
        for part in features.split(size):
            log_p, state = model(part[None], None, state)
            parts.append(log_p[0])
        torch.testing.assert_close(torch.cat(parts), whole)
    with pytest.raises(ValueError, match="two directions"):
        Listening(Recogniser(10, bidirectional=True))


def test_transcribing_files(speech_run, recordings, tmp_path):
    import soundfile

    run, _ = speech_run
    generator = np.random.default_rng(1)
    wave = np.concatenate([tone(digit, generator) for digit in (2, 7, 0)])
    both = np.repeat(wave, 2)  # at 16 kHz
    soundfile.write(tmp_path / "stereo.wav", np.stack([both, both], 1), 16000)
    soundfile.write(tmp_path / "mono.wav", wave, 8000)
    output, heard = tmp_path / "heard.json", []
    for options in ([], ["--stream"]):
        files = [tmp_path / "mono.wav", tmp_path / "stereo.wav"]
        told = invoke("transcribe", run, *files, *options, "--output", output)
        assert told.exit_code == 0, told.output
        heard.append([row["digits"] for row in json.loads(output.read_text())])
    assert heard[0] == heard[1]
    assert set(heard[0][0]) & set("270")


@pytest.mark.parametrize(
    ("samples", "message"),
    [(0, "is empty"), (50, "holds 50 samples: 200 or more"), (None, "cannot be read as sound")],
)
def test_bad_sounds_are_named(samples, message, speech_run, tmp_path):
    import soundfile

    path = tmp_path / "bad.wav"
    if samples is None:
        path.write_bytes(b"no sound")
    else:
        soundfile.write(path, np.zeros(samples), 8000)
    assert message in refused("transcribe", speech_run[0], path)
    assert "is no file" in refused("transcribe", speech_run[0], tmp_path / "none.wav")


def test_a_folder_without_takes_is_refused(tmp_path):
    line = refused("train", "digits", "--run", tmp_path / "r", "--data", tmp_path)
    assert "holds nothing for train, validation, test" in line
    assert "--data is needed" in refused("train", "digits", "--run", tmp_path / "r")


def test_the_loss_is_that_of_all_paths():
    """Against every path of a short sequence."""
    pytest.importorskip("librosa.filters", reason="the package librosa is not installed")
    torch.manual_seed(0)
    model = Recogniser(2, bands=4, units=8, layers=1).double()
    features, labels = torch.randn(1, 4, 4, dtype=torch.float64), torch.tensor([[1, 2]])
    log_p = model(features)[0][0]
    paths = [p for p in itertools.product(range(3), repeat=4) if collapsed(list(p))[0] == [1, 2]]
    total = torch.stack([sum(log_p[t, s] for t, s in enumerate(p)) for p in paths]).logsumexp(0)
    loss = model.losses(features, torch.tensor([4]), labels, torch.tensor([2]))["ctc"]
    torch.testing.assert_close(loss, -total / 2)
