"""Output and gradients of one call against float64, over sizes, options, dtypes and layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import pointwise_ext as pw
from tests.layouts import LAYOUTS
from tests.memory import require
from tests.problem import Problem

DTYPES = ("float32", "float64", "float16", "bfloat16")

CASES = {
    "plain": Problem(),
    "hw49_cin3_cout10": Problem(channels=(3,), out_channels=10, size=(7, 7)),
    "hw196": Problem(channels=(33,), out_channels=17, size=(14, 14)),
    "batch1_hw56": Problem(channels=(16,), out_channels=64, batch=1, size=(56, 56)),
    "one_pixel": Problem(size=(1, 1)),
    "one_row": Problem(size=(1, 37)),
    "one_input_channel": Problem(channels=(1,)),
    "one_output_channel": Problem(out_channels=1),
    "all_ones": Problem(channels=(1,), out_channels=1, batch=1, size=(1, 1)),
    "deep": Problem(channels=(515,), out_channels=35),
    "wide": Problem(channels=(7,), out_channels=300),
    "many_samples": Problem(batch=37, size=(3, 1)),
    "no_bias": Problem(bias=False),
    "residual": Problem(residual=True),
    "residual_relu": Problem(residual=True, activation="relu"),
    "residual_gelu_no_bias": Problem(bias=False, residual=True, activation="gelu"),
    "1d": Problem(size=(23,)),
    "3d": Problem(size=(2, 3, 5)),
    "unbatched": Problem(batch=None, activation="relu"),
    "unbatched_1d": Problem(batch=None, size=(9,), residual=True),
    "unbatched_3d": Problem(batch=None, size=(3, 2, 4), stride=2),
    "two_inputs": Problem(channels=(5, 3)),
    "eight_inputs": Problem(channels=(1, 2, 3, 4, 5, 6, 7, 8), residual=True, activation="relu"),
    "two_inputs_unbatched_1d": Problem(channels=(5, 3), batch=None, size=(7,)),
    "groups": Problem(channels=(12,), out_channels=9, groups=3),
    "groups_of_one": Problem(channels=(8,), out_channels=8, groups=8),
    "groups_of_one_to_two": Problem(channels=(8,), out_channels=16, groups=8),
    "groups_cut_through_inputs": Problem(channels=(5, 3, 4), out_channels=8, groups=4, residual=True),
    "groups_padding_stride": Problem(channels=(6,), groups=2, stride=2, padding=1, activation="silu"),
    "stride": Problem(stride=2),
    "stride_each": Problem(stride=(3, 1)),
    "stride_beyond_size": Problem(stride=7),
    "stride_1d": Problem(size=(23,), stride=5),
    "stride_3d": Problem(size=(4, 5, 6), stride=(2, 1, 3)),
    "padding": Problem(padding=1),
    "padding_each": Problem(padding=(0, 3), activation="sigmoid"),
    "padding_no_bias": Problem(padding=1, bias=False, activation="tanh"),
    "padding_residual": Problem(padding=2, residual=True, activation="relu"),
    "padding_stride": Problem(padding=(3, 2), stride=(2, 3), residual=True, activation="gelu"),
    "padding_beyond_stride": Problem(size=(1, 2), padding=5, stride=4),
    "padding_only_border": Problem(size=(1, 1), padding=1, stride=4),
    "padding_3d": Problem(size=(2, 3, 4), padding=(1, 0, 2), stride=(1, 2, 1)),
    "padding_same": Problem(padding="same"),
    "padding_valid": Problem(padding="valid", stride=2),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_case(case: str, dtype: str, layout: str, device: str) -> None:
    replace(CASES[case], dtype=dtype, layout=layout, device=device).check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [name for name, p in CASES.items() if p.activation in (None, "relu")])
def test_case_in_small_integers_is_exact(case: str, dtype: str, layout: str, device: str) -> None:
    replace(CASES[case], dtype=dtype, layout=layout, device=device, integers=True).check()


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last", "misaligned", "sliced", "permuted"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "problem",
    [
        Problem(channels=(9, 7), out_channels=19, size=(6, 7), residual=True, activation="relu", integers=True),
        Problem(channels=(10,), out_channels=6, size=(5, 8), groups=2, stride=2, padding=1, integers=True),
        Problem(channels=(16,), out_channels=16, size=(33,), activation=("leaky_relu", 0.5), integers=True),
    ],
    ids=["concat_residual_relu", "groups_stride_padding", "1d_leaky_relu"],
)
def test_layout(problem: Problem, dtype: str, layout: str, weight_layout: str, device: str) -> None:
    """Views into buffers of NaN: a read outside of a view, or a wrong stride, shows."""
    replace(problem, dtype=dtype, layout=layout, weight_layout=weight_layout, device=device).check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_different_layouts(dtype: str, device: str) -> None:
    problem = Problem(channels=(4, 5, 6), dtype=dtype, device=device, integers=True)
    t = problem.placed()
    inputs = [t["x0"].to(memory_format=torch.channels_last), t["x1"], t["x2"].transpose(2, 3).contiguous().mT]
    y = pw.pointwise_conv(inputs, t["weight"], t["bias"])
    torch.testing.assert_close(y, F.conv2d(torch.cat(inputs, 1), t["weight"], t["bias"]), rtol=0, atol=0)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_same_tensor_twice(conv, device: str) -> None:
    x = torch.randn(2, 4, 3, 3, device=device, requires_grad=True)
    w = torch.randn(5, 8, 1, 1, device=device)
    y, expected = conv([x, x], w), F.conv2d(torch.cat([x, x], 1), w)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x))


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_stands_in_for_the_functional_convolution(conv, spatial: int, device: str) -> None:
    """Positional arguments in the order of F.conv2d, dilation included."""
    x = torch.randn(2, 6, *[5] * spatial, device=device)
    w, b = torch.randn(4, 3, *[1] * spatial, device=device), torch.randn(4, device=device)
    arguments = (x, w, b, 2, 1, 3, 2)
    torch.testing.assert_close(conv(*arguments), getattr(F, f"conv{spatial}d")(*arguments))


@pytest.mark.parametrize("stride", [2, (2,), (2, 2), [2, 2]])
@pytest.mark.parametrize("padding", [1, (1,), (1, 1), [1, 1]])
def test_stride_and_padding_as_int_or_sequence(conv, stride, padding) -> None:
    x, w = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(conv(x, w, None, stride, padding), F.conv2d(x, w, None, 2, 1))


def test_a_sequence_of_one_input_is_that_input(conv) -> None:
    x, w = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 1, 1)
    assert torch.equal(conv([x], w), conv(x, w))
    assert torch.equal(conv((x,), w), conv(x, w))


def test_an_input_without_channels(conv) -> None:
    x, y = torch.randn(2, 3, 5, 4), torch.randn(2, 0, 5, 4)
    w = torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(conv([x, y], w), conv(x, w))


def test_border_is_activation_of_bias_and_residual(conv, device: str) -> None:
    x, w, b = torch.randn(1, 3, 2, 2), torch.randn(4, 3, 1, 1), torch.randn(4)
    r = torch.randn(1, 4, 4, 4)
    x, w, b, r = (t.to(device) for t in (x, w, b, r))
    y = conv(x, w, b, padding=1, activation="tanh", residual=r)
    border = torch.tanh(b[:, None, None] + r[0])
    torch.testing.assert_close(y[0, :, 0], border[:, 0])
    torch.testing.assert_close(y[0, :, :, -1], border[:, :, -1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_accumulates_in_32(dtype: torch.dtype, device: str) -> None:
    """4096 products of 1: a sum in bfloat16 would stop at 256, in float16 at 2048."""
    x = torch.ones(1, 4096, 3, 3, dtype=dtype, device=device)
    w = torch.ones(5, 4096, 1, 1, dtype=dtype, device=device)
    assert torch.equal(pw.pointwise_conv(x, w), torch.full((1, 5, 3, 3), 4096, dtype=dtype, device=device))


@pytest.mark.slow
def test_more_than_2_to_31_elements() -> None:
    """The last outputs, whose offsets do not fit 32 bits, and the first."""
    require(12 * 2**30)
    pixels = 2**31 // 6 + 7
    x = torch.ones(3, 1, pixels, dtype=torch.bfloat16)
    x[-1, 0, -1] = 3
    y = pw.pointwise_conv(x, torch.ones(2, 1, 1, dtype=torch.bfloat16), activation="relu")
    assert y.numel() > 2**31
    assert y[-1, -1, -1024:].tolist() == [1.0] * 1023 + [3.0]
    assert bool((y[0, 0, :1024] == 1).all())
