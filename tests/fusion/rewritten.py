"""Dynamo's graphs as the compile backend rewrites them, run without generating code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from pointwise_ext.fusion.dynamo import rewrite

CONV = torch.ops.pointwise_ext.conv.default


class Rewritten:
    """A backend that fuses like ours and then runs without generating code: quick, and shows the graphs."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []  # of our operator: (inputs, has residual, activation)
        self.targets: list = []

    def __call__(self, gm, example_inputs, **kwargs):
        rewrite(gm)
        self.targets += [node.target for node in gm.graph.nodes]
        for node in gm.graph.nodes:
            if node.target is CONV:
                self.calls.append((len(node.args[0]), node.args[3] is not None, node.args[7]))
        return aot_eager(gm, example_inputs)


def run(f, *args, dynamic: bool | None = None) -> Rewritten:
    """f compiled gives what f gives, fullgraph; returns what was compiled."""
    backend = Rewritten()
    compiled = torch.compile(f, backend=backend, fullgraph=True, dynamic=dynamic)
    got, expected = compiled(*copies(args)), f(*copies(args))
    torch.testing.assert_close(got, expected, rtol=1.3e-6, atol=1e-5)  # of fp32, also where it is widened afterwards
    return backend


def copies(args: tuple) -> list:
    return [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]


def bn_with_statistics(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias):
            t.copy_(torch.rand(channels) + 0.5)
    return bn


class Bottleneck(nn.Module):
    def __init__(self, channels: int = 16, width: int = 4) -> None:
        super().__init__()
        self.reduce, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), bn_with_statistics(width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.expand, self.bn2 = nn.Conv2d(width, channels, 1), bn_with_statistics(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.reduce(x)))
        y = self.bn2(self.expand(self.spatial(y)))
        y += x
        return self.relu(y)
