"""Loads the extension and registers what the compiler needs to know of its operators: their results' shapes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arguments import check_shapes
from .masks import is_mask, keeps_mask, mask_size

BUILD_INFO_FILE = Path(__file__).with_name("_build_info.json")


def build_info() -> dict | None:
    """What the extension was built for, as setup.py recorded it; None where it was never built."""
    return json.loads(BUILD_INFO_FILE.read_text()) if BUILD_INFO_FILE.exists() else None


def _load() -> str | None:
    """Loads the extension; returns why it cannot be used, or None."""
    try:
        from pointwise_ext import _C  # noqa: F401
    except ImportError as error:
        built = build_info()
        if built is None:
            return "it was not built; run `pip install --no-build-isolation .` in the source folder"
        return (
            f"it was built for torch {built['torch']} (CUDA {built['cuda'] or 'none'}) and found torch "
            f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}); reinstall it with "
            f"`pip install --no-build-isolation --force-reinstall --no-deps .` ({error})"
        )
    return None


load_error = _load()
loaded = load_error is None
if loaded:
    # pointwise_conv of one plain tensor and plain integers: 3 us less than Python and torch.ops take to read them.
    from pointwise_ext._C import conv as eager_conv
    from pointwise_ext._C import weight_key
else:
    eager_conv = weight_key = None
    warnings.warn(
        f"pointwise_ext: the compiled extension cannot be used: {load_error}. All calls run the slower reference.",
        RuntimeWarning,
        stacklevel=2,
    )


def is_channels_last(t: Tensor, batched: bool) -> bool:
    """Whether the strides of a (N, C, *S) or (C, *S) tensor say channels_last (csrc/shape.cpp has the same rule)."""
    size, stride, channel = t.shape, t.stride(), int(batched)
    if stride[channel] == 0 or size[channel] == 0:
        return False
    least = stride[channel] * size[channel]
    for d in range(t.dim() - 1, channel, -1):
        if size[d] == 0 or stride[d] < least:
            return False
        least = stride[d] * size[d]
    if batched and (size[0] == 0 or stride[0] < least):
        return False
    return least != stride[channel]


def _empty_in_format_of(like: Tensor, size: Sequence[int], batched: bool) -> Tensor:
    channel, step = int(batched), 1
    stride = [0] * len(size)
    if is_channels_last(like, batched):
        for d in (channel, *range(len(size) - 1, channel, -1), *range(channel)):
            stride[d], step = step, step * size[d]
    else:
        for d in reversed(range(len(size))):
            stride[d], step = step, step * torch.sym_max(size[d], 1)
    return like.new_empty_strided(size, stride)


def _register_fakes() -> None:
    """What the operators return, sizes and strides, for the compiler to know without running them."""

    def conv(
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
        size = check_shapes(inputs, weight, bias, residual, tuple(stride), tuple(padding), groups)
        return _empty_in_format_of(inputs[0], size, batched=inputs[0].dim() == weight.dim())

    def conv_saved(*args: Any) -> tuple[Tensor, Tensor]:
        inputs, weight, *_, padding, groups, activation, alpha, _ = args
        y = conv(*args)
        if inputs[0].device.type == "cuda" and keeps_mask(y.dtype, padding, groups, activation, alpha):
            return y, inputs[0].new_empty(mask_size(y, batched=y.dim() == weight.dim()), dtype=torch.int32)
        return y, conv(*args)

    def conv_out(*args: Any) -> None:
        *args_of_conv, out = args
        size = conv(*args_of_conv).shape
        if out.shape != size:
            out.resize_(size)

    def conv_backward(
        grad_output: Tensor, inputs: list[Tensor], weight: Tensor, saved: Any, *args: Any
    ) -> list[Tensor]:
        needed: list[bool] = args[-1]
        need_weight, need_bias, need_residual = needed[len(inputs) :]
        batched = grad_output.dim() == weight.dim()
        grads = [_empty_in_format_of(x, x.shape, batched) for x, need in zip(inputs, needed, strict=False) if need]
        if need_weight:
            grads.append(torch.empty_like(weight))
        if need_bias:
            grads.append(weight.new_empty(weight.shape[0]))
        if need_residual:
            linear = saved is None or args[3] == "none"
            like = grad_output if linear else inputs[0] if is_mask(saved) else saved
            grads.append(
                torch.empty_like(grad_output) if linear else _empty_in_format_of(like, grad_output.shape, batched)
            )
        return grads

    for fake in (conv, conv_saved, conv_out, conv_backward):
        torch.library.register_fake(f"pointwise_ext::{fake.__name__}", fake)


if loaded:
    _register_fakes()
