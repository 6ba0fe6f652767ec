"""Where generated code lies: BPTT_CACHE, else `bptt` in XDG_CACHE_HOME or ~/.cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FUNCTIONS = ("forward", "backward", "operand", "rebuild")


def cache_folder() -> Path:
    named = os.environ.get("BPTT_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "bptt"


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold a file's lock, beside it, so that of several processes one makes it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.lock", "w", encoding="utf-8") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def functions(name: str, source: str) -> tuple[Any, ...]:
    """The functions of Triton of a generated module; Triton reads their source from a file."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    place = cache_folder() / f"{name}-{digest}.py"
    if not place.is_file():
        with alone(place):
            made = place.with_suffix(f".{os.getpid()}")
            made.write_text(source, encoding="utf-8")
            os.replace(made, place)
    spec = importlib.util.spec_from_file_location(f"bptt_cell_{name}", place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(getattr(module, function) for function in FUNCTIONS)
