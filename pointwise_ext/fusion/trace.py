"""Makes a graph of a module, or says why that would not be the same for every call.

torch.fx runs `forward` once with stand-ins for tensors. What Python decides meanwhile is decided for good, so a module
is not traced, but its children are, where that could matter: its forward branches on values or types of tensors, does
something else in train() than in eval(), has optional arguments, changes attributes, makes tensors of its own (random
ones too), draws random numbers, enters torch.no_grad or torch.autocast, or hooks run with it.
"""

from __future__ import annotations

import inspect
import operator
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.fx.graph import inplace_methods

from .match import has_hooks, is_ours_or_plain, is_pointwise, is_script


class _Value(Proxy):
    """A stand-in that does not let its type be asked for outside of PyTorch: the answer would be wrong."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if sys._getframe(1).f_globals.get("__name__", "").split(".")[0] in ("torch", "inspect", "copy", __package__):
            return type(self)
        raise TypeError("it asks for the type of a value")


def _in_place(name: str) -> Callable[[_Value, Any], Any]:
    target = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


# torch.fx's own stand-ins take a += b for a = a + b, which leaves whatever else names a's memory as it was.
_IN_PLACE = tuple(name for name in inplace_methods if name != "setitem")
for _name in _IN_PLACE:
    setattr(_Value, f"__{_name}__", _in_place(_name))


class _Tracer(Tracer):
    proxy_buffer_attributes = True  # so that what overwrites a buffer is done in each call, not once while tracing

    def __init__(self, opaque: dict[nn.Module, str]) -> None:
        super().__init__()
        self.opaque = opaque
        self.failed: nn.Module | None = None  # the innermost module whose forward raised
        self.modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = m in self.opaque or is_ours_or_plain(m) or is_pointwise(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _modes() != self.modes:
            raise RuntimeError("it enters a mode such as torch.no_grad or torch.autocast, which a graph does not hold")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)


def _modes() -> tuple[Any, ...]:
    """What PyTorch's operations depend on besides their arguments."""
    kinds = [k for k in ("cpu", torch.accelerator.current_accelerator(), "cuda") if k is not None]
    autocast = [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in map(_type, kinds)]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _type(device: torch.device | str) -> str:
    return device if isinstance(device, str) else device.type


def _random_states() -> tuple[Any, ...]:
    return random.getstate(), torch.get_rng_state().tolist()


def _by_itself(module: nn.Module, is_root: bool) -> str | None:
    """Why a module is not traced, whatever its forward does."""
    if is_script(module):
        return "is a ScriptModule"
    if has_hooks(module):
        return "has hooks"
    if not is_root:
        return None
    parameters = inspect.signature(module.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind not in plain or p.default is not p.empty for p in parameters):
        return "its forward has optional arguments"
    return None


@contextmanager
def _flipped(root: nn.Module, flip: bool) -> Iterator[None]:
    """Every module in the other of train() and eval()."""
    modes = {m: m.training for m in root.modules()} if flip else {}
    try:
        for m, training in modes.items():
            m.training = not training
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def _attributes(root: nn.Module) -> dict[nn.Module, dict[str, Any]]:
    return {m: {**m.__dict__, **m._buffers} for m in root.modules() if not is_script(m)}


def _restore(root: nn.Module, before: dict[nn.Module, dict[str, Any]]) -> nn.Module | None:
    """Undoes what a trace changed of the attributes; returns the innermost module that changed one of its own."""
    changed = None
    for m, attributes in before.items():
        names = {n for n in {*m.__dict__, *attributes} if n not in m._buffers}
        touched = [
            n for n in names if m.__dict__.get(n) is not attributes.get(n) and not n.startswith("_tensor_constant")
        ]
        for n in names:
            if n not in attributes:
                del m.__dict__[n]
            elif m.__dict__.get(n) is not attributes[n]:
                m.__dict__[n] = attributes[n]
        for n, buffer in list(m._buffers.items()):
            if buffer is not attributes.get(n):
                m._buffers[n], touched = attributes.get(n), [n]
        changed = m if touched else changed
    return changed


def _stack(node: Node) -> list[str]:
    return list(node.meta.get("nn_module_stack", {}))


def _difference(first: Graph, second: Graph) -> list[str] | None:
    """The names of the modules, outermost first, in whose forward two graphs first differ."""
    a, b = list(first.nodes), list(second.nodes)
    for x, y in zip(a, b, strict=False):
        if (x.op, str(x.target), str(x.args), str(x.kwargs)) != (y.op, str(y.target), str(y.args), str(y.kwargs)):
            return [p for p, q in zip(_stack(x), _stack(y), strict=False) if p == q]
    return None if len(a) == len(b) else []


def trace(root: nn.Module) -> tuple[GraphModule | None, dict[nn.Module, str]]:
    """(graph, modules that are calls in it because they cannot be traced: why). The graph is None where `root` is one
    of them."""
    opaque = {m: why for m in root.modules() if (why := _by_itself(m, m is root))}
    while root not in opaque:
        guilty, why, graph = _attempt(root, opaque)
        if graph is not None:
            graph._tracer_cls = Tracer  # what a pickle is read with
            gm = GraphModule(root, graph, type(root).__name__)
            gm.training = root.training
            gm.__dict__.update({k: v for k, v in root.__dict__.items() if k not in gm.__dict__ and _is_plain(v)})
            return gm, opaque
        opaque[root if guilty in opaque else guilty] = why
    return None, opaque


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, tuple, list, dict, type(None))) and not isinstance(value, Tensor)


def _attempt(root: nn.Module, opaque: dict[nn.Module, str]) -> tuple[nn.Module, str, Graph | None]:
    """(root, "", graph), or a module that must not be traced and why."""
    graphs = []
    for flip in (False, True):
        tracer, before, numbers = _Tracer(opaque), _attributes(root), _random_states()
        error: Exception | None = None
        with _flipped(root, flip):
            try:
                graphs.append(tracer.trace(root))
            except Exception as raised:  # whatever a forward raises when it is handed stand-ins
                error = raised
        changed = _restore(root, before)
        if error is None and _random_states() != numbers:
            return root, "its forward draws random numbers", None
        if error is not None:
            said = str(error).splitlines()[0][:100] if str(error) else repr(error)
            return tracer.failed or root, f"cannot be traced: {said}", None
        if changed is not None:
            return changed, "its forward changes its attributes", None
    own = {name for name in before[root] if name.startswith("_tensor_constant")}
    for node in graphs[0].nodes:
        if node.op == "get_attr" and node.target.startswith("_tensor_constant") and node.target not in own:
            return _innermost(root, _stack(node), opaque), "its forward makes tensors of its own", None
    stack = _difference(*graphs)
    if stack is not None:
        return _innermost(root, stack, opaque), "its forward differs between train() and eval()", None
    return root, "", graphs[0]


def _innermost(root: nn.Module, stack: list[str], opaque: dict[nn.Module, str]) -> nn.Module:
    for name in reversed(stack):
        module = root.get_submodule(name.split("@")[0])
        if module not in opaque and not type(module).__module__.startswith("torch.nn.modules"):
            return module
    return root
