"""Are the CUDA kernels compiled without spills, and are the primitives what they should be in PTX?

The kernels of this machine's build are looked at through what their assembler reported;
`make check-archs` does so for every architecture that a wheel has.
"""

import re
import shutil
import subprocess
import sys
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
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
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
    "ld.shared::cluster.f32",
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
    kernel = (
        "__global__ void product<{}>(View<const uint16_t>, View<const uint16_t>, View<float>, int)"
    )
    lines = [f"template {kernel.format(across)};" for across in ("false", "true")]
    text = ['#include "samples.cuh"', "namespace bptt::samples {", *lines, "}", ""]
    path.write_text("\n".join(text))
    return path


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_samples_compile_without_spills(arch, source, tmp_path):
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    options = ["-std=c++20", f"-I{ROOT / 'csrc' / 'simulator'}", "-Werror=all-warnings"]
    report = nvcc(*options, target, "-Xptxas=-v", "-c", source, "-o", tmp_path / "samples.o")
    spilled = re.findall(r"(\d+) bytes spill stores", report)
    assert report.count("Compiling entry function") == (6 if arch == "80" else 8)
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


@pytest.fixture(scope="module")
def kernels():
    """The kernels of the build in place."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import resources
    finally:
        sys.path.pop(0)
    paths = resources.reports(every_architecture=False)
    if not paths:
        pytest.skip("the build in place has no CUDA kernels")
    return resources.read(paths)


def test_no_kernel_spills(kernels):
    assert [kernel for kernel in kernels if kernel.spilled] == []


def test_every_cell_number_and_team_is_there(kernels):
    """Persistent kernels for cells with one product, the step tier for all; in four numbers.

    Full float32 weights are not held in registers. Where there is no GPU, a build in place has
    bfloat16 alone, and of the RNNs, which differ by an activation, one of three.
    """
    names = [kernel.name for kernel in kernels if kernel.arch == "sm_90a"]
    few = not any("Tf32" in name for name in names)
    numbers, held_numbers, left_out = (1, 1, 2) if few else (4, 3, 0)
    persistent, stepwise = 6 - left_out, 7 - left_out
    for way in ("forward", "backward"):
        shared = [n for n in names if n.startswith(f"recurrence_{way}<") and "SharedW" in n]
        held = [n for n in names if n.startswith(f"recurrence_{way}<") and "HeldW" in n]
        assert (len(shared), len(held)) == (persistent * numbers * 3, persistent * held_numbers * 3)
        # A second launch a step for the projections of two cells, and the two stages of a third.
        assert sum(name.startswith(f"step_{way}<") for name in names) >= (stepwise + 3) * numbers


def test_the_table(kernels):
    import resources

    text = resources.table(kernels)
    assert (
        "| `recurrence_forward<Lstm<false>, HalfNumber<Bf16>, ClusterTeam, HeldWeights>` |" in text
    )
    assert resources.plain("void bptt::gpu::f<(bool)0, bptt::A<int>>(int, float*)") == (
        "f<0, A<int>>"
    )


def test_the_table_of_plans():
    import resources

    text = resources.plans(resources.DEVICES["H200"])
    assert "| lstm | bf16 | 64 | 1 | block tier" in text and "step tier, a launch per step" in text
