"""Recurrent layers on a GPU: torch.nn (cuDNN) and bptt in one run, minutes.

    python benchmarks/gpu.py FOLDER     writes FOLDER/gpu.json and FOLDER/gpu.md as rows come in

Both sides have the same weights and inputs, and their input projection is part of the time. A row
whose numbers are wrong is not timed. Times are medians of CUDA events with the second cache
emptied before each call (triton.testing.do_bench).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.progress import track
from torch import Tensor, nn

import bptt
from bptt import gpu

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
PASSES = ("forward", "forward+backward")
SHAPES = (  # T, B, H, and H input features
    *((256, 16, 64), (256, 64, 128), (256, 1, 256), (256, 16, 256), (256, 64, 256)),
    *((256, 16, 512), (256, 64, 512), (256, 256, 512), (256, 16, 1024), (256, 64, 1024)),
)
HARD = (1024, 16, 768)  # the shape on which cuDNN is at its best


@dataclass(frozen=True)
class Row:
    """A layer on a batch of sequences; T, B and H as everywhere, H input features too."""

    layer: str
    precision: str
    steps: int
    batch: int
    hidden: int
    directions: int
    which: str

    @property
    def cudnn_class(self) -> str:
        """The kind of kernel that cuDNN takes for it through torch.nn.

        Source: `get_algo` in torch's aten/src/ATen/native/cudnn/RNN.cpp.
        """
        small = {"forward": (192, 384), "forward+backward": (128, 256)}[self.which]
        if self.hidden <= small[self.layer == "RNN"]:
            return "SMALL_H"
        fits = self.batch % 8 == 0 and self.batch <= 128
        fits = fits and self.hidden % 128 == 0 and self.hidden <= 1024
        if self.layer == "RNN":
            fits = fits and (self.batch < 96 or self.hidden < 896)
        if self.precision == "fp16" and self.layer != "GRU" and self.directions == 1 and fits:
            return "PERSIST_STATIC"
        return "STANDARD"


def grid(shapes: tuple[tuple[int, int, int], ...]) -> list[Row]:
    """LSTM and GRU over all shapes and precisions, one direction; RNN and two directions less."""
    rows = [
        Row(layer, precision, *shape, 1, which)
        for layer in ("LSTM", "GRU")
        for precision in PRECISIONS
        for shape in shapes
        for which in PASSES
    ]
    rows += [
        Row(layer, precision, *shape, directions, which)
        for layer, directions in (("RNN", 1), ("LSTM", 2), ("GRU", 2))
        for precision in ("bf16", "tf32")
        for shape in shapes[1::3]
        for which in PASSES
    ]
    return rows


# --- one row --------------------------------------------------------------------------------------


def layers_of(row: Row, device: str) -> tuple[nn.RNNBase, nn.RNNBase, nn.RNNBase, Tensor]:
    """torch.nn's layer, bptt's, torch.nn's in float64, all with the same weights; and an input."""
    torch.manual_seed(0)
    dtype = PRECISIONS[row.precision][0]
    options = {"bidirectional": row.directions == 2, "device": device}
    made = [
        getattr(module, row.layer)(row.hidden, row.hidden, dtype=kind, **options)
        for module, kind in ((nn, dtype), (bptt, dtype), (nn, torch.float64))
    ]
    for other in made[1:]:
        other.load_state_dict(made[0].state_dict())
    x = torch.randn(row.steps, row.batch, row.hidden, dtype=dtype, device=device)
    return made[0], made[1], made[2], x


def call_of(layer: nn.RNNBase, x: Tensor, which: str) -> Callable[[], list[Tensor]]:
    """What is timed: returns the output, and the gradients of input and weights if it makes any."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    ones = torch.ones_like(layer(x)[0])

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [layer(x)[0]]

    def forward_backward() -> list[Tensor]:
        y = layer(leaves[0])[0]
        return [y.detach(), *torch.autograd.grad(y, leaves, ones)]

    return forward if which == "forward" else forward_backward


def error(outputs: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative error of any output, in the Frobenius norm; NaN if anything is."""
    errors = [
        ((y.double() - truth).norm() / truth.norm()).item()
        for y, truth in zip(outputs, exact, strict=True)
    ]
    return max(errors, key=lambda e: float("inf") if e != e else e)


def milliseconds(call: Callable[[], Any], device: str) -> list[float]:
    """First quartile, median and third quartile."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(call, warmup=20, rep=80, quantiles=[0.25, 0.5, 0.75])
    from torch.utils.benchmark import Timer

    measured = Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.05)
    return [1e3 * t for t in quantiles([*measured.times, measured.median], n=4)]


@contextmanager
def precision_of(row: Row) -> Iterator[None]:
    """How float32 is multiplied, in the loop and around it."""
    modules = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [module.fp32_precision for module in modules]
    for module in modules:
        module.fp32_precision = PRECISIONS[row.precision][1]
    try:
        yield
    finally:
        for module, name in zip(modules, before, strict=True):
            module.fp32_precision = name


@contextmanager
def persistent() -> Iterator[None]:
    """Triton's step tier in one launch."""
    from bptt.kernels import plan

    with mock.patch.object(plan, "_ONE_LAUNCH", True), bptt.backend("triton"):
        yield


@contextmanager
def in_tier(tier: str) -> Iterator[None]:
    """The cuda backend in one tier, whatever the model says; in its own choice for what cannot."""
    planned = gpu.plan_for

    def plan_for(cell: str, dtype: Any, sizes: Any, *rest: Any) -> gpu.Plan:
        projected, backward, device = rest
        number, limits = gpu.number_of(dtype), gpu.device_limits(device)
        try:
            return gpu.make_plan(cell, number, sizes, projected, backward, limits, tier)
        except RuntimeError:
            return planned(cell, dtype, sizes, *rest)

    with mock.patch.object(gpu, "plan_for", plan_for), bptt.backend("cuda"):
        yield


def ways_of(ours: nn.RNNBase, x: Tensor, device: str) -> dict[str, Callable[[], Any]]:
    """How bptt can run a layer, each under a context of its own; its own choices first."""
    if device != "cuda":
        backend = bptt.explain(ours, x).backend
        return {backend: lambda: bptt.backend(backend)}
    ways: dict[str, Callable[[], Any]] = {
        name: partial(bptt.backend, name) for name in ("cuda", "triton")
    }
    with bptt.backend("cuda"):
        kernel = bptt.explain(ours, x).kernel
    for tier in gpu.TIERS:
        if f"forward {tier} tier" not in kernel or f"backward {tier} tier" not in kernel:
            ways[f"cuda {tier}"] = partial(in_tier, tier)
    with bptt.backend("triton"):
        if "step tier" in bptt.explain(ours, x).kernel:
            ways["triton persistent"] = persistent
    return ways


def measure(row: Row, device: str) -> dict[str, Any]:
    """A row of the result: errors and times of torch.nn and of each way that bptt has."""
    with precision_of(row):
        theirs, ours, double, x = layers_of(row, device)
        exact = call_of(double, x.double(), row.which)()
        kernels = {}
        providers: dict[str, dict[str, Any]] = {}
        ways = {"torch": nullcontext, **ways_of(ours, x, device)}
        limit = float("inf")
        for name, context in ways.items():
            layer = theirs if name == "torch" else ours
            with context():
                if name != "torch":
                    kernels[name] = bptt.explain(ours, x).kernel
                providers[name] = timed(call_of(layer, x, row.which), exact, limit, device)
            if name == "torch":
                unit = 1e-3 if row.precision == "tf32" else torch.finfo(x.dtype).eps
                limit = 4 * (providers[name]["error"] + unit)
    for name, entry in providers.items():
        if name != "torch" and "ms" in entry and "ms" in providers["torch"]:
            entry["ratio"] = providers["torch"]["ms"][1] / entry["ms"][1]
    return {
        **asdict(row),
        "cudnn_class": row.cudnn_class,
        "kernels": kernels,
        "providers": providers,
    }


def timed(
    call: Callable[[], list[Tensor]], exact: list[Tensor], limit: float, device: str
) -> dict[str, Any]:
    """Its error and its time; no time for what is wrong, and why for what raises."""
    try:
        entry: dict[str, Any] = {"error": error(call(), exact)}
        if not entry["error"] <= limit:  # NaN is not
            return {**entry, "wrong": f"error above {limit:.3g}"}
        return {**entry, "ms": milliseconds(call, device)}
    except Exception as reason:  # a row that cannot be measured is a finding, not the end of a run
        return {"error": float("nan"), "wrong": f"{type(reason).__name__}: {reason}"[:500]}


# --- the machine ----------------------------------------------------------------------------------


def facts(device: str) -> dict[str, Any]:
    """What was measured on, and with what."""

    def asked(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    versions = {"bptt": bptt.__version__, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    answer = {
        "schema": 1,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": asked("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "versions": versions,
        "device": device,
    }
    if device == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(0)
        query = "driver_version,clocks.sm,clocks.mem,power.draw"
        answer["device"] = properties.name
        answer["processors"] = properties.multi_processor_count
        answer["driver, clocks, power"] = asked(
            "nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"
        )
        versions.update(cuda=torch.version.cuda, triton=triton.__version__)
        versions["cudnn"] = torch.backends.cudnn.version()
    return answer


def peaks() -> dict[str, float]:
    """What a large copy and large matrix products reach: GB/s, TFLOP/s."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), "cuda")[1]
    answer = {"copy GB/s": 2 * source.numel() / ms / 1e6}
    for name, (dtype, precision) in PRECISIONS.items():
        torch.backends.cuda.matmul.fp32_precision = precision
        a, b = torch.randn(2, 8192, 8192, device="cuda").to(dtype)
        ms = milliseconds(lambda a=a, b=b: a @ b, "cuda")[1]
        answer[f"{name} TFLOP/s"] = 2 * 8192**3 / ms / 1e9
    return answer


def exchanges() -> dict[str, float]:
    """Microseconds of an exchange among the blocks of a team, in each tier that has any."""
    rounds, answer = 20_000, {}
    teams = {"cluster": (2, 4, 8, 16), "grid": (2, 8, 32, 64, 132)}
    for tier, sizes in {"block": (1,), **teams}.items():
        for blocks in sizes:
            name = f"us per exchange, {tier} of {blocks}"
            out = torch.zeros(blocks, dtype=torch.int32, device="cuda")

            def call(tier: str = tier, out: Tensor = out) -> None:
                torch.ops.bptt.gpu_exchange(tier, rounds, out)

            try:
                call()
                right = bool((out == rounds).all())
                answer[name] = milliseconds(call, "cuda")[1] * 1e3 / rounds if right else -1.0
            except RuntimeError as reason:  # a team that this device has no room for
                print(f"{name}: {reason}")
    return answer


# --- the report -----------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The result as a page of tables."""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    lines = [f"# {result['device']}", "", f"{result['date']}, commit {result['commit'][:12]}."]
    lines += [f"{versions}. {result.get('driver, clocks, power', '')}", ""]
    lines += [f"- {name}: {value:.4g}" for name, value in result["figures"].items()]
    lines += [
        "",
        "Times in microseconds per step, with the ratio torch.nn / bptt; `wrong` is not timed.",
    ]
    names = sorted({name for row in result["rows"] for name in row["providers"]} - {"torch"})
    head = ["layer", "D", "precision", "T", "B", "H", "pass", "cuDNN class", "torch.nn", *names]
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in result["rows"]:
        cells = [row["layer"], row["directions"], row["precision"], row["steps"], row["batch"]]
        cells += [row["hidden"], row["which"], row["cudnn_class"]]
        cells += [shown(row, name) for name in ("torch", *names)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def shown(row: dict[str, Any], name: str) -> str:
    entry = row["providers"].get(name)
    if entry is None:
        return ""
    if "ms" not in entry:
        return "wrong"
    each = entry["ms"][1] / row["steps"] * 1e3
    return f"{each:.2f} ({entry['ratio']:.2f})" if "ratio" in entry else f"{each:.2f}"


def main(
    folder: Path,
    device: Annotated[str, typer.Option(help="cpu: a trial of the program itself")] = "cuda",
    minutes: Annotated[float, typer.Option(help="rows not begun by then are left out")] = 8.0,
    rows: Annotated[int, typer.Option(help="only the first rows of the grid")] = 1_000_000,
) -> None:
    """Measure torch.nn and bptt side by side and write a result file and a report."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: this torch finds no GPU; --device cpu tries the program out")
    deadline = time.monotonic() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    result = {**facts(device), "figures": {}, "rows": []}
    if device == "cuda":
        from bptt.kernels.no_driver import launch_cost

        result["figures"].update(peaks())
        result["figures"].update(exchanges())
        result["figures"]["host us per launch of a step"] = launch_cost(device)
    hard = [Row(name, "fp16", *HARD, 1, which) for name in ("LSTM", "GRU") for which in PASSES]
    planned = [*hard, *grid(SHAPES)][:rows]
    for row in track(planned, description="rows"):
        if time.monotonic() > deadline:
            break
        result["rows"].append(measure(row, device))
        (folder / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    if len(result["rows"]) < len(planned):
        print(f"out of time: {len(result['rows'])} of {len(planned)} rows")


if __name__ == "__main__":
    typer.run(main)
