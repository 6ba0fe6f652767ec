"""Pictures and their names: one to many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import trained_runs
from bptt.data.errors import BadInput
from bptt.data.named_pictures import SIZE, load_named
from bptt.data.vocabulary import END, START
from bptt.models.captioner import Captioner
from trained_runs import invoke, refused, train

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "black": (0, 0, 0),
    "yellow": (240, 220, 40),
    "grey": (128, 128, 128),
    "pink": (250, 150, 200),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes on two cores: teams of two threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A square of a colour at a place; its name says both."""
    folder = tmp_path_factory.mktemp("squares")
    for colour, value in COLOURS.items():
        for i, row in enumerate(("top", "middle", "bottom")):
            for j, column in enumerate(("left", "centre", "right")):
                picture = np.full((48, 48, 3), 255, np.uint8)
                picture[16 * i : 16 * i + 14, 16 * j : 16 * j + 14] = value
                Image.fromarray(picture).save(folder / f"{colour}_{row}_{column}.png")
    return folder


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    path = tmp_path_factory.mktemp("name") / "run"
    options = ["--data", squares, "--epochs", "60", "--units", "64", "--channels", "8"]
    return path, train("name", path, *options, "--dropout", "0", "--lr", "0.005", "--batch", "16")


def test_names_are_learnt(run, tmp_path):
    path, result = run
    metrics = result["metrics"]
    assert metrics["names of training told exactly"] > 0.4
    assert metrics["nats of a letter"] < 0.6 * metrics["nats of a letter, shown another picture"]
    trained_runs.check_report(path, result)
    trained_runs.check_judged_again(path, result)
    told = invoke("sample", path, "--count", "3", "--output", tmp_path / "named.png")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "named.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("impl", ["bptt", "torch"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_step_by_step_is_the_whole(cell, impl):
    torch.manual_seed(0)
    model = Captioner(9, units=8, channels=2, cell=cell, impl=impl).double().eval()
    pictures = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64)
    written = model.name(pictures, 6)
    whole, _ = model(model.code(pictures), torch.cat([torch.full((4, 1), START), written], 1))
    best = whole.argmax(2)[:, :6]
    for made, told in zip(written.tolist(), best.tolist(), strict=True):
        end = made.index(END) + 1 if END in made else 6
        assert made[:end] == told[:end]
        assert set(made[end:]) <= {END}


def test_parts_of_a_folder(squares):
    parts = load_named(squares)
    assert {part: len(each.names) for part, each in parts.items()} == {
        "train": 51,
        "validation": 6,
        "test": 6,
    }
    assert parts["train"].pictures.shape == (51, 3, SIZE, SIZE)
    assert "red top left" in parts["train"].names


def test_emoji_are_read_where_they_are_installed():
    try:
        parts = load_named(None)
    except BadInput as error:
        pytest.skip(str(error))
    names = [name for part in parts.values() for name in part.names]
    assert len(names) > 1000
    assert "red heart" in names
    assert all(part.pictures.std((1, 2, 3)).gt(0.01).all() for part in parts.values())


def test_bad_data_are_named(tmp_path):
    with pytest.raises(BadInput, match="does not exist: expected a font or a folder"):
        load_named(tmp_path / "nothing")
    (tmp_path / "few").mkdir()
    with pytest.raises(BadInput, match="20 pictures or more are needed, got 0"):
        load_named(tmp_path / "few")
    (tmp_path / "few" / "red.png").write_text("no picture")
    line = refused("train", "name", "--run", tmp_path / "run", "--data", tmp_path / "few")
    assert "red.png cannot be read as a picture" in line


def test_a_font_is_checked(tmp_path):
    pytest.importorskip("emoji", reason="the package emoji is not installed")
    (tmp_path / "font.ttf").write_text("no font")
    with pytest.raises(BadInput, match="is no font of colour emoji"):
        load_named(tmp_path / "font.ttf")
