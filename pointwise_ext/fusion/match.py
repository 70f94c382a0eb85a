"""What a node of a graph is: a 1x1 convolution, a BatchNorm, an activation, an addition, a concatenation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from ..activations import ActivationLike
from ..modules import _PointwiseConv
from .packed import PackedConv2d

Modules = dict[str, nn.Module]

# The parameters of an activation's function in PyTorch, in order, and which of ours it is; None: none of ours.
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "silu": ("input", "inplace"),
    "gelu": ("input",),
    "hardswish": ("input", "inplace"),
    "hardsigmoid": ("input", "inplace"),
    "sigmoid": ("input",),
    "tanh": ("input",),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
}
_FUNCTIONS: dict[Any, str] = {
    function: name
    for name in _SIGNATURES
    for space in (torch, F, torch._C._nn)
    for ending in ("", "_")
    if (function := getattr(space, name + ending, None)) is not None
}


def _parsed(name: str, values: dict[str, Any]) -> ActivationLike:
    """Ours for a function of PyTorch and its arguments without the input; None if there is none."""
    values = {key: value for key, value in values.items() if key not in ("input", "inplace") and value is not None}
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(values.get("approximate", "none"))
    if not all(isinstance(value, Real) for value in values.values()):
        return None
    if name == "leaky_relu":
        return ("leaky_relu", float(values.get("negative_slope", 0.01)))
    if name in ("clamp", "clip", "clamp_min"):
        low, high = values.get("min", -float("inf")), values.get("max", float("inf"))
        return ("clamp", float(low), float(high))
    if name == "hardtanh":  # other bounds have another derivative at them than clamp
        return "relu6" if (values.get("min_val", -1), values.get("max_val", 1)) == (0, 6) else None
    return name


_MODULES: dict[type, Callable[[Any], ActivationLike]] = {
    nn.ReLU: lambda m: "relu",
    nn.ReLU6: lambda m: "relu6",
    nn.LeakyReLU: lambda m: ("leaky_relu", float(m.negative_slope)),
    nn.SiLU: lambda m: "silu",
    nn.GELU: lambda m: _parsed("gelu", {"approximate": m.approximate}),
    nn.Hardswish: lambda m: "hardswish",
    nn.Hardsigmoid: lambda m: "hardsigmoid",
    nn.Sigmoid: lambda m: "sigmoid",
    nn.Tanh: lambda m: "tanh",
    nn.Hardtanh: lambda m: _parsed("hardtanh", {"min_val": m.min_val, "max_val": m.max_val}),
}


# We compute the gradient of these from the result, and PyTorch from the input.
SAVE_RESULT = ("relu6", "leaky_relu")


def has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name, None)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def activation(node: Node, modules: Modules) -> ActivationLike:
    """The activation that `node` computes of its one input, as for pointwise_conv; None: it is none of them."""
    if len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        known = _MODULES.get(type(module))
        return known(module) if known and len(node.args) == 1 and not has_hooks(module) else None
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        name = name if name in _SIGNATURES and hasattr(torch.Tensor, str(node.target)) else None
    if name is None or len(node.args) > len(_SIGNATURES[name]):
        return None
    return _parsed(name, {**dict(zip(_SIGNATURES[name], node.args, strict=False)), **node.kwargs})


_ADDITIONS = (operator.add, operator.iadd, torch.add)


def addition(node: Node) -> tuple[Any, Any, bool] | None:
    """(left, right, in place) of left + right, without a factor."""
    named = node.op == "call_function" and node.target in _ADDITIONS
    named = named or (node.op == "call_method" and node.target in ("add", "add_"))
    if not named or node.kwargs.get("alpha", 1) != 1 or "out" in node.kwargs:
        return None
    terms = [*node.args, *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs)]
    if len(terms) != 2:
        return None
    return terms[0], terms[1], node.target in (operator.iadd, "add_")


def concatenation(node: Any) -> tuple[list[Node], int] | None:
    """(tensors, dimension) of a concatenation of tensors."""
    if not isinstance(node, Node) or node.target not in (torch.cat, torch.concat, torch.concatenate):
        return None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if "out" in node.kwargs or not isinstance(dim, int) or not isinstance(tensors, (list, tuple)):
        return None
    return (list(tensors), dim) if all(isinstance(t, Node) for t in tensors) else None


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONV_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)  # also those of torch


def is_pointwise(module: nn.Module) -> bool:
    """A convolution of kernel size 1 of any kind, whether it can be fused or not."""
    name = type(module).__name__
    named = isinstance(module, CONVS) or ("Conv" in name and "Transpose" not in name)
    size = getattr(module, "kernel_size", None) if named else None
    return isinstance(size, (tuple, list)) and len(size) > 0 and all(s == 1 for s in size)


def is_script(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.jit")


def is_ours_or_plain(module: nn.Module) -> bool:
    """A convolution of a class that computes nothing else than nn.Conv*d."""
    return type(module) in CONVS or isinstance(module, (_PointwiseConv, PackedConv2d))


def why_not(conv: nn.Module) -> str | None:
    """Why a convolution for which is_pointwise holds must stay as it is, or None."""
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin):
        return "is lazy: it has no shape before its first call"
    if nn.utils.parametrize.is_parametrized(conv):
        return "has a parametrisation, which computes its weight anew in each call"
    if not is_ours_or_plain(conv):
        return f"is a {type(conv).__name__}, not nn.Conv itself: it may compute something else"
    if has_hooks(conv):
        return "has hooks (pruning, weight_norm and spectral_norm use them too)"
    if getattr(conv, "qconfig", None) is not None:
        return "is prepared for quantisation"
    if conv.weight.is_complex():  # type: ignore[operator]
        return "has complex weights"
    return None


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def why_not_folded(conv: Any, bn: Any) -> str | None:
    """Why a BatchNorm cannot be folded into the convolution before it, or None."""
    if type(bn) is not BATCH_NORMS[len(conv.kernel_size) - 1]:  # another rank takes unbatched rows for channels
        return f"a {type(bn).__name__} is behind it"
    if bn.num_features != conv.out_channels:
        return "the BatchNorm behind it is of something else than its channels"
    if bn.training:
        return "the BatchNorm behind it is in training mode"
    if bn.running_mean is None or bn.running_var is None:
        return "the BatchNorm behind it has no running statistics"
    if has_hooks(bn):
        return "the BatchNorm behind it has hooks"
    if nn.utils.parametrize.is_parametrized(bn):
        return "the BatchNorm behind it has a parametrisation"
    return None
