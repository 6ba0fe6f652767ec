"""Swap the recurrent layers of a model between torch.nn and bptt, in place.

A layer is swapped by giving the module object the other class. The object, its Parameters, buffers,
hooks, attributes and train/eval mode stay what they are, so whatever refers to them keeps working:
optimizers, parametrizations and weight_norm, tied weights, a module used in two places, DDP.
PyTorch's own parametrizations and FSDP2 replace a module's class the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

from torch import jit, nn
from torch.nn.utils import parametrize

from .nn import cells, layers
from .nn.base import RecurrentLayer
from .options import PLAIN_OPTIONS

M = TypeVar("M", bound=nn.Module)
Class = type[nn.Module]

log = logging.getLogger("bptt")

_TORCH_TO_BPTT: dict[Class, Class] = {
    nn.RNN: layers.RNN,
    nn.GRU: layers.GRU,
    nn.LSTM: layers.LSTM,
    nn.RNNCell: cells.RNNCell,
    nn.GRUCell: cells.GRUCell,
    nn.LSTMCell: cells.LSTMCell,
}
_BPTT_TO_TORCH = {ours: theirs for theirs, ours in _TORCH_TO_BPTT.items()}
_NAMES = {cls.__name__ for cls in _TORCH_TO_BPTT}
# Options of ours that torch.nn lacks, and their defaults.
_EXTRAS = {
    "merge_mode": "concat",
    "peephole": False,
    "reset_after": True,
    "learn_initial_state": False,
}
_OURS = (RecurrentLayer, cells.RecurrentCell)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Changed:
    """A module that was swapped: its path in the model, its class before and after."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name or '(the model itself)'}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Left:
    """A recurrent module that was not swapped: its path in the model, its class, and why."""

    name: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or '(the model itself)'}: {self.kind} stays: {self.why}"


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. Print it, or read `changed` and `left`.

    A module used in several places is listed once, under its first path. Modules that are not
    recurrent, or already what the conversion makes, are not listed.
    """

    changed: tuple[Changed, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} changed, {len(self.left)} left"]
        return "\n".join(lines + [f"  {row}" for row in (*self.changed, *self.left)])


@overload
def convert(model: M, *, report: Literal[False] = ...) -> M: ...
@overload
def convert(model: M, *, report: Literal[True]) -> tuple[M, Conversion]: ...
def convert(model: M, *, report: bool = False) -> M | tuple[M, Conversion]:
    """Make every recurrent layer and cell of torch.nn in a model bptt's, in place.

    Parameters, optimizers, hooks, parametrizations and tied weights are kept as they are. To keep
    the original besides, convert a copy: `bptt.convert(copy.deepcopy(model))`.

    The logger "bptt" says what changed at INFO level and what had to be left at WARNING level,
    which Python shows by default. Left are subclasses, modules whose forward was replaced,
    quantized modules and TorchScript.

    Args:
        model: any module; a recurrent layer itself works too.
        report: whether to return the report as well.

    Returns:
        `model`, the same object; with `report=True` the pair of it and a `Conversion`.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    conversion = _swap(model, _TORCH_TO_BPTT, _why_not_bptt, "bptt.convert")
    return (model, conversion) if report else model


@overload
def to_torch(model: M, *, report: Literal[False] = ...) -> M: ...
@overload
def to_torch(model: M, *, report: Literal[True]) -> tuple[M, Conversion]: ...
def to_torch(model: M, *, report: bool = False) -> M | tuple[M, Conversion]:
    """Make every recurrent layer and cell of bptt in a model torch.nn's, in place.

    The way back from `convert`, for TorchScript, quantization or machines without bptt. Left are
    layers with an option that torch.nn does not have (merge_mode, peephole, reset_after=False,
    other nonlinearities, those of `bptt.options.Options`), layers it does not have, and subclasses.

    Args, Returns, Raises: as in `convert`.
    """
    conversion = _swap(model, _BPTT_TO_TORCH, _why_not_torch, "bptt.to_torch")
    return (model, conversion) if report else model


def _swap(
    model: nn.Module,
    targets: dict[Class, Class],
    why_not: Callable[[nn.Module], str | None],
    caller: str,
) -> Conversion:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    verdicts = [
        _swap_one(name, module, targets, why_not) for name, module in list(model.named_modules())
    ]
    changed = tuple(v for v in verdicts if isinstance(v, Changed))
    left = tuple(v for v in verdicts if isinstance(v, Left))
    for change in changed:
        log.info("%s: %s", caller, change)
    for stay in left:
        log.warning("%s: %s", caller, stay)
    return Conversion(changed, left)


def _swap_one(
    name: str,
    module: nn.Module,
    targets: dict[Class, Class],
    why_not: Callable[[nn.Module], str | None],
) -> Changed | Left | None:
    cls = _plain_class(module)
    reason = why_not(module)
    if reason is not None:
        return Left(name, _full_name(cls), reason)
    if cls not in targets:
        return None
    target = targets[cls]
    _give_class(module, target)
    return Changed(name, _full_name(cls), _full_name(target))


def _why_not_bptt(module: nn.Module) -> str | None:
    """Why a recurrent module cannot become bptt's; None if it can or is not one of torch's."""
    if isinstance(module, jit.ScriptModule):
        if module.original_name not in _NAMES:
            return None
        return "TorchScript is compiled already; convert the model before scripting it"
    cls = _plain_class(module)
    if cls.__module__.startswith(("torch.ao.nn", "torch.nn.quantized")) and cls.__name__ in _NAMES:
        return "quantized modules keep their own kernels"
    if not isinstance(module, _RECURRENT) or isinstance(module, _OURS):
        return None
    if cls not in _TORCH_TO_BPTT:
        return _subclass_reason(cls, _TORCH_TO_BPTT)
    return _replaced_forward(module)


def _why_not_torch(module: nn.Module) -> str | None:
    """Why a bptt module cannot become torch.nn's; None if it can or is not one of bptt's."""
    if not isinstance(module, _OURS):
        return None
    cls = _plain_class(module)
    if cls not in _BPTT_TO_TORCH:
        return _subclass_reason(cls, _BPTT_TO_TORCH)
    extras = [
        f"{name}={getattr(module, name)!r}"
        for name, default in _EXTRAS.items()
        if getattr(module, name, default) != default
    ]
    options = getattr(module, "options", PLAIN_OPTIONS).asked()
    extras += [f"{name}={value!r}" for name, value in options.items()]
    nonlinearity = getattr(module, "nonlinearity", "tanh")
    if nonlinearity not in ("tanh", "relu"):
        extras.append(f"nonlinearity={nonlinearity!r}")
    if extras:
        return f"torch.nn has no {', '.join(extras)}"
    return _replaced_forward(module)


def _subclass_reason(cls: Class, known: dict[Class, Class]) -> str:
    base = next((c for c in cls.__mro__ if c in known), None)
    if any(c.__name__ == "FSDPModule" for c in cls.__mro__):
        return "fully_shard has given it a class of its own; convert the model before sharding it"
    if base is None:
        return "it is none of the layers and cells that both libraries have"
    if cls.forward is not base.forward:
        return f"it is a subclass of {_full_name(base)} with a forward of its own"
    return f"it is a subclass of {_full_name(base)}; change its base class instead"


def _replaced_forward(module: nn.Module) -> str | None:
    return "its forward was replaced on the object" if "forward" in vars(module) else None


def _plain_class(module: nn.Module) -> Class:
    """The module's class, or the one below the class that a parametrization has put on top."""
    cls = type(module)
    return cls.__bases__[0] if _has_parametrized_class(module) else cls


def _has_parametrized_class(module: nn.Module) -> bool:
    cls = type(module)
    return parametrize.is_parametrized(module) and cls.__name__.startswith("Parametrized")


def _give_class(module: nn.Module, target: Class) -> None:
    if _has_parametrized_class(module):
        # A class made for this module alone, with a property per parametrized tensor: make it
        # again on top of the new base.
        made = type(module)
        body = {k: v for k, v in vars(made).items() if k not in ("__dict__", "__weakref__")}
        target = type(f"Parametrized{target.__name__}", (target,), body)
    module.__class__ = target
    for name in (*_EXTRAS, "options", "recompute"):
        # Our classes hold the defaults; recompute changes no number, so torch.nn can do without.
        vars(module).pop(name, None)
    if isinstance(module, nn.RNNBase):
        # torch.nn keeps a list of the weights beside them, bptt derives it (`_flat_weights`).
        vars(module).pop("_flat_weights", None)
        module._flat_weight_refs = []
        module._init_flat_weights()


def _full_name(cls: Class) -> str:
    package = "bptt" if cls.__module__ in (layers.__name__, cells.__name__) else cls.__module__
    return f"{'torch.nn' if cls in _TORCH_TO_BPTT else package}.{cls.__name__}"
