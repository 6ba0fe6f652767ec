"""Repairs of Triton's interpreter, and checks that a GPU does not make (Triton 3.6).

- bfloat16: the interpreter keeps it as 16-bit integers and multiplies those. Here products and
  casts go through float32 and round to nearest even; other arithmetic on it is refused, as the
  kernels' own rule is to compute in float32.
- bounds: every address that a mask lets through must lie inside an argument of the launch.
- order: the programs of a launch run in a shuffled order, another one for each launch, and take
  turns: at some loads and stores, and at every atomic operation, so that programs that wait for one
  another come through. Programs that wait for ever are an error.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import random

import greenlet
import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

SEED = int(os.environ.get("BPTT_TEST_SEED", "20"))
ARITHMETIC = (
    "fadd", "fsub", "fmul", "fdiv", "frem", "precise_divf", "fma", "fabs", "clampf", "exp", "exp2",
    "log", "log2", "sqrt", "precise_sqrt", "rsqrt", "sin", "cos", "floor", "ceil", "erf",
    "minimumf", "maximumf", "minnumf", "maxnumf", "fcmpOLT", "fcmpOGT", "fcmpOLE", "fcmpOGE",
    "fcmpOEQ", "fcmpONE", "fcmpULT", "fcmpUGT", "fcmpULE", "fcmpUGE", "fcmpUEQ", "fcmpUNE",
)  # fmt: skip

_installed = False


def install() -> None:
    """Patch the interpreter of this process; a second call does nothing."""
    global _installed
    if not _installed:
        _installed = True
        _repair_bfloat16()
        _check_bounds()
        _shuffle_programs()
        _take_turns()


# --- bfloat16 -------------------------------------------------------------------------------------


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns of the nearest bfloat16 values, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Adding just under a half, and one more where the kept part is odd, carries where it should.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_bfloat16(value: object) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widened(value: TensorHandle) -> TensorHandle:
    return TensorHandle(to_float32(value.data), tl.float32) if _is_bfloat16(value) else value


def _repair_bfloat16() -> None:
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self, a, b, d, *options):
        return dot(self, _widened(a), _widened(b), d, *options)

    def cast_impl(self, source, kind):
        wide = _widened(source)
        if kind.scalar != tl.bfloat16:
            return cast(self, wide, kind)
        if _is_bfloat16(source):
            return source
        return TensorHandle(to_bfloat16(wide.data.astype(np.float32)), tl.bfloat16)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = lambda self, source, kind, _: self.cast_impl(source, kind)
    for name in ARITHMETIC:
        _refuse_bfloat16(f"create_{name}")


def _refuse_bfloat16(name: str) -> None:
    operation = getattr(InterpreterBuilder, name)

    def checked(self, *values):
        if any(_is_bfloat16(value) for value in values):
            raise TypeError(f"{name} on bfloat16 blocks: convert to float32 first")
        return operation(self, *values)

    setattr(InterpreterBuilder, name, checked)


# --- bounds ---------------------------------------------------------------------------------------


class _Launch:
    """The launch that runs: its kernel and the address ranges of its tensors, sorted."""

    kernel = ""
    starts = np.zeros(0, np.uint64)
    ends = np.zeros(0, np.uint64)


def _tensors(value):
    if isinstance(value, (tuple, list)):
        for element in value:
            yield from _tensors(element)
    elif hasattr(value, "data_ptr") and value.numel():
        yield value


def _check_bounds() -> None:
    prepare = GridExecutor._init_args_hst
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def _init_args_hst(self, arguments, named):
        host, named_host = prepare(self, arguments, named)
        tensors = list(_tensors([*host, *named_host.values()]))
        # All are dense: what a launch passes is.
        starts = np.array([t.data_ptr() for t in tensors], np.uint64)
        sizes = np.array([t.numel() * t.element_size() for t in tensors], np.uint64)
        order = np.argsort(starts, kind="stable")
        _Launch.kernel = self.fn.__name__
        _Launch.starts, _Launch.ends = starts[order], (starts + sizes)[order]
        return host, named_host

    def create_masked_load(self, pointers, mask, *rest):
        _check(self, "load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self, pointers, value, mask, *rest):
        _check(self, "store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    GridExecutor._init_args_hst = _init_args_hst
    InterpreterBuilder.create_masked_load = create_masked_load
    InterpreterBuilder.create_masked_store = create_masked_store


def _check(builder, what: str, pointers: TensorHandle, mask: TensorHandle) -> None:
    on = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
    addresses = pointers.data[on].astype(np.uint64)
    if not addresses.size:
        return
    size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
    at = np.searchsorted(_Launch.starts, addresses, side="right").astype(np.int64) - 1
    bad = (at < 0) | (addresses + size > _Launch.ends[np.maximum(at, 0)])
    if bad.any():
        raise IndexError(
            f"{_Launch.kernel}: {what} of program {builder.grid_idx}: {int(bad.sum())} of "
            f"{addresses.size} addresses lie outside of every argument"
        )


# --- order of the programs ------------------------------------------------------------------------

_random = random.Random(SEED)


def _shuffle_programs() -> None:
    set_dim, set_idx = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

    def set_grid_dim(self, x, y, z):
        set_dim(self, x, y, z)
        self.shuffled = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
        _random.shuffle(self.shuffled)

    def set_grid_idx(self, x, y, z):
        _, ny, nz = self.grid_dim
        set_idx(self, *self.shuffled[(x * ny + y) * nz + z])

    InterpreterBuilder.set_grid_dim = set_grid_dim
    InterpreterBuilder.set_grid_idx = set_grid_idx


TURNS = 0.05  # how often a load or store gives way to another program
WAITED = 1000  # turns of each program without a load or store among them


class _Programs:
    """The programs of the launch that runs; each is a greenlet, and the loop below their parent."""

    loop: greenlet.greenlet | None = None
    waited = 0


class _Together:
    """A kernel as the interpreter calls it, program after program; runs them in turns at the last.

    What has to look like the kernel's own function are its signature and its globals.
    """

    def __init__(self, kernel) -> None:
        functools.update_wrapper(self, kernel)
        self.kernel, self.waiting = kernel, []
        self.__globals__ = kernel.__globals__
        self.__signature__ = inspect.signature(kernel)

    def __call__(self, **arguments) -> None:
        builder = interpreter.interpreter_builder
        self.waiting.append(tuple(builder.grid_idx))
        if len(self.waiting) < math.prod(builder.grid_dim):
            return
        _Programs.loop, _Programs.waited = greenlet.getcurrent(), 0
        running = [(place, greenlet.greenlet(self.kernel.__call__)) for place in self.waiting]
        started = set()
        try:
            while running:
                chosen = _random.randrange(len(running))
                place, program = running[chosen]
                builder.grid_idx = place
                program.switch(**({} if place in started else arguments))
                started.add(place)
                if program.dead:
                    running.pop(chosen)
                if _Programs.waited > WAITED * (1 + len(running)):
                    raise RuntimeError(f"{self.__name__}: programs wait for one another for ever")
        finally:
            _Programs.loop = None


def _give_way(waits: bool) -> None:
    if _Programs.loop is None:
        return
    _Programs.waited = _Programs.waited + 1 if waits else 0
    if waits or _random.random() < TURNS:
        _Programs.loop.switch()


def _take_turns() -> None:
    prepare = GridExecutor.__init__

    def __init__(self, kernel, *rest, **options):
        prepare(self, _Together(kernel), *rest, **options)

    def giving_way(name: str, waits: bool):
        operation = getattr(InterpreterBuilder, name)

        def operate(self, *arguments):
            _give_way(waits)
            return operation(self, *arguments)

        setattr(InterpreterBuilder, name, operate)

    GridExecutor.__init__ = __init__
    giving_way("create_masked_load", waits=False)
    giving_way("create_masked_store", waits=False)
    giving_way("create_atomic_rmw", waits=True)
    giving_way("create_atomic_cas", waits=True)


assert interpreter.interpreter_builder.__class__ is InterpreterBuilder
