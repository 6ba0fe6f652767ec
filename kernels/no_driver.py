"""A CUDA driver that accepts every launch and does nothing: for Triton on a machine without a GPU.

Kernels are compiled as for an H200 and launched through Triton's own launcher, on CPU tensors; the
library below stands in for libcuda. What the launch looked like is recorded. Nothing is computed.

    python -m bptt.kernels.no_driver     what a launch of the step tier costs the host, as Markdown
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

# What Triton's launcher calls (backends/nvidia/driver.py); all succeed.
LIBCUDA = r"""
#include <stdint.h>
int launches = 0;
int cuLaunchKernelEx(const void* config, void* function, void** arguments, void** extra) {
  ++launches;
  return 0;
}
int cuPointerGetAttribute(uint64_t* out, int attribute, uint64_t pointer) {
  *out = pointer;
  return 0;
}
int cuGetErrorString(int error, const char** text) { *text = "no driver"; return 0; }
int cuCtxGetCurrent(void** context) { *context = &launches; return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuDeviceGet(int* device, int place) { *device = place; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &launches; return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
"""


class Launch(NamedTuple):
    """One launch, as Triton's launcher was called; constants are among the arguments."""

    kernel: str
    grid: tuple[int, int, int]
    cooperative: bool
    arguments: tuple[Any, ...]


class _Utils:
    """What Triton asks a driver about a device and a binary; the rest is Triton's own."""

    def __getattr__(self, name: str) -> Any:
        # From Triton 3.8 on its launcher is among them, in a module that names more of libcuda than
        # the library here has: what is not called need not be there.
        from triton.backends.nvidia.driver import CudaUtils

        flags = sys.getdlopenflags()
        sys.setdlopenflags(os.RTLD_LAZY)
        try:
            return getattr(CudaUtils(), name)
        finally:
            sys.setdlopenflags(flags)

    def unload_module(self, module: int) -> None: ...

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        registers, spilled, threads = 0, 0, 1024
        return 1, 1, registers, spilled, threads


class NoDriver:
    """Triton's active driver from its making on; `launches` is the record, `count` what arrived."""

    def __init__(self, folder: Path) -> None:
        library = folder / "libcuda.so.1"
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-xc",
            "-",
            "-o",
            library,
            f"-Wl,-soname,{library.name}",
        ]
        subprocess.run(command, input=LIBCUDA, text=True, check=True)
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
        self.library = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        self.launches: list[Launch] = []
        self.record = True
        self.utils = _Utils()
        triton.runtime.driver.set_active(self)

    @property
    def count(self) -> int:
        return ctypes.c_int.in_dll(self.library, "launches").value

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        from triton.backends.nvidia.driver import CudaLauncher

        launcher = CudaLauncher(source, metadata)

        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            if self.record:
                # After the metadata and two hooks come the kernel's arguments.
                cooperative = bool(metadata.launch_cooperative_grid)
                self.launches.append(Launch(metadata.name, (x, y, z), cooperative, rest[4:]))
            launcher(x, y, z, stream, function, *rest)

        return launch


def launch_cost(device: str = "cpu") -> float:
    """Microseconds of the host per launch of the step tier, the device not waited for.

    On "cpu" a NoDriver must be active, and the driver's own time is not part of it.
    """
    from . import launch

    def seconds(steps: int) -> float:
        gates_x = torch.zeros(steps, 4, 1, 4, 600, device=device)
        w_hh, h0 = torch.zeros(1, 2400, 600, device=device), torch.zeros(1, 4, 600, device=device)
        inputs = (gates_x, None, None, None, w_hh, None, None, None, h0, h0, None, None)
        times = []
        for _ in range(20):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            launch.forward("triton", "lstm", *inputs, [0], "gates")
            times.append(time.perf_counter() - started)
        return median(times)

    return (seconds(401) - seconds(1)) / 400 * 1e6


def main() -> None:
    from bptt.tools.bench.machine import processor

    with tempfile.TemporaryDirectory() as folder:
        NoDriver(Path(folder)).record = False
        cost = launch_cost()
    print("Host time of one launch of the Triton step tier (LSTM, H=600, float32), in place of the")
    print("CUDA driver a library that does nothing: the driver's own time is not part of it.\n")
    print("| microseconds per launch | processor | Triton | torch |\n| --- | --- | --- | --- |")
    print(f"| {cost:.1f} | {processor()} | {triton.__version__} | {torch.__version__} |")


if __name__ == "__main__":
    main()
