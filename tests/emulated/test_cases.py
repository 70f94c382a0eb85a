"""Every case on the emulated CUDA kernels: right, the same in any order of warps, with NaN in all unwritten memory."""

from __future__ import annotations

import pytest
import torch

from tests.emulated.cases import BASE, CASES
from tests.problem import gradients
from tests.tolerance import assert_bitwise_equal

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


def test_gradient_in_another_format(emulated) -> None:
    t = BASE.placed()
    plain = gradients(emulated, t, BASE.options)
    other = gradients(emulated, t | {"dy": t["dy"].to(memory_format=torch.channels_last)}, BASE.options)
    for name, value in other.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-5)


def test_nan_passes_relu(emulated) -> None:
    x = torch.randn(1, 3, 5, 5)
    x[0, 1, 2, 3] = torch.nan
    y = emulated(x, torch.randn(10, 3, 1, 1), activation="relu")
    assert bool(y[0, :, 2, 3].isnan().all())
    assert int(y.isnan().sum()) == 10
