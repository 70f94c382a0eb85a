"""pointwise_conv: reads the arguments and hands over to the operators, or to the reference where none of them fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _ops, reference
from .activations import PARSED, ActivationLike, parse_activation
from .arguments import Input, IntOrInts, Padding, check_tensor, input_list, stride_and_padding
from .explain import why_reference

# Looked up once: finding an operator by name costs as much as a tiny convolution.
_conv: Any = torch.ops.pointwise_ext.conv.default if _ops.loaded else None
_eager_conv: Any = _ops.eager_conv
_conv_out: Any = torch.ops.pointwise_ext.conv_out.default if _ops.loaded else None
_is_compiling = torch.compiler.is_compiling


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
    r"""A 1x1 convolution with concatenation, bias, residual and activation in one pass.

    Equivalent to ``act(F.conv2d(torch.cat(inputs, 1), weight, bias, stride, padding, 1, groups) + residual)``, for 1 to
    3 spatial dimensions, without the concatenation or a second pass over the output.

    Args:
        input: (N, Cin, \*S) or unbatched (Cin, \*S) with as many spatial dimensions as the weight has trailing ones;
            or 1 to 8 such tensors whose channels follow one another. Any strides, offset and alignment.
        weight: (Cout, Cin / groups, 1, ...).
        bias: (Cout,).
        stride: one int or one per spatial dimension, at least 1.
        padding: zeros around the input: one int or one per spatial dimension, "valid" or (stride 1) "same".
        dilation: at least 1; without effect on a kernel of size 1.
        groups: a divisor of Cin and Cout.
        activation: None, or "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid",
            "sigmoid", "tanh", with the formulas of torch.nn.functional; or with parameters ``("leaky_relu", 0.2)``,
            ``("clamp", 0.0, 6.0)``.
        residual: added before the activation; the output's shape.
        out: tensor to write into; no autograd, otherwise as for PyTorch's functions with out=.

    All tensors are of one dtype (float32, float64, float16 or bfloat16; 16 bits accumulate in float32) and device;
    under torch.autocast they follow its dtype.

    Returns:
        (N, Cout, \*S_out) in the memory format of the first input, S_out = (S + 2 padding - 1) // stride + 1.

    Raises:
        TypeError, ValueError: an argument that is not of its type or range. RuntimeError: tensors that do not fit each
            other. Nothing is read or written before.
    """
    if out is None and _eager_conv is not None and not _is_compiling():
        y = _eager_conv(input, weight, bias, stride, padding, dilation, groups, activation, PARSED, residual)
        if y is not NotImplemented:
            return y
    name, alpha, beta = parse_activation(activation)
    inputs = input_list(input)
    check_tensor("weight", weight, optional=False)
    check_tensor("bias", bias, optional=True)
    check_tensor("residual", residual, optional=True)
    strides, paddings = stride_and_padding(stride, padding, dilation, groups)
    if why_reference(weight) is not None:
        return reference.pointwise_conv(
            inputs, weight, bias, strides, paddings, 1, groups, activation=activation, residual=residual, out=out
        )
    if out is not None:
        check_tensor("out", out, optional=True)
        _conv_out(inputs, weight, bias, residual, strides, paddings, groups, name, alpha, beta, out)
        return out
    return _conv(inputs, weight, bias, residual, strides, paddings, groups, name, alpha, beta)
