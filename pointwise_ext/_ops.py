"""Loads the extension and registers what the compiler needs to know of its operators: their results' shapes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

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
    # The operator conv for one plain tensor: as torch.ops.pointwise_ext.conv, but without its host time, 2.4 of 5 us.
    from pointwise_ext._C import conv as eager_conv
else:
    eager_conv = None
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
    channel, stride, step = int(batched), [0] * len(size), 1
    if is_channels_last(like, batched):
        for d in [channel, *range(len(size) - 1, channel, -1), *range(channel)]:
            stride[d], step = step, step * size[d]
    else:
        for d in reversed(range(len(size))):
            stride[d], step = step, step * torch.sym_max(size[d], 1)
    return like.new_empty_strided(size, stride)


def _output_size(
    inputs: Sequence[Tensor], weight: Tensor, stride: Sequence[int], padding: Sequence[int], groups: int
) -> list[int]:
    """The output's sizes, after the checks that a traced call needs; the kernels make them all."""
    first, spatial = inputs[0], weight.dim() - 2
    batched = first.dim() == weight.dim()
    channel = int(batched)
    channels = sum(t.shape[channel] for t in inputs)
    torch._check(
        channels == weight.shape[1] * groups,
        lambda: f"pointwise_conv: input has {channels} channels, expected {weight.shape[1] * groups} for a weight of "
        f"shape {list(weight.shape)} and groups = {groups}",
    )
    for t in inputs:
        torch._check(
            t.dtype == first.dtype and weight.dtype == first.dtype,
            lambda: f"pointwise_conv: input and weight have dtypes {t.dtype} and {weight.dtype}, expected one dtype",
        )
    strides, paddings = (list(v) * spatial if len(v) == 1 else list(v) for v in (stride, padding))
    size = list(first.shape[:channel]) + [weight.shape[0]]
    for i, (step, pad) in enumerate(zip(strides, paddings, strict=True)):
        padded = first.shape[channel + 1 + i] + 2 * pad
        size.append(padded if step == 1 else (padded + step - 1) // step)
    return size


def _register_fakes() -> None:
    @torch.library.register_fake("pointwise_ext::conv")
    def conv(inputs, weight, bias, residual, stride, padding, groups, activation, alpha, beta):
        size = _output_size(inputs, weight, stride, padding, groups)
        return _empty_in_format_of(inputs[0], size, inputs[0].dim() == weight.dim())

    @torch.library.register_fake("pointwise_ext::conv_saved")
    def conv_saved(*args):
        return conv(*args), conv(*args)

    @torch.library.register_fake("pointwise_ext::conv_out")
    def conv_out(inputs, weight, bias, residual, stride, padding, groups, activation, alpha, beta, out):
        size = _output_size(inputs, weight, stride, padding, groups)
        if list(out.shape) != size:
            out.resize_(size)

    @torch.library.register_fake("pointwise_ext::conv_backward")
    def conv_backward(
        grad_output, inputs, weight, saved, stride, padding, groups, activation, alpha, beta, needed
    ):
        batched = grad_output.dim() == weight.dim()
        grads = [_empty_in_format_of(x, x.shape, batched) for x, need in zip(inputs, needed, strict=False) if need]
        sources = len(inputs)
        if needed[sources]:
            grads.append(torch.empty_like(weight))
        if needed[sources + 1]:
            grads.append(weight.new_empty(weight.shape[0]))
        if needed[sources + 2]:
            linear = activation == "none"
            grads.append(
                torch.empty_like(grad_output)
                if linear
                else _empty_in_format_of(saved, grad_output.shape, batched)
            )
        return grads


if loaded:
    _register_fakes()
