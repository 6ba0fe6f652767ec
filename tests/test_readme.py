"""Does the README say what is so?  Its code runs, its tests exist, its figures are committed."""

import ast
import importlib
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

import bptt
import own_cells
from bptt.tools.bench.problems import grid
from bptt.tools.bench.results import Result

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
NAMED_TESTS = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", README)))


def functions_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.fixture
def report(monkeypatch):
    """benchmarks/report.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("report")
    sys.modules.pop("report", None)


# torch's own, where it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.strip().splitlines()[-1][:50])
def test_code_runs(code, monkeypatch):
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # where Dynamo looks for globals
    with own_cells.known_cells_as_before():
        exec(compile(code, "README.md", "exec"), vars(module))


@pytest.mark.parametrize(("file", "name"), NAMED_TESTS, ids=lambda part: part)
def test_named_tests_exist(file, name):
    path = ROOT / "tests" / file
    assert path.is_file()
    assert name in functions_in(path)


def test_every_row_of_what_torch_lacks_names_a_test():
    section = README.split("## What torch.nn lacks", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        assert re.search(r"`test_\w+\.py::test_\w+`", row), row


def test_links_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:csrc|python|tests|benchmarks|kernels)/[\w/.]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name


def test_speed_section_is_what_the_committed_results_say(report):
    assert report.update_readme(README) == README, "run benchmarks/report.py --update-readme"


# --- benchmarks/report.py on a made-up result -----------------------------------------------------


def made_up(ratios):
    """A result whose rows of a layer all have that layer's ratio."""
    ms = {"median": 1.0, "q1": 0.9, "q3": 1.1, "rounds": 5}
    rows = [
        {
            **problem.asdict(),
            "cudnn_class": None,
            "floor_ms": 0.5,
            "providers": {
                "torch.nn": {"status": "timed", "ms": ms, "share_of_gemm": 0.5},
                "bptt": {
                    "status": "timed",
                    "ms": ms,
                    "share_of_gemm": 0.5,
                    "ratio": {"median": ratios[problem.layer], "q1": 1.0, "q3": 1.0},
                },
            },
        }
        for problem in grid("standard", "cpu")
    ]
    return Result(Path("made-up.json"), {"figures": {"import_s": 0.1}, "rows": rows})


@pytest.mark.parametrize(
    ("ratios", "missed"),
    [
        ({"RNN": 2.0, "GRU": 2.0, "LSTM": 1.0}, []),
        ({"RNN": 1.9, "GRU": 2.5, "LSTM": 1.0}, ["RNN, geometric mean of the ratios"]),
        (
            {"RNN": 2.0, "GRU": 2.0, "LSTM": 0.9},
            ["LSTM, geometric mean of the ratios", "smallest ratio of any row"],
        ),
    ],
    ids=["all met", "RNN slow", "LSTM slower than torch"],
)
def test_bars_are_judged(report, ratios, missed):
    assert [bar.what for bar in report.bars(made_up(ratios)) if not bar.met] == missed


def test_tables_of_the_speed_section(report):
    result = made_up({"RNN": 3.0, "GRU": 2.0, "LSTM": 1.5})
    assert "| RNN | 3.00 | 3.00 | 3.00 | 3.00 |" in report.means_table(result)
    rows = report.rows_of(result, directions=1, which="step")
    assert len(rows) == 15 and report.short_table(rows).count("| LSTM | 1.0 | 1.0 | 1.50 |") == 5


def test_a_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bptt.__version__
