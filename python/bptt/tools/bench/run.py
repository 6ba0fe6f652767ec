"""Goes through a grid: checks every provider, then times those that are right, in turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import bptt

from . import floor, machine, memory
from .layers import KINDS, baseline_of
from .problems import PRECISIONS, Problem
from .providers import Provider, lacks
from .results import Result
from .timing import Call, Failure, Spread, measure, ratio, short

SLACK = 4  # how many times the baseline's error, and a unit of the precision on top, is still right
TF32_UNIT = 1e-3


@dataclass
class Setting:
    """What all passes of a layer share: layers with the same weights, and the exact results."""

    x: Tensor
    dy: Tensor
    theirs: nn.Module
    exact: list[Tensor]
    modules: dict[str, nn.Module]

    @classmethod
    def of(cls, problem: Problem, device: str) -> Setting:
        torch.manual_seed(0)
        options = {"num_layers": problem.layers, "bidirectional": problem.directions == 2}
        kind = KINDS[problem.layer]
        theirs = kind.make(problem.input, problem.hidden, **options).to(device, problem.dtype)
        exact = kind.make(problem.input, problem.hidden, **options).to(device, torch.float64)
        exact.load_state_dict(theirs.state_dict())
        x = torch.randn(problem.steps, problem.batch, problem.input).to(device, problem.dtype)
        width = problem.directions * problem.hidden
        dy = torch.randn(problem.steps, problem.batch, width).to(device, problem.dtype)
        input64 = x.double().requires_grad_()
        # torch.nn's layers do not know what is forced.
        with bptt.backend("reference"):
            y = exact(input64)[0]
            y.backward(dy.double())
        grads = [input64.grad, *(p.grad for p in exact.parameters())]
        return cls(x, dy, theirs, [y.detach(), *(g for g in grads if g is not None)], {})


def relative_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of any tensor, in the Frobenius norm; NaN if anything is.

    Where the truth is zero (of one step from a zero state no recurrent weight has a gradient), the
    norm itself. A provider whose weights have other shapes is held to the output and the input's
    gradient.
    """
    errors = []
    for mine, truth in zip(results, exact, strict=False):
        if mine.shape != truth.shape:
            break
        size = truth.norm().item()
        errors.append((mine.double() - truth).norm().item() / (size if size > 0 else 1.0))
    return max(errors, key=lambda e: float("inf") if e != e else e)


class Run:
    """A run over problems; `said` gets a line for whatever went wrong.

    Args:
        result: where rows go, and which rows there are already.
        providers: all to measure.
        device: "cpu" or "cuda".
        seconds: for the rounds of one problem.
        said: called with a line of text.
    """

    def __init__(
        self, result: Result, providers: Sequence[Provider], device: str, seconds: float,
        said: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.result, self.providers, self.device = result, providers, device
        self.seconds, self.said = seconds, said
        self.bad = 0  # entries that are wrong or failed
        self.setting: tuple[Problem | None, Setting | str] = (None, "")
        self._note_crash()

    def todo(self, problems: Iterable[Problem]) -> list[Problem]:
        """Problems that lack a row, or a provider in it."""
        names = {provider.name for provider in self.providers}
        return [
            problem
            for problem in dict.fromkeys(problems)
            if (row := self.result.row(problem)) is None or not names <= row["providers"].keys()
        ]

    def measure_figures(self, problems: Iterable[Problem]) -> None:
        """Speeds of product, copy and exchange, unless the file has them."""
        figures = self.result.content["figures"]
        wanted = [p for p in {p.precision: p for p in problems} if f"gemm_{p}" not in figures]
        if wanted or "copy" not in figures:
            figures.update(floor.peaks(self.device, wanted))
        if "import_s" not in figures:
            figures["import_s"] = machine.import_seconds()
        if self.device == "cuda" and "exchanges_us" not in figures:
            figures["exchanges_us"] = floor.exchanges()

    def measure(self, problem: Problem) -> None:
        """Measure one and enter it. Passes of the same layer in a row share their setting."""
        layer = replace(problem, which="step")
        if self.setting[0] != layer:
            self.setting = (None, "")  # its memory is free before the next one is made
            torch.compiler.reset()  # Dynamo gives up on a function that it has compiled too often
            self.setting = (layer, self._setting(problem))
        setting = self.setting[1]
        if isinstance(setting, str):
            entries = {p.name: failed(setting) for p in self.providers}
            self.bad += len(entries)
            self.said(f"{problem}: {setting}")
        else:
            entries = self._entries(problem, setting)
        self.result.add(problem, self._row(problem, entries))

    def _setting(self, problem: Problem) -> Setting | str:
        try:
            with floor.multiplied_as("ieee"):
                return Setting.of(problem, self.device)
        except (RuntimeError, MemoryError) as reason:
            return f"torch.nn in float64, for comparison: {short(reason)}"

    def _entries(self, problem: Problem, setting: Setting) -> dict[str, dict[str, Any]]:
        with floor.multiplied_as(PRECISIONS[problem.precision][1]):
            entries: dict[str, dict[str, Any]] = {}
            calls: dict[str, Call] = {}
            limit, baseline = float("inf"), baseline_of(problem.layer)
            for provider in sorted(self.providers, key=lambda p: p.name != baseline):
                entry, call = self._checked(problem, provider, setting, limit)
                entries[provider.name] = entry
                if call is not None:
                    calls[provider.name] = call
                if provider.name == baseline and call is not None:
                    eps = torch.finfo(problem.dtype).eps
                    unit = TF32_UNIT if problem.precision == "tf32" else eps
                    limit = SLACK * (entry["error"] + unit)
            self._time(problem, entries, calls)
        return entries

    def _checked(
        self, problem: Problem, provider: Provider, setting: Setting, limit: float
    ) -> tuple[dict[str, Any], Call | None]:
        """What is known before times are: error, memory, launches; and the call if it is right."""
        if [str(problem), provider.name] in self.result.content.get("crashed", []):
            return failed("the process ended while it ran"), None
        reason = lacks(provider, problem.layer) or provider.why_not(problem, self.device)
        if reason is not None:
            return {"status": "absent", "reason": reason}, None
        self._running(problem, provider)
        try:
            return self._prepared(problem, provider, setting, limit)
        except Exception as error:  # whatever another library raises is a finding of the row
            self.bad += 1
            self.said(f"{provider.name}, {problem}: {short(error)}")
            return failed(short(error)), None
        finally:
            self._running(None, None)

    def _prepared(
        self, problem: Problem, provider: Provider, setting: Setting, limit: float
    ) -> tuple[dict[str, Any], Call | None]:
        entry: dict[str, Any] = {"status": "timed"}
        if provider.name not in setting.modules:
            setting.modules[provider.name] = provider.make(setting.theirs)
        module = setting.modules[provider.name]
        call = Call(module, setting.x, setting.dy, problem.which, provider.context)
        started = time.perf_counter()
        with provider.context():
            results = call.results()
            kernel = provider.kernel(module, setting.x)
        if provider.compiled:
            entry["compile_s"] = time.perf_counter() - started
        if kernel is not None:
            entry["kernel"] = kernel
        entry["error"] = relative_error(results, setting.exact)
        if not entry["error"] <= limit:  # NaN is not
            self.bad += 1
            text = f"error {entry['error']:.3g}, at most {limit:.3g} is right"
            self.said(f"{provider.name}, {problem}: wrong: {text}")
            error = entry["error"] if entry["error"] == entry["error"] else None
            return {**entry, "status": "wrong", "reason": text, "error": error}, None
        entry["saved_bytes"] = memory.saved_bytes(call)
        entry["peak_bytes"] = memory.peak_bytes(call, self.device)
        entry["launches"] = memory.launches(call, self.device)
        return entry, call

    def _time(
        self, problem: Problem, entries: dict[str, dict[str, Any]], calls: dict[str, Call]
    ) -> None:
        while calls:
            try:
                times = measure(calls, self.device, self.seconds)
                break
            except Failure as failure:
                self.bad += 1
                self.said(f"{failure.name}, {problem}: {failure}")
                entries[failure.name] = failed(str(failure))
                del calls[failure.name]
        else:
            return
        figures = self.result.content["figures"]
        least = floor.floor_ms(problem, figures)
        for name, each in times.items():
            spread = Spread.of(each)
            entry = entries[name]
            entry["ms"] = {
                "median": spread.median,
                "q1": spread.q1,
                "q3": spread.q3,
                "rounds": spread.rounds,
            }
            entry["us_per_step"] = 1e3 * spread.median / problem.steps
            entry["gflops"] = problem.flop / spread.median / 1e6
            entry["gbytes_per_s"] = problem.bytes / spread.median / 1e6
            entry["share_of_floor"] = least / spread.median
            entry["share_of_gemm"] = entry["gflops"] / figures[f"gemm_{problem.precision}"]
            entry["share_of_copy"] = entry["gbytes_per_s"] / figures["copy"]
            baseline = baseline_of(problem.layer)
            if name != baseline and baseline in times:
                middle, first, third = ratio(times[baseline], each)
                entry["ratio"] = {"median": middle, "q1": first, "q3": third}

    def _row(self, problem: Problem, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
        old = self.result.row(problem)
        kept = dict(old["providers"]) if old is not None else {}
        return {
            **problem.asdict(),
            "cudnn_class": problem.cudnn_class if self.device == "cuda" else None,
            "gflop": problem.flop / 1e9,
            "floor_ms": floor.floor_ms(problem, self.result.content["figures"]),
            "providers": {**kept, **entries},
        }

    # A provider that ends the process leaves its name in a file; the next run leaves it out.

    def _running(self, problem: Problem | None, provider: Provider | None) -> None:
        path = self.result.path.with_suffix(".running")
        if problem is None or provider is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([str(problem), provider.name]), encoding="utf-8")

    def _note_crash(self) -> None:
        path = self.result.path.with_suffix(".running")
        if not path.exists():
            return
        problem, provider = json.loads(path.read_text(encoding="utf-8"))
        self.result.content.setdefault("crashed", []).append([problem, provider])
        self.said(f"{provider}, {problem}: ended the process last time; left out")
        path.unlink()


def failed(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason}
