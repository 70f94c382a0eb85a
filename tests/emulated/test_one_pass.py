"""dX, dW and db by one kernel: right, the same in every run and order of warps, and not where its sums do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.emulated.cases import BASE, GATED, ONE_PASS
from tests.problem import gradients
from tests.tolerance import assert_bitwise_equal

pytestmark = pytest.mark.emulated


def force(ops, one_pass: int, gate: int = -1) -> int:
    ops.set_tuning(-1, 0, False, False, gate, one_pass)
    return ops.one_passes()


@pytest.mark.parametrize("case", ONE_PASS)
def test_case(case: str, emulated, emulated_ops) -> None:
    before = force(emulated_ops, 1)
    ONE_PASS[case].check(emulated)
    assert emulated_ops.one_passes() == before + 1


@pytest.mark.parametrize("case", GATED)
def test_others_fall_back(case: str, emulated, emulated_ops) -> None:
    before = force(emulated_ops, 1)
    GATED[case].check(emulated)
    problem = GATED[case]
    if problem.dtype == "float32" or len(problem.channels) > 1 or problem.groups > 1:
        assert emulated_ops.one_passes() == before


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_as_the_two_products(layout: str, emulated, emulated_ops) -> None:
    """Sums of small integers are exact, so that the ways must agree to the bit; and a second run with them."""
    problem = replace(BASE, dtype="bfloat16", layout=layout, size=(14, 14), integers=True)
    t = problem.placed()
    force(emulated_ops, 0, 1)
    want = gradients(emulated, t, problem.options)
    force(emulated_ops, 1)
    for schedule in ((False, 0), (False, 0), (True, 1), (True, 2)):
        emulated_ops.set_schedule(*schedule)
        for name, value in gradients(emulated, t, problem.options).items():
            assert_bitwise_equal(value, want[name], f"{name}, {schedule}")


def test_gradient_in_another_layout(emulated, emulated_ops) -> None:
    problem = replace(BASE, dtype="bfloat16", integers=True)
    t = problem.placed()
    t["dy"] = t["dy"].contiguous(memory_format=torch.channels_last)
    force(emulated_ops, 0, 0)
    want = gradients(emulated, t, problem.options)
    force(emulated_ops, 1)
    for name, value in gradients(emulated, t, problem.options).items():
        assert_bitwise_equal(value, want[name], name)
