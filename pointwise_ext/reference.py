"""The executable specification: what pointwise_conv computes, in plain differentiable PyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import is_channels_last
from .activations import ACTIVATIONS, ActivationLike, parse_activation
from .arguments import (
    Input,
    IntOrInts,
    Padding,
    autocast_dtype,
    check_shapes,
    check_tensor,
    input_list,
    per_dimension,
    stride_and_padding,
)

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def pointwise_conv(
    input: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The same function as :func:`pointwise_ext.pointwise_conv`, in plain PyTorch, for any device and dtype it has.

    y = activation( conv1x1(concat(inputs, dim=channels), weight, stride, padding, groups) + bias + residual )
    """
    inputs = input_list(input)
    check_tensor("weight", weight, optional=False)
    for name, value in (("bias", bias), ("residual", residual), ("out", out)):
        check_tensor(name, value, optional=True)
    name, alpha, beta = parse_activation(activation)
    strides, paddings = stride_and_padding(stride, padding, dilation, groups)
    shape = check_shapes(inputs, weight, bias, residual, strides, paddings, groups)

    spatial = weight.dim() - 2
    strides, paddings = per_dimension("stride", strides, spatial), per_dimension("padding", paddings, spatial)
    x = inputs[0] if len(inputs) == 1 else torch.cat([_autocast(t) for t in inputs], dim=-1 - spatial)
    if x.numel() and weight.numel():
        # With these strides the weight has no memory format of its own that the output could take on.
        if weight.stride() != (weight.size(1), *[1] * (spatial + 1)):
            weight = weight.flatten(1).reshape(weight.shape)
        y = _CONV[spatial](x, weight, bias, strides, paddings, 1, groups)
    else:
        y = _empty_conv(x, weight, bias, shape, strides, paddings, groups)
    if residual is not None:
        y = y + residual.to(y.dtype)  # under autocast the residual follows too
    if name != "none":
        y = ACTIVATIONS[name].function(y, alpha, beta)
    y = in_format_of(inputs[0], y, spatial)
    return y if out is None else _write(y, out, [*inputs, weight, bias, residual])


def _autocast(t: Tensor) -> Tensor:
    """What autocast makes of a convolution's input; torch.cat would take the widest dtype, and refuse some mixes."""
    dtype = autocast_dtype(t.device.type)
    return t if dtype is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)


def in_format_of(x: Tensor, y: Tensor, spatial: int) -> Tensor:
    """y in the memory format of x, also in the strides of dimensions of size 1, by which the next layer decides."""
    channels_last = is_channels_last(x, batched=x.dim() == spatial + 2)
    dense = y.movedim(-1 - spatial, -1) if channels_last else y
    if dense.stride() == torch.empty(dense.shape, device="meta").stride():
        return y
    dense = dense.clone(memory_format=torch.contiguous_format)
    return dense.movedim(-1, -1 - spatial) if channels_last else dense


def _empty_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    paddings: tuple[int, ...],
    groups: int,
) -> Tensor:
    """The convolution as a matrix product: PyTorch's convolutions refuse empty sizes other than the batch."""
    spatial = len(strides)
    x = F.pad(x, [p for p in reversed(paddings) for _ in range(2)])
    samples: tuple[Any, ...] = (..., *(slice(None, None, s) for s in strides))
    x = x[samples]
    x = x.reshape(*shape[: -1 - spatial], groups, weight.size(1), math.prod(shape[-spatial:]))
    y = weight.reshape(groups, weight.size(0) // groups, weight.size(1)) @ x
    y = y.reshape(shape)
    return y if bias is None else y + bias.to(y.dtype).reshape(-1, *[1] * spatial)


def _write(y: Tensor, out: Tensor, arguments: list[Tensor | None]) -> Tensor:
    """out = y by PyTorch's rules for out=: resized to fit, no autograd, same device, a dtype y can be cast to."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*arguments, out)):
        raise RuntimeError(
            "pointwise_conv: out was given and an argument requires grad, expected neither or one of the two; drop "
            "out= or call under torch.no_grad()"
        )
    if out.device != y.device:
        raise RuntimeError(
            f"pointwise_conv: out is on {out.device}, expected {y.device} as the input's; allocate it there"
        )
    if not torch.can_cast(y.dtype, out.dtype):
        raise RuntimeError(f"pointwise_conv: out has dtype {out.dtype}, expected one that {y.dtype} can be cast to")
    if out.shape != y.shape:
        out.resize_(y.shape)
    return out.copy_(y)
