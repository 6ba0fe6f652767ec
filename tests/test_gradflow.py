"""Does `bptt gradflow` measure what it says, and do its table and files say what was measured?"""

import csv
import json
import math
import subprocess
import sys

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("typer", reason="typer is not installed")
from typer.testing import CliRunner

from bptt.tools.cli.app import app
from bptt.tools.gradflow import NETWORKS, Flow, Settings, adding_problem, measure, run, summarize
from bptt.tools.gradflow.measure import batch_of, make_network

TINY = ["--steps", "12", "--hidden", "4", "--batch", "3"]
PHASES = ("initial", "trained")


def invoke(*options):
    return CliRunner().invoke(app, ["gradflow", *map(str, options)])


# --- the task -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [8, 9, 40])
def test_the_adding_problem(steps):
    x, targets = adding_problem(steps, 200, torch.Generator().manual_seed(1))
    assert x.shape == (steps, 200, 2) and targets.shape == (200,)
    numbers, markers = x.unbind(-1)
    marked = markers == 1
    assert (marked.sum(0) == 2).all()
    assert not marked[steps // 2 - 1 :].any() and marked[:10].any(0).all()
    assert marked[0].any()
    assert (numbers[0][marked[0]] == 0).all() and (markers[0][~marked[0]] == -1).all()
    assert (markers[-1] == -1).all() and (markers[1:-1] >= 0).all()
    torch.testing.assert_close(targets, 0.5 + (numbers * marked).sum(0) / 4)
    assert numbers.abs().max() <= 1 and numbers.min() < -0.9
    assert (targets - 0.5).square().mean() < 1 / 20


def test_too_few_steps():
    with pytest.raises(ValueError, match="steps must be at least 8, got 7"):
        adding_problem(7, 1)


# --- what is measured -----------------------------------------------------------------------------


def test_norms_are_autograds():
    """Against states that autograd keeps, a step at a time, in each sequence by itself."""
    settings = Settings(steps=9, hidden=5, batch=3, dtype="float64")
    network = make_network("GRU", settings)
    x, targets = batch_of(settings, torch.Generator().manual_seed(0))
    (norms,), loss = measure(network, x, targets)
    for b in range(3):
        h, states = None, []
        for t in range(9):
            _, h = network.recurrent(x[t : t + 1, b : b + 1], h)
            h.retain_grad()
            states.append(h)
        error = (network.head(h).squeeze() - targets[b]).square()
        error.backward()
        expected = torch.stack([h.grad.norm() for h in states])
        torch.testing.assert_close(norms[:, b], expected)
    assert loss > 0


def flow_of(medians, tiny=1e-38):
    return Flow("GRU", "plain", "initial", 0, torch.tensor(medians).unsqueeze(1), 0.0, tiny)


def test_summaries():
    halving = summarize(flow_of([2.0**-k for k in reversed(range(20))]))
    assert halving.first == 2.0**-19 and halving.last == 1
    assert halving.rate == pytest.approx(0.5) and halving.half_life == pytest.approx(1)
    growing = summarize(flow_of([8.0, 4.0, 2.0, 1.0]))
    assert growing.rate == pytest.approx(2) and growing.half_life is None
    underflown = summarize(flow_of([0.0, 1e-40, 0.25, 0.5]))
    assert underflown.rate == pytest.approx(0.5)
    nothing = summarize(flow_of([math.nan, math.inf, 1.0]))
    assert nothing.rate is None and nothing.half_life is None


def test_treatments_beside_plain_runs():
    settings = Settings(steps=20, hidden=8, batch=4, train=0, gain=3.0, truncate=6, clip=1e-3)
    flows = {(flow.network, flow.treatment): flow.norms for flow in run(settings)}
    assert {treatment for _, treatment in flows} == {"plain", "truncate=6", "clip=0.001"}
    for network in NETWORKS:
        plain = flows[network, "plain"]
        cut, clipped = flows[network, "truncate=6"], flows[network, "clip=0.001"]
        torch.testing.assert_close(cut[18:], plain[18:])  # the border lies before step 18
        assert (cut[:18] == 0).all() and (plain[:18] > 0).any()
        torch.testing.assert_close(clipped[-1], plain[-1])  # what arrives, before it is bounded
        assert (clipped[:-1] <= plain[:-1] + 1e-6).all() and clipped[0].max() < 1


@pytest.mark.parametrize(
    ("option", "value"), [("truncate", -1), ("clip", -0.5), ("clip", math.nan)]
)
def test_treatments_that_are_none(option, value):
    with pytest.raises(ValueError, match=option):
        Settings(**{option: value})


def test_a_plain_network_forgets_faster_than_an_lstm():
    flows = run(Settings(steps=100, hidden=32, batch=16, train=0))
    rates = {flow.network: summarize(flow) for flow in flows}
    assert rates["RNN tanh"].rate < 0.75 < 0.8 < rates["LSTM"].rate < 1
    assert rates["LSTM"].first > 1e6 * rates["RNN tanh"].first > 0
    assert rates["LSTM"].half_life > 2 * rates["RNN tanh"].half_life


def test_gain_makes_gradients_explode():
    flows = run(Settings(steps=60, hidden=32, batch=16, train=0, gain=4.0))
    summaries = {flow.network: summarize(flow) for flow in flows}
    for name in ("RNN tanh", "RNN relu"):
        assert summaries[name].rate > 1 and summaries[name].half_life is None
        assert summaries[name].first > 10 * summaries[name].last


def test_a_seed_gives_the_same_again():
    settings = Settings(steps=10, hidden=4, batch=3, train=2)
    for one, two in zip(run(settings), run(settings), strict=True):
        assert torch.equal(one.norms, two.norms) and one.loss == two.loss


# --- the command ----------------------------------------------------------------------------------


def test_the_command(tmp_path):
    folder = tmp_path / "new" / "folder"
    done = invoke(*TINY, "--train", 2, "--layers", 2, "--gain", 1.5, "--output", folder)
    assert done.exit_code == 0, done.output
    assert "half-life" in done.output and "training LSTM: step 2 of 2" in done.output
    assert (folder / "gradflow.png").read_bytes().startswith(b"\x89PNG")

    with open(folder / "gradflow.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(NETWORKS) * len(PHASES) * 2 * 12
    assert {(r["network"], r["phase"], r["layer"]) for r in rows} == {
        (name, phase, layer) for name in NETWORKS for phase in PHASES for layer in "01"
    }
    for row in rows:
        assert int(row["step"]) + int(row["distance"]) == 11
        low, middle, high = (
            float(row[name]) for name in ("lower_quartile", "median", "upper_quartile")
        )
        assert 0 <= low <= middle <= high

    content = json.loads((folder / "gradflow.json").read_text())
    wanted = {"steps": 12, "hidden": 4, "batch": 3, "train": 2, "layers": 2, "gain": 1.5, "seed": 0}
    assert wanted.items() <= content["settings"].items()
    assert content["versions"]["torch"] == torch.__version__ and "dL" in content["norm"]
    medians = {
        (r["network"], r["phase"], int(r["layer"])): float(r["median"])
        for r in rows
        if r["distance"] == "0"
    }
    for result in content["results"]:
        place = (result["network"], result["phase"], result["layer"])
        assert result["last"] == medians[place] and result["rate"] > 0
        assert place[0] in done.output


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes_and_no_training(dtype, tmp_path):
    done = invoke(*TINY, "--train", 0, "--dtype", dtype, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "gradflow.json").read_text())["results"]
    assert {result["phase"] for result in results} == {"initial"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "7"], "steps must be at least 8, got 7"),
        (["--hidden", "0"], "hidden must be at least 1, got 0"),
        (["--batch", "-1"], "batch must be at least 1, got -1"),
        (["--layers", "0"], "layers must be at least 1"),
        (["--train", "-1"], "train must be at least 0"),
        (["--gain", "0"], "gain must be a finite number above 0, got 0.0"),
        (["--gain", "nan"], "gain must be a finite number above 0"),
        (["--learning-rate", "inf"], "learning_rate must be a finite number above 0"),
        (["--forget-bias", "inf"], "forget_bias must be finite"),
        (["--dtype", "int8"], "dtype must be one of float32, float64"),
        (["--device", "nowhere"], "device nowhere: "),
        (["--steps", "many"], "valid int"),
        (["--output", __file__], "is a file"),
        (["--output", f"{__file__}/folder"], "Not a directory"),
    ],
)
def test_bad_arguments(options, message, tmp_path):
    done = invoke("--output", tmp_path, *TINY, *options)
    assert done.exit_code == 2
    text = " ".join(done.output.replace("│", " ").split())
    assert message in text, done.output
    assert not list(tmp_path.iterdir())


def test_a_training_that_explodes_is_an_error_in_words(tmp_path):
    done = invoke(*TINY, "--train", 3, "--gain", "1e30", "--output", tmp_path)
    assert done.exit_code == 1
    assert "RNN relu: the loss is" in done.output and "smaller gain" in done.output


def test_the_picture_of_what_is_not_finite(tmp_path):
    done = invoke(*TINY, "--train", 0, "--gain", "1e30", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "gradflow.json").read_text())["results"]
    assert any(result["first"] is None for result in results)


def test_help_does_not_load_matplotlib():
    program = "import sys\nfrom bptt.tools.cli.app import app\nprint('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
