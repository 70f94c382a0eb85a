"""Which values of a graph may share memory, and whether one is overwritten between two nodes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node
from torch.fx.graph import inplace_methods

from .match import Modules, activation, addition, concatenation, has_hooks

# Their results are memory of their own.
_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.Linear,
)
_FRESH_FUNCTIONS = (
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.cat,
    F.conv1d, F.conv2d, F.conv3d, F.linear, F.max_pool2d, F.avg_pool2d,
)  # fmt: skip
# What neither writes into its arguments nor is known to make something new.
_HARMLESS_PREFIXES = ("torch.nn.modules.", "torch.ao.nn.", "pointwise_ext.")
OUTSIDE = "outside"  # memory of the caller's tensors, or the model's, of which any two may share it


def writes(node: Node, modules: Modules) -> list[Node]:
    """The arguments of `node` that it may write into."""
    inputs = node.all_input_nodes
    if node.op == "call_module":
        return inputs if any(map(_may_write, modules[str(node.target)].modules())) else []
    if node.op not in ("call_function", "call_method"):
        return []
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    arguments = dict(node.kwargs)
    with suppress(TypeError, ValueError):  # a method, or a builtin
        arguments |= inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    in_place = (name.endswith("_") and not name.endswith("__")) or name.strip("_") in inplace_methods
    if in_place or arguments.get("inplace") or arguments.get("out") is not None:
        return inputs
    where = getattr(node.target, "__module__", "") or ""
    known = node.op == "call_method" or where.startswith(
        ("torch", "_operator", "operator", "math", "builtins", "pointwise_ext")
    )
    return [] if known else inputs


def _may_write(module: nn.Module) -> bool:
    own = not type(module).__module__.startswith(_HARMLESS_PREFIXES)  # somebody's: anything
    return own or has_hooks(module) or bool(getattr(module, "inplace", False))


def storage(value: Node, modules: Modules) -> set[Node | str]:
    """The nodes that may have made the memory of `value`."""
    found: set[Node | str] = set()
    todo, seen = [value], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op in ("placeholder", "get_attr"):
            found.add(OUTSIDE)
            continue
        found.add(node)
        if not _is_fresh(node, modules):
            todo += node.all_input_nodes
    return found


def _is_fresh(node: Node, modules: Modules) -> bool:
    if writes(node, modules):
        return False
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _FRESH_MODULES) or activation(node, modules) is not None
    known = node.target in _FRESH_FUNCTIONS or addition(node) is not None or concatenation(node) is not None
    return known or activation(node, modules) is not None


def is_overwritten(values: Iterable[Node], start: Node, end: Node | None, modules: Modules) -> bool:
    """Whether one of `values` may change after `start` and before `end`, or its graph ends, so that it cannot be read
    there instead."""
    read = set().union(*(storage(value, modules) for value in values))
    node = start.next
    while node is not end and node.op != "root":
        if any(storage(target, modules) & read for target in writes(node, modules)):
            return True
        node = node.next
    return False


def is_written(value: Node, modules: Modules) -> bool:
    """Whether a later operation in place changes what `value` names."""
    node = value.next
    while node.op != "root":
        if any(value in storage(target, modules) for target in writes(node, modules)):
            return True
        node = node.next
    return False
