"""fuse(model): swaps the 1x1 convolutions of a model, with what surrounds them, for fused calls."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from ..modules import _PointwiseConv
from .graph import Rewriter, shape_of
from .match import is_pointwise, is_script, why_not
from .modules import replacement
from .packed import PackedConv2d, can_pack
from .report import Fused, FusionReport, Left, attach
from .source import CONTAINERS, only_calls
from .trace import trace


def fuse(model: nn.Module, *, inplace: bool = False, pack: bool = True) -> nn.Module:
    """The model with every 1x1 convolution, and what surrounds it, as one call of this package.

    Equivalent to ``model``: outputs and gradients agree within the dtype's tolerance. A convolution takes in a
    torch.cat of channels before it and, behind it, BatchNorm in eval mode (folded into new Parameters), an addition and
    an activation, where nothing else reads the values between. Into larger convolutions BatchNorm is folded too, and
    on x86 CPUs they take in a ReLU and infer on packed weights (:class:`.packed.PackedConv2d`). What cannot be proven
    safe stays as it is; :func:`fusion_report` lists it with the reason. In training mode BatchNorm stays, everything is
    trainable, and state_dict keeps its keys, one for each Parameter that forward uses.

    A model that torch.fx can trace becomes a GraphModule, which has the model's parameters under their names, but not
    its class or methods. Where forward depends on more than the graph can hold (values of tensors, train() and eval(),
    optional arguments, hooks) the module itself stays, and what it consists of is fused.

    Args:
        model: any nn.Module or torch.fx.GraphModule, of any dtype, on any device.
        inplace: build on the model's own modules and Parameters, to train them, instead of copies; `model` must not be
            used afterwards.
        pack: let larger convolutions keep a second, packed copy of their weights once they infer in channels_last.

    Raises:
        TypeError: `model` is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    report = FusionReport()
    fast = _Fuser(report, pack).run(model if inplace else _copy(model), "")
    if pack:
        report.packed += _pack_larger(fast)
    attach(fast, report)
    return fast


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy. Weights that hooks compute, of pruning for one, are copied as they are: autograd forbids more."""
    values = (value for m in model.modules() if not is_script(m) for value in m.__dict__.values())
    computed = {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    return copy.deepcopy(model, computed)


def _pack_larger(model: nn.Module) -> list[str]:
    """The names of the larger nn.Conv2d in `model` that nothing else has a hand in, all of them PackedConv2d now."""
    names = []
    for name, module in model.named_modules():
        if can_pack(module) and why_not(module) is None:
            module.__class__ = PackedConv2d  # as in nn.utils.parametrize: whoever holds the module keeps it
        if isinstance(module, PackedConv2d):
            names.append(name or "the model")
    return names


class _Fuser:
    def __init__(self, report: FusionReport, pack: bool) -> None:
        self.report, self.pack = report, pack
        self.done: dict[int, tuple[nn.Module, nn.Module]] = {}  # by id: the module, kept alive, and what it became

    def run(self, module: nn.Module, prefix: str, note: str = "") -> nn.Module:
        """What replaces `module`, whose parts are `prefix` + name in the report; `note`: why it is looked at alone."""
        if id(module) not in self.done:
            self.done[id(module)] = (module, self._run(module, prefix, note))
        return self.done[id(module)][1]

    def _run(self, module: nn.Module, prefix: str, note: str) -> nn.Module:
        if is_script(module):
            if any("Conv" in getattr(m, "original_name", "") for m in module.modules()):
                reason = "a ScriptModule, which has a graph of its own"
                self.report.left.append(Left(prefix.removesuffix(".") or "the model", reason))
            return module
        if is_pointwise(module):
            return self._alone(module, prefix.removesuffix(".") or "the model", note)
        if not any(is_pointwise(m) or is_script(m) for m in module.modules()):
            return module
        gm, opaque = (module, {}) if isinstance(module, GraphModule) else trace(module)
        if gm is None:
            self._children(module, prefix, f"{type(module).__name__} calls it and {opaque[module]}")
            return module
        self._report_uncalled(module, gm, prefix)
        Rewriter(gm, self.report, prefix, self.pack).run()
        for name in sorted({str(node.target) for node in gm.graph.nodes if node.op == "call_module"}):
            inner = gm.get_submodule(name)
            if not is_pointwise(inner):
                gm.set_submodule(name, self.run(inner, f"{prefix}{name}."))
        return gm

    def _children(self, module: nn.Module, prefix: str, note: str, whole: bool | None = True) -> None:
        """Of a module that stays; `whole`: nobody calls its parts but itself; None where that is unknown."""
        for name, child in module._modules.items():
            own = whole if type(module) in CONTAINERS else whole and only_calls(module, name)
            inner = f"{prefix}{name}."
            if child is None or is_pointwise(child) or is_script(child):
                module._modules[name] = child and self.run(child, inner, note)
            elif type(child) is nn.Sequential and own:
                self._sequential(child, inner, note)
            elif type(child) in CONTAINERS or own is False:
                self._children(child, inner, f"{note}, and may call parts of what it is in", own)
            else:
                module._modules[name] = self.run(child, inner, note)

    def _sequential(self, module: nn.Sequential, prefix: str, note: str) -> None:
        """Keeps the nn.Sequential, which its caller may index: what a convolution took in becomes nn.Identity."""
        graph = Graph()
        value = graph.placeholder("input")
        for name in module._modules:
            value = graph.call_module(name, (value,))
        graph.output(value)
        gm = GraphModule(module, graph)
        Rewriter(gm, self.report, prefix, self.pack).run()
        for name in module._modules:
            module._modules[name] = gm._modules.get(name) or nn.Identity()
        left = {name: child for name, child in module._modules.items() if not is_pointwise(child)}
        for name, child in left.items():
            if type(child) is nn.Sequential:
                self._sequential(child, f"{prefix}{name}.", note)
            else:
                module._modules[name] = self.run(child, f"{prefix}{name}.", note)

    def _alone(self, conv: nn.Module, name: str, note: str) -> nn.Module:
        reason = why_not(conv)
        if reason is not None:
            self.report.left.append(Left(name, reason))
            return conv
        self.report.fused.append(Fused(name, "conv", shape_of(conv), note))
        return conv if isinstance(conv, _PointwiseConv) else replacement(conv)

    def _report_uncalled(self, module: nn.Module, gm: GraphModule, prefix: str) -> None:
        called = {
            m for node in gm.graph.nodes if node.op == "call_module" for m in gm.get_submodule(node.target).modules()
        }
        for name, m in module.named_modules():
            if is_pointwise(m) and m not in called:
                self.report.left.append(Left(prefix + name, "is not called by forward"))
