"""What the tests of fusing compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pointwise_ext as pw


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    return {"x": x.grad} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, fast: nn.Module, *inputs: Tensor) -> None:
    torch.testing.assert_close(fast(*(x.clone() for x in inputs)), model(*(x.clone() for x in inputs)))


def patterns(fast: nn.Module) -> list[str]:
    return [f.pattern for f in pw.fusion_report(fast).fused]


def reasons(fast: nn.Module) -> list[str]:
    return [left.reason for left in pw.fusion_report(fast).left]
