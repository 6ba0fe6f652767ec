"""Does `bptt train` train, stop and go on, judge and refuse as its help says?

Models here are tiny and train for seconds; each still has to beat the mean image.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import trained_runs
from bptt.data.images import load_images
from bptt.tasks import NAMES, task_class
from bptt.tasks.faces import faces
from bptt.train import files, fit
from trained_runs import invoke, refused, train

# Settings of small runs: seconds each.
SMALL = {
    "autoencoder": ["--epochs", "6", "--hidden", "64", "--lr", "0.003"],
    "denoise": ["--epochs", "6", "--hidden", "64", "--lr", "0.003"],
    "sparse": ["--epochs", "6", "--code", "100", "--active", "10", "--lr", "0.003"],
    "vae": ["--epochs", "8", "--hidden", "64", "--code", "4", "--lr", "0.003"],
    "fill": ["--epochs", "10", "--channels", "8", "--lr", "0.01"],
    "rows": ["--epochs", "8", "--units", "16", "--code", "8", "--lr", "0.01"],
    "faces": ["--epochs", "60", "--hidden", "64", "--lr", "0.003"],
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores: teams of two threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return trained_runs.Runs(tmp_path_factory.mktemp("runs"), SMALL)


def baseline(train, test):
    """The error of the mean image."""
    return (test - train.mean(0)).square().mean().item()


@pytest.mark.parametrize("task", SMALL)
def test_a_small_run_beats_the_mean_image(task, runs):
    _, result = runs(task)
    metrics = result["metrics"]
    images = load_images(None)
    if task == "rows":
        assert metrics["mean AUROC"] > 0.7  # chance is 0.5
    elif task == "faces":
        patches, _ = faces()
        assert metrics["test error on faces"] < baseline(patches[:70], patches[70:100])
    elif task == "fill":
        bound = next(a["bound"] for a in result["anchors"] if a["source"] == "the mean image")
        assert metrics["error of filled pixels"] < bound
    else:
        assert metrics["test error"] < baseline(images.train, images.test)
    assert result["epochs"] == int(SMALL[task][1])
    assert result["seed"] == 0
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("task", SMALL)
def test_a_report_shows_all_of_a_run(task, runs):
    trained_runs.check_report(*runs(task))


@pytest.mark.parametrize("task", SMALL)
def test_a_run_is_judged_again(task, runs):
    trained_runs.check_judged_again(*runs(task))


def test_options_are_readable_and_weights_load_alone(runs):
    run, _ = runs("autoencoder")
    saved = yaml.safe_load((run / "options.yaml").read_text())
    assert saved["task"] == "autoencoder"
    assert saved["hidden"] == [64]
    task = task_class("autoencoder")(task_class("autoencoder").Settings(hidden=[64]))
    task.prepare()
    model = task.build().model
    model.load_state_dict(load_file(run / "weights.safetensors"))
    alone = task.build().model.encoder
    alone.load_state_dict(load_file(run / "encoder.safetensors"))
    x = task.images.test[:3]
    assert torch.equal(alone(x), model.encoder(x))


def test_reconstructing_files(runs, tmp_path):
    run, _ = runs("autoencoder")
    np.save(tmp_path / "two.npy", np.random.rand(2, 8, 8))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "one.png")
    shown = tmp_path / "made" / "shown.png"
    result = invoke(
        "reconstruct", run, tmp_path / "two.npy", tmp_path / "one.png", "--output", shown
    )
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"error 0\.\d+", result.output)) == 3
    with Image.open(shown) as picture:
        assert picture.width > 100
    assert invoke("reconstruct", run, "--output", shown).exit_code == 0  # of the test set


def test_sampling(runs, tmp_path):
    run, _ = runs("vae")
    pictures = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for picture, seed in zip(pictures, (1, 1, 2), strict=True):
        result = invoke("sample", run, "--count", 5, "--seed", seed, "--output", picture)
        assert result.exit_code == 0, result.output
    first, again, other = (picture.read_bytes() for picture in pictures)
    assert first == again != other


@pytest.fixture
def waves(tmp_path):
    """Sines of random phase, period and length, in two features, as an .npz file."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 160), ("test", 40)):
        phase, period = generator.uniform(0, 6, (count, 1)), generator.uniform(8, 16, (count, 1))
        angle = phase + 2 * np.pi * np.arange(12) / period
        arrays[part] = np.stack([np.sin(angle), np.cos(angle)], -1)
        arrays[f"{part}_lengths"] = generator.integers(4, 13, count)
        arrays[f"{part}_labels"] = (period[:, 0] > 12).astype(int)
    np.savez(tmp_path / "waves.npz", **arrays)
    return tmp_path / "waves.npz"


@pytest.mark.parametrize("model", ["plain", "variational"])
def test_series_of_any_length(model, waves, tmp_path):
    small = ("--epochs", "30", "--units", "24", "--code", "6", "--lr", "0.02", "--beta", "0.1")
    run = tmp_path / "run"
    result = train("series", run, "--data", waves, "--model", model, *small)
    bound = next(a["bound"] for a in result["anchors"] if a["source"] == "the mean of each step")
    assert result["metrics"]["test error"] < 0.5 * bound
    shown = tmp_path / "shown.png"
    told = invoke("reconstruct", run, "--output", shown)
    assert told.exit_code == 0, told.output
    assert len(re.findall(r"error \d", told.output)) == 8
    if model == "variational":
        assert invoke("sample", run, "--count", 3, "--output", shown).exit_code == 0
    else:
        assert "this run's model is plain" in refused("sample", run, "--output", shown)


# --- stopping and going on ------------------------------------------------------------------------

SHORT = ("--epochs", "4", "--hidden", "32", "--examples", "200")


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_in(monkeypatch, where):
    """Lets training die at a moment."""
    counts = {"n": 0}

    def after(count):
        counts["n"] += 1
        if counts["n"] == count:
            raise Killed

    moment, count = where
    if moment == "step":
        step = fit.Fitting.training_step
        monkeypatch.setattr(fit.Fitting, "training_step", lambda *a: (after(count), step(*a))[1])
    elif moment == "checkpoint":
        save = torch.save

        def half(state, path):
            save(state, path)
            path.write_bytes(path.read_bytes()[:100])
            after(count)
            save(state, path)

        monkeypatch.setattr(files.torch, "save", half)
    elif moment == "end":
        monkeypatch.setattr(fit.Fitted, "__init__", lambda *_: after(count))


@pytest.mark.parametrize(
    "where",
    [("step", 3), ("step", 10), ("step", 25), ("checkpoint", 1), ("checkpoint", 4), ("end", 1)],
    ids=lambda where: "-".join(map(str, where)),
)
def test_a_killed_run_ends_with_the_same_weights(where, tmp_path, monkeypatch):
    options = (*SHORT, "--noise", "gaussian")  # draws in each step
    train("denoise", tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        killed_in(patch, where)
        with pytest.raises(Killed):
            invoke("train", "denoise", "--run", tmp_path / "killed", *options)
    torch.manual_seed(99)
    finished = train("denoise", tmp_path / "killed", *options)
    assert len(finished["history"]) == 4
    for name in ("weights.safetensors", "encoder.safetensors"):
        whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.parametrize("where", [("step", 10), ("end", 1)], ids=["step", "end"])
def test_a_killed_run_goes_on_with_its_mean_of_weights(where, tmp_path, monkeypatch):
    options = (*SHORT, "--average", "0.9")
    train("denoise", tmp_path / "whole", *options)
    train("denoise", tmp_path / "plain", *SHORT)
    with monkeypatch.context() as patch:
        killed_in(patch, where)
        with pytest.raises(Killed):
            invoke("train", "denoise", "--run", tmp_path / "killed", *options)
    train("denoise", tmp_path / "killed", *options)
    whole, killed, plain = (
        (tmp_path / run / "weights.safetensors").read_bytes()
        for run in ("whole", "killed", "plain")
    )
    assert whole == killed != plain


def test_a_run_that_stopped_early_stays_stopped(tmp_path, monkeypatch):
    options = ("--epochs", "30", "--patience", "1", "--hidden", "32", "--lr", "0.1")
    stopped = train("autoencoder", tmp_path / "whole", *options)
    assert stopped["epochs"] < 30
    with monkeypatch.context() as patch:
        killed_in(patch, ("end", 1))
        with pytest.raises(Killed):
            invoke("train", "autoencoder", "--run", tmp_path / "killed", *options)
    again = train("autoencoder", tmp_path / "killed", *options)
    assert again["history"] == stopped["history"]
    whole, killed = (tmp_path / run / "weights.safetensors" for run in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.slow
def test_a_process_that_was_killed(tmp_path):
    """The same with a real signal, which nothing can catch."""
    train("denoise", tmp_path / "whole", *SHORT)
    arguments = ["train", "denoise", "--run", str(tmp_path / "killed"), *SHORT]
    code = (
        "import os, signal; from bptt.train import fit; from bptt.tools.cli.app import app\n"
        "step, n = fit.Fitting.training_step, [0]\n"
        "def dying(*a):\n"
        "    n[0] += 1\n"
        "    if n[0] == 17: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(*a)\n"
        "fit.Fitting.training_step = dying\n"
        f"app({arguments!r})\n"
    )
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=300, env=threads)
    assert done.returncode == -signal.SIGKILL
    train("denoise", tmp_path / "killed", *SHORT)
    whole, killed = (tmp_path / run / "weights.safetensors" for run in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_two_processes(tmp_path):
    """Two gloo processes end with one set of weights and one result."""
    command = [sys.executable, "-m", "bptt", "train", "rows", "--run", str(tmp_path / "two")]
    options = ["--devices", "2", "--accelerator", "cpu", "--units", "8", "--epochs", "2"]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert len(result["history"]) == 2
    assert result["history"][1]["train/loss"] < result["history"][0]["train/loss"]


def test_another_seed_is_another_run(tmp_path):
    for seed in (1, 2):
        train("denoise", tmp_path / str(seed), *SHORT, "--seed", seed)
    first, second = (tmp_path / seed / "weights.safetensors" for seed in ("1", "2"))
    assert first.read_bytes() != second.read_bytes()


def test_a_loss_that_is_no_number_is_told(tmp_path):
    result = invoke("train", "autoencoder", "--run", tmp_path / "run", *SHORT, "--lr", "1e15")
    assert result.exit_code == 2, result.output
    assert re.search(r"the loss is (nan|inf) after epoch \d+: give a lower --lr", result.output)
    assert not (tmp_path / "run" / "result.json").exists()


def test_long_epochs_tell_how_far_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "TELL_EVERY", 0.0)
    result = invoke("train", "autoencoder", "--run", tmp_path / "run", *SMALL["autoencoder"])
    assert re.search(r"epoch 1 of 6: \d+%, loss \d", result.output)
    assert re.search(r"epoch 6 of 6: validation loss \d", result.output)


def test_a_finished_run_is_left_alone(runs):
    run, _ = runs("autoencoder")
    before = (run / "weights.safetensors").stat().st_mtime_ns
    result = invoke("train", "autoencoder", "--run", run, *SMALL["autoencoder"])
    assert result.exit_code == 0
    assert "is finished" in result.output
    assert (run / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize(
    "options",
    [["--impl", "torch"], ["--cell", "lstm"], ["--precision", "bf16-mixed"], ["--compile"]],
    ids=" ".join,
)
def test_ways_to_run(options, tmp_path):
    small = ["--epochs", "2", "--units", "8", "--examples", "64"]
    result = train("rows", tmp_path / "run", *small, *options)
    assert np.isfinite(list(result["metrics"].values())).all()
    assert result["reduced"] == "64 examples"


# --- bad input ------------------------------------------------------------------------------------


def test_an_unknown_task_is_refused():
    line = refused("train", "poetry")
    assert "no task 'poetry'" in line
    assert all(name in line for name in NAMES)


def test_an_unknown_option_is_refused():
    result = invoke("train", "autoencoder", "--cell", "gru")
    assert result.exit_code == 2
    assert "--cell" in result.output


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("autoencoder", ["--code", "0"], "code: Input should be greater than or equal to 1, got 0"),
        ("autoencoder", ["--lr", "-1"], "lr: Input should be greater than 0, got -1.0"),
        ("autoencoder", ["--lr", "nan"], "lr: Input should be"),
        ("autoencoder", ["--hidden", "0"], "hidden: Value error, expected sizes of 1 or more"),
        ("sparse", ["--code", "8", "--active", "9"], "active must be at most code (8), got 9"),
        ("autoencoder", ["--data", "nowhere"], "--data nowhere does not exist"),
        ("faces", ["--data", "."], "--data is not for this task"),
    ],
)
def test_bad_options_are_named(task, options, message, tmp_path):
    run = tmp_path / "run"
    assert message in refused("train", task, "--run", run, *options)
    assert not run.exists()


def test_another_run_is_not_overwritten(runs, tmp_path):
    run, _ = runs("autoencoder")
    line = refused("train", "vae", "--run", run)
    assert "is a run of the task autoencoder, not vae" in line
    line = refused("train", "autoencoder", "--run", run, *SMALL["autoencoder"], "--seed", 3)
    assert "other options (seed 0, not 3)" in line
    (tmp_path / "letters").write_text("mine")
    assert "exists and is no run" in refused("train", "autoencoder", "--run", tmp_path)


@pytest.mark.parametrize("command", ["eval", "reconstruct", "sample"])
def test_what_is_no_run_is_refused(command, tmp_path):
    assert "is no run" in refused(command, tmp_path)
    assert "is no run" in refused(command, tmp_path / "nowhere")
    (tmp_path / "options.yaml").write_text("task: knitting\n")
    assert "names a task 'knitting' that is not here" in refused(command, tmp_path)
    (tmp_path / "options.yaml").write_text("task: autoencoder\ncolour: red\n")
    if command != "sample":
        assert "colour: Extra inputs are not permitted" in refused(command, tmp_path)
    (tmp_path / "options.yaml").write_text("- [")
    assert "options.yaml is not readable" in refused(command, tmp_path)


def copied(run, to, *names):
    to.mkdir()
    for name in names:
        (to / name).write_bytes((run / name).read_bytes())
    return to


def test_weights_of_another_model_are_refused(runs, tmp_path):
    run, _ = runs("autoencoder")
    mixed = copied(run, tmp_path / "mixed", "options.yaml")
    assert "weights.safetensors is missing" in refused("eval", mixed)
    (mixed / "weights.safetensors").write_bytes(
        (runs("vae")[0] / "weights.safetensors").read_bytes()
    )
    assert "holds another model's weights" in refused("eval", mixed)
    (mixed / "weights.safetensors").write_bytes(b"12345678910")
    assert "weights.safetensors is damaged" in refused("eval", mixed)


def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_in(patch, ("step", 10))
        with pytest.raises(Killed):
            invoke("train", "denoise", "--run", tmp_path / "run", *SHORT)
    last = tmp_path / "run" / "checkpoint" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:500])
    assert "last.ckpt is damaged" in refused("train", "denoise", "--run", tmp_path / "run", *SHORT)


def test_pickles_are_not_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_in(patch, ("step", 10))
        with pytest.raises(Killed):
            invoke("train", "denoise", "--run", tmp_path / "run", *SHORT)

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"state_dict": Evil()}, tmp_path / "run" / "checkpoint" / "last.ckpt")
    refused("train", "denoise", "--run", tmp_path / "run", *SHORT)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["wide.png", "text.png", "nan.npy", "nowhere.png", "deep.npy"])
def test_bad_images_are_named(runs, tmp_path, name):
    run, _ = runs("autoencoder")
    path = tmp_path / name
    if name == "wide.png":
        Image.new("L", (9, 8)).save(path)
    elif name == "text.png":
        path.write_text("no picture")
    elif name == "nan.npy":
        np.save(path, np.full((8, 8), np.nan))
    elif name == "deep.npy":
        np.save(path, np.zeros((2, 2, 8, 8)))
    line = refused("reconstruct", run, path, "--output", tmp_path / "shown.png")
    assert name in line
    assert not (tmp_path / "shown.png").exists()


def test_other_tasks_cannot_sample(runs):
    assert "cannot sample; these can: vae" in refused("sample", runs("autoencoder")[0])


def test_how_to_write_is_for_texts(runs):
    line = refused("sample", runs("vae")[0], "--temperature", "0.5")
    assert "--temperature, --top-k, --nucleus are for texts, and this is a run of vae" in line


def test_a_picture_needs_the_name_of_one(runs, tmp_path):
    run, _ = runs("vae")
    assert "expected a picture's name" in refused("sample", run, "--output", tmp_path / "a.txt")


def test_a_full_disk(tmp_path, monkeypatch):
    """A checkpoint does not fit: nothing is half written, and the run goes on later."""
    save, count = torch.save, [0]

    def full(state, path):
        count[0] += 1
        if count[0] > 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(files.torch, "save", full)
        result = invoke("train", "denoise", "--run", tmp_path / "run", *SHORT)
    assert result.exit_code == 2
    assert "No space left on device; free some space" in result.output
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert kept == ["best.ckpt", "last.ckpt"]
    assert train("denoise", tmp_path / "run", *SHORT)["epochs"] == 4


def test_tasks_are_told_about():
    result = invoke("tasks")
    assert result.exit_code == 0
    words = re.sub(r"\s+", " ", result.output)
    for name in NAMES:
        assert name in words
