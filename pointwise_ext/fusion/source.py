"""Whether a module that is not traced only calls its children, told by its source: who calls their parts one by one
sees what a fused call does not compute."""

from __future__ import annotations

import ast
import inspect
import textwrap

from torch import nn

LISTS = (nn.ModuleList, nn.ModuleDict)
CONTAINERS = (nn.Sequential, *LISTS)  # they call their children whole, or leave it to who holds them


def only_calls(module: nn.Module, name: str) -> bool | None:
    """Whether `module` uses its child `name` in no other way than by calling it, or the elements of a list of modules;
    None where its source does not tell."""
    if "forward" in module.__dict__:
        return None
    found: set[bool | None] = set()
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn."):
            break
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        except (OSError, TypeError, ValueError, SyntaxError):
            found.add(None)
            continue
        for function in ast.iter_child_nodes(definition):
            if isinstance(function, ast.FunctionDef) and function.name != "__init__" and function.args.args:
                found |= _uses(function, name, isinstance(module._modules[name], LISTS))
    return False if False in found else None if None in found else True


def _uses(function: ast.FunctionDef, name: str, is_list: bool) -> set[bool | None]:
    """Of each use of self.name in a method: True for a call, False for a part; None for a use of self that hides it."""
    own = function.args.args[0].arg
    nodes = list(ast.walk(function))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    if is_list:  # self.name[i](x), and for each in self.name, if that is only called
        elements = [node for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute)]
        called |= {id(node.value) for node in elements if id(node) in called}
        reads = [node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        for node in nodes:
            if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
                each = [read for read in reads if read.id == node.target.id]
                called |= {id(node.iter)} if all(id(read) in called for read in each) else set()
    found: set[bool | None] = set()
    attributes = {id(node.value): node for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Name) and node.id == own:
            read = attributes.get(id(node))
            if read is None or "modules" in read.attr or "children" in read.attr or read.attr.startswith("__"):
                found.add(None)
            elif read.attr == name:
                found.add(id(read) in called)
    return found
