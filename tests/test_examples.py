"""Do the examples of docs/guide/neighbours.md do the same work in both ways?

Their packages are the extra `neighbours`; without one of them its example is skipped.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.stem != "gain")
PACKAGES = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)
SLOW = {"aoti_package"}  # Inductor compiles

pytestmark = pytest.mark.filterwarnings("ignore")  # those packages' own


@pytest.fixture
def example(request, monkeypatch):
    """An example as a module, where its packages are there."""
    path = request.param
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    for package in PACKAGES.findall(path.read_text(encoding="utf-8")):
        if package != "gain":
            pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    except OSError as reason:  # torchaudio's compiled part needs that of a CUDA build of torch
        pytest.skip(str(reason))
    yield module
    sys.modules.pop(path.stem, None)


ALL = [
    pytest.param(p, id=p.stem, marks=[pytest.mark.exhaustive] if p.stem in SLOW else [])
    for p in EXAMPLES
]


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_both_ways_do_the_same(example):
    torch.manual_seed(0)
    before, after = example.pair()
    torch.testing.assert_close(after(), before(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("example", ALL, indirect=True)
def test_an_example_is_one_screen(example):
    lines = Path(example.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert example.__doc__ and example.pair.__doc__


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False})],
    ids=["lstm", "gru, reset after", "gru, reset before"],
)
@pytest.mark.parametrize(
    "example", [ROOT / "examples" / "keras_weights.py"], indirect=True, ids=["keras"]
)
def test_weights_of_keras_and_back(example, kind, options):
    torch.manual_seed(0)
    before, after = example.pair(3, 7, 5, 6, kind, **options)
    torch.testing.assert_close(after(), before(), rtol=1e-4, atol=1e-5)
    theirs = getattr(example.keras.layers, kind)(6, return_sequences=True, **options)
    theirs.build((None, 7, 5))
    import bptt

    ours = getattr(bptt, kind)(5, 6, batch_first=True, **options)
    example.to_keras(ours, theirs)
    x = torch.randn(3, 7, 5)
    torch.testing.assert_close(theirs(x), ours(x)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(example.from_keras(theirs)(x)[0], ours(x)[0])
