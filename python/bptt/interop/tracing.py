"""What layers and cells do for tracers that are not torch.compile: torch.fx and TorchScript."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.fx.proxy import Proxy, TraceError


class Traced(nn.Module):
    """A module that torch.fx keeps whole, as it keeps those of torch.nn, and TorchScript cannot."""

    def _node(self, *args: Any, **kwargs: Any) -> Any:
        """The node of a graph that stands for a call of this module on proxies of torch.fx.

        torch.fx takes modules for leaves whose file lies in torch.nn. Any other is run on proxies,
        of which nothing can be checked.

        Raises:
            TraceError: the module itself is what is traced.
        """
        tracer: Any = next(a for a in args if isinstance(a, Proxy)).tracer
        if tracer.root is self:
            raise TraceError(
                f"bptt.{type(self).__name__} is one node to torch.fx; trace a module that holds it"
            )
        kwargs = {k: v for k, v in kwargs.items() if v is not None and v is not False}
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks for what it is to compile.

        Raises:
            RuntimeError: there is nothing.
        """
        raise RuntimeError(
            f"torch.jit.script cannot compile bptt.{type(self).__name__}. Script a copy with "
            "torch.nn's layers, which compute the same: "
            "torch.jit.script(bptt.to_torch(copy.deepcopy(model)))"
        )
