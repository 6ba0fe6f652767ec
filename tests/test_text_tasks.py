"""Do tasks that read and write text train, answer and refuse as their help says?

Models are tiny and train for seconds; each has to beat what is trivial.
"""

from __future__ import annotations

import gzip
import itertools
import random
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import trained_runs
from bptt.data import inflections, parallel, sigmorphon
from bptt.data.errors import BadInput
from bptt.data.pieces import UNKNOWN, Pieces
from bptt.data.vocabulary import END, START
from bptt.tasks import lm, task_class
from bptt.tasks.runs import finished, ready
from bptt.tools.cli.app import app
from trained_runs import invoke, refused, train

SMALL = {
    "g2p": ["--epochs", "8", "--units", "32", "--words", "2000", "--batch", "64"]
    + ["--judged", "100"],
    "inflect": ["--epochs", "6", "--units", "48", "--forms", "4000", "--batch", "64"]
    + ["--judged", "200", "--lr", "0.01"],
    "translate": ["--epochs", "12", "--units", "32", "--embedding", "24", "--batch", "16"]
    + ["--lr", "0.02", "--dropout", "0", "--least", "1", "--beam", "2"],
    "lm": ["--epochs", "2", "--units", "64", "--examples", "99999", "--batch", "8", "--lr", "0.01"],
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores: teams of two threads would wait for each other."""
    torch.set_num_threads(1)


NUMBERS = {"ein": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five"}
COLORS = {"rote": "red", "blaue": "blue", "graue": "grey", "weiße": "white"}
THINGS = {"Hüte": "hats", "Hunde": "dogs", "Katzen": "cats", "Boote": "boats", "Bäume": "trees"}
VERBS = {"schlafen": "sleep", "fallen": "fall", "warten": "wait", "kommen": "come"}


def sentences():
    """A small language: the verb is last in one, before the colour in the other."""
    for n, c, t, v in itertools.product(NUMBERS, COLORS, THINGS, VERBS):
        yield f"{n} {c} {t} {v}.", f"{NUMBERS[n]} {THINGS[t]} {VERBS[v]}, {COLORS[c]}."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of parallel sentences, some compressed."""
    folder = tmp_path_factory.mktemp("corpus")
    pairs = list(sentences())
    random.Random(0).shuffle(pairs)
    parts = {"train": pairs[:320], "val": pairs[320:360], "test_small": pairs[360:]}
    for part, some in parts.items():
        for k, language in enumerate(("de", "en")):
            text = "".join(f"{pair[k]}\n" for pair in some).encode()
            if part == "train":
                (folder / f"{part}.{language}.gz").write_bytes(gzip.compress(text))
            else:
                (folder / f"{part}.{language}").write_bytes(text)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus):
    options = {**SMALL, "translate": [*SMALL["translate"], "--data", corpus]}
    return trained_runs.Runs(tmp_path_factory.mktemp("runs"), options)


@pytest.mark.parametrize("task", SMALL)
def test_a_small_run_beats_what_is_trivial(task, runs):
    _, result = runs(task)
    metrics, last = result["metrics"], result["history"][-1]["validation/loss"]
    if task == "g2p":
        assert metrics["phoneme error rate"] < 0.8
        assert last < 2.5  # of log(39 phonemes), 3.7
    elif task == "inflect":
        assert metrics["accuracy"] > 0.2  # 0 by chance
        assert metrics["accuracy of rules"] > 0.7
    elif task == "translate":
        assert metrics["BLEU"] > 80
        assert metrics["perplexity"] < 1.5
        assert "tok:13a" in result["notes"]["BLEU's signature"]
    else:
        assert metrics["nats per character"] < 3.0  # each character by its frequency: 3.2
    assert result["epochs"] == int(SMALL[task][1])
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("task", SMALL)
def test_a_report_shows_all_of_a_run(task, runs):
    run, result = runs(task)
    trained_runs.check_report(run, result)
    page = (run / "report.html").read_text()
    if task != "lm":
        assert "What it said after each epoch" in page
        assert "Where it looks in" in page
        assert "The worst of" in page


@pytest.mark.parametrize("task", SMALL)
def test_a_run_is_judged_again(task, runs):
    trained_runs.check_judged_again(*runs(task))


# --- pairs ----------------------------------------------------------------------------------------


def test_no_training_word_is_held_out():
    task = task_class("g2p")(task_class("g2p").Settings(words=2000, seed=5))
    task.prepare()
    assert not set(task.training) & set(task.held_out)
    seen = {"".join(task.source.decode(row)) for row in task.rows.columns["source"].tolist()}
    assert seen == set(task.training)


def test_no_lemma_to_train_on_is_held_out():
    task = task_class("inflect")(task_class("inflect").Settings(forms=2000))
    task.prepare()
    assert not {lemma for lemma, _ in task.training} & {lemma for lemma, _ in task.held_out}
    assert len(task.rows) == len(task.training)


def test_translating_a_sentence_and_a_file(runs, tmp_path):
    run, _ = runs("translate")
    pairs = list(sentences())[::40]
    told = invoke("translate", run, pairs[3][0])
    assert told.exit_code == 0, told.output
    assert told.output.startswith(pairs[3][1].split()[0])
    path = tmp_path / "some.txt"
    path.write_text("".join(f"{a}\n" for a, _ in pairs), encoding="utf-8")
    lines = invoke("translate", run, path).output.splitlines()
    assert len(lines) == len(pairs)
    assert sum(a == b for a, (_, b) in zip(lines, pairs, strict=True)) >= 0.7 * len(pairs)


def test_several_answers_come_best_first(runs):
    run, _ = runs("g2p")
    told = invoke("pronounce", run, "about", "--best", 3)
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 3
    assert scores == sorted(scores, reverse=True)
    assert len(set(lines)) == 3
    greedy = invoke("pronounce", run, "about", "--beam", 1).output.split()
    assert greedy[0] == "about"


def test_a_word_is_inflected(runs):
    run, _ = runs("inflect")
    told = invoke("translate", run, "dog N;PL")
    assert told.exit_code == 0, told.output
    assert re.fullmatch(r"[\w'\- ]+\n", told.output)


@pytest.mark.parametrize(("command", "task", "text"), [
    ("translate", "translate", "zwei rote Hunde schlafen."),
    ("pronounce", "g2p", "house"),
])  # fmt: skip
def test_attention_is_shown(command, task, text, runs, tmp_path):
    run, _ = runs(task)
    picture = tmp_path / "map.png"
    told = invoke(command, run, text, "--attention", picture)
    assert told.exit_code == 0, told.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = invoke(command, run, text, "--attention", "-")
    assert told.exit_code == 0, told.output
    assert re.search("[░▒▓█]", told.output)
    assert "end" in told.output


def test_answers_need_no_data(runs, corpus, tmp_path):
    """A run has what turns text into numbers: it can be given to somebody."""
    run, _ = runs("translate")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    options = (copy / "options.yaml").read_text()
    (copy / "options.yaml").write_text(options.replace(str(corpus), "/nowhere"))
    sentence = "zwei rote Hunde schlafen."
    assert invoke("translate", copy, sentence).output == invoke("translate", run, sentence).output
    task, model = ready(copy)[:2]
    both, _, _ = finished(run, None)
    assert task.encode_source(sentence) == both.encode_source(sentence)
    assert not model.training


def test_unknown_words_are_not_written(runs):
    run, _ = runs("translate")
    task, model, _ = finished(run, None)
    model.output.bias.data[UNKNOWN] = 1e4
    for beam in (1, 3):
        for answers in task.answers(model, ["zwei Zebras schlafen.", "xyz"], beam=beam):
            assert all(UNKNOWN not in answer.numbers for answer in answers)


@pytest.mark.parametrize("options", [
    ["--attention", "none"],
    ["--attention", "bahdanau", "--coverage", "0.1", "--forcing", "0.5"],
    ["--layers", "2", "--cell", "lstm", "--dropout", "0.1", "--symbols", "subwords"],
    ["--impl", "torch", "--forcing", "0.8", "--examples", "100"],
], ids=" ".join)  # fmt: skip
def test_other_models(options, corpus, tmp_path):
    small = [*SMALL["translate"], "--data", corpus, "--epochs", "3", *options]
    result = train("translate", tmp_path / "run", *small)
    losses = [epoch["validation/loss"] for epoch in result["history"]]
    assert losses[-1] < losses[0]
    told = invoke("translate", tmp_path / "run", "ein rote Hunde fallen.", "--attention", "-")
    assert told.exit_code == (2 if "none" in options else 0), told.output
    assert "is no run" not in told.output


def test_forcing_falls_in_a_straight_line(corpus):
    kind = task_class("translate")
    task = kind(kind.Settings(data=corpus, forcing=0.25, least=1))
    task.prepare()
    module = task.build()
    target = torch.zeros(50, 400, dtype=torch.int64)
    shares = []
    for step in (0, 50, 100):
        module.trainer = type("T", (), {"global_step": step, "estimated_stepping_batches": 100})()
        shares.append(module._own(target).double().mean().item())
    assert shares == pytest.approx([0.0, 0.375, 0.75], abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("translate", "translate", ""), "there is no text in ''"),
        (("translate", "translate", "  \n"), "there is no text in"),
        (("translate", "translate", "ein Hund", "--attention", "a.txt"), "--attention a.txt"),
        (("translate", "inflect", "dog"), "a word and tags such as"),
        (("translate", "inflect", "dog N;XX"), "unknown letter or tags 'N;XX'"),
        (("translate", "g2p", "dog"), "a run of g2p: `bptt train translate` or"),
        (("pronounce", "translate", "dog"), "a run of translate: `bptt train g2p`"),
        (("pronounce", "g2p", "日本"), "unknown letter '日', '本'"),
        (("pronounce", "g2p", ""), "an empty word"),
        (("pronounce", "g2p", "a", "b", "--attention", "-"), "for one word, got 2"),
    ],
)
def test_bad_questions_are_named(arguments, message, runs):
    command, task, *rest = arguments
    assert message in refused(command, runs(task)[0], *rest)


def test_a_beam_of_0_is_refused(runs):
    result = invoke("translate", runs("translate")[0], "ein", "--beam", 0)
    assert result.exit_code == 2
    assert "greater than or equal to 1" in result.output


def test_a_file_that_is_not_utf_8_is_refused(runs, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("fünf Hunde".encode("latin-1"))
    assert "is not UTF-8: byte 1" in refused("translate", runs("translate")[0], path)


def test_a_sentence_longer_than_any_seen_is_translated(runs):
    told = invoke("translate", runs("translate")[0], "zwei rote Hunde schlafen. " * 40)
    assert told.exit_code == 0, told.output
    assert len(told.output.split()) <= 80


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "val.en").unlink(), "has no val.en or val.en.gz"),
        (lambda folder: (folder / "val.en").write_text("one\n"), "has 40 lines and"),
        (lambda folder: (folder / "val.en").write_bytes(b"\xff" * 40), "is not UTF-8"),
        (lambda folder: (folder / "train.de.gz").write_bytes(b"\x1f\x8b"), "is damaged"),
        (lambda folder: shutil.rmtree(folder), "is no folder"),
    ],
    ids=["missing", "shorter", "bytes", "damaged", "nothing"],
)
def test_bad_corpora_are_named(change, message, corpus, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    change(folder)
    assert message in refused("train", "translate", "--run", tmp_path / "r", "--data", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "fr"], "has no train.fr or train.fr.gz; its languages are de, en"),
        (["--source", "en"], "--source and --target are both 'en'"),
        (["--attention", "none", "--coverage", "1"], "coverage: needs an attention"),
        (["--beam", "0"], "beam: Input should be greater than or equal to 1"),
        (["--forcing", "1.5"], "forcing: Input should be less than or equal to 1"),
    ],
)
def test_bad_options_are_named(options, message, corpus, tmp_path):
    line = refused("train", "translate", "--run", tmp_path / "r", "--data", corpus, *options)
    assert message in line


def test_verses_that_are_not_there_are_named(tmp_path):
    with pytest.raises(BadInput, match="there are the languages en and es, got --source de"):
        parallel.load_verses("de", "en")
    with pytest.raises(BadInput, match=r"is missing: give --data .* or install Debian's sword"):
        parallel.load_verses("es", "en", tmp_path / "none")


def test_verses_are_read_where_they_are_installed():
    pytest.importorskip("pysword", reason="the package pysword is not installed")
    if not parallel.SWORD.is_dir():
        pytest.skip("Debian's sword-text-web and sword-text-sparv are not installed")
    found = parallel.load_verses("es", "en")
    assert len(found.train) > 25_000
    assert min(map(len, found)) > 500
    assert not set(found.train) & set(found.test)


@pytest.mark.parametrize("kind", ["words", "subwords"])
def test_pieces_come_back(kind):
    text = ["Zwei junge Hunde, it's a red-haired dog.", "Ein Hund; zwei Hunde!"]
    pieces = Pieces.learn(text, kind, 300, 1)
    again = Pieces.load(pieces.dump())
    for sentence in text:
        numbers = pieces.encode(sentence)
        assert again.encode(sentence) == numbers
        written = pieces.decode([*numbers, END, START])
        assert written == sentence.lower()
        assert len(pieces.names(numbers)) == len(numbers)
    if kind == "words":
        assert pieces.names(pieces.encode("It's Zwei")) == ["it's", "zwei"]
        assert pieces.encode("Katze") == [UNKNOWN]


def test_frequent_pieces_are_kept():
    pieces = Pieces.learn(["a a a b b c"], "words", 100, 2)
    assert [n == UNKNOWN for n in pieces.encode("a b c d")] == [False, False, True, True]
    assert len(Pieces.learn(["a a a b b c"], "words", 5, 1)) == 5


def test_the_english_table():
    forms = inflections.load()
    assert forms["go", "V;PST"] == ("went",)
    assert forms["walk", "V;V.PTCP;PST"] == ("walked",)
    assert forms["bid", "V;V.PTCP;PST"] == ("bid", "bidden", "bade")
    assert forms["mouse", "N;PL"][0] == "mice"
    assert forms["good", "ADJ;SPRL"] == ("best",)


def test_a_table_of_forms(tmp_path):
    path = tmp_path / "forms.tsv"
    path.write_text("gehen\tging\tV;PST\n\ngehen\tgeht\tV;3;SG\ngehen\tgieng\tV;PST\n")
    assert inflections.load(path) == {
        ("gehen", "V;PST"): ("ging", "gieng"),
        ("gehen", "V;3;SG"): ("geht",),
    }
    path.write_text("gehen\tging\n")
    with pytest.raises(BadInput, match="line 1: expected 3 columns"):
        inflections.load(path)
    path.write_text("\n")
    with pytest.raises(BadInput, match="holds no forms"):
        inflections.load(path)
    with pytest.raises(ValueError, match="leaves one part of 1 lemmas empty"):
        inflections.split({("a", "N"): ("b",)}, 0)


def test_rules_of_endings():
    rules = inflections.SuffixRules(
        {
            ("walk", "V"): ("walked",),
            ("talk", "V"): ("talked",),
            ("try", "V"): ("tried",),
            ("cry", "V"): ("cried",),
            ("play", "V"): ("played",),
        }
    )
    assert [rules.form(w, "V") for w in ("chalk", "fry", "stay")] == ["chalked", "fried", "stayed"]
    assert rules.form("walk", "N") == "walk"  # tags never seen


def test_sigmorphon_folders(tmp_path):
    for part in ("train", "dev", "test"):
        (tmp_path / f"eng_{part}.tsv").write_text(f"{part}\ta b\n{part}\tc\n", encoding="utf-8")
    train_part, _, test_part = sigmorphon.load(tmp_path)
    assert train_part == {"train": (("a", "b"), ("c",))}
    assert test_part == {"test": (("a", "b"), ("c",))}
    (tmp_path / "eng_dev.tsv").write_text("")
    with pytest.raises(BadInput, match=r"eng_dev\.tsv is empty"):
        sigmorphon.load(tmp_path)
    (tmp_path / "eng_dev.tsv").unlink()
    with pytest.raises(BadInput, match=r"expected one file \*_dev\.tsv, found none"):
        sigmorphon.load(tmp_path)


def test_some_words_of_a_sigmorphon_folder(tmp_path):
    """Letters and phonemes of every part are known, though a part is not trained on."""
    words = [f"{a}{b}" for a in "abcde" for b in "abcde"]
    for part, extra in (("train", "x"), ("dev", "y"), ("test", "z")):
        lines = [f"{word}\t{' '.join(word)}\n" for word in [*words, extra]]
        (tmp_path / f"eng_{part}.tsv").write_text("".join(lines), encoding="utf-8")
    task = task_class("g2p")(task_class("g2p").Settings(data=tmp_path, words=20))
    assert task.load() == 20
    assert len(task.validation) == 26
    assert set("abcdeyz") <= set(task.source.symbols)
    with pytest.raises(BadInput, match="20 words or more are needed"):
        task_class("g2p")(task_class("g2p").Settings(data=tmp_path, words=19)).load()


# --- language models ------------------------------------------------------------------------------


def test_completing(runs):
    run, _ = runs("lm")
    told = invoke("complete", run, "the stat", "--count", 4)
    assert told.exit_code == 0, told.output
    lines = told.output.rstrip("\n").splitlines()
    assert 1 <= len(lines) <= 4
    shares = [float(re.match(r" *([\d.]+)%  the stat", line)[1]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 100
    piped = CliRunner().invoke(app, ["complete", str(run), "--count", "4"], input="the stat\n")
    assert piped.output == told.output


def test_writing(runs):
    run, _ = runs("lm")
    texts = [invoke("sample", run, "--count", 80, "--seed", seed).output for seed in (1, 1, 2)]
    assert len(texts[0].rstrip("\n")) <= 80
    assert texts[0] == texts[1] != texts[2]


def test_ways_to_write(runs):
    run, _ = runs("lm")
    likeliest = [
        invoke("sample", run, "--count", 30, "--seed", seed, "--prompt", "The ", *how).output
        for seed, how in enumerate([["--top-k", 1], ["--nucleus", 1e-9], ["--temperature", 1e-4]])
    ]
    assert likeliest[0] == likeliest[1] == likeliest[2]
    for option, value in (("--temperature", 0), ("--nucleus", 1.5), ("--top-k", -1)):
        name = option.removeprefix("--").replace("-", "_")
        assert f"{name} must be" in refused("sample", run, option, value)


def test_a_language_model_needs_no_data(runs, tmp_path):
    run, _ = runs("lm")
    shutil.copytree(run, tmp_path / "run")
    options = yaml.safe_load((run / "options.yaml").read_text())
    options["data"] = "/nowhere"
    (tmp_path / "run" / "options.yaml").write_text(yaml.safe_dump(options))
    for command in (("complete", "the st"), ("sample", "--seed", 4)):
        one, other = (invoke(command[0], r, *command[1:]) for r in (run, tmp_path / "run"))
        assert one.exit_code == 0, one.output
        assert one.output == other.output


def test_weights_are_dropped_by_bptt_alone(tmp_path):
    small = [*SMALL["lm"], "--examples", "20000", "--epochs", "1", "--weight-drop", "0.3"]
    assert train("lm", tmp_path / "run", *small)["options"]["weight_drop"] == 0.3
    line = refused("train", "lm", "--run", tmp_path / "other", *small, "--impl", "torch")
    assert "weight_drop: torch.nn's layers have no such option" in line


def test_typing_takes_one_step_a_key(runs):
    run, _ = runs("lm")
    task, model, _ = finished(run, None)
    typing, steps = lm.Typing(task.symbols, model), []
    step = model.step
    model.step = lambda *a: (steps.append(1), step(*a))[1]
    text = "for each item"
    log_p = [typing.after(tuple(task.symbols.encode(text[: i + 1]).tolist()))[0] for i in range(13)]
    assert len(steps) == 13
    logits, _ = model(task.symbols.encode(text)[:, None])
    torch.testing.assert_close(torch.cat(log_p), logits[:, 0].log_softmax(-1), atol=1e-4, rtol=1e-4)
    typing.after(tuple(task.symbols.encode(text[:5]).tolist()))  # some keys taken back
    assert len(steps) == 13


@pytest.mark.parametrize(("text", "message"), [("", "there is no text"), ("日", "knows no '日'")])
def test_bad_texts_to_complete(runs, text, message):
    assert message in refused("complete", runs("lm")[0], text)


def test_only_language_models_complete(runs):
    assert "is a run of g2p: `bptt train lm`" in refused("complete", runs("g2p")[0], "a")
