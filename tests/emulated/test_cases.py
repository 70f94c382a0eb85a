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
