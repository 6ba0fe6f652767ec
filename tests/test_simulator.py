"""Does the CUDA simulator let right kernels pass and catch planted faults, in each of its engines?

The kernels are in csrc/simulator/samples.cuh; between them they use every primitive.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = (
    "reverse", "product", "product_across", "pipeline", "ring", "shares", "hops", "mail",
)  # fmt: skip
SEED = int(os.environ.get("BPTT_TEST_SEED", "20"))
SEEDS = range(SEED, SEED + 8)
PATIENCE_S = 120


@pytest.fixture(scope="module")
def sample():
    """A function that runs a sample in an engine; returns its output and exit code."""
    command = [sys.executable, "setup.py", "--quiet", "build_simulator"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]

    def run(engine, name, fault="none", seed=SEED):
        program = ROOT / "build" / "native" / "simulator" / f"samples.{engine}"
        done = subprocess.run(
            [program, name, fault, str(seed)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        return done.stdout + done.stderr, done.returncode

    return run


@pytest.mark.parametrize("engine", ["fibers", "address", "thread"])
@pytest.mark.parametrize("name", SAMPLES)
def test_right_kernels_pass_in_any_order(name, engine, sample):
    for seed in SEEDS:
        assert sample(engine, name, seed=seed) == (f"seed {seed}: right\n", 0)


FAULTS = [
    ("reverse", "missing_barrier", "wrong: element"),
    ("reverse", "past_the_tile", "thread (0, 0, 0): elements 64 to 65 of a view of 64"),
    ("reverse", "divergent_barrier", "threads meet at two places: __syncthreads at samples.cuh:"),
    ("product", "missing_barrier", "wrong: element"),
    ("product", "past_the_tile", "of a view of 128"),
    ("product_across", "missing_barrier", "wrong: element"),
    ("pipeline", "missing_wait", "wrong: element"),
    ("pipeline", "stale_buffer", "wrong: element"),
    ("ring", "missing_wait", "fault: ring, block"),
    ("ring", "stale_buffer", "wrong: element"),
    ("ring", "wrong_phase", "fault: ring, block"),
    ("ring", "uninitialised", "a transaction barrier that nobody initialised"),
    ("ring", "missing_fence", "a transaction barrier whose initialisation was not fenced"),
    ("hops", "missing_wait", "wrong: element"),
    ("hops", "missing_signal", "waits for signals of other blocks at samples.cuh:"),
    ("too_large", "none", "the blocks of a cooperative launch have no room"),
    ("too_large", "missing_wait", "waits for signals of other blocks"),
]


@pytest.mark.parametrize(("name", "fault", "message"), FAULTS, ids=lambda value: value[:18])
def test_fibers_catch_in_any_order(name, fault, message, sample):
    for seed in SEEDS:
        output, _ = sample("fibers", name, fault, seed)
        assert output.startswith(f"seed {seed}: ") and message in output


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("ring", "missing_barrier", "wrong: element"),
        ("ring", "leaves_early", "a store to the shared memory of a block that has ended"),
        ("shares", "missing_barrier", "wrong: element"),
        ("shares", "leaves_early", "a load from the shared memory of a block that has ended"),
        ("mail", "early_copy", "wrong: element"),
    ],
)
def test_what_shows_in_some_orders_only(name, fault, message, sample):
    answers = [sample("fibers", name, fault, seed)[0] for seed in range(1, 30)]
    assert any(message in answer for answer in answers)


def test_one_seed_is_one_order(sample):
    for name, fault, _ in FAULTS:
        assert sample("fibers", name, fault, 3) == sample("fibers", name, fault, 3)


def test_address_sanitizer_sees_past_the_shared_memory(sample):
    output, code = sample("address", "reverse", "past_the_memory")
    assert code != 0 and "heap-buffer-overflow" in output and "samples.cuh" in output


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("reverse", "missing_barrier"),
        ("product", "missing_barrier"),
        ("ring", "missing_wait"),
        ("ring", "missing_barrier"),
        ("hops", "missing_wait"),
    ],
)
def test_thread_sanitizer_names_both_lines_of_a_race(name, fault, sample):
    output, code = sample("thread", name, fault)
    assert code != 0 and "WARNING: ThreadSanitizer: data race" in output
    first = output.partition("WARNING")[2].partition("SUMMARY")[0]
    assert first.count("samples.cuh:") >= 2
