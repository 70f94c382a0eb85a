"""When a result is right: within twice the error of PyTorch in the same dtype, or equal where sums are exact."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within(actual: Tensor, exact: Tensor, own: Tensor, scale: Tensor, name: str = "result") -> None:
    """max|actual - exact| <= 2 max|own - exact| + 2 eps max(scale).

    2 eps are 8 in float32, whose sums, unlike those of 16 bits, have its own precision, and 256 in float64, which is
    its own yardstick.

    Args:
        actual: what is tested. exact: the same in float64. own: PyTorch's result in the dtype of `actual`.
        scale: size of the terms summed; keeps an `own` that is exact by luck from failing what is right.
    """
    _assert_same_form(actual, own, name)
    if actual.numel() == 0:
        return
    exact = exact.to(actual.device)
    error, own_error = (actual.double() - exact).abs(), (own.double() - exact).abs()
    slack = {torch.float64: 256, torch.float32: 8}.get(actual.dtype, 2) * torch.finfo(actual.dtype).eps
    allowed = 2 * own_error.max() + slack * scale.max().to(actual.device)
    if not bool(error.max() <= allowed):  # so that a NaN fails
        where = _coordinate(torch.where(error.isnan(), torch.inf, error).argmax(), actual.shape)
        raise AssertionError(
            f"{name}: error {error[where]:.3g} at {where}, allowed {allowed:.3g} (PyTorch's: {own_error.max():.3g}); "
            f"got {actual[where]:.9g}, exact {exact[where]:.9g}"
        )


def assert_equal(actual: Tensor, exact: Tensor, name: str = "result") -> None:
    """actual equals the float64 values `exact`, rounded to its dtype; NaN equals NaN."""
    expected = exact.to(actual.device, actual.dtype)
    _assert_same_form(actual, expected, name)
    wrong = (actual != expected) & ~(actual.isnan() & expected.isnan())
    if bool(wrong.any()):
        where = _coordinate(wrong.int().argmax(), actual.shape)
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} values differ, the first at {where}: "
            f"got {actual[where]:.9g}, expected {expected[where]:.9g}"
        )


def assert_bitwise_equal(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """The same bits, so that NaN equals NaN and -0 differs from 0."""
    _assert_same_form(actual, expected, name)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    assert torch.equal(actual.contiguous().view(bits), expected.contiguous().view(bits)), f"{name}: bits differ"


def _assert_same_form(actual: Tensor, expected: Tensor, name: str) -> None:
    got, want = (actual.shape, actual.dtype), (expected.shape, expected.dtype)
    assert got == want, f"{name}: got {got}, expected {want}"


def _coordinate(index: Tensor, shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(index, shape))
