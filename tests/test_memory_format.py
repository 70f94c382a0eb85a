"""The output lies as the first input does, decided by strides as nn.Conv2d decides; the weight has no say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pointwise_ext as pw

# (N, C, H, W), with every way for channels or pixels to be one.
SHAPES = [
    (2, 8, 4, 5),
    (1, 8, 4, 5),
    (2, 8, 1, 1),
    (2, 1, 4, 5),
    (1, 1, 4, 4),
    (1, 8, 1, 1),
    (2, 8, 4, 1),
    (1, 1, 1, 1),
]


def as_format(t: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A copy whose strides are those of the format in every dimension, also those of size 1."""
    return torch.empty(t.shape, memory_format=memory_format, dtype=t.dtype).copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("out_channels", [1, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_strides_are_those_of_conv2d(conv, shape, out_channels, input_format, weight_format, dtype) -> None:
    """Stride for stride, in the ambiguous sizes too, but for a contiguous weight: its format decides nothing here."""
    x = as_format(torch.randn(shape, dtype=dtype), input_format)
    w = torch.randn(out_channels, shape[1], 1, 1, dtype=dtype)
    expected = F.conv2d(x, w).stride()
    assert conv(x, as_format(w, weight_format), activation="relu").stride() == expected


@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last_3d])
def test_3d(conv, input_format) -> None:
    x = torch.randn(2, 4, 3, 2, 5).to(memory_format=input_format)
    y = conv(x, torch.randn(6, 4, 1, 1, 1).to(memory_format=torch.channels_last_3d))
    assert y.is_contiguous(memory_format=input_format)


def test_1d_and_unbatched_keep_channels_innermost(conv) -> None:
    """One spatial dimension has no memory_format in PyTorch; here it is kept as well."""
    w1, w2 = torch.randn(6, 8, 1), torch.randn(6, 8, 1, 1)
    assert conv(torch.randn(2, 5, 8).mT, w1).stride() == (30, 1, 6)
    assert conv(torch.randn(2, 8, 5), w1).stride() == (30, 5, 1)
    assert conv(torch.randn(4, 5, 8).permute(2, 0, 1), w2).stride() == (1, 30, 6)
    assert conv(torch.randn(8, 4, 5), w2).stride() == (20, 5, 1)


def test_a_slice_counts_as_the_format_it_was_cut_from(conv) -> None:
    x = torch.randn(2, 16, 6, 7).to(memory_format=torch.channels_last)
    w = torch.randn(6, 5, 1, 1)
    assert conv(x[:, 3:8, 1:5, 2:6], w).is_contiguous(memory_format=torch.channels_last)
    assert conv(x.contiguous()[:, 3:8, 1:5, 2:6], w).is_contiguous()


def test_the_first_input_decides(conv) -> None:
    a = torch.randn(2, 3, 4, 5)
    b = torch.randn(2, 5, 4, 5).to(memory_format=torch.channels_last)
    w = torch.randn(6, 8, 1, 1)
    r = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last)
    assert conv([a, b], w, residual=r).is_contiguous()
    assert conv([b, a], w, residual=r.contiguous()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
def test_stride_and_padding_keep_the_format(conv, stride: int) -> None:
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    w = torch.randn(6, 3, 1, 1)
    assert conv(x, w, None, stride, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_lie_as_their_tensors_do(input_format) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=input_format).requires_grad_()
    w = torch.randn(6, 3, 1, 1, requires_grad=True)
    dx, dw = torch.autograd.grad(pw.pointwise_conv(x, w, activation="relu").sum(), (x, w))
    assert dx.stride() == x.stride()
    assert dw.stride() == w.stride()
