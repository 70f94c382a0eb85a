"""Reading and checking arguments: Python-level ones always, shapes where the reference path runs (else C++ does)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_INPUTS = 8

Input = Tensor | Sequence[Tensor]
IntOrInts = int | Sequence[int]
Padding = int | Sequence[int] | str


def input_list(input: Input) -> list[Tensor]:
    """The inputs of one call as a list of tensors.

    Raises:
        TypeError: neither a tensor nor a sequence of tensors. ValueError: not 1 to 8 of them.
    """
    if isinstance(input, Tensor):
        return [input]
    if not isinstance(input, (list, tuple)):
        raise TypeError(f"input is {_type(input)}, expected a tensor or a list or tuple of 1 to {MAX_INPUTS} tensors")
    for i, t in enumerate(input):
        if not isinstance(t, Tensor):
            raise TypeError(f"input[{i}] is {_type(t)}, expected a tensor")
    if not 1 <= len(input) <= MAX_INPUTS:
        raise ValueError(
            f"input is a sequence of {len(input)} tensors, expected 1 to {MAX_INPUTS}; concatenate some of them first"
        )
    return list(input)


def check_tensor(name: str, value: Any, optional: bool) -> None:
    if not (isinstance(value, Tensor) or (optional and value is None)):
        raise TypeError(f"{name} is {_type(value)}, expected a tensor{' or None' if optional else ''}")


def ints(name: str, value: IntOrInts, least: int) -> tuple[int, ...]:
    """`value` as a tuple of one integer, or of one per spatial dimension, each at least `least`."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for v in values:
        if isinstance(v, bool) or not isinstance(v, (int, torch.SymInt)):
            raise TypeError(f"{name} is {value!r}, expected an int or one int per spatial dimension")
        if v < least:
            raise ValueError(f"{name} is {value!r}, expected at least {least}")
    return values


def stride_and_padding(
    stride: IntOrInts, padding: Padding, dilation: IntOrInts, groups: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """stride and padding as tuples of integers; dilation and groups are checked only.

    Raises:
        TypeError: not integers. ValueError: below their least value, or an unknown padding string.
    """
    strides = ints("stride", stride, 1)
    ints("dilation", dilation, 1)
    if isinstance(groups, (tuple, list)):
        raise TypeError(f"groups is {groups!r}, expected an int")
    ints("groups", groups, 1)
    if not isinstance(padding, str):
        return strides, ints("padding", padding, 0)
    if padding not in ("valid", "same"):
        raise ValueError(f"padding is {padding!r}, expected an int, one int per spatial dimension, 'valid' or 'same'")
    if padding == "same" and any(s != 1 for s in strides):
        raise ValueError(f"padding='same' with stride {stride!r}, expected stride 1; pass padding=0 instead")
    return strides, (0,)  # a kernel of size 1 keeps the size as it is


def per_dimension(name: str, values: tuple[int, ...], spatial: int) -> tuple[int, ...]:
    """One entry per spatial dimension, from one or as many. Raises RuntimeError for any other number."""
    if len(values) not in (1, spatial):
        raise RuntimeError(
            f"pointwise_conv: {name} has {len(values)} entries, expected 1 or {spatial}, one per spatial dimension of "
            "the weight"
        )
    return values * (spatial // len(values))


def check_shapes(
    inputs: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int,
) -> tuple[int, ...]:
    """The output's shape; RuntimeError where tensors do not fit each other, in the operators' words."""
    first, spatial = inputs[0], weight.dim() - 2
    shape = tuple(weight.shape)
    if not 1 <= spatial <= 3:
        _fail(
            f"weight has shape {shape}, expected (out_channels, in_channels / groups, 1, ...) with 1 to 3 trailing ones"
        )
    if any(size != 1 for size in shape[2:]):
        _fail(
            f"weight has shape {shape}, expected a kernel of size 1; use torch.nn.functional.conv{spatial}d for larger "
            "kernels"
        )
    if first.dim() not in (spatial + 1, spatial + 2):
        _fail(
            f"input has shape {tuple(first.shape)}, expected {spatial + 2} dimensions (N, C, ...) or {spatial + 1} "
            f"unbatched, for a weight of shape {shape}"
        )
    channel = first.dim() - spatial - 1
    for t in inputs:
        _check_same("input", t, first)
        if t.dim() != first.dim():
            _fail(f"inputs have {first.dim()} and {t.dim()} dimensions, expected the same number")
        if any(t.size(d) != first.size(d) for d in range(t.dim()) if d != channel):
            _fail(
                f"inputs have shapes {tuple(first.shape)} and {tuple(t.shape)}, expected equal sizes in every "
                "dimension but the channels'"
            )
    _check_same("weight", weight, first)

    channels = sum(t.size(channel) for t in inputs)
    if weight.size(0) % groups:
        _fail(f"weight has {weight.size(0)} output channels, expected a multiple of groups = {groups}")
    if channels != weight.size(1) * groups:
        in_all = " in all" if len(inputs) > 1 else ""
        _fail(
            f"input has {channels} channels{in_all}, expected {weight.size(1) * groups} for a weight of shape {shape} "
            f"and groups = {groups}"
        )

    strides, paddings = per_dimension("stride", stride, spatial), per_dimension("padding", padding, spatial)
    sizes = [
        (size + 2 * p - 1) // s + 1 if size + 2 * p > 0 else 0
        for size, s, p in zip(first.shape[channel + 1 :], strides, paddings, strict=True)
    ]
    output = (*first.shape[:channel], weight.size(0), *sizes)
    if bias is not None:
        _check_same("bias", bias, first)
        if bias.dim() != 1 or bias.size(0) != weight.size(0):
            _fail(f"bias has shape {tuple(bias.shape)}, expected ({weight.size(0)},), one per output channel")
    if residual is not None:
        _check_same("residual", residual, first)
        if tuple(residual.shape) != output:
            _fail(
                f"residual has shape {tuple(residual.shape)}, expected the output's, {output}; expand or slice it first"
            )
    return output


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that convolutions on a device type run in under the torch.autocast in force, or None without one."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _check_same(name: str, t: Tensor, input: Tensor) -> None:
    if t.dtype != input.dtype and autocast_dtype(input.device.type) is None:
        _fail(
            f"{name} has dtype {t.dtype}, expected {input.dtype} as the input's; convert one of them, or use "
            "torch.autocast"
        )
    if t.device != input.device:
        _fail(f"{name} is on {t.device}, expected {input.device} as the input's; move one of them")


def _fail(message: str) -> None:
    raise RuntimeError(f"pointwise_conv: {message}")


def _type(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
