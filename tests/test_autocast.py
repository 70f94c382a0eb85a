"""torch.autocast: the active dtype decides, as for nn.Conv2d."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pointwise_ext as pw

DTYPES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_has_the_active_dtype(conv, dtype, input_dtype, activation, device: str) -> None:
    x = torch.randn(2, 8, 4, 5, device=device).to(input_dtype)
    w, b = torch.randn(6, 8, 1, 1, device=device), torch.randn(6, device=device)
    r = torch.randn(2, 6, 4, 5, device=device)
    with torch.autocast(device, dtype):
        y = conv([x[:, :3], x[:, 3:]], w, b, activation=activation, residual=r)
        assert y.dtype == F.conv2d(x, w, b).dtype == dtype
    expected = conv(x.to(dtype), w.to(dtype), b.to(dtype), activation=activation, residual=r.to(dtype))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_parameters_dtype(dtype, device: str) -> None:
    """Forward under autocast, backward outside, as PyTorch recommends; and nn.Conv2d has the same gradients."""
    torch.manual_seed(1)
    x = torch.randn(2, 8, 16, 16, device=device)
    ours = pw.PointwiseConv2d(8, 6, activation="relu", device=device)
    theirs = nn.Conv2d(8, 6, 1, device=device)
    theirs.load_state_dict(ours.state_dict())
    with torch.autocast(device, dtype):
        got, expected = ours(x), F.relu(theirs(x))
    got.float().square().mean().backward()
    expected.float().square().mean().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_under_autocast(dtype, device: str) -> None:
    """Run inside as well: no half meets a bfloat16."""
    x = torch.randn(2, 8, 4, 5, device=device, requires_grad=True)
    w = torch.randn(6, 8, 1, 1, device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        y = pw.pointwise_conv(x, w, activation="silu")
        dx, dw = torch.autograd.grad(y, (x, w), torch.ones_like(y))
        expected = torch.autograd.grad(F.silu(F.conv2d(x, w)), (x, w), torch.ones_like(y))
    assert dx.dtype == dw.dtype == torch.float32
    torch.testing.assert_close((dx, dw), expected, rtol=5e-2, atol=5e-2)


def test_nested_and_disabled(conv, device: str) -> None:
    x, w = torch.randn(1, 8, 4, 4, device=device), torch.randn(6, 8, 1, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        with torch.autocast(device, enabled=False):
            assert conv(x, w).dtype == torch.float32
        assert conv(x, w).dtype == torch.bfloat16
    assert conv(x, w).dtype == torch.float32


def test_float64_stays(conv, device: str) -> None:
    x, w = torch.randn(1, 8, 4, 4, device=device).double(), torch.randn(6, 8, 1, 1, device=device).double()
    with torch.autocast(device, torch.bfloat16):
        assert conv(x, w).dtype == F.conv2d(x, w).dtype == torch.float64


def test_out_under_autocast(conv) -> None:
    x, w = torch.randn(1, 8, 4, 4), torch.randn(6, 8, 1, 1)
    out = torch.empty(1, 6, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        conv(x, w, out=out)
        torch.testing.assert_close(out, conv(x, w))


def test_cast_weights_are_cached() -> None:
    """The weight is cast once for two calls, as for nn.Conv2d."""
    x, w = torch.randn(1, 8, 4, 4).bfloat16(), torch.randn(8, 8, 1, 1, requires_grad=True)
    with torch.profiler.profile() as profile, torch.autocast("cpu", torch.bfloat16):
        pw.pointwise_conv(pw.pointwise_conv(x, w), w)
    casts = sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")
    assert casts == 1
