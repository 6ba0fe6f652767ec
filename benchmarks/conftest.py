"""Options of the benchmarks that run under pytest-benchmark."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bptt")
    group.addoption("--build-time", action="store_true", help="also time a build from nothing")
