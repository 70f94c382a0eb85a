"""Small networks for the tests of fusing: a forward function and the modules it calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CHANNELS = 6


class Net(nn.Module):
    def __init__(self, body: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Pair(Net):
    """Of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.body(self, x, y)


def conv(cin: int = CHANNELS, cout: int = CHANNELS, kernel: int = 1, **options) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, **options)


def norm(channels: int = CHANNELS, **options) -> nn.BatchNorm2d:
    """With statistics that show a mistake."""
    bn = nn.BatchNorm2d(channels, **options)
    if bn.affine:
        nn.init.uniform_(bn.weight, 0.5, 2.0)
        nn.init.normal_(bn.bias)
    if bn.running_mean is not None:
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.2, 3.0)
    return bn


def image(channels: int = CHANNELS, **options) -> Tensor:
    return torch.randn(2, channels, 5, 7, **options)


def chain_net(body) -> Net:
    children = {"conv": conv(), "bn": norm(), "wide": conv(kernel=3), "merge": conv(cin=12), "identity": nn.Identity()}
    return Net(body, **children).eval()


MODULES = {
    "relu": nn.ReLU(), "relu6": nn.ReLU6(inplace=True), "leaky_relu": nn.LeakyReLU(0.3), "silu": nn.SiLU(),
    "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(),
}  # fmt: skip
