"""Builds the package with its extensions; everything else about it stands in pyproject.toml.

    python setup.py build_ext --inplace      what `make build` runs; unchanged files are left alone
    pip install --no-build-isolation .       against the torch that is installed
    python setup.py build_simulator          programs of the CUDA simulator, which only tests need
    python setup.py build_kernels            CUDA kernels alone, for every architecture

bptt._C   the library: torch's stable ABI and Python's limited API, so that one binary fits every
          torch from 2.11 and every Python from 3.10.
bptt._dev what tests need from C++, by pybind11. It fits this Python alone: in-place builds (an
          editable install is one) make it where pybind11 is installed, wheels never hold it.

setup.py writes the commands to build/native/build.ninja (wheel.ninja for a wheel); ninja runs those
whose inputs, headers included, have changed. Environment:

    MAX_JOBS         commands at a time (default: the cores this process may use)
    CXX              the compiler (default: c++)
    BPTT_DEV         1: fail rather than leave bptt._dev out of an in-place build; 0: leave it out
    BPTT_EVERY_SET   1: in place every instruction set of this processor, not two of them
    BPTT_NO_CUDA     1: leave the CUDA kernels out even where there is an nvcc
    BPTT_CUDA_ARCHS  architectures, as in "80;90a;120;120-virtual" (-virtual: PTX, for later GPUs);
                     by default all that a wheel has, and in place 90a and those of the GPUs here
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = Path("build/native")  # like all paths of the ninja file, relative to ROOT

TORCH_ABI = "0x020b000000000000"  # 2.11: the oldest torch that can load the binary
PYTHON_ABI = "0x030a0000"  # 3.10: the oldest Python

# Cells that are compiled later (python/bptt/custom/native.py) take the same flags.
FLAGS = json.loads((ROOT / "csrc" / "engine" / "flags.json").read_text(encoding="utf-8"))
COMPILE = [*FLAGS["language"], "-Wall", "-Wextra"]

# The engine's numbers must not depend on -ffast-math: NaN and infinity pass through it. These
# only let the compiler fuse a*b+c and ignore errno and the floating-point exception flags.
ARITHMETIC = FLAGS["arithmetic"]

# Compiled once for each instruction set.
PER_INSTRUCTION_SET = ("cpu_kernels.cpp", "cpu_controlled.cpp")

# csrc/engine/cpu.cpp picks the one to run by what the processor can do. The first is for any
# processor of the family.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= FLAGS["instruction_sets"]
# What /proc/cpuinfo says of a processor that has one; a build in place leaves the others out.
CPU_FLAGS = {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}

CUDA_ARCHS = ("80", "90a", "100", "120", "90-virtual")


class LeftOut(Exception):
    """Why an optional part is not built."""


@dataclass
class Cuda:
    """An nvcc that can be used.

    Attributes:
        nvcc: the compiler.
        library: the folder of libcudart_static.a.
        archs: what to generate code for.
        few: whether to compile for one kind of numbers of four: nothing here can run any.
    """

    nvcc: Path
    library: Path
    archs: tuple[str, ...]
    few: bool

    @property
    def targets(self) -> list[str]:
        """-gencode arguments."""
        targets = []
        for arch in self.archs:
            number = arch.removesuffix("-virtual")
            code = f"compute_{number}" if arch.endswith("-virtual") else f"sm_{number}"
            targets.append(f"-gencode=arch=compute_{number},code={code}")
        return targets


def find_cuda(in_place: bool) -> Cuda:
    """The CUDA toolkit to build with; an in-place build is for the machine at hand.

    Raises:
        LeftOut: when there is none, or nothing to compile with it.
    """
    if os.environ.get("BPTT_NO_CUDA") == "1":
        raise LeftOut("BPTT_NO_CUDA=1")
    if not sources("cuda", ".cu"):
        raise LeftOut("csrc/cuda holds no .cu file")
    nvcc = find_nvcc()
    root = toolkit_root(nvcc)
    folders = [root / "lib64", root / "lib", *root.glob("targets/*-linux/lib")]
    library = next((f for f in folders if (f / "libcudart_static.a").is_file()), None)
    if library is None:
        raise LeftOut(f"{root} has no libcudart_static.a")
    few = in_place and not present_architectures() and "BPTT_CUDA_ARCHS" not in os.environ
    return Cuda(nvcc, library, architectures(nvcc, in_place), few)


def find_nvcc() -> Path:
    """nvcc of CUDA_HOME or CUDA_PATH, of the usual place, or of PATH."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise LeftOut("no nvcc in CUDA_HOME, CUDA_PATH, /usr/local/cuda or PATH")


def toolkit_root(nvcc: Path) -> Path:
    """The toolkit's folder, as nvcc itself reports it: an nvcc on PATH may be a wrapper script."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False
    )
    for line in dry_run.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.split("=", 1)[1]).resolve()
    return nvcc.resolve().parent.parent


def architectures(nvcc: Path, in_place: bool) -> tuple[str, ...]:
    """Those asked for, or those of the default that this nvcc knows."""
    asked = os.environ.get("BPTT_CUDA_ARCHS", "")
    if asked:
        return tuple(arch.strip() for arch in asked.split(";") if arch.strip())
    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True)
    plain = {line.removeprefix("compute_") for line in known.split()}
    wanted = sorted({"90a", *present_architectures()}) if in_place else CUDA_ARCHS
    return tuple(arch for arch in wanted if arch.removesuffix("-virtual").rstrip("a") in plain)


def present_architectures() -> set[str]:
    """Those of this machine's GPUs, by its driver."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return set()
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    numbers = {line.strip().replace(".", "") for line in answer.stdout.splitlines()}
    return {"90a" if number == "90" else number for number in numbers if number.isdigit()}


def torch_folder() -> Path:
    """Where torch is installed; finding it takes no import of it, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "bptt is compiled against the torch you have, and this Python has none: install torch "
            "2.11 or later, then bptt with `pip install --no-build-isolation`"
        )
    return Path(spec.submodule_search_locations[0])


def find_ninja() -> str:
    """The ninja program: of the Python package, or of PATH."""
    if importlib.util.find_spec("ninja"):
        import ninja

        program = Path(ninja.BIN_DIR) / "ninja"
        if program.is_file():
            return str(program)
    program = shutil.which("ninja")
    if program is None:
        raise SystemExit("bptt is built with ninja: pip install ninja")
    return program


def sources(folder: str, suffix: str) -> list[Path]:
    """Source files of a folder of csrc, in a fixed order."""
    return [f.relative_to(ROOT) for f in sorted((ROOT / "csrc" / folder).glob(f"*{suffix}"))]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NinjaFile:
    """The commands of a build. Objects are named after their source, in BUILD."""

    def __init__(self) -> None:
        compiler = shlex.quote(os.environ.get("CXX", "c++"))
        self.lines = [
            f"builddir = {BUILD}",
            "rule compile",
            f"  command = {compiler} -MD -MF $out.d $flags -c $in -o $out",
            "  description = compile $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {compiler} -shared -o $out $in $flags",
            "  description = link $out",
            "rule program",
            f"  command = {compiler} -o $out $in $flags",
            "  description = link $out",
        ]

    def add_nvcc(self, nvcc: Path) -> None:
        self.lines += [
            "rule nvcc",
            # What the assembler reports stays beside the object: registers, spills.
            f"  command = {self._shell([str(nvcc)])} -MD -MF $out.d $flags -c $in -o $out"
            " 2> $out.ptxas || { cat $out.ptxas; exit 1; }",
            "  description = nvcc $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]

    def compile(self, source: Path, flags: list[str], *, variant: str = "", rule="compile") -> Path:
        """Adds a command that makes an object; `variant` tells several of one source apart."""
        name = source.relative_to("csrc").with_suffix(f".{variant}.o" if variant else ".o")
        return self._add(rule, BUILD / name, [source], flags)

    def link(self, name: str, objects: list[Path], flags: list[str]) -> Path:
        """Adds a command that makes a shared library."""
        return self._add("link", BUILD / name, objects, flags)

    def program(self, name: str, objects: list[Path], flags: list[str]) -> Path:
        """Adds a command that makes a program."""
        return self._add("program", BUILD / name, objects, flags)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self.lines) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")

    def _add(self, rule: str, out: Path, inputs: list[Path], flags: list[str]) -> Path:
        self.lines += [f"build {out}: {rule} {' '.join(map(str, inputs))}"]
        self.lines += [f"  flags = {self._shell(flags)}"]
        return out

    @staticmethod
    def _shell(arguments: list[str]) -> str:
        return shlex.join(arguments).replace("$", "$$")


def instruction_sets(in_place: bool) -> dict[str, list[str]]:
    """The instruction sets to compile for, and their flags, the best one last.

    In place the best that this processor has and, for tests, the one with the shortest vectors;
    with BPTT_EVERY_SET=1 those between them, too.
    """
    info = Path("/proc/cpuinfo")
    if not in_place or not info.is_file():
        return INSTRUCTION_SETS
    lines = (line for line in info.read_text(encoding="utf-8").splitlines() if "flags" in line)
    here = set(next(lines, "").split())
    found = [name for name in INSTRUCTION_SETS if CPU_FLAGS.get(name, set()) <= here]
    if os.environ.get("BPTT_EVERY_SET") != "1":
        found = sorted({found[0], found[-1]}, key=found.index)
    return {name: INSTRUCTION_SETS[name] for name in found}


def add_engine(file: NinjaFile, in_place: bool) -> list[Path]:
    """All that knows nothing of torch and of CUDA: every extension links it."""
    plain = [*COMPILE, *ARITHMETIC]
    compiled = instruction_sets(in_place)
    chosen = [f"-DBPTT_WITHOUT_{name.upper()}" for name in INSTRUCTION_SETS if name not in compiled]
    objects = []
    for source in [*sources("engine", ".cpp"), *sources("cuda", ".cpp")]:
        if source.name in PER_INSTRUCTION_SET:
            for name, flags in compiled.items():
                # In place, all but the best that this processor has are for tests alone. In a wheel
                # the set that every processor has serves those without AVX2, older than 2013: there
                # its size matters more than its speed.
                hasty = in_place and name != list(compiled)[-1]
                small = not in_place and not flags and len(compiled) > 1
                variant = f"{name}-hasty" if hasty else f"{name}-small" if small else name
                less = ["-O1"] if hasty else ["-Os"] if small else []
                options = [*plain, f"-DBPTT_ISA={name}", *flags, *less]
                objects.append(file.compile(source, options, variant=variant))
        elif source.name == "cpu.cpp":
            # One object for each choice, so that a wheel and a build in place leave each other's.
            variant = "-".join(compiled)
            objects.append(file.compile(source, [*plain, *chosen], variant=variant))
        else:
            objects.append(file.compile(source, plain))
    return objects


def add_kernels(file: NinjaFile, cuda: Cuda | None) -> list[Path]:
    """The CUDA kernels and their launches."""
    objects = []
    if cuda is not None:
        file.add_nvcc(cuda.nvcc)
        flags = ["-O3", "-std=c++20", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas=-v"]
        flags += ["-Werror=all-warnings", "--threads", "2", *cuda.targets]
        flags += ["-DBPTT_FEW_NUMBERS"] if cuda.few else []
        # So that a wheel leaves the objects in place alone.
        variant = "-".join([*cuda.archs, *(["few"] if cuda.few else [])])
        for source in sources("cuda", ".cu"):
            objects.append(file.compile(source, flags, variant=variant, rule="nvcc"))
    return objects


def python_flags() -> list[str]:
    """Include flags of Python.h."""
    folders = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    return [f"-isystem{folder}" for folder in sorted(folders)]


def cuda_link_flags(cuda: Cuda | None) -> list[str]:
    """The CUDA runtime goes into the extension; the driver is looked for at the first launch."""
    if cuda is None:
        return []
    hidden = "-Wl,--exclude-libs,libcudart_static.a"
    return [f"-L{cuda.library}", "-lcudart_static", "-ldl", "-lrt", "-lpthread", hidden]


def torch_flags() -> list[str]:
    """Flags for sources that use torch's stable ABI."""
    target = [f"-DTORCH_TARGET_VERSION={TORCH_ABI}", "-DUSE_CUDA"]
    return [*target, f"-isystem{torch_folder() / 'include'}"]


def torch_link_flags() -> list[str]:
    # libtorch looks unneeded on a torch without CUDA, yet is what leads to the symbols of one with.
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--as-needed"]
    return [f"-L{torch_folder() / 'lib'}", *libraries, "-ldl"]


def add_library(file: NinjaFile, engine: list[Path], cuda: Cuda | None, in_place: bool) -> Path:
    """bptt._C. No run path: `import torch`, which comes first, has torch's libraries loaded."""
    flags = [*COMPILE, "-O2", *torch_flags()]
    module = [f"-DPy_LIMITED_API={PYTHON_ABI}", *python_flags()]
    objects = [
        file.compile(source, [*flags, *module] if source.name == "module.cpp" else flags)
        for source in sources("torch", ".cpp")
        if cuda is not None or source.name != "cuda.cpp"
    ]
    small = [] if in_place else ["-Wl,--strip-all"]
    flags = [*torch_link_flags(), *cuda_link_flags(cuda), *small]
    return file.link("_C.so", [*objects, *engine], flags)


def add_development_module(file: NinjaFile, engine: list[Path]) -> Path:
    """bptt._dev.

    Raises:
        LeftOut: when it is not asked for or cannot be built.
    """
    if os.environ.get("BPTT_DEV") == "0":
        raise LeftOut("BPTT_DEV=0")
    if not sources("dev", ".cpp"):
        raise LeftOut("csrc/dev holds no .cpp file")
    if importlib.util.find_spec("pybind11") is None:
        raise LeftOut("pybind11 is not installed")
    import pybind11

    flags = [*COMPILE, *ARITHMETIC, *python_flags(), f"-isystem{pybind11.get_include()}"]
    objects = [file.compile(source, flags) for source in sources("dev", ".cpp")]
    return file.link("_dev.so", [*objects, *engine], ["-ldl"])


# The simulator's engines: what each is compiled with, and what it finds (csrc/simulator).
SIMULATORS = {
    "fibers": [],
    "address": [
        "-DBPTT_FEW_KERNELS",
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    ],
    "thread": [
        *("-DBPTT_FEW_KERNELS", "-DBPTT_SIMULATOR_THREADS"),
        *("-fsanitize=thread", "-pthread"),
    ],
}


def add_simulator(file: NinjaFile, engine: list[Path]) -> list[Path]:
    """Programs that run kernels in each engine of the simulator, and a library of ops that do."""
    built = []
    for kind, special in SIMULATORS.items():
        flags = [*COMPILE, "-O1", "-g1", "-DBPTT_SIMULATOR", *special]
        for source in sources("simulator", ".cpp"):
            made = file.compile(source, flags, variant=kind)
            name = f"simulator/{source.stem}.{kind}"
            program = file.program(name, [made], special)
            # Kernels take minutes to compile: for those who run them under a sanitizer.
            if source.stem != "kernels":
                built.append(program)
    flags = [*COMPILE, "-O1", "-DBPTT_SIMULATOR"]
    kernels = [
        file.compile(source, ["-x", "c++", *flags], variant="simulated")
        for source in sources("cuda", ".cu")
    ]
    op = file.compile(Path("csrc/torch/cuda.cpp"), [*flags, *torch_flags()], variant="simulated")
    built.append(file.link("simulator/ops.so", [op, *kernels, *engine], torch_link_flags()))
    return built


def write_commands(in_place: bool) -> dict[str, Path]:
    """Writes the ninja file; returns what it can build, by extension name."""
    file = NinjaFile()
    try:
        cuda = find_cuda(in_place)
    except LeftOut as reason:
        cuda = None
        print(f"bptt: CUDA kernels left out: {reason}")
    engine = add_engine(file, in_place)
    kernels = add_kernels(file, cuda)
    built = {"bptt._C": add_library(file, [*engine, *kernels], cuda, in_place)}
    try:
        built["bptt._dev"] = add_development_module(file, engine)
    except LeftOut as reason:
        if os.environ.get("BPTT_DEV") == "1":
            raise SystemExit(f"BPTT_DEV=1, but bptt._dev cannot be built: {reason}") from None
        print(f"bptt: development module left out: {reason}")
    built_simulator = add_simulator(file, engine)
    file.lines.append(f"build simulator: phony {' '.join(map(str, built_simulator))}")
    file.lines.append(f"build kernels: phony {' '.join(map(str, kernels))}")
    file.lines.append(f"default {' '.join(map(str, built.values()))}")
    file.write(ROOT / ninja_file(in_place))
    return built


def ninja_file(in_place: bool) -> Path:
    """They differ in what the CUDA kernels are compiled for."""
    return BUILD / ("build.ninja" if in_place else "wheel.ninja")


def run_ninja(targets: list[str], in_place: bool) -> None:
    """Builds what is out of date among targets of the ninja file."""
    jobs = os.environ.get("MAX_JOBS") or str(cores())
    command = [find_ninja(), "-f", str(ninja_file(in_place)), "-j", jobs, *targets]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SystemExit("bptt: compilation failed, see above")


@contextmanager
def alone() -> Iterator[None]:
    """Waits while another build of this folder runs: ninja itself does not."""
    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    with open(ROOT / BUILD / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace_file(source: Path, target: Path) -> None:
    """Copies at once or not at all: a running process may have the old extension mapped."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.chmod(0o755)
    beside.replace(target)


class BuildExtensions(build_ext):
    """Runs ninja and puts what it made where setuptools expects it."""

    def run(self) -> None:
        with alone():
            built = write_commands(bool(self.inplace))
            if not self.inplace:
                built.pop("bptt._dev", None)
            self.extensions = [ext for ext in self.extensions if ext.name in built]
            run_ninja([str(path) for path in built.values()], bool(self.inplace))
            for name, path in built.items():
                replace_file(ROOT / path, Path(self.get_ext_fullpath(name)))


class BuildTarget(Command):
    """Runs ninja for one of its other targets."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = [
        ("programs=", None, "build these files instead, with spaces between them")
    ]
    target: ClassVar[str]
    in_place = True

    def initialize_options(self) -> None:
        self.programs: str | None = None

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        with alone():
            write_commands(self.in_place)
            run_ninja((self.programs or self.target).split(), self.in_place)


class BuildSimulator(BuildTarget):
    """Builds the simulator's programs and ops, build/native/simulator/*; tests run them.

    All but programs of kernels, for sanitizers, which `--programs` names one by one.
    """

    description = "build the programs of the CUDA simulator"
    target = "simulator"


class BuildKernels(BuildTarget):
    """Compiles the CUDA kernels for every architecture that a wheel has."""

    description = "compile the CUDA kernels for every architecture"
    target = "kernels"
    in_place = False


setup(
    packages=[
        "bptt",
        *(f"bptt.{name}" for name in find_packages(str(ROOT / "python" / "bptt"))),
        "bptt.kernels",
        "bptt.csrc",
    ],
    package_dir={"bptt": "python/bptt", "bptt.kernels": "kernels", "bptt.csrc": "csrc"},
    include_package_data=False,  # else all of csrc, which is a source distribution's
    package_data={
        "bptt": ["py.typed", "*.pyi", "train/*.jinja"],
        # What cells of one's own are compiled with: python/bptt/custom/native.py.
        "bptt.csrc": [
            "cells/*.h",
            "engine/*.h",
            "engine/*.json",
            "engine/team.cpp",
            "engine/plan.cpp",
        ],
    },
    # Their sources are listed by write_commands.
    ext_modules=[
        Extension("bptt._C", sources=[], py_limited_api=True),
        Extension("bptt._dev", sources=[], optional=True),
    ],
    cmdclass={
        "build_ext": BuildExtensions,
        "build_simulator": BuildSimulator,
        "build_kernels": BuildKernels,
    },
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
