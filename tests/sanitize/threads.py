"""Forward and backward on 1, 2, 3 and 8 threads, each problem large enough for all of them: always the same bits."""

from __future__ import annotations

from dataclasses import replace

import torch

from pointwise_ext import _ops
from tests.problem import Problem
from tests.test_forward import DTYPES
from tests.test_threads import assert_same_bits, results

PROBLEMS = (
    Problem(channels=(67, 40), out_channels=130, size=(19, 23), residual=True, activation="silu"),
    Problem(channels=(31,), out_channels=29, batch=9, size=(33, 31), activation="relu"),  # dW is split over pixels
    Problem(channels=(93,), out_channels=66, groups=3, batch=3, size=(41, 37), stride=2, padding=1, activation="tanh"),
    Problem(channels=(300,), out_channels=517, batch=7, size=(7, 7), activation="gelu"),  # few pixels
    Problem(channels=(1100,), out_channels=1003, batch=3, size=(1, 1), bias=False),
)


def check(problem: Problem) -> None:
    torch.set_num_threads(1)
    expected = results(problem)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same_bits(results(problem), expected)


if __name__ == "__main__":
    assert _ops.loaded, _ops.load_error
    for problem in PROBLEMS:
        for dtype in DTYPES:
            for layout in ("contiguous", "channels_last"):
                case = replace(problem, dtype=dtype, layout=layout)
                print(case.repro(), flush=True)
                check(case)
