"""Rewrites one of Dynamo's graphs: functions of PyTorch on tensors whose shapes and dtypes are known.

y = activation(batch_norm(conv(cat(inputs))) + residual) becomes one operator, torch.ops.pointwise_ext.conv, as far as
nothing else reads the values between. BatchNorm on running statistics is folded into the weight by operators in the
graph, which Inductor computes in each call, or once with freezing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node, Proxy
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .. import _ops
from ..activations import parse_activation
from ..arguments import MAX_INPUTS, per_dimension, stride_and_padding
from ..explain import why_reference
from .match import activation, addition, concatenation
from .memory import storage, writes

_CONVS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
# Nothing moves past these: what stands behind them runs in another mode.
_MODES = ("_enter_", "_exit_", "_set_grad_enabled", "set_grad_enabled", "_saved_tensors_hooks", "inference_mode")
# The operator's C++ derivative cannot run under transforms of torch.func and forward-mode differentiation.
_TRANSFORMS = ("functorch", "forward_ad", "_make_dual", "_unpack_dual")


@dataclass
class _Chain:
    """A convolution and what its operator computes as well; `last` is the node whose value that is."""

    conv: Node
    last: Node
    inputs: list[Node]
    weight: Node
    bias: Node | None
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    groups: int
    start: Node  # the tensors are read no earlier than here
    batch_norm: dict[str, Any] = field(default_factory=dict)
    residual: Node | None = None
    activation: tuple[str, float, float] = ("none", 0.0, 0.0)
    absorbed: list[Node] = field(default_factory=list)

    def reads(self) -> list[Node]:
        statistics = [value for value in self.batch_norm.values() if isinstance(value, Node)]
        others = [node for node in (self.bias, self.residual) if node is not None]
        return [*self.inputs, self.weight, *others, *(s for s in statistics if s not in self.absorbed)]


def rewrite(gm: GraphModule, always_fold: bool = False) -> list[str]:
    """Fuses in place; returns the names of the convolutions. `always_fold`: folding costs nothing when it runs."""
    if not _ops.loaded or any(_is_transform(node) for node in gm.graph.nodes):
        return []
    fused = []
    for node in list(gm.graph.nodes):
        chain = _convolution(node)
        if chain is not None:
            _take_concatenation(chain)
            _take_batch_norm(chain, always_fold)
            _take_addition(chain)
            _take_activation(chain)
            _apply(gm, chain)
            fused.append(node.name)
    gm.graph.lint()
    gm.recompile()
    return fused


def _is_transform(node: Node) -> bool:
    target = node.target
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"
    return node.op == "call_function" and any(part in name for part in _TRANSFORMS)


def _is_mode(node: Node) -> bool:
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and any(part in name for part in _MODES)


def _tensor(node: Any) -> FakeTensor | None:
    """What Dynamo knows of a value, where it is a plain tensor of a dtype and on a device we have kernels for."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    if type(value) is not FakeTensor or value.layout != torch.strided or why_reference(value) is not None:
        return None
    return value


def _same(a: Any, b: Any) -> bool:
    """Equal sizes for every size that the graph runs with."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def _hint(size: Any) -> int:
    """The size in the call that is compiled for; asking the size itself would compile again for every other."""
    return size if isinstance(size, int) else int(size.node.hint or 0)


def _is_channels_last(t: Tensor, batched: bool) -> bool:
    sizes, strides = ([_hint(n) for n in values] for values in (t.shape, t.stride()))
    return _ops.is_channels_last(torch.empty_strided(sizes, strides, device="meta"), batched)


def _arguments(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _convolution(node: Node) -> _Chain | None:
    """The chain that begins with `node`, where it is a 1x1 convolution that one operator computes alike."""
    spatial = _CONVS.get(node.target) if node.op == "call_function" else None
    if spatial is None:
        return None
    given = _arguments(node, _ARGUMENTS)
    input, weight, bias = given["input"], given["weight"], given.get("bias")
    x, w, y = _tensor(input), _tensor(weight), _tensor(node)
    if x is None or w is None or y is None or (bias is not None and _tensor(bias) is None):
        return None
    if not all(statically_known_true(size == 1) for size in w.shape[2:]):
        return None
    if not {*node.all_input_nodes} <= {input, weight, bias}:
        return None  # a stride or padding that the graph is handed
    batched = x.dim() == w.dim()
    if _is_channels_last(y, batched) != _is_channels_last(x, batched):
        return None  # a channels_last weight makes PyTorch's output channels_last, never ours
    options = (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1), given.get("groups", 1))
    strides, paddings = stride_and_padding(*options)
    strides, paddings = per_dimension("stride", strides, spatial), per_dimension("padding", paddings, spatial)
    return _Chain(node, node, [input], weight, bias, strides, paddings, options[3], start=node)


def _may_move(chain: _Chain, node: Node) -> bool:
    """Whether everything the chain reads is the same just before `node`, where its operator would stand."""
    read = set().union(*(storage(value, {}) for value in chain.reads()))
    between = chain.start.next
    while between is not node:
        own = between in (chain.conv, *chain.absorbed)  # writes into nothing but the chain's value
        if _is_mode(between) or (not own and any(storage(target, {}) & read for target in writes(between, {}))):
            return False
        between = between.next
    return True


def _next(chain: _Chain) -> Node | None:
    """The only reader of the chain's value, where that stays a tensor of the same shape and dtype."""
    (user, *others) = chain.last.users or (None,)
    if user is None or others:
        return None
    value, own = _tensor(user), _tensor(chain.last)
    if value is None or own is None or value.dtype != own.dtype or not _same(value.shape, own.shape):
        return None
    return user if _may_move(chain, user) else None


def _take(chain: _Chain, node: Node) -> None:
    chain.last = node
    chain.absorbed.append(node)


def _take_concatenation(chain: _Chain) -> None:
    cat = chain.inputs[0]
    found = concatenation(cat)
    if found is None or len(cat.users) != 1 or not 1 <= len(found[0]) <= MAX_INPUTS:
        return
    tensors, whole = [_tensor(t) for t in found[0]], _tensor(cat)
    weight = _tensor(chain.weight)
    if whole is None or weight is None:
        return
    rank = whole.dim()
    alike = all(t is not None and t.dim() == rank and t.dtype == whole.dtype for t in tensors)
    if not alike or found[1] % rank != rank - weight.dim() + 1:
        return
    first, batched = tensors[0], rank == weight.dim()
    if first is None or _is_channels_last(first, batched) != _is_channels_last(whole, batched):
        return
    inputs, start = chain.inputs, chain.start
    chain.inputs, chain.start = found[0], cat
    if not _may_move(chain, chain.conv):
        chain.inputs, chain.start = inputs, start


def _take_batch_norm(chain: _Chain, always_fold: bool) -> None:
    node = _next(chain)
    if node is None or node.target is not F.batch_norm:
        return
    given = _arguments(node, _BATCH_NORM)
    statistics = [given.get("running_mean"), given.get("running_var")]
    if given.get("training") or given["input"] is not chain.last or any(_tensor(s) is None for s in statistics):
        return
    weight, output = _tensor(chain.weight), _tensor(node)
    if weight is None or output is None or output.dim() != weight.dim():  # unbatched rows would be channels
        return
    trained = [_tensor(p) for p in (chain.weight, chain.bias, given.get("weight"), given.get("bias"))]
    if output.requires_grad and any(p is not None and p.requires_grad for p in trained):
        return  # its gradients would pass through the weight's arithmetic, which costs more than it saves
    # In each call folding passes over the weight, and saves a pass over the output.
    if not always_fold and _hint(weight.numel()) >= _hint(output.numel()):
        return
    chain.batch_norm = given
    if _may_move(chain, node):
        _take(chain, node)
    else:
        chain.batch_norm = {}


def _take_addition(chain: _Chain) -> None:
    node = _next(chain)
    terms = addition(node) if node is not None else None
    if node is None or terms is None:
        return
    left, right, in_place = terms
    other = right if left is chain.last else left
    value, own = _tensor(other), _tensor(chain.last)
    if value is None or own is None or other is chain.last or (in_place and left is not chain.last):
        return
    if value.dtype != own.dtype or value.device != own.device or not _same(value.shape, own.shape):
        return
    chain.residual = other
    _take(chain, node)


def _take_activation(chain: _Chain) -> None:
    node = _next(chain)
    found = activation(node, {}) if node is not None and node.op != "call_module" else None
    if node is not None and found is not None:
        chain.activation = parse_activation(found)
        _take(chain, node)


def _folded(chain: _Chain) -> tuple[Node, Node]:
    """Weight and bias of convolution and BatchNorm in one, as nodes; in float32 or better, rounded once."""
    dtype = chain.weight.meta["example_value"].dtype
    wide = torch.promote_types(dtype, torch.float32)

    def value(node: Node | None) -> Any:
        return Proxy(node).to(wide) if node is not None else None

    given = chain.batch_norm
    eps = given.get("eps", 1e-5)  # an input of the graph where floats are dynamic
    scale = torch.rsqrt(value(given["running_var"]) + (Proxy(eps) if isinstance(eps, Node) else eps))
    gamma, beta, bias = value(given.get("weight")), value(given.get("bias")), value(chain.bias)
    scale = scale if gamma is None else scale * gamma
    shift = -value(given["running_mean"]) if bias is None else bias - value(given["running_mean"])
    shift = shift * scale if beta is None else shift * scale + beta
    ones = [1] * (len(chain.strides) + 1)
    weight = value(chain.weight) * scale.reshape([-1, *ones])
    return weight.to(dtype).node, shift.to(dtype).node


def _apply(gm: GraphModule, chain: _Chain) -> None:
    graph, cat = gm.graph, _arguments(chain.conv, _ARGUMENTS)["input"]
    with graph.inserting_before(chain.last):
        weight, bias = _folded(chain) if chain.batch_norm else (chain.weight, chain.bias)
        call = graph.call_function(
            torch.ops.pointwise_ext.conv.default,
            (
                chain.inputs,
                weight,
                bias,
                chain.residual,
                chain.strides,
                chain.paddings,
                chain.groups,
                *chain.activation,
            ),
        )
    call.meta = dict(chain.last.meta)
    chain.last.replace_all_uses_with(call)
    for node in [*reversed(chain.absorbed), chain.conv]:
        graph.erase_node(node)
    if cat not in chain.inputs:
        graph.erase_node(cat)
