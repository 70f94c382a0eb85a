"""Empty sizes: an empty output or one of bias alone, and gradients of zero."""

from __future__ import annotations

import pytest
import torch

CASES = {
    "batch": (0, 3, 4, 5),
    "height": (2, 3, 0, 5),
    "width": (2, 3, 4, 0),
    "all": (0, 3, 0, 0),
    "unbatched": (3, 0, 5),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_empty_input(conv, case: str, dtype, activation, channels_last: bool, device: str) -> None:
    shape = CASES[case]
    x = torch.randn(shape, dtype=dtype, device=device)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    leaves = [x, torch.randn(6, 3, 1, 1, dtype=dtype, device=device), torch.randn(6, dtype=dtype, device=device)]
    leaves = [t.requires_grad_() for t in leaves]
    y = conv(*leaves, activation=activation)
    assert y.shape == (*shape[:-3], 6, *shape[-2:])
    grads = torch.autograd.grad(y.sum(), leaves)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad.shape == leaf.shape
        assert not bool(grad.any())


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 3, 0, 0)])
def test_padding_around_nothing_is_border(conv, shape, device: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    w, b = torch.randn(6, 3, 1, 1, device=device, requires_grad=True), torch.randn(6, device=device, requires_grad=True)
    y = conv(x, w, b, padding=1, activation="tanh")
    torch.testing.assert_close(y, torch.tanh(b)[:, None, None].expand(y.shape))
    dx, dw, db = torch.autograd.grad(y.sum(), (x, w, b))
    assert dx.shape == x.shape
    assert not bool(dw.any())
    torch.testing.assert_close(db, (1 - torch.tanh(b) ** 2) * (y.numel() // 6))


def test_no_input_channels(conv, device: str) -> None:
    b = torch.randn(6, device=device)
    y = conv(torch.randn(2, 0, 4, 5, device=device), torch.randn(6, 0, 1, 1, device=device), b)
    torch.testing.assert_close(y, b[:, None, None].expand(2, 6, 4, 5))


def test_no_output_channels(conv, device: str) -> None:
    x = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    y = conv(x, torch.randn(0, 3, 1, 1, device=device))
    assert y.shape == (2, 0, 4, 5)
    assert not bool(torch.autograd.grad(y.sum(), x)[0].any())


def test_double_backward_of_an_empty_batch(conv, device: str) -> None:
    x = torch.randn(0, 3, 4, 5, device=device, requires_grad=True)
    w = torch.randn(6, 3, 1, 1, device=device, requires_grad=True)
    (dw,) = torch.autograd.grad(conv(x, w, activation="silu").sum(), w, create_graph=True)
    (ddw,) = torch.autograd.grad(dw.sum(), w, allow_unused=True)  # None counts as zero, as nn.Conv2d gives it
    assert ddw is None or not bool(ddw.any())
