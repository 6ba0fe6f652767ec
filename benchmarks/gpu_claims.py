"""What reading the compiled kernels predicts of a GPU, measured: a minute, before anything else.

python benchmarks/gpu_claims.py [--output FILE.json]

`.ci/gpu` runs it first. Each row is a claim, what was predicted, and what came out; NOTES.md says
what hangs on it. Times are medians; a fixed cost is the intercept of two lengths.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

import bptt
from bptt.engines import gpu
from bptt.recurrence.op_checks import Sizes
from bptt.tools.bench.floor import exchanges, multiplied_as
from bptt.tools.bench.providers import tier, triton_in_one_launch
from bptt.tools.bench.timing import milliseconds

Row = dict[str, Any]


class Shape(NamedTuple):
    """Of a layer."""

    hidden: int
    batch: int
    dtype: torch.dtype


HARD = Shape(768, 16, torch.float16)
LARGE = Shape(1024, 16, torch.bfloat16)  # a step tier's in Triton
STREAM_SYMBOL = "aoti_torch_get_current_cuda_stream"


def row(claim: str, predicted: str, measured: float | str, unit: str = "us") -> Row:
    return {"claim": claim, "predicted": predicted, "measured": measured, "unit": unit}


def of_exchanges() -> Iterator[Row]:
    expected = {"cluster of 16": "0.65", "grid of 64": "1.3", "grid of 128": "1.3"}
    for name, us in exchanges().items():
        yield row(f"an exchange, {name}", expected.get(name, ""), us)


def forward_us(steps: int, shape: Shape, device: str, bias: bool = True) -> Callable[[], float]:
    """Microseconds of an LSTM's forward pass on the cuda backend, as in training."""
    hidden, batch, dtype = shape
    layer = bptt.LSTM(hidden, hidden, bias=bias, device=device, dtype=dtype)
    x = torch.randn(steps, batch, hidden, device=device, dtype=dtype)

    def run() -> float:
        with bptt.backend("cuda"):
            return 1e3 * milliseconds(lambda: layer(x), device)

    return run


def of_fixed_costs(device: str, short: int = 1, long: int = 1024) -> Iterator[Row]:
    """The first step comes after the launch, and after the weights have come in."""
    few = forward_us(short, HARD, device)()
    many = forward_us(long, HARD, device)()
    sizes = Sizes(long, HARD.batch, 1, HARD.hidden, HARD.hidden)
    plan = gpu.plan_for("lstm", HARD.dtype, sizes, False, False, torch.device(device))
    step = (many - few) / (long - short)
    yield row("LSTM fp16 H=768 B=16 forward, a step", f"{plan.step_us:.2f}, and 0.2 of GEMM", step)
    yield row("the same, T=1: projection, launch, weights", "below 40", few)


def of_biases(device: str, steps: int = 512) -> Iterator[Row]:
    """They are read from shared memory: once they cost 0.55 us a step."""
    for bias in (True, False):
        us = forward_us(steps, HARD, device, bias)() / steps
        yield row(f"LSTM fp16 H=768 B=16 forward, a step, bias={bias}", "the same", us)


def of_the_step_tier(device: str, steps: int = 64) -> Iterator[Row]:
    """TF32 beyond what blocks hold; and products around the loop at its precision."""
    with multiplied_as("tf32"), tier("step").context():
        layer = bptt.LSTM(1024, 1024, device=device)
        x = torch.randn(steps, 64, 1024, device=device)
        forward = 1e3 * milliseconds(lambda: layer(x), device) / steps
        both = 1e3 * milliseconds(lambda: layer(x)[0].sum().backward(), device) / steps
    yield row("LSTM tf32 H=1024 B=64, step tier, forward, a step", "7, and 2 of GEMM", forward)
    yield row("the same, forward and backward", "16, and 6 of GEMM", both)


def of_triton(shape: Shape, device: str, steps: int = 256) -> Iterator[Row]:
    """Where every step is a launch: launched by the host, replayed by a graph, and all in one."""
    hidden, batch, dtype = shape
    layer = bptt.LSTM(hidden, hidden, device=device, dtype=dtype)
    x = torch.randn(steps, batch, hidden, device=device, dtype=dtype)
    name = f"Triton LSTM {str(dtype).removeprefix('torch.')} H={hidden} B={batch} forward, a step"

    def us(call: Callable[[], Any]) -> float:
        return 1e3 * milliseconds(call, device) / steps

    def run() -> Any:
        with torch.no_grad():
            return layer(x)

    with bptt.backend("triton"):
        yield row(f"{name}, launched by the host", "10", us(run))
        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            yield row(f"{name}, replayed by a CUDA graph", "3 to 5", us(graph.replay))
    with triton_in_one_launch().context():
        yield row(f"{name}, persistent", "3 to 5", us(run))


def of_the_library() -> Iterator[Row]:
    """The stream comes from a weak symbol that libtorch must bring along."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
    try:
        done = subprocess.run(
            ["readelf", "--dyn-syms", "--wide", str(library)],
            capture_output=True,
            text=True,
            check=True,
        )
        found = "defined" if STREAM_SYMBOL in done.stdout else "missing"
    except (OSError, subprocess.CalledProcessError) as error:
        found = f"not read: {error}"
    yield row(f"{STREAM_SYMBOL} in libtorch_cuda.so", "defined", found, "")


def table(rows: list[Row]) -> Table:
    shown = Table("claim", "predicted", "measured", "unit")
    for r in rows:
        value = r["measured"]
        text = f"{value:.2f}" if isinstance(value, float) else value
        shown.add_row(r["claim"], r["predicted"], text, r["unit"])
    return shown


def main(
    output: Annotated[Path | None, typer.Option(help="where to write the rows as JSON")] = None,
) -> None:
    if not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU that this torch can use")
    rows: list[Row] = []
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "exchanges": of_exchanges,
        "fixed costs": lambda: of_fixed_costs("cuda"),
        "biases": lambda: of_biases("cuda"),
        "the step tier": lambda: of_the_step_tier("cuda"),
        "Triton": lambda: of_triton(LARGE, "cuda"),
        "the library": of_the_library,
    }
    for name, part in parts.items():
        try:
            rows += part()
        except RuntimeError as error:  # the others are worth as much
            rows.append(row(name, "", f"failed: {error}", ""))
    Console().print(table(rows))
    if output is not None:
        content = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
        output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
