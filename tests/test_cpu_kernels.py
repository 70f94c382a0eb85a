"""Every instruction set of this build that the processor has, not only the best one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pointwise_ext.explain import cpu_kernels
from tests.problem import Problem

ROOT = Path(__file__).resolve().parents[1]
OTHERS = [name for name, state in cpu_kernels() if state.startswith("available")]

# Forward and backward in every dtype, both layouts, with tails in every dimension.
CODE = """
from dataclasses import replace
import pointwise_ext as pw
from pointwise_ext import _C
from tests.problem import Problem
from tests.test_forward import CASES, DTYPES
assert _C.cpu_capability() == {name!r}
cases = [p for p in CASES.values() if p.batch != 1]
cases += [Problem(channels=(37, 70), out_channels=53, size=(13, 11), residual=True, activation=a) for a in (
    "relu", "relu6", ("leaky_relu", 0.1), "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    ("clamp", -1.0, 1.0))]
for i, problem in enumerate(cases):
    for j, dtype in enumerate(DTYPES):
        problem = replace(problem, dtype=dtype, layout=("contiguous", "channels_last")[(i + j) % 2])
        try:
            problem.check()
        except AssertionError as error:
            raise SystemExit("POINTWISE_EXT_CPU={name} " + problem.repro() + ": " + str(error))
print("right")
"""


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "POINTWISE_EXT_CPU": name, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert result.stdout.strip() == "right", result.stderr[-2000:]


def test_an_unknown_name_is_refused() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from pointwise_ext import _C; print(_C.cpu_capability())"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "POINTWISE_EXT_CPU": "sse9"},
        timeout=300,
        check=False,
    )
    assert "sse9" in result.stderr


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_more_channels_than_fit_into_one_packed_panel(dtype: str, layout: str) -> None:
    """Sums over more than 2^18 channels go through partial sums; so does everything around them."""
    Problem(
        channels=(200_000, 70_001),
        out_channels=9,
        size=(3, 2),
        residual=True,
        activation="silu",
        dtype=dtype,
        layout=layout,
    ).check()
