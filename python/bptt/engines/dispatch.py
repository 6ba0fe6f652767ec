"""Which backend runs a recurrence, and why.

Every backend answers `supports(problem)` with None or with a reason in words. Unless a backend is
forced, the first available one in `ORDER` without a reason against the problem is taken. A forced
backend never falls back: what it cannot do is an error that gives its reason.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import torch

from ..custom import native
from ..recurrence.cells import CELLS


@dataclass(frozen=True)
class Problem:
    """What the choice of a backend may depend on.

    T and B are left out on purpose: under torch.compile they are symbols, and a choice that
    looked at them would compile once per size.

    Attributes:
        cell: a name in `bptt.recurrence.cells.CELLS`.
        device: device type, such as "cpu".
        dtype: element type of inputs, weights and hidden state.
        composite: why only ordinary differentiable operations will do (forward-mode AD, function
            transforms inside torch.compile), or None.
        beyond_torch: why torch.nn's own kernels cannot take it, or None.
    """

    cell: str
    device: str
    dtype: torch.dtype
    composite: str | None = None
    beyond_torch: str | None = None


@dataclass(frozen=True)
class BackendStatus:
    """One row of `bptt.backends()`.

    Attributes:
        name: what `bptt.backend(name)` and BPTT_BACKEND take.
        available: whether it can run here.
        reason: why it cannot, or an empty string.
        detail: what it would run, such as the instruction set.
    """

    name: str
    available: bool
    reason: str
    detail: str


@dataclass(frozen=True)
class _Backend:
    name: str
    absent: Callable[[], str | None]  # why it is unavailable here
    supports: Callable[[Problem], str | None]  # why it cannot take a problem
    detail: Callable[[], str]


def _load_extension() -> str | None:
    try:
        from .. import _C  # noqa: F401
    except ImportError as error:
        return f"the extension bptt._C did not load ({error}); build it with `make build`"
    return None


_EXTENSION_ERROR = _load_extension()


def has_extension() -> bool:
    """Whether the compiled part is there."""
    return _EXTENSION_ERROR is None


_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _cpu_supports(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"cpu: tensors are on {problem.device}, it takes CPU tensors"
    if problem.dtype not in _CPU_DTYPES:
        return f"cpu: {problem.dtype} is not one of float32, float64, bfloat16, float16"
    if problem.composite is not None:
        return f"cpu: {problem.composite}"
    if CELLS[problem.cell].custom is not None:
        against = native.reason_against(problem.cell)
        return None if against is None else f"cpu: {against}"
    return None


def _cpu_detail() -> str:
    isa = torch.ops.bptt.cpu_instruction_set()
    return f"fused time loop in C++, {isa} instructions, {torch.get_num_threads()} threads"


_TRITON_NEEDED = (3, 6)
# Triton reads it when it is imported; then kernels run in Python, on CPU tensors. For tests.
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _find_triton() -> str | None:
    """Why Triton cannot be used, without importing it, which takes a second."""
    needed = ".".join(map(str, _TRITON_NEEDED))
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed; install triton {needed} or later"
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) < _TRITON_NEEDED:
            return f"{name} {version} is too old; install {needed} or later"
        return None
    return None


_TRITON_ERROR = _find_triton()


def interprets_triton() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return _TRITON_INTERPRETED and _TRITON_ERROR is None


def _triton_absent() -> str | None:
    if _TRITON_ERROR is not None or _TRITON_INTERPRETED:
        return _TRITON_ERROR
    if not torch.cuda.is_available():
        return "there is no GPU that this torch can use"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _triton_supports(problem: Problem) -> str | None:
    return _gpu_supports("triton", "interpreter", problem)


def _triton_detail() -> str:
    where = "under Triton's interpreter" if _TRITON_INTERPRETED else torch.cuda.get_device_name()
    return f"fused time loop in Triton, {where}"


# The library of csrc/simulator that runs CUDA kernels on CPU tensors; see gpu.py. For tests.
_SIMULATOR = os.environ.get("BPTT_SIMULATOR", "")
if _SIMULATOR and _EXTENSION_ERROR is None:
    torch.ops.load_library(_SIMULATOR)


def emulated_backends() -> tuple[str, ...]:
    """GPU backends whose kernels run here without a GPU, on CPU tensors."""
    emulated = {"cuda": bool(_SIMULATOR), "triton": interprets_triton()}
    return tuple(name for name, here in emulated.items() if here)


def _cuda_absent() -> str | None:
    if _EXTENSION_ERROR is not None or _SIMULATOR:
        return _EXTENSION_ERROR
    if not torch._C._dispatch_has_kernel_for_dispatch_key("bptt::gpu_forward", "CUDA"):
        return "this build of bptt has no CUDA kernels; build it where nvcc is"
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "there is no NVIDIA GPU that this torch can use"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return _cuda_start_error()


_start_errors: dict[int, str | None] = {}  # by GPU, once it was asked


def _cuda_start_error() -> str | None:
    """Why no kernel of this build can start on the current GPU, or None."""
    index = torch.cuda.current_device()
    if index not in _start_errors and not torch.compiler.is_compiling():
        _start_errors[index] = _asked_to_start(index)
    return _start_errors.get(index)


def _asked_to_start(index: int) -> str | None:
    try:
        torch.ops.bptt.gpu_device(index)
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        return f"its kernels cannot start on GPU {index} ({text}); update the driver, or build here"
    return None


def _gpu_supports(name: str, emulator: str, problem: Problem) -> str | None:
    """Why a GPU backend cannot take a problem; its emulator is what runs its kernels on a CPU."""
    if problem.device == "cpu" and name in emulated_backends():
        if forced_backend() != name:
            return f"{name}: its {emulator} is for tests, and runs only where it is forced"
    elif problem.device != "cuda":
        return f"{name}: tensors are on {problem.device}, it takes CUDA tensors"
    if problem.dtype not in _GPU_DTYPES:
        return f"{name}: {problem.dtype} is not one of float32, float16, bfloat16"
    if problem.composite is not None:
        return f"{name}: {problem.composite}"
    return None


def _cuda_supports(problem: Problem) -> str | None:
    spec = CELLS[problem.cell]
    if spec.custom is not None and not spec.packaged:
        return "cuda: its kernels are compiled with the package, and know no cell of bptt.cell"
    return _gpu_supports("cuda", "simulator", problem)


def _cuda_detail() -> str:
    if _SIMULATOR:
        return "persistent kernels in CUDA C++, in the simulator"
    return f"persistent kernels in CUDA C++, {torch.cuda.get_device_name()}"


def _torch_supports(problem: Problem) -> str | None:
    reason = problem.composite or problem.beyond_torch
    return None if reason is None else f"torch: {reason}"


def _torch_detail() -> str:
    return "torch.nn's own kernels (cuDNN, oneDNN), where forced or measured to be faster"


_BACKENDS = {
    backend.name: backend
    for backend in (
        _Backend("cuda", _cuda_absent, _cuda_supports, _cuda_detail),
        _Backend("triton", _triton_absent, _triton_supports, _triton_detail),
        _Backend("cpu", lambda: _EXTENSION_ERROR, _cpu_supports, _cpu_detail),
        _Backend("torch", lambda: None, _torch_supports, _torch_detail),
        _Backend(
            "reference", lambda: None, lambda _: None, lambda: "plain PyTorch, a loop over time"
        ),
    )
}
ORDER = tuple(_BACKENDS)


def _takes_turns(name: str, problem: Problem) -> bool:
    """Whether "auto" takes a backend for being next in order.

    torch.nn's kernels are taken where they were measured to be faster, and for float64 on a GPU,
    which no kernel here has.
    """
    return name != "torch" or (problem.device == "cuda" and problem.dtype == torch.float64)


AUTO = "auto"


_ENVIRONMENT = os.environ.get("BPTT_BACKEND", AUTO) or AUTO


class _Forced(threading.local):
    # Set per thread, not as a class attribute: that is what Dynamo puts a guard on, so that a
    # compiled call notices when another backend is forced.
    def __init__(self) -> None:
        self.name = _ENVIRONMENT


def check_backend_name(name: str, source: str) -> str:
    """Return `name` if it is "auto" or a backend that is available here.

    Raises:
        ValueError: `name` is no backend.
        RuntimeError: the backend cannot run here; the message says why.
    """
    if name == AUTO:
        return name
    if name not in _BACKENDS:
        known = ", ".join((AUTO, *ORDER))
        raise ValueError(f"{source}: expected one of {known}, got {name!r}")
    reason = _BACKENDS[name].absent()
    if reason is not None:
        raise RuntimeError(f"{source}: backend {name!r} is not available: {reason}")
    return name


this_thread = _Forced()


def forced_backend() -> str:
    """The backend forced on this thread, by `backend(...)` or BPTT_BACKEND, or "auto"."""
    return this_thread.name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block, on the current thread.

    The environment variable BPTT_BACKEND sets the same for a whole process; an inner block wins.

    Args:
        name: "auto", "cuda", "triton", "cpu", "torch" or "reference".

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is not available here; the message gives the reason. A layer
            called inside the block raises too when the backend cannot take its problem.
    """
    previous = this_thread.name
    this_thread.name = check_backend_name(name, "bptt.backend")
    try:
        yield
    finally:
        this_thread.name = previous


def backends() -> list[BackendStatus]:
    """List every backend, in the order "auto" tries them, and why the absent are absent."""
    rows = []
    for entry in _BACKENDS.values():
        reason = entry.absent()
        detail = entry.detail() if reason is None else ""
        rows.append(BackendStatus(entry.name, reason is None, reason or "", detail))
    return rows


def choose(problem: Problem, forced: str | None = None, fastest: str | None = None) -> str:
    """Name the backend that runs a problem.

    Args:
        problem: the recurrence to run.
        forced: a backend's name or "auto"; by default what `forced_backend()` says.
        fastest: the backend that was measured to be the fastest here, for "auto"; None if none was.

    Raises:
        RuntimeError: the forced backend cannot take the problem; the message gives its reason.
    """
    forced = forced_backend() if forced is None else forced
    if forced != AUTO:
        check_backend_name(forced, "BPTT_BACKEND")
        reason = _BACKENDS[forced].supports(problem)
        if reason is not None:
            raise RuntimeError(
                f"the forced backend {forced!r} cannot run {problem.cell}: {reason}. "
                'Use bptt.backend("auto") to let bptt choose.'
            )
        return forced
    if fastest is not None and not reasons(problem).get(fastest, "unknown"):
        return fastest
    for name, entry in _BACKENDS.items():
        if not _takes_turns(name, problem):
            continue
        if entry.supports(problem) is None and entry.absent() is None:
            return name
    raise AssertionError("the reference backend takes every problem")


def reasons(problem: Problem) -> dict[str, str]:
    """Say for each backend why it would not run the problem; an empty string where it would."""
    answer = {}
    for name, entry in _BACKENDS.items():
        against = entry.absent() or entry.supports(problem) or ""
        answer[name] = against.removeprefix(f"{name}: ")
    return answer


def check_cell(cell: str) -> None:
    """Raise ValueError if `cell` is not a cell's name."""
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
