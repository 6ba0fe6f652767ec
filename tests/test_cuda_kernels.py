"""Do the CUDA kernels, in the simulator, compute what the CPU backend computes in float64?

They run as programs of csrc/simulator, on shapes small enough for threads that are fibers; every
case under several orders of threads and blocks.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bptt.cells import CELLS

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("BPTT_TEST_SEED", "20"))
TIERS = ("block", "cluster", "grid")
ONE_PRODUCT = tuple(name for name, spec in CELLS.items() if spec.stages == 1)
# Errors in units of the largest value, a few times what has been seen.
BOUNDS = {"fp32": 2e-6, "tf32": 2e-3, "fp16": 4e-3, "bf16": 3e-2}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A problem, and how it is cut: units and rows of a block, parts of the depth, a team."""

    cell: str = "lstm"
    number: str = "fp32"
    steps: int = 4
    batch: int = 5
    hidden: int = 12
    reverse: tuple[int, ...] = (0, 1)
    units: int = 4
    rows: int = 8
    parts: int = 1
    team: int = 3
    flags: str = "blrs"


@pytest.fixture(scope="module")
def program():
    """The path of the program that runs kernels in an engine."""
    command = [sys.executable, "setup.py", "--quiet", "build_simulator"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return lambda engine: ROOT / "build" / "native" / "simulator" / f"kernels.{engine}"


def inputs_of(case):
    """The tensors of a case by name, float64, holding what its numbers can hold."""
    torch.manual_seed(SEED)
    spec = CELLS[case.cell]
    T, B, D, H, G = case.steps, case.batch, len(case.reverse), case.hidden, len(spec.gates)

    def normal(scale, *shape):
        values = scale * torch.randn(shape)
        return values.to(DTYPES.get(case.number, torch.float32)).double()

    tensors = {"gates_x": normal(1, T, B, D, G, H), "w_hh": normal(H**-0.5, D, G * H, H)}
    tensors["b_hh"] = normal(0.5, D, G * H) if "b" in case.flags else None
    tensors["peephole"] = normal(0.5, D, 3 * H) if spec.peepholes else None
    tensors["h0"] = normal(1, D, B, H)
    tensors["c0"] = normal(1, D, B, H) if spec.has_cell_state else None
    lengths = torch.randint(0, T + 1, (B,))
    lengths[0] = T
    tensors["lengths"] = lengths if "l" in case.flags else None
    tensors["resets"] = torch.rand(T, B) < 0.3 if "r" in case.flags else None
    return tensors


def pattern_of(reverse):
    return len(reverse) << 24 | sum(flag << d for d, flag in enumerate(reverse))


def simulate(path, tier, case, tensors, seed):
    """Run the kernel; returns y, h_n, c_n, saved, cells as float64 tensors."""
    team = 1 if tier == "block" else case.team
    units = case.units * case.team if tier == "block" else case.units
    sizes = (case.steps, case.batch, len(case.reverse), case.hidden, pattern_of(case.reverse))
    numbers = (*sizes, units, case.rows, case.parts, team)
    command = [path, tier, case.cell, case.number, *map(str, numbers), case.flags or "-", str(seed)]
    data = b"".join(
        (t if name in ("lengths", "resets") else t.float()).numpy().tobytes()
        for name, t in tensors.items()
        if t is not None
    )
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    flat = torch.from_numpy(np.frombuffer(done.stdout, np.float32).astype(np.float64))
    spec, (T, B, D, H) = CELLS[case.cell], sizes[:4]
    shapes = [(T, B, D, H), (D, B, H), (D, B, H), (T, B, D, len(spec.saved), H), (T, B, D, H)]
    has_c, save = spec.has_cell_state, "s" in case.flags
    present = (True, True, has_c, save and bool(spec.saved), save and has_c)
    outputs = []
    for shape, there in zip(shapes, present, strict=True):
        count = int(np.prod(shape)) if there else 0
        outputs.append(flat[:count].reshape(shape) if there else None)
        flat = flat[count:]
    assert not flat.numel()
    return outputs


def expected(case, tensors):
    keep = "gates" if "s" in case.flags else "nothing"
    t = tensors
    inputs = (t["gates_x"], None, None, None, t["w_hh"], t["b_hh"], None, t["peephole"])
    rest = (t["h0"], t["c0"], t["lengths"], t["resets"], list(case.reverse), keep)
    return torch.ops.bptt.recurrence_forward("cpu", case.cell, *inputs, *rest)


def check(path, tier, case, seeds=(1, 2)):
    tensors = inputs_of(case)
    exact = expected(case, tensors)
    active = torch.ones(case.steps, case.batch, dtype=torch.bool)
    if tensors["lengths"] is not None:
        active = torch.arange(case.steps).unsqueeze(1) < tensors["lengths"]
    for seed in seeds:
        outputs = simulate(path, tier, case, tensors, seed)
        for name, got, want in zip(
            ("y", "h_n", "c_n", "saved", "cells"), outputs, exact, strict=True
        ):
            if got is None:
                continue
            if name in ("saved", "cells"):  # written where a sequence takes a step
                got, want = got[active], want[active]
            error = (got - want).abs().max() / max(1.0, want.abs().max())
            assert error <= BOUNDS[case.number], f"{name}: {error:.3g}, seed {seed}"


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("number", BOUNDS)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_and_number(cell, number, tier, program):
    check(program("fibers"), tier, Case(cell, number))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    "case",
    [
        Case(flags=""),
        Case("gru", flags="l"),
        Case("gru", "bf16", flags="rs"),
        Case("rnn_tanh", steps=1, batch=1, hidden=1, units=2, reverse=(1,)),
        Case("lstm", "fp16", batch=17, hidden=23, units=8, rows=16, parts=2),
        Case("gru", "tf32", batch=40, hidden=33, units=12, rows=40, reverse=(0, 1, 1, 0)),
        Case("lstm_peephole", hidden=70, units=24, batch=3, steps=2, parts=2),
    ],
    ids=lambda case: f"{case.cell}-{case.number}-B{case.batch}-H{case.hidden}-{case.flags}",
)
def test_options_and_edges(case, tier, program):
    check(program("fibers"), tier, case, seeds=range(3, 7))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["address", "thread"])
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("number", ["fp32", "bf16"])
def test_sanitizers_have_nothing_to_say(number, tier, engine, program):
    check(program(engine), tier, Case("lstm", number, steps=3), seeds=[1])
