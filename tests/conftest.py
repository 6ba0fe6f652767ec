"""Settings of every test: NaN-filled memory, one seed, so many threads."""

import collections
import os
import zlib

# The ops read it once, at their first call: every output and scratch buffer then starts as NaN, so
# that a kernel that forgets to write something is found out.
os.environ["BPTT_POISON"] = "1"

import hypothesis
import pytest
import torch

# `make test` runs these in processes of their own: see kernels/conftest.py, simulated/conftest.py.
collect_ignore = [
    folder
    for folder, variable in (("kernels", "TRITON_INTERPRET"), ("simulated", "BPTT_SIMULATOR"))
    if not os.environ.get(variable)
]

SEED = int(os.environ.get("BPTT_TEST_SEED", "20"))
THREADS = 2

hypothesis.settings.register_profile(
    "bptt",
    deadline=None,  # the machine may be busy
    database=None,
    max_examples=40,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        # The fixture below sets the same state for every example.
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("bptt")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    # Read by hypothesis when it is configured, right after: one seed gives one set of examples.
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = SEED


def pytest_report_header(config):
    return f"bptt: BPTT_TEST_SEED={SEED}, {THREADS} threads, torch {torch.__version__}"


# A run of whole folders takes so many cases of a test, or a sixteenth of them if that is more,
# chosen by their names: the others ask the same question. `--all`, which `make test-all` gives,
# takes every one, and so does a run of files or of `-k`.
CASES, PART = 2, 16


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="every case of every test")


def pytest_collection_modifyitems(config, items):
    named = config.option.keyword or any(".py" in argument for argument in config.args)
    if config.option.all or named:
        return
    cases = collections.defaultdict(list)
    for item in items:
        if not item.get_closest_marker("exhaustive"):
            cases[item.nodeid.split("[")[0]].append(item)
    chosen = set()
    for test in cases.values():
        test.sort(key=lambda item: zlib.crc32(f"{SEED} {item.nodeid}".encode()))
        chosen.update(test[: max(CASES, len(test) // PART)])
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def threads_for(item):
    """Teams of several test processes wait for each other: there every fourth test has one."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    drawn = zlib.crc32(item.nodeid.encode()) % 4 == 0
    return THREADS if alone or drawn or item.get_closest_marker("threads") else 1


@pytest.fixture(autouse=True)
def _same_start(request):
    torch.manual_seed(SEED)
    torch.set_num_threads(threads_for(request.node))
    yield
