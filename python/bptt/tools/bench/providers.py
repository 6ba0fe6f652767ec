"""Who can run a problem: torch.nn, bptt in each of its ways, and other libraries that are here.

A provider is handed torch.nn's layer and makes a module of its own with the same weights. Whether
it computes the same is checked before anything is timed (`run`), so that an adapter to another
library's conventions can be wrong without a wrong time being shown.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

import bptt
from bptt.engines import gpu
from bptt.nn.base import RecurrentLayer

from .layers import BASELINE, LAYERS, PYTHON
from .problems import PRECISIONS, Problem

Layer = Callable[[Tensor], Tensor]  # [T, B, I] to [T, B, D*H]


@dataclass(frozen=True)
class Provider:
    """One way to run a problem.

    Attributes:
        name: what it is called in tables and on the command line.
        make: from torch.nn's layer, or bptt's that torch.nn lacks, to a module whose call on
            x [T, B, I] gives y [T, B, D*H].
        why_not: the reason why it cannot run a problem on "cpu" or "cuda", or None.
        context: what its calls run under.
        compiled: whether its first call compiles; the time of that is recorded.
        kernel: what it says about how it runs a problem, where it can tell.
    """

    name: str
    make: Callable[[Any], nn.Module]
    why_not: Callable[[Problem, str], str | None]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: bool = False
    kernel: Callable[[nn.Module, Tensor], str | None] = lambda module, x: None


def providers(device: str) -> list[Provider]:
    """All of them, the baseline first."""
    ways = [torch_nn(), compiled_torch_nn(), ours("bptt"), compiled_bptt()]
    names = ("cpu", "reference") if device == "cpu" else ("cuda", "triton", "reference")
    ways += [ours(f"bptt {name}", name) for name in names]
    if device == "cuda":
        ways += [tier(name) for name in gpu.TIERS]
        ways.append(triton_in_one_launch())
    return [*ways, flashrnn(), haste(), torchrl(), onnxruntime()]


def named(
    names: list[str], device: str, baselines: Collection[str] = (BASELINE,)
) -> list[Provider]:
    """Those with these names, or all; the baselines are always among them.

    Raises:
        ValueError: a name that no provider has.
    """
    known = {provider.name: provider for provider in providers(device)}
    for name in names:
        if name not in known:
            raise ValueError(f"provider must be one of {', '.join(known)}; got {name!r}")
    return [p for p in known.values() if not names or p.name in {*names, *baselines}]


def lacks(provider: Provider, layer: str) -> str | None:
    """Why a provider that is no way of bptt's cannot: it has torch.nn's layers alone."""
    ways = ("bptt", "bptt compiled", "bptt cpu", PYTHON, "bptt cuda", "bptt triton")
    return None if layer in LAYERS or provider.name in ways else "has no such layer"


# --- torch.nn -------------------------------------------------------------------------------------


class First(nn.Module):
    """A layer's output without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def flattened(layer: nn.RNNBase) -> nn.Module:
    layer.flatten_parameters()
    return First(layer)


def never(problem: Problem, device: str) -> None:
    return None


def torch_nn() -> Provider:
    """cuDNN on a GPU, torch's own kernels on a CPU, with the weights in one piece."""
    return Provider(BASELINE, flattened, never)


def compiled_torch_nn() -> Provider:
    return Provider(
        f"{BASELINE} compiled",
        lambda layer: torch.compile(flattened(layer)),  # type: ignore[return-value, arg-type]
        lambda problem, device: None if _has_compiler(device) else _NO_COMPILER,
        compiled=True,
    )


_NO_COMPILER = "torch.compile finds no compiler here"


def _has_compiler(device: str) -> bool:
    if device == "cuda":
        return find_spec("triton") is not None
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:  # what it raises differs from version to version
        return False


# --- bptt -----------------------------------------------------------------------------------------


def twin(layer: nn.Module) -> nn.Module:
    """bptt's layer with the same options and weights."""
    if not isinstance(layer, nn.RNNBase) or isinstance(layer, RecurrentLayer):
        return copy.deepcopy(layer)
    options = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional}
    place = next(layer.parameters())
    made = getattr(bptt, type(layer).__name__)(
        layer.input_size, layer.hidden_size, device=place.device, dtype=place.dtype, **options
    )
    made.load_state_dict(layer.state_dict())
    return made


def _explained(module: nn.Module, x: Tensor) -> str:
    layer = module.layer
    assert isinstance(layer, nn.Module)
    said = bptt.explain(layer, x)
    return f"{said.backend}: {said.kernel}"


def ours(name: str, backend: str = "auto") -> Provider:
    """One backend, or the choice that users get."""

    def why_not(problem: Problem, device: str) -> str | None:
        if backend == "auto":
            return None
        if backend == "reference" and device == "cuda" and problem.layer in LAYERS:
            return f"{BASELINE} is the comparison"
        status = next(status for status in bptt.backends() if status.name == backend)
        return None if status.available else status.reason

    context = nullcontext if backend == "auto" else partial(bptt.backend, backend)
    return Provider(name, lambda layer: First(twin(layer)), why_not, context, kernel=_explained)


def compiled_bptt() -> Provider:
    return Provider(
        "bptt compiled",
        lambda layer: torch.compile(First(twin(layer)), fullgraph=True),  # type: ignore[return-value, arg-type]
        lambda problem, device: None if _has_compiler(device) else _NO_COMPILER,
        compiled=True,
    )


def tier(name: str) -> Provider:
    """The CUDA kernels in one tier, both passes, whatever the model would choose."""

    def why_not(problem: Problem, device: str) -> str | None:
        limits = gpu.device_limits(torch.device(device))
        sizes = (problem.steps, problem.batch, problem.directions, problem.hidden, problem.hidden)
        cell = {"RNN": "rnn_tanh"}.get(problem.layer, problem.layer.lower())
        number = problem.precision
        passes = (False,) if problem.which == "inference" else (False, True)
        try:
            for backward in passes:
                gpu.make_plan(cell, number, sizes, False, backward, limits, name)
        except RuntimeError as reason:
            return str(reason)
        return None

    return Provider(
        f"bptt cuda {name}",
        lambda layer: First(twin(layer)),
        why_not,
        partial(_in_tier, name),
        kernel=_explained,
    )


@contextmanager
def _in_tier(name: str) -> Iterator[None]:
    def plan_for(
        cell: str, dtype: torch.dtype, sizes: Any, projected: bool, backward: bool,
        device: torch.device, *_: Any,
    ) -> gpu.Plan:  # fmt: skip
        number, limits = gpu.number_of(dtype), gpu.device_limits(device)
        return gpu.make_plan(cell, number, sizes, projected, backward, limits, name)

    with mock.patch.object(gpu, "plan_for", plan_for), bptt.backend("cuda"):
        yield


def triton_in_one_launch() -> Provider:
    """Triton's step tier in one launch a pass; off by default until it was measured."""

    @contextmanager
    def context() -> Iterator[None]:
        from bptt.kernels import plan

        with mock.patch.object(plan, "_ONE_LAUNCH", True), bptt.backend("triton"):
            yield

    return Provider(
        "bptt triton persistent",
        lambda layer: First(twin(layer)),
        lambda problem, device: None if find_spec("triton") else "triton is not installed",
        context,
        kernel=_explained,
    )


# --- other libraries ------------------------------------------------------------------------------


def _missing(package: str) -> str | None:
    return None if find_spec(package) else f"{package} is not installed (pip install {package})"


def _single(problem: Problem) -> str | None:
    """Why a library of single layers in one direction cannot."""
    if problem.layers > 1 or problem.directions > 1:
        return "one layer and one direction only"
    return None


class FlashRnn(nn.Module):
    """flashrnn.flashrnn: the recurrence alone, so that the input projection is added here.

    Its input is [B, T, gates, heads, units]; recurrent weights are [gates, heads, units out, units
    in]. Its GRU adds an own row of biases to the recurrent part of the new gate.
    """

    FUNCTIONS: ClassVar[dict[str, str]] = {"LSTM": "lstm", "GRU": "gru", "RNN": "elman"}

    def __init__(self, layer: nn.RNNBase, backend: str = "cuda_fused") -> None:
        super().__init__()
        self.kind, self.backend = type(layer).__name__, backend
        self.gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.kind]
        w_ih, w_hh, b_ih, b_hh = (p.detach().clone() for p in layer.parameters())
        hidden = layer.hidden_size
        recurrent = w_hh.view(self.gates, 1, hidden, hidden)
        if self.kind == "GRU":  # ours: r, z, n; theirs: recurrent n, r, z and the input's n
            new, rest = slice(2 * hidden, None), slice(0, 2 * hidden)
            recurrent = recurrent[[2, 0, 1]]
            bias = torch.cat([b_hh[new], (b_ih + b_hh)[rest], b_ih[new]]).view(4, 1, hidden)
        else:
            bias = (b_ih + b_hh).view(self.gates, 1, hidden)
        self.w_ih, self.w_hh = nn.Parameter(w_ih), nn.Parameter(recurrent.contiguous())
        self.bias = nn.Parameter(bias.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        from flashrnn import flashrnn as run

        gates = nn.functional.linear(x.transpose(0, 1), self.w_ih)
        gates = gates.unflatten(-1, (self.gates, 1, -1))
        dtype = str(x.dtype).removeprefix("torch.")
        states, _ = run(
            gates.contiguous(), self.w_hh, self.bias, function=self.FUNCTIONS[self.kind],
            backend=self.backend, dtype=dtype,
        )  # fmt: skip
        return states[0].squeeze(2).transpose(0, 1)  # [states, B, T, heads, units]


def flashrnn() -> Provider:
    """FlashRNN (Poeppel et al. 2024), fused CUDA kernels; 16-bit numbers."""

    def why_not(problem: Problem, device: str) -> str | None:
        if device != "cuda":
            return "needs a GPU"
        if problem.precision not in ("bf16", "fp16"):
            return "bfloat16 and float16 only"
        return _missing("flashrnn") or _single(problem)

    return Provider("flashrnn", FlashRnn, why_not)


def _haste(layer: nn.RNNBase) -> nn.Module:
    import haste_pytorch

    made = getattr(haste_pytorch, type(layer).__name__)(layer.input_size, layer.hidden_size)
    made.from_native_weights(*(p.detach() for p in layer.parameters()))
    return First(made.to(next(layer.parameters()).device))


def haste() -> Provider:
    """Haste (LMNT): LSTM and GRU in float32."""

    def why_not(problem: Problem, device: str) -> str | None:
        if device != "cuda":
            return "needs a GPU"
        if problem.layer == "RNN" or PRECISIONS[problem.precision][0] != torch.float32:
            return "LSTM and GRU in float32 only"
        return _missing("haste_pytorch") or _single(problem)

    return Provider("haste", _haste, why_not)


class TorchRl(nn.Module):
    """TorchRL's Triton kernels: batch first, states and resets for every step."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        self.hidden = layer.hidden_size
        self.weights = nn.ParameterList(p.detach().clone() for p in layer.parameters())

    def forward(self, x: Tensor) -> Tensor:
        from torchrl.modules.tensordict_module import _rnn_triton

        rows = x.transpose(0, 1).contiguous()
        states = x.new_zeros(*rows.shape[:2], self.hidden)
        resets = torch.zeros(rows.shape[:2], dtype=torch.bool, device=x.device)
        precision = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
        options = {
            "compute_dtype": x.dtype,
            "input_precision": "tf32" if precision == "tf32" else "ieee",
        }
        if self.kind == "LSTM":
            y = _rnn_triton.lstm_triton(rows, states, states, *self.weights, resets, **options)[0]
        else:
            y = _rnn_triton.gru_triton(rows, states, *self.weights, resets, **options)[0]
        return y.transpose(0, 1)


def torchrl() -> Provider:
    """TorchRL's recurrent kernels in Triton: LSTM and GRU in float32."""

    def why_not(problem: Problem, device: str) -> str | None:
        if device != "cuda":
            return "needs a GPU"
        if problem.layer == "RNN" or PRECISIONS[problem.precision][0] != torch.float32:
            return "LSTM and GRU in float32 only"
        return _missing("torchrl") or _single(problem)

    return Provider("torchrl", TorchRl, why_not)


class OnnxRuntime(nn.Module):
    """A session of onnxruntime on as many threads as torch has.

    They wait busily within a call, as they would by default, but not after it: the others' calls
    come then.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        import onnxruntime as ort

        file = BytesIO()
        example = torch.zeros(4, 3, layer.input_size)
        # torch.export would ask for flags of cuDNN that cannot be read while precisions are set.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                First(twin(layer)).eval(), (example,), file, dynamo=False,  # type: ignore[arg-type]
                input_names=["x"], dynamic_axes={"x": {0: "steps", 1: "batch"}},
            )  # fmt: skip
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            file.getvalue(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"x": x.numpy()})[0])


def onnxruntime() -> Provider:
    """onnxruntime's own operators on a CPU, of the layer as `torch.onnx.export` writes it."""

    def why_not(problem: Problem, device: str) -> str | None:
        if device != "cpu" or problem.which != "inference" or problem.precision != "fp32":
            return "inference in float32 on a CPU only"
        return _missing("onnxruntime") or _missing("onnx")

    return Provider("onnxruntime", OnnxRuntime, why_not)
