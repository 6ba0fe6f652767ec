"""Is the extension the portable, complete and current binary that setup.py promises?"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bptt

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "native"

# For the parts that need them, at their first use.
LATE = ["torch._dynamo", "torch._inductor", "hypothesis", "rich", "triton", "typer"]

# torch's own import may load some of these; only what bptt adds to it counts.
IMPORT = """
import sys, torch
before = set(sys.modules)
import bptt
print(*sorted(set(sys.modules) - before), sep="\\n")
"""


def extension() -> Path:
    spec = importlib.util.find_spec("bptt._C")
    assert spec is not None, "bptt._C is not built: run `make build`"
    assert spec.origin is not None
    return Path(spec.origin)


def symbols(*arguments: str) -> set[str]:
    """Names that nm lists."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (of binutils) is not installed")
    listing = subprocess.check_output([nm, "--format=posix", *arguments], text=True)
    return {line.split()[0].partition("@")[0] for line in listing.splitlines() if " " in line}


def needed_symbols() -> set[str]:
    return symbols("--dynamic", "--undefined-only", str(extension()))


def in_place() -> Path:
    """The ninja file of the build that this checkout runs."""
    file = BUILD / "build.ninja"
    if ROOT not in Path(bptt.__file__).resolve().parents or not file.is_file():
        pytest.skip("bptt is not an in-place build of this checkout")
    return file


def test_import_registers_the_ops():
    assert importlib.import_module("bptt._C").__file__ == str(extension())
    assert torch.ops.bptt.recurrence_forward.default._schema.name == "bptt::recurrence_forward"
    assert torch.ops.bptt.recurrence_backward.default._schema.name == "bptt::recurrence_backward"


def test_file_name_fits_every_python():
    assert extension().name == "_C.abi3.so"


def test_needs_nothing_of_python_outside_the_limited_api():
    python = {name for name in needed_symbols() if re.match(r"_?Py", name)}
    assert python <= {"PyModule_Create2"}


def test_needs_nothing_of_torch_outside_the_stable_abi():
    # Mangled names of namespaces at, c10 and torch: functions, members, type descriptions.
    unstable = re.compile(r"_Z(T[ISV])?N?K?(2at|3c10|5torch)")
    assert sorted(name for name in needed_symbols() if unstable.match(name)) == []


def test_exports_its_module_function_alone():
    defined = symbols("--dynamic", "--defined-only", str(extension()))
    assert {name for name in defined if "bptt" in name or "Py" in name} == {"PyInit__C"}


def test_objects_for_newer_processors_share_no_function():
    """Of an inline function that several objects hold, the linker keeps one: perhaps one that an
    older processor cannot run. So these objects may define nothing but their own table."""
    in_place()
    objects = sorted((BUILD / "engine").glob("cpu_kernels.*.o"))
    assert objects
    for path in objects:
        name = path.name.split(".")[1].removesuffix("-hasty")
        defined = symbols("--extern-only", "--defined-only", str(path))
        assert len(defined) == 1, f"{path.name} defines {sorted(defined)}"
        assert name in defined.pop()


def test_up_to_date_build_has_nothing_to_do():
    file = in_place()
    ninja = pytest.importorskip("ninja", reason="the ninja package, which built it, is missing")
    command = [Path(ninja.BIN_DIR) / "ninja", "-n", "-f", file.relative_to(ROOT)]
    output = subprocess.check_output(command, cwd=ROOT, text=True)
    assert "no work to do" in output, f"sources changed since the build; run `make build`\n{output}"


def test_import_loads_no_late_package():
    output = subprocess.check_output([sys.executable, "-c", IMPORT], text=True)
    loaded = output.split()
    assert "bptt._C" in loaded
    assert [name for name in loaded if name in LATE] == []


def test_kernels_package_is_importable():
    assert importlib.util.find_spec("bptt.kernels") is not None
    assert importlib.import_module("bptt.kernels").__doc__
