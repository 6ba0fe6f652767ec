"""Does the forecaster learn, are its intervals honest, and does it refuse what it cannot read?"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import trained_runs
from bptt.data.errors import BadInput
from bptt.data.timeline import load_timeline
from bptt.models.forecaster import Forecaster
from bptt.tasks.forecast import autoregressed, season_of
from trained_runs import invoke, refused, train

SEASON, HORIZON = 12, 6


def waves(count=600, noise=0.3):
    """A season of twelve steps whose height wanders, and noise."""
    generator = np.random.default_rng(0)
    height = 3 + 0.1 * generator.standard_normal(count).cumsum().clip(-15, 15)
    season = np.sin(2 * np.pi * np.arange(count) / SEASON)
    return height * season + noise * generator.standard_normal(count) + 20


def write(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture(scope="module")
def wave_file(tmp_path_factory):
    x = waves()
    days = [f"day {t}" for t in range(len(x))]
    columns = {"when": days, "load": x, "note": ["-"] * len(x)}
    return write(tmp_path_factory.mktemp("waves") / "waves.csv", columns)


@pytest.fixture(scope="module")
def run(wave_file, tmp_path_factory):
    torch.set_num_threads(1)  # two test processes on two cores
    path = tmp_path_factory.mktemp("forecast") / "run"
    options = ["--data", wave_file, "--horizon", str(HORIZON), "--units", "16", "--epochs", "25"]
    options += ["--seasons", "4"]
    return path, train("forecast", path, *options, "--lr", "0.01")


def test_it_is_better_than_what_was_a_season_ago(run):
    path, result = run
    metrics = result["metrics"]
    assert metrics["mean absolute error"] < 0.9 * metrics["error of seasonal naive"]
    assert 0.65 < metrics["share within the interval"] < 0.95
    trained_runs.check_report(path, result)
    trained_runs.check_judged_again(path, result)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_forecasts_of_a_file(kind, run, wave_file, tmp_path):
    output, picture = tmp_path / f"next.{kind}", tmp_path / "next.png"
    told = invoke("forecast", run[0], wave_file, "--output", output, "--picture", picture)
    assert told.exit_code == 0, told.output
    text = output.read_text()
    rows = json.loads(text) if kind == "json" else list(csv.DictReader(text.splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, HORIZON + 1))
    for row in rows:
        assert 10 < float(row["low"]) <= float(row["middle"]) <= float(row["high"]) < 30
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_forecast_knows_only_the_past(run, wave_file, tmp_path):
    """Of the file's beginning it is what it was when nothing more was there."""
    x = load_timeline(wave_file).values
    short = write(tmp_path / "short.csv", {"load": x[:200].tolist()})
    made = []
    for path in (short, wave_file):
        invoke("forecast", run[0], path, "--output", tmp_path / "told.json")
        made.append(json.loads((tmp_path / "told.json").read_text()))
    assert made[0] != made[1]
    from bptt.tasks.runs import of_task

    task, model, _ = of_task(run[0], None, "forecast")
    told = task.next_steps(model, x[:200], "the beginning")
    torch.testing.assert_close(
        told, torch.tensor([[row[k] for k in ("low", "middle", "high")] for row in made[0]])
    )


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["bptt", "torch"])
@pytest.mark.parametrize("curve", ["none", "root", "log"])
def test_an_untrained_model_tells_last_season_again(curve, impl):
    model = Forecaster(5, 12, (0.05, 0.25, 0.5, 0.75, 0.95), lags=3, curve=curve, impl=impl).eval()
    past = torch.rand(4, 17) + 0.5
    told = model.forecast(past)
    assert told.shape == (4, 12, 5)
    assert (told.diff(dim=2) > 0).all()
    torch.testing.assert_close(told[..., 2], past[:, -5:].repeat(1, 3)[:, :12])


def test_the_loss_is_least_at_the_quantiles():
    """Of many samples, the loss of constants is least where the samples' quantiles are."""
    levels = (0.1, 0.5, 0.9)
    model = Forecaster(1, 1, levels, seasons=1, lags=1, units=2).double()
    future = torch.randn(4000, 1, dtype=torch.float64)
    past = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64).expand(4000, -1)
    best = torch.quantile(future[:, 0], torch.tensor(levels, dtype=torch.float64))

    def loss(move):
        model.forward = lambda z: (best + move).expand(len(z), 1, -1)
        return float(model.losses(past, future)["quantiles"])

    least = loss(0.0)
    for k in range(3):
        for move in (-0.2, 0.2):
            assert loss(move * torch.eye(3, dtype=torch.float64)[k]) > least


def test_calibration_covers_its_share():
    torch.manual_seed(0)
    model = Forecaster(4, 3, (0.1, 0.5, 0.9), seasons=1, lags=2).eval()
    past, future = torch.randn(500, 12), 3 * torch.randn(500, 3)
    model.calibrate(past, future)
    told = model.forecast(past)
    share = ((future >= told[..., 0]) & (future <= told[..., 2])).double().mean()
    assert share == pytest.approx(0.8, abs=0.002)


def test_the_season_is_found():
    assert season_of(waves()) == SEASON
    assert season_of(np.ones(50)) == 1
    assert season_of(np.arange(2.0)) == 1


def test_the_autoregression_is_that_of_statsmodels():
    from statsmodels.tsa.ar_model import AutoReg, ar_select_order

    x = waves(300)
    lags = ar_select_order(x, SEASON + 1, ic="bic").ar_lags
    expected = AutoReg(x, lags).fit().forecast(5)
    made = autoregressed(x, x[None, -2 * SEASON :], SEASON, 5)
    np.testing.assert_allclose(made[0], expected, rtol=1e-6)


# --- input that cannot be read --------------------------------------------------------------------


def test_gaps_are_filled_on_a_line(tmp_path):
    path = write(tmp_path / "gaps.csv", {"x": ["", 1, 2, "", 4, 5, 6, 7, 8, ""]})
    read = load_timeline(path)
    assert read.values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert read.filled == 1


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", "", "cannot be read as CSV"),
        ("x\n1\n2\n", "y", "has no column 'y': it has x"),
        ("x\n1\ntwo\n3\n", "", "row 2: expected a number, got 'two'"),
        ("x\n1\ninf\n3\n", "", "row 2: expected a number, got 'inf'"),
        ("x,y\n1,\n2,\n,3\n,4\n5,\n", "x", "2 of 5 numbers are missing"),
        ("a,b\n1,2\n1,2,3\n", "", "cannot be read as CSV"),
    ],
)
def test_bad_files_are_named(text, column, message, tmp_path):
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_timeline(path, column)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--context", "5", "--season", "12"],
            "--context 5: it must exceed --seasons 2, of 12 steps",
        ),
        (["--horizon", "200"], "600 numbers: 1602 or more are needed"),
        (["--curve", "log"], "--curve log takes no number such as -2"),
        (["--data", "nowhere.csv"], "nowhere.csv is no file"),
    ],
)
def test_bad_options_are_named(options, message, tmp_path):
    path = write(tmp_path / "below.csv", {"x": -waves()})
    asked = options if "--data" in options else ["--data", path, *options]
    assert message in refused("train", "forecast", "--run", tmp_path / "run", *asked)


def test_a_series_of_one_row_is_refused(run, tmp_path):
    path = write(tmp_path / "one.csv", {"x": [1.0]})
    assert "holds 1 numbers: the model reads" in refused("forecast", run[0], path)
    line = refused("train", "forecast", "--run", tmp_path / "run", "--data", path)
    assert "the series holds 1 numbers" in line
