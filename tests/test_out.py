"""out=: writes into the tensor given, by PyTorch's rules."""

from __future__ import annotations

import pytest
import torch

from tests.layouts import LAYOUTS, place
from tests.problem import Problem, run
from tests.tolerance import assert_equal

PROBLEM = Problem(channels=(5, 3), residual=True, activation="relu", padding=1, stride=2, integers=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "expanded"])
def test_any_layout(conv, layout: str, dtype: str, device: str) -> None:
    t = PROBLEM.tensors()
    expected = run(conv, t, PROBLEM.options)
    placed = {name: v.to(device, getattr(torch, dtype)) for name, v in t.items()}
    out = place(torch.zeros_like(expected, dtype=getattr(torch, dtype)), layout, device=device)
    strides, pointer = out.stride(), out.data_ptr()
    result = run(conv, placed, PROBLEM.options, out=out)
    assert result is out
    assert (out.stride(), out.data_ptr()) == (strides, pointer)
    assert_equal(out, expected)


def test_nothing_outside_of_out_is_written(conv, device: str) -> None:
    x, w = torch.ones(2, 3, 4, 5, device=device), torch.ones(6, 3, 1, 1, device=device)
    buffer = torch.full((4, 8, 6, 7), -1.0, device=device)
    inside = (slice(1, 3), slice(1, 7), slice(1, 5), slice(1, 6))
    conv(x, w, out=buffer[inside])
    assert bool((buffer[inside] == 3).all())
    assert int((buffer == -1).sum()) == buffer.numel() - 2 * 6 * 4 * 5


def test_an_empty_out_is_resized(conv) -> None:
    x, w = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 1)
    out = torch.empty(0)
    assert conv(x, w, out=out) is out
    torch.testing.assert_close(out, conv(x, w))


def test_another_dtype_is_cast_where_pytorch_would(conv) -> None:
    x, w = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 1)
    wide = torch.empty(2, 6, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x, w, out=wide), conv(x, w).double())
    with pytest.raises(RuntimeError, match=r"out has dtype .*[Ii]nt.*, expected one that"):
        conv(x, w, out=torch.empty(2, 6, 4, 5, dtype=torch.int32))


def test_out_may_be_an_input_or_the_residual(conv) -> None:
    x, w = torch.randn(2, 4, 4, 5), torch.randn(4, 4, 1, 1)
    for name in ("x", "residual"):
        r = torch.randn(2, 4, 4, 5)
        expected = conv(x, w, residual=r)
        a, b = x.clone(), r.clone()
        torch.testing.assert_close(conv(a, w, residual=b, out=a if name == "x" else b), expected)


def test_autograd_is_refused(conv) -> None:
    x, w = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 1, requires_grad=True)
    out = torch.empty(2, 6, 4, 5)
    with pytest.raises(RuntimeError, match="out was given and an argument requires grad"):
        conv(x, w, out=out)
    with torch.no_grad():
        torch.testing.assert_close(conv(x, w, out=out), conv(x, w))


def test_writing_is_seen_by_autograd(conv) -> None:
    """A tensor saved for backward and then overwritten through out= is noticed."""
    saved = torch.randn(2, 6, 4, 5, requires_grad=True)
    out = saved.detach()
    loss = (saved * saved.clone()).sum()
    y = saved.exp()
    loss = y.square().sum()
    conv(torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 1), out=y.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert out.shape == y.shape
