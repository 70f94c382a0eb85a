"""What stands in a fused model for a convolution and its neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..activations import ActivationLike
from ..modules import PointwiseConv1d, PointwiseConv2d, PointwiseConv3d, _PointwiseConv
from .call import fused_call


class _FusedConv(_PointwiseConv):
    """A PointwiseConv with a residual or several inputs that were found by tracing: see :mod:`.call`."""

    weight: Any
    bias: Any
    stride: Any
    dilation: Any
    groups: Any
    padding_mode: Any
    cat_dim: int = 1
    in_place: str = ""

    def forward(self, *inputs: Tensor, residual: Any = None) -> Tensor:
        if self.padding_mode != "zeros" and len(inputs) > 1:  # what joins rows, unbatched, is padded afterwards
            inputs = (torch.cat(inputs, self.cat_dim),)
        padded, padding = self._padded(list(inputs))
        return fused_call(
            padded, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
            activation=self.activation, residual=residual, cat_dim=self.cat_dim, in_place=self.in_place,
        )  # fmt: skip


class FusedConv1d(_FusedConv, PointwiseConv1d):
    """A PointwiseConv1d with a residual or several inputs that were found by tracing."""


class FusedConv2d(_FusedConv, PointwiseConv2d):
    """A PointwiseConv2d with a residual or several inputs that were found by tracing."""


class FusedConv3d(_FusedConv, PointwiseConv3d):
    """A PointwiseConv3d with a residual or several inputs that were found by tracing."""


_PLAIN: dict[type, Any] = {nn.Conv1d: PointwiseConv1d, nn.Conv2d: PointwiseConv2d, nn.Conv3d: PointwiseConv3d}
_FUSED: dict[type, Any] = {nn.Conv1d: FusedConv1d, nn.Conv2d: FusedConv2d, nn.Conv3d: FusedConv3d}


def replacement(
    conv: nn.Module, batch_norm: nn.Module | None = None, activation: ActivationLike = None, neighbours: bool = False
) -> nn.Module:
    """The module for `conv`, sharing its Parameters, or with new ones that `batch_norm` is folded into; `neighbours`:
    it is called with a residual or several inputs."""
    table = _FUSED if neighbours else _PLAIN
    kind = next(kind for kind in table if isinstance(conv, kind))
    module = table[kind].from_conv(conv, activation)
    if batch_norm is not None:
        module.weight, module.bias = folded(conv, batch_norm)
    return module


def folded(conv: Any, bn: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a convolution that does what `conv` and then `bn`, in eval mode, do; computed in float32 or
    better, for bn's factors would lose most of their bits in 16."""

    def wide(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(torch.promote_types(t.dtype, torch.float32))

    statistics = (wide(bn.running_mean), wide(bn.running_var), bn.eps, wide(bn.weight), wide(bn.bias))
    weight, bias = fuse_conv_bn_weights(wide(conv.weight), wide(conv.bias), *statistics)  # type: ignore[arg-type]
    trains = any(p is not None and p.requires_grad for p in (conv.weight, conv.bias, bn.weight, bn.bias))
    dtype = conv.weight.dtype
    return nn.Parameter(weight.detach().to(dtype), trains), nn.Parameter(bias.detach().to(dtype), trains)
