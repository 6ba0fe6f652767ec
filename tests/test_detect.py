"""Does the detector learn faces, find them in a picture, and refuse what is none?"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import trained_runs
from bptt.models.detector import STRIDE, WINDOW, Detector
from bptt.tasks.faces import faces
from trained_runs import invoke, refused, train

cv2 = pytest.importorskip("cv2", reason="the package opencv-python-headless is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)  # two test processes on two cores
    path = tmp_path_factory.mktemp("detect") / "run"
    return path, train(
        "detect", path, "--parts", "320", "--epochs", "8", "--lr", "0.004", "--dropout", "0.2"
    )


def test_faces_are_told_from_others(run):
    path, result = run
    assert result["metrics"]["AUROC"] > 0.9
    trained_runs.check_report(path, result)
    trained_runs.check_judged_again(path, result)


@pytest.fixture
def crowd(tmp_path):
    """A grey wall with one face of the test part on it, three times as large."""
    picture = np.full((160, 200), 128, np.uint8)
    face = Image.fromarray((faces()[0][99] * 255).byte().numpy()).resize((75, 75))
    picture[40:115, 100:175] = np.asarray(face)
    path = tmp_path / "crowd.png"
    Image.fromarray(picture).save(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_face_is_found_where_it_is(kind, run, crowd, tmp_path):
    output, picture = tmp_path / f"faces.{kind}", tmp_path / "boxes.png"
    options = ["--output", output, "--picture", picture, "--least", "0.2"]
    told = invoke("detect", run[0], crowd, *options)
    assert told.exit_code == 0, told.output
    text = output.read_text()
    rows = json.loads(text) if kind == "json" else list(csv.DictReader(text.splitlines()))
    left, top, size = (float(rows[0][name]) for name in ("left", "top", "size"))
    assert abs(left + size / 2 - 137) < 30
    assert abs(top + size / 2 - 77) < 30
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_found_on_a_wall(run, tmp_path):
    path = tmp_path / "wall.npy"
    np.save(path, np.full((60, 60), 0.5))
    told = invoke("detect", run[0], path)
    assert told.exit_code == 0, told.output
    assert "no face of probability 0.9 or more" in told.output
    invoke("detect", run[0], path, "--output", tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().strip() == "left,top,size,probability"


def test_sliding_is_patch_by_patch():
    model = Detector(4).double().eval()
    picture = torch.rand(1, 53, 38, dtype=torch.float64)
    logits = model(picture)[0]
    assert logits.shape == (8, 4)
    for i, row in enumerate(logits):
        for j, logit in enumerate(row):
            top, left = STRIDE * i, STRIDE * j
            patch = picture[:, top : top + WINDOW, left : left + WINDOW]
            torch.testing.assert_close(model(patch)[0, 0, 0], logit)


def test_of_windows_that_overlap_the_surest_stays():
    model = Detector(2).eval()
    model.forward = lambda x: torch.where(x[:, ::4, ::4] > 0.9, 3.0 + x[:, ::4, ::4], -9.0)
    picture = torch.zeros(WINDOW, WINDOW)  # so large that there are no smaller copies
    picture[8, 8], picture[8, 12], picture[24, 24] = 0.95, 1.0, 0.91
    found = model.find(picture, least=0.5)
    assert [(one.left, one.top, one.size) for one in found] == [(12, 8, 25), (24, 24, 25)]
    assert [(one.left, one.top) for one in model.find(picture, overlap=0.9)] == [
        (12, 8),
        (8, 8),
        (24, 24),
    ]


def test_patches_vary_in_training_alone():
    torch.manual_seed(0)
    model, x = Detector(2), torch.rand(6, WINDOW, WINDOW)
    moved = model._moved(x)
    assert moved.shape == x.shape
    assert (moved - x).abs().mean() > 0.01
    still = Detector(2, moved=0.0, turned=0.0)._moved(x)
    for one, other in zip(still, x, strict=True):
        near = min((one - other).abs().max(), (one - other.flip(1)).abs().max())
        assert near < 1e-4
    model.eval()
    arguments = x, torch.ones(6), torch.rand(2, 40, 40)
    assert model.losses(*arguments) == model.losses(*arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((20, 80)), "expected one picture of 25x25 or more, got 80x20x1"),
        (np.zeros((3, 80, 80)), "expected one picture of 25x25 or more, got 80x80x3"),
        (np.full((30, 30), np.nan), "holds NaN or infinity"),
    ],
)
def test_bad_pictures_are_named(content, message, run, tmp_path):
    np.save(tmp_path / "bad.npy", content)
    assert message in refused("detect", run[0], tmp_path / "bad.npy")


def test_what_is_no_picture_is_named(run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    assert "cannot be read as an image" in refused("detect", run[0], tmp_path / "text.png")
    assert "is no file" in refused("detect", run[0], tmp_path / "nothing.png")
    line = refused("train", "detect", "--run", tmp_path / "run", "--data", tmp_path)
    assert "--data is not for this task" in line
