"""One fused call of a rewritten model. What tracing cannot know, shapes and dtypes, is looked at when it runs: where
concatenation or addition do not fit one call, they are done one by one, as the model did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, ActivationLike, parse_activation
from ..arguments import MAX_INPUTS, IntOrInts, Padding
from ..functional import pointwise_conv


def fused_call(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    activation: ActivationLike = None,
    residual: Any = None,
    cat_dim: int = 1,
    in_place: str = "",
) -> Tensor:
    """Equivalent to ``act(conv(torch.cat(inputs, cat_dim), weight, bias, ...) + residual)``, whatever torch.cat and +
    accept. `in_place` is what the sum was written into, and so keeps the dtype of: "output" of the convolution,
    "residual", or neither."""
    spatial = weight.dim() - 2
    if len(inputs) > 1 and not _are_channels(inputs, cat_dim, spatial):
        inputs = [torch.cat(list(inputs), cat_dim)]
    x = inputs[0] if len(inputs) == 1 else inputs
    arguments = (x, weight, bias, stride, padding, dilation, groups)
    if residual is None or _fits(residual, inputs[0], weight, stride, padding):
        return pointwise_conv(*arguments, activation=activation, residual=residual)
    y = pointwise_conv(*arguments)
    if in_place == "output":
        y += residual
    elif in_place == "residual":
        residual += y  # a number stays what it was
        y = residual
    else:
        y = y + residual
    name, alpha, beta = parse_activation(activation)
    return y if name == "none" else ACTIVATIONS[name].function(y, alpha, beta)


def _are_channels(inputs: Sequence[Tensor], dim: int, spatial: int) -> bool:
    rank = inputs[0].dim()
    alike = all((t.dim(), t.dtype, t.device) == (rank, inputs[0].dtype, inputs[0].device) for t in inputs)
    return alike and len(inputs) <= MAX_INPUTS and dim % rank == rank - 1 - spatial and rank - spatial in (1, 2)


def _fits(residual: Any, x: Tensor, weight: Tensor, stride: IntOrInts, padding: Padding) -> bool:
    """Whether it has the shape, dtype and device of the convolution's output, as pointwise_conv asks for."""
    if not isinstance(residual, Tensor) or residual.device != x.device or residual.dim() != x.dim():
        return False
    dtype, kind = x.dtype, x.device.type
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    spatial = weight.dim() - 2
    strides = stride if isinstance(stride, tuple) else (stride,) * spatial
    pads = (
        (0,) * spatial if isinstance(padding, str) else padding if isinstance(padding, tuple) else (padding,) * spatial
    )
    sizes = x.shape[-spatial:]
    out = [(size + 2 * p - 1) // s + 1 for size, p, s in zip(sizes, pads, strides, strict=True)]
    expected = (*x.shape[: -1 - spatial], weight.shape[0], *out)
    return residual.dtype == dtype and tuple(residual.shape) == expected
