"""How long does the extension take to build from nothing?  Runs with --build-time only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("csrc", "kernels", "python", "setup.py", "pyproject.toml", "LICENSE", "README.md")


def test_build(benchmark: Any, request: pytest.FixtureRequest, tmp_path: Path):
    if not request.config.getoption("--build-time"):
        pytest.skip("takes minutes: pass --build-time")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy(source, tmp_path / part)
    # As wheels are built: without the module that only tests use.
    environment = {**os.environ, "BPTT_DEV": "0", "MAX_JOBS": "2"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    benchmark.pedantic(
        lambda: subprocess.run(command, cwd=tmp_path, env=environment, check=True), rounds=1
    )
    assert list((tmp_path / "python" / "bptt").glob("_C*.so"))
