"""Our operators in ATen's, for exported programs that go to ONNX or to a backend that does not know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _ops, reference
from .activations import ACTIVATIONS
from .arguments import per_dimension
from .masks import expand_mask, is_mask

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A table for ``ExportedProgram.run_decompositions`` that writes every operator of this package in ATen's.

    Equivalent to having exported :func:`pointwise_ext.reference.pointwise_conv`: torch.cat, a convolution, an addition
    and an activation, with the same values, shapes (dynamic ones too), dtypes and memory formats. Together with
    PyTorch's own table: ``{**torch.export.default_decompositions(), **pointwise_ext.decompositions()}``.

    Returns:
        operator -> function of the same arguments; empty where the extension is not loaded, since programs exported
        there have no operator of ours.
    """
    if not _ops.loaded:
        return {}
    ours = torch.ops.pointwise_ext
    return {
        ours.conv.default: _conv,
        ours.conv_saved.default: _conv_saved,
        ours.conv_out.default: _conv_out,
        ours.conv_backward.default: _conv_backward,
    }


def _conv(
    inputs: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    groups: int,
    activation: str,
    alpha: float,
    beta: float,
) -> Tensor:
    count = 0 if activation == "none" else len(ACTIVATIONS[activation].parameters)
    parsed = None if activation == "none" else (activation, *(alpha, beta)[:count])
    return reference.pointwise_conv(
        inputs, weight, bias, stride, padding, 1, groups, activation=parsed, residual=residual
    )


def _conv_saved(*args: Any) -> tuple[Tensor, Tensor]:
    """(y, z): z before the activation, from which its derivative is computed; it says as much as a mask."""
    *linear, activation, alpha, beta = args
    z = _conv(*[*linear, "none", 0.0, 0.0])
    return ACTIVATIONS[activation].function(z, alpha, beta), z


def _conv_out(*args: Any) -> None:
    *args_of_conv, out = args
    out.copy_(_conv(*args_of_conv))


# dz of dy and what was saved: z or, where it says as much, y (csrc/autograd.cpp has the same table)
_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Any, float, float], Tensor]] = {
    "none": lambda dy, saved, alpha, beta: dy,
    "relu": lambda dy, y, alpha, beta: aten.threshold_backward(dy, y, 0),
    "relu6": lambda dy, y, alpha, beta: aten.hardtanh_backward(dy, y, 0.0, 6.0),
    "leaky_relu": lambda dy, z, alpha, beta: aten.leaky_relu_backward(dy, z, alpha, False),
    "silu": lambda dy, z, alpha, beta: aten.silu_backward(dy, z),
    "gelu": lambda dy, z, alpha, beta: aten.gelu_backward(dy, z),
    "gelu_tanh": lambda dy, z, alpha, beta: aten.gelu_backward(dy, z, approximate="tanh"),
    "hardswish": lambda dy, z, alpha, beta: aten.hardswish_backward(dy, z),
    "hardsigmoid": lambda dy, z, alpha, beta: aten.hardsigmoid_backward(dy, z),
    "sigmoid": lambda dy, y, alpha, beta: aten.sigmoid_backward(dy, y),
    "tanh": lambda dy, y, alpha, beta: aten.tanh_backward(dy, y),
    "clamp": lambda dy, z, alpha, beta: torch.where((z >= alpha) & (z <= beta), dy, 0.0),
}


def _conv_backward(
    grad_output: Tensor,
    inputs: list[Tensor],
    weight: Tensor,
    saved: Tensor | None,
    stride: list[int],
    padding: list[int],
    groups: int,
    activation: str,
    alpha: float,
    beta: float,
    needed: list[bool],
) -> list[Tensor]:
    """The gradients of inputs, weight, bias and residual that are needed, without gaps."""
    spatial = weight.dim() - 2
    if saved is not None and is_mask(saved):
        saved = expand_mask(saved, grad_output, batched=grad_output.dim() == weight.dim())
    dz = _ACTIVATION_GRADIENTS[activation](grad_output, saved, alpha, beta)
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1 - spatial)
    batched = x.dim() == weight.dim()
    strides, paddings = (per_dimension("", tuple(v), spatial) for v in (stride, padding))
    need_inputs, (need_weight, need_bias, need_residual) = needed[: len(inputs)], needed[len(inputs) :]
    dx, dw, db = aten.convolution_backward(
        dz if batched else dz[None], x if batched else x[None], weight, [weight.size(0)], strides, paddings,
        [1] * spatial, False, [0] * spatial, groups, [any(need_inputs), need_weight, need_bias],
    )  # fmt: skip
    grads = []
    if any(need_inputs):
        parts = torch.split(dx if batched else dx[0], [t.size(-1 - spatial) for t in inputs], -1 - spatial)
        needed_parts = zip(inputs, parts, need_inputs, strict=True)
        grads = [reference.in_format_of(t, part, spatial) for t, part, need in needed_parts if need]
    return [*grads, *([dw] if need_weight else []), *([db] if need_bias else []), *([dz] if need_residual else [])]
