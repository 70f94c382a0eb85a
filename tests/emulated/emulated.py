"""pointwise_conv on the emulator: the operators of pointwise_ext_emulated under the arguments of pw.pointwise_conv."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from pointwise_ext.activations import parse_activation
from pointwise_ext.arguments import input_list, stride_and_padding
from pointwise_ext.masks import keeps_mask
from tests.emulated.guard import guarded

# Where the derivative is taken from z; leaky_relu too, as its slope may be negative.
SAVES_Z = ("silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "clamp", "leaky_relu")
GUARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda t: t,
    "end": lambda t: guarded(t, at_end=True),
    "start": lambda t: guarded(t, at_end=False),
}
_guard = GUARDS[os.environ.get("PW_EMULATED_GUARD", "")]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, masks, options, *tensors):
        ops = torch.ops.pointwise_ext_emulated
        *inputs, weight, bias, residual = [None if t is None else _guard(t.detach()) for t in tensors]
        _, padding, groups, name, alpha, _ = options
        if name in SAVES_Z or (masks and keeps_mask(weight.dtype, padding, groups, name, alpha)):
            y, saved = ops.conv_saved(inputs, weight, bias, residual, *options)
        else:
            y = ops.conv(inputs, weight, bias, residual, *options)
            saved = None if name == "none" else y
        ctx.options = options
        ctx.save_for_backward(*inputs, weight, saved)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        *inputs, weight, saved = [None if t is None else _guard(t) for t in ctx.saved_tensors]
        needed = list(ctx.needs_input_grad[2:])
        grads = iter(
            torch.ops.pointwise_ext_emulated.conv_backward(
                _guard(grad_output), inputs, weight, saved, *ctx.options, needed
            )
        )
        return (None, None, *[next(grads) if n else None for n in needed])


def conv(
    input, weight, bias=None, stride=1, padding=0, groups=1, *, activation=None, residual=None, masks=True
) -> Tensor:
    """As pw.pointwise_conv, with gradients, by the CUDA kernels on the emulator; `masks`: saves them instead of y."""
    strides, paddings = stride_and_padding(stride, padding, 1, groups)
    options = (list(strides), list(paddings), groups, *parse_activation(activation))
    return _Conv.apply(masks, options, *input_list(input), weight, bias, residual)
