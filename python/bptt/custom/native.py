"""Cells of one's own as machine code for the cpu backend: written, compiled once, loaded.

Libraries lie in the cache (`generated.py`), named by all that they depend on: the code, the
engine's headers, the compiler and its flags.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from .cpp import ENGINE_SOURCES, sources
from .generated import alone, cache_folder

_loading = threading.Lock()
# Loops of cells, by name, dtype and whether they are controlled: why they could not be made, or ""
# where they are there.
_loaded: dict[tuple[str, str, bool], str] = {}
DTYPES = ("float32", "float64", "bfloat16")


def reason_against(name: str) -> str | None:
    """Why the cpu backend cannot run a cell, as far as is known; None where it can."""
    known = [against for (cell, _, _), against in list(_loaded.items()) if cell == name]
    for against in known:
        if against:
            return against
    return None if known or compiler() else _NO_COMPILER


def prepare(name: str, text: str, dtype: str, controlled: bool) -> bool:
    """Make the cpu backend know loops of a cell. The first time this takes as long as compiling.

    Where that fails, a warning says why, and `reason_against` does from then on.

    Args:
        name: what the engine knows the cell by.
        text: its struct, as `cpp.file` writes it.
        dtype: one of `DTYPES`.
        controlled: whether the loops do more than run the cell.
    """
    piece = (name, dtype, controlled)
    if piece not in _loaded:
        with _loading:
            if piece not in _loaded:
                told = reason_against(name) is not None and any(c == name for c, _, _ in _loaded)
                _loaded[piece] = _load(*piece, text)
                if _loaded[piece] and not told:
                    warnings.warn(
                        f"bptt: {name} runs the reference loop, which is slow: {_loaded[piece]}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
    return not _loaded[piece]


def _load(name: str, dtype: str, controlled: bool, text: str) -> str:
    """Load loops of a cell; returns why that cannot be, or ""."""
    if not compiler():
        return _NO_COMPILER
    label = f"{name}-{dtype}{'-controlled' if controlled else ''}"
    try:
        made = library(label, sources(name, text, dtype, controlled))
        torch.ops.bptt.load_cell(str(made))
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


_NO_COMPILER = (
    "there is no C++ compiler to make it with; install g++ or clang++, or name one by the "
    "environment variable CXX"
)


@cache
def compiler() -> str | None:
    """The C++ compiler: CXX, else the one torch.compile would take, else None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    return None


def library(name: str, files: dict[str, str]) -> Path:
    """The path of a library, compiled if no earlier process did.

    Args:
        name: what its file is called.
        files: its sources.

    Raises:
        RuntimeError: the compiler failed; the message has its first lines.
    """
    headers, flags = headers_folder(), compile_flags()
    command = [*shlex.split(compiler() or "c++"), *flags]
    digest = hashlib.sha256(_fingerprint(headers).encode())
    digest.update(json.dumps([command, _version(), files]).encode())
    place = cache_folder() / f"{name}-{digest.hexdigest()[:16]}.so"
    if place.is_file():
        return place
    with alone(place):
        if place.is_file():  # another process was at it
            return place
        start = time.monotonic()
        print(f"bptt: compiling {name}, once for this machine ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{name}-") as folder:
            made = _compile(Path(folder), files, [*command, f"-I{headers}"], headers)
            os.replace(made, place)
    taken = time.monotonic() - start
    print(f"bptt: compiled {name} in {taken:.0f} s: {place}", file=sys.stderr, flush=True)
    return place


def _compile(folder: Path, files: dict[str, str], command: list[str], headers: Path) -> Path:
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    units = [folder / file for file in files if file.endswith(".cpp")]
    units += [headers / source for source in ENGINE_SOURCES]
    objects = [folder / f"{unit.stem}.o" for unit in units]

    def make(unit: Path, made: Path) -> None:
        _run([*command, f"-I{folder}", "-c", str(unit), "-o", str(made)])

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, units, objects))
    made = folder / "cell.so"
    _run([*command, "-shared", "-o", str(made), *map(str, objects)])
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        shown = [line for line in lines if "error" in line][:3] or lines[-3:]
        raise RuntimeError(f"the compiler failed ({shlex.join(command[:1])}): {'; '.join(shown)}")


def compile_flags() -> list[str]:
    """What the engine's own loops are compiled with, for the instruction set in use."""
    text = (headers_folder() / "engine" / "flags.json").read_text(encoding="utf-8")
    flags = json.loads(text)
    isa: str = torch.ops.bptt.cpu_instruction_set()
    own = shlex.split(os.environ.get("BPTT_CELL_FLAGS", ""))
    return [*flags["language"], *flags["arithmetic"], *flags["instruction_sets"].get(isa, []), *own]


@cache
def headers_folder() -> Path:
    """Where the engine's headers are: beside the package, or in the repository it is part of."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "csrc"
    return beside if beside.is_dir() else package.parents[1] / "csrc"


@cache
def _fingerprint(headers: Path) -> str:
    """What tells one version of the engine from another."""
    digest = hashlib.sha256()
    for folder in ("cells", "engine"):
        for file in sorted((headers / folder).iterdir()):
            if file.suffix in (".h", ".json") or f"{folder}/{file.name}" in ENGINE_SOURCES:
                digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def _version() -> str:
    """What the compiler says it is."""
    command = [*shlex.split(compiler() or "c++"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
