"""Every case on the emulated CUDA kernels: right, the same in any order of warps, with NaN in all unwritten memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pointwise_ext as pw
from tests.emulated.cases import BASE, CASES
from tests.problem import gradients
from tests.tolerance import assert_bitwise_equal, assert_equal

pytestmark = pytest.mark.emulated


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, emulated) -> None:
    CASES[case].check(emulated)


@pytest.mark.parametrize(
    "case", ["float32-contiguous", "float16-channels_last", "float64-long_sum", "contiguous-sources_8"]
)
def test_warps_may_run_in_any_order(case: str, emulated, emulated_ops) -> None:
    problem = CASES[case]
    in_order = gradients(emulated, problem.placed(), problem.options)
    for seed in range(4):
        emulated_ops.set_schedule(True, seed)
        shuffled = gradients(emulated, problem.placed(), problem.options)
        for name, value in shuffled.items():
            assert_bitwise_equal(value, in_order[name], f"{name}, seed {seed}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tile", range(6))
def test_every_tile_and_share(tile: int, dtype: str, layout: str, emulated, emulated_ops) -> None:
    problem = replace(BASE, channels=(40, 100), size=(6, 9), dtype=dtype, layout=layout, residual=True)
    for splits in (1, 3):
        emulated_ops.set_tuning(tile, splits, False, False)
        problem.check(emulated)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fma_kernel_of_float32(layout: str, emulated, emulated_ops) -> None:
    emulated_ops.set_tuning(-1, 0, True, False)
    replace(BASE, layout=layout, residual=True).check(emulated)
    replace(BASE, layout=layout, channels=(300,), out_channels=150).check(emulated)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tf32_has_its_own_error(layout: str, emulated, emulated_ops) -> None:
    """10 bits of fraction: exact for small integers, else wrong in the fourth digit, which float32 is not."""
    emulated_ops.set_tuning(-1, 0, False, True)
    replace(BASE, layout=layout, integers=True, residual=True).check(emulated)
    problem = replace(BASE, layout=layout, channels=(300,), activation=None)
    t = problem.placed()
    exact = gradients(pw.reference.pointwise_conv, {n: v.double() for n, v in t.items()}, problem.options)["y"]
    errors = {}
    for tf32 in (False, True):
        emulated_ops.set_tuning(-1, 0, False, tf32)
        y = gradients(emulated, t, problem.options)["y"]
        errors[tf32] = float((y - exact).abs().max() / exact.abs().max())
    assert errors[False] < 1e-6 < 1e-5 < errors[True] < 1e-3


@pytest.mark.parametrize("tf32", [False, True])
def test_extreme_values(tf32: bool, emulated, emulated_ops) -> None:
    """Parts of a float32 keep what it is: Inf stays Inf, the largest numbers stay finite, tiny ones do not vanish."""
    emulated_ops.set_tuning(-1, 0, False, tf32)
    largest, inf = torch.finfo(torch.float32).max, torch.inf
    values = torch.tensor([inf, -inf, torch.nan, largest, -largest, 1e-30, 0.0, 3.0, 1 + 2**-20])
    x = values.view(1, 1, 1, -1)
    w = torch.tensor([1.0, -0.5, 2.0**-10, inf, 1.2345678]).view(-1, 1, 1, 1)
    got, want = emulated(x, w), torch.nn.functional.conv2d(x, w)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf() & ~tf32, want.isinf() & ~tf32)
    finite = want.isfinite() & got.isfinite()
    torch.testing.assert_close(got[finite], want[finite], rtol=2e-3 if tf32 else 3e-7, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gradient", ["contiguous", "channels_last", "transposed", "expanded"])
def test_gradient_in_another_format(gradient: str, layout: str, emulated) -> None:
    problem = replace(BASE, layout=layout, integers=True)  # exact, whatever the order of the sums
    t = problem.placed()
    t["dy"] = {
        "contiguous": lambda dy: dy.contiguous(),
        "channels_last": lambda dy: dy.contiguous(memory_format=torch.channels_last),
        "transposed": lambda dy: dy.mT.contiguous().mT,
        "expanded": lambda dy: torch.full((), 3.0).expand(dy.shape),  # as from y.sum()
    }[gradient](t["dy"])
    want = gradients(pw.reference.pointwise_conv, {name: v.double() for name, v in t.items()}, problem.options)
    for name, value in gradients(emulated, t, problem.options).items():
        assert_equal(value, want[name], name)


def test_nan_passes_relu(emulated) -> None:
    x = torch.randn(1, 3, 5, 5)
    x[0, 1, 2, 3] = torch.nan
    y = emulated(x, torch.randn(10, 3, 1, 1), activation="relu")
    assert bool(y[0, :, 2, 3].isnan().all())
    assert int(y.isnan().sum()) == 10
