"""torch.compile(model, backend="pointwise_ext"): fuses Dynamo's graphs by the rules of :mod:`.graph`, then Inductor.

Found through the entry point `torch_dynamo_backends` in pyproject.toml, and imported no earlier than it is asked for.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from .dynamo import rewrite

log = logging.getLogger(__name__)


def compile_backend(
    gm: GraphModule, example_inputs: list[Tensor], *, mode: Any = None, options: Any = None
) -> Callable:
    """Compiles one of Dynamo's graphs.

    Equivalent to Inductor alone: same results within the dtype's tolerance, same `mode` and `options`, dynamic shapes
    and training. Where fusing fails, Inductor compiles the graph as it came, and a warning is logged.

    Raises:
        RuntimeError: a mode or an option that Inductor does not know, and whatever Inductor alone raises.
    """
    inductor = torch._TorchCompileInductorWrapper(mode, options, None)  # checks mode and options as torch.compile does
    original = _copy(gm.graph)
    try:
        fused = rewrite(gm, always_fold=bool(inductor.config.get("freezing", torch._inductor.config.freezing)))
        log.debug("fused %d convolutions: %s", len(fused), fused)
        if fused:
            return inductor(gm, example_inputs)
    except Exception:
        log.warning("a graph is compiled by Inductor alone, since fusing it failed", exc_info=True)
        gm.graph = original
    return inductor(gm, example_inputs)


def _copy(graph: Graph) -> Graph:
    """A copy that Inductor takes for Dynamo's own, which says beside the nodes where its inputs come from."""
    same = copy.deepcopy(graph)
    for node, twin in zip(graph.nodes, same.nodes, strict=True):
        if hasattr(node, "_dynamo_source"):
            twin._dynamo_source = node._dynamo_source
    return same
