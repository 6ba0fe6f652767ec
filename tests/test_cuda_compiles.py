"""Does nvcc take what the simulator runs, for every architecture and without spills, and are the
primitives what they should be in PTX?
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "90a", "100", "120")
# One instruction of each primitive that a sample uses; clusters begin with compute capability 9.0.
EVERYWHERE = (
    "bar.sync",
    "bar.warp.sync",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    "cp.async.cg.shared.global",
    "cp.async.wait_group",
    "red.release.gpu.global.add.u32",
    "ld.acquire.gpu.global.u32",
)
CLUSTERS = (
    "barrier.cluster.arrive.release.aligned",
    "barrier.cluster.wait.acquire.aligned",
    "mbarrier.init.shared::cta.b64",
    "mbarrier.arrive.expect_tx.shared::cta.b64",
    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32",
    "mapa.shared::cluster.u32",
)

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc on the PATH"),
    pytest.mark.slow,
]


def nvcc(*arguments):
    done = subprocess.run([NVCC, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "samples.cu"
    path.write_text('#include "samples.cuh"\n')
    return path


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_samples_compile_without_spills(arch, source, tmp_path):
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    options = ["-std=c++20", f"-I{ROOT / 'csrc' / 'simulator'}", "-Werror=all-warnings"]
    report = nvcc(*options, target, "-Xptxas=-v", "-c", source, "-o", tmp_path / "samples.o")
    spilled = re.findall(r"(\d+) bytes spill stores", report)
    assert len(spilled) == (4 if arch == "80" else 5)
    assert set(spilled) == {"0"}


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_primitives_are_the_instructions_they_stand_for(arch, source, tmp_path):
    options = ["-std=c++20", f"-I{ROOT / 'csrc' / 'simulator'}", f"-arch=compute_{arch}"]
    path = tmp_path / "samples.ptx"
    nvcc(*options, "-ptx", source, "-o", path)
    text = path.read_text()
    for instruction in EVERYWHERE:
        assert instruction in text, instruction
    for instruction in CLUSTERS:
        assert (instruction in text) == (arch != "80"), instruction


CELLS = ("Rnn<Tanh>", "Rnn<Relu>", "Rnn<Sigmoid>", "Gru", "Lstm<false>", "Lstm<true>")
NUMBERS = ("Float32", "Tf32", "HalfNumber<Bf16>", "HalfNumber<Fp16>")
# Of stack, and saved around the call, for what a kernel prints before it traps.
MESSAGE_BYTES, SAVED_BYTES = 32, 8


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_forward_kernels_compile_without_spills(arch, tmp_path):
    teams = ["BlockTeam", "GridTeam"] + ([] if arch == "80" else ["ClusterTeam"])
    numbers = NUMBERS if arch == "90a" else NUMBERS[2:3]
    lines = [f'#include "cells/{name}.h"' for name in ("gru", "lstm", "rnn")]
    lines += ['#include "cuda/forward.cuh"', "using namespace bptt;", "using namespace bptt::gpu;"]
    for cell in CELLS:
        for number in numbers:
            stored = f"{number}::Storage"
            lines += [
                f"template __global__ void gpu::recurrence_forward<{cell}, {number}, "
                f"{team}<{stored}>>(ForwardArgs<{stored}>);"
                for team in teams
            ]
    source = tmp_path / "forward.cu"
    source.write_text("\n".join(lines) + "\n")
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    options = ["-std=c++20", f"-I{ROOT / 'csrc'}", "-Werror=all-warnings", target, "-Xptxas=-v"]
    report = nvcc(*options, "-c", source, "-o", tmp_path / "forward.o")
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)
    assert len(used) == len(CELLS) * len(numbers) * len(teams)
    for stack, spilled in used:
        assert int(stack) <= MESSAGE_BYTES and int(spilled) <= SAVED_BYTES
