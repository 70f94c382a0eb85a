"""Rewrites one graph: each 1x1 convolution takes in the concatenation before it, and behind it BatchNorm, addition and
activation, where nobody else reads the values between."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from ..activations import ActivationLike
from ..arguments import MAX_INPUTS
from ..modules import _PointwiseConv
from .match import (
    BATCH_NORMS,
    CONV_FUNCTIONS,
    SAVE_RESULT,
    activation,
    addition,
    concatenation,
    has_hooks,
    is_ours_or_plain,
    is_pointwise,
    why_not,
    why_not_folded,
)
from .memory import is_overwritten, is_written, storage
from .modules import folded, replacement
from .packed import PackedConv2d, can_pack
from .report import Fused, FusionReport, Left


@dataclass
class Chain:
    """A convolution and what it can take in. `last` is the node whose value one call computes."""

    conv: Node
    last: Node
    cat: tuple[list[Node], int] | None = None
    batch_norm: nn.Module | None = None
    residual: Node | None = None
    in_place: str = ""  # what the sum is written into: "output" of the convolution, "residual", or neither
    activation: ActivationLike = None
    place: Node | None = None  # the call goes before this node instead of the convolution
    absorbed: list[Node] = field(default_factory=list)  # what follows the convolution up to `last`
    note: str = ""

    def take(self, node: Node) -> None:
        self.last = node
        self.absorbed.append(node)

    @property
    def pattern(self) -> str:
        name = self.activation[0] if isinstance(self.activation, tuple) else self.activation
        parts = [f"cat of {len(self.cat[0])}" if self.cat else "", "conv", "bn" if self.batch_norm else ""]
        parts += ["add" if self.residual else "", name or ""]
        return " + ".join(part for part in parts if part)


def shape_of(conv: Any) -> str:
    extra = [f"stride {conv.stride[0]}"] if any(s != 1 for s in conv.stride) else []
    extra += [f"{conv.groups} groups"] if conv.groups != 1 else []
    return ", ".join([f"{conv.in_channels} -> {conv.out_channels}", *extra])


class Rewriter:
    """Finds and applies the chains of one graph; `prefix` goes before names in the report."""

    def __init__(self, gm: GraphModule, report: FusionReport, prefix: str = "", pack: bool = False) -> None:
        self.gm, self.report, self.prefix, self.pack = gm, report, prefix, pack
        self.modules = dict(gm.named_modules(remove_duplicate=False))
        self.calls: dict[int, int] = {}  # of each module
        for node in gm.graph.nodes:
            if node.op == "call_module":
                key = id(self.modules[str(node.target)])
                self.calls[key] = self.calls.get(key, 0) + 1
        reads = {str(node.target).rpartition(".")[0] for node in gm.graph.nodes if node.op == "get_attr"}
        self.read = {id(gm.get_submodule(name)) for name in reads}  # modules whose parameters are values of the graph

    def run(self) -> None:
        self._drop_identities()
        for node in list(self.gm.graph.nodes):
            if node.op != "call_module":
                self._report_function(node)
                continue
            if is_pointwise(self.modules[str(node.target)]):
                self._rewrite(node)
            elif is_ours_or_plain(self.modules[str(node.target)]):
                self._larger(node)
        self.gm.delete_all_unused_submodules()
        self.gm.graph.lint()
        self.gm.recompile()

    def _drop_identities(self) -> None:
        for node in list(self.gm.graph.nodes):
            if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
                continue
            module = self.modules[str(node.target)]
            if type(module) is nn.Identity and not has_hooks(module):
                node.replace_all_uses_with(node.args[0])
                self.gm.graph.erase_node(node)

    def _rewrite(self, node: Node) -> None:
        name = str(node.target)
        conv = self.modules[name]
        reason = why_not(conv)
        if reason is None and self.calls[id(conv)] > 1:
            reason = f"is called at {self.calls[id(conv)]} places"
        if isinstance(conv, _PointwiseConv) and (conv.activation is not None or len(node.args) != 1 or node.kwargs):
            self.report.fused.append(Fused(self.prefix + name, "as it was", shape_of(conv)))
            return
        if reason is None and (len(node.args) != 1 or node.kwargs):
            reason = "is called with other arguments than one tensor"
        if reason is not None:
            self.report.left.append(Left(self.prefix + name, reason))
            return
        chain = self._chain(node, conv)
        self.report.fused.append(Fused(self.prefix + name, chain.pattern, shape_of(conv), chain.note))
        self._apply(chain, conv)

    def _report_function(self, node: Node) -> None:
        weight: Any = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
        if node.target not in CONV_FUNCTIONS or not isinstance(weight, Node) or weight.op != "get_attr":
            return
        if all(size == 1 for size in operator.attrgetter(str(weight.target))(self.gm).shape[2:]):
            reason = "is a function's call, not a module's: torch.compile's backend fuses these"
            self.report.left.append(Left(self.prefix + node.name, reason))

    def _larger(self, node: Node) -> None:
        """A larger convolution stays; the BatchNorm behind it is folded, which would be a pass of its own, and a ReLU
        behind that is computed in place."""
        name = str(node.target)
        conv = self.modules[name]
        if why_not(conv) is not None or self.calls[id(conv)] > 1 or getattr(conv, "relu", False):
            return
        chain = Chain(node, node)
        self._take_batch_norm(chain, conv)
        if chain.batch_norm is not None:
            same = copy.deepcopy(conv)
            same.weight, same.bias = folded(conv, chain.batch_norm)
            conv = same
            self.report.folded.append(self.prefix + name)
        user = self._only_user(chain)
        if self.pack and can_pack(conv) and user is not None and activation(user, self.modules) == "relu":
            conv = PackedConv2d.with_relu(conv)
            chain.take(user)
        if chain.last is node:
            return
        self.gm.set_submodule(name, conv)
        self.modules[name] = conv
        chain.last.replace_all_uses_with(node)
        for absorbed in reversed(chain.absorbed):
            self.gm.graph.erase_node(absorbed)

    def _chain(self, node: Node, conv: Any) -> Chain:
        chain = Chain(node, node, cat=self._concatenation(node, len(conv.kernel_size)))
        source: Any = node.args[0]
        reads = chain.cat[0] if chain.cat else [source]
        start = source if chain.cat else node  # the values are read no earlier than here
        self._take_batch_norm(chain, conv)
        self._take_addition(chain, reads, start)
        user = self._only_user(chain)
        if user is not None and (found := activation(user, self.modules)) is not None:
            name = found[0] if isinstance(found, tuple) else found
            if name in SAVE_RESULT and is_written(user, self.modules):
                chain.note = "the activation's result, which its gradient is computed from, is overwritten"
            else:
                chain.activation = found
                chain.take(user)
        return chain

    def _only_user(self, chain: Chain) -> Node | None:
        users = list(chain.last.users)
        if len(users) == 1:
            return users[0] if users[0].op != "output" else None
        if len(users) > 1:
            chain.note = chain.note or f"{len(users)} read the value"
        return None

    def _concatenation(self, conv: Node, spatial: int) -> tuple[list[Node], int] | None:
        cat: Any = conv.args[0]
        found = concatenation(cat)
        if found is None or len(cat.users) != 1 or found[1] not in (1, -1 - spatial):
            return None
        # To the end of the graph, since the weight's gradient reads them too.
        if not 1 <= len(found[0]) <= MAX_INPUTS or is_overwritten(found[0], cat, None, self.modules):
            return None
        return found

    def _take_batch_norm(self, chain: Chain, conv: Any) -> None:
        user = self._only_user(chain)
        if user is None or user.op != "call_module" or not isinstance(self.modules[str(user.target)], BATCH_NORMS):
            return
        module = self.modules[str(user.target)]
        reason = why_not_folded(conv, module)
        if reason is None and id(conv) in self.read:
            reason = "its parameters are read by others too"
        if reason is None and len(user.args) == 1 and not user.kwargs:
            chain.batch_norm = module
            chain.take(user)
        else:
            chain.note = reason or ""

    def _take_addition(self, chain: Chain, reads: list[Node], start: Node) -> None:
        user = self._only_user(chain)
        terms = addition(user) if user is not None else None
        if user is None or terms is None:
            return
        left, right, in_place = terms
        other = right if left is chain.last else left
        if not isinstance(other, Node) or other is chain.last:
            return
        if in_place and left is not chain.last and (len(other.users) > 1 or storage(other, self.modules) != {other}):
            chain.note = "the sum is written into a value that others may read"
            return
        if is_overwritten(reads, start, user, self.modules):
            chain.note = "its input is overwritten before the addition behind it"
            return
        chain.residual, chain.place = other, user
        chain.in_place = "" if not in_place else "residual" if left is other else "output"
        chain.take(user)

    def _apply(self, chain: Chain, conv: nn.Module) -> None:
        graph, name = self.gm.graph, str(chain.conv.target)
        neighbours = chain.cat is not None or chain.residual is not None
        module: Any = replacement(conv, chain.batch_norm, chain.activation, neighbours)
        if neighbours:
            module.cat_dim, module.in_place = chain.cat[1] if chain.cat else 1, chain.in_place
        self.gm.set_submodule(name, module)
        self.modules[name] = module
        with graph.inserting_before(chain.place or chain.conv):
            kwargs: dict[str, Any] = {} if chain.residual is None else {"residual": chain.residual}
            call = graph.call_module(name, tuple(chain.cat[0] if chain.cat else chain.conv.args), kwargs)
        call.meta = dict(chain.last.meta)
        chain.last.replace_all_uses_with(call)
        cat: Any = chain.conv.args[0]
        for node in [*reversed(chain.absorbed), chain.conv]:
            graph.erase_node(node)
        if chain.cat:
            graph.erase_node(cat)
