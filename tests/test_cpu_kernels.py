"""Every instruction set of this build that the processor has, not only the best one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pointwise_ext.explain import cpu_kernels
from tests.problem import Problem
from tests.sanitize.build import compiler

ROOT = Path(__file__).resolve().parents[1]
ALL = [name for name, state in cpu_kernels() if not state.startswith("not")]
OTHERS = ALL[1:]

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

# The same operands beside pages that must not be touched: one byte too far stops the process.
GUARDED = """
from dataclasses import replace
import torch
from tests.emulated.guard import guarded
from tests.problem import Problem, run
from tests.test_forward import CASES, DTYPES
import pointwise_ext as pw
for i, problem in enumerate(p for p in CASES.values() if p.batch != 1):
    for j, dtype in enumerate(DTYPES):
        problem = replace(problem, dtype=dtype, layout=("contiguous", "channels_last")[(i + j) % 2])
        plain = problem.placed()
        plain.pop("dy")
        want = run(pw.pointwise_conv, plain, problem.options)
        for at_end in (False, True):
            print(problem.repro(), at_end, flush=True)
            out = guarded(torch.full_like(want, torch.nan), at_end)
            t = {{name: guarded(v, at_end) for name, v in plain.items()}}
            run(pw.pointwise_conv, t, problem.options, out=out)
            assert torch.equal(out, want)
            t = {{name: v.requires_grad_() for name, v in t.items()}}
            run(pw.pointwise_conv, t, problem.options).backward(guarded(torch.ones_like(want), at_end))
print("right")
"""


def run_with(name: str, code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code.format(name=name)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "POINTWISE_EXT_CPU": name, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert result.stdout.endswith("right\n"), f"{result.stdout[-500:]}{result.stderr[-2000:]}"


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of(name: str) -> None:
    run_with(name, CODE)


@pytest.mark.parametrize("name", ALL)
def test_nothing_outside_of_operands_is_touched(name: str) -> None:
    run_with(name, GUARDED)


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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one set of instructions")
@pytest.mark.parametrize("name", ["avx2", "avx512", "amx"])
def test_what_the_linker_may_share_is_compiled_for_any_processor(name: str) -> None:
    """Functions of a set of instructions have names of its own. g++ -O1 emitted one that had not, from AVX-512's unit,
    and the linker took it for all: processors without AVX-512 stopped at it."""
    if not shutil.which(compiler()[0]):
        pytest.skip(f"{compiler()[0]} is not installed")
    unit = [*compiler(), "-std=c++17", "-fopenmp", "-E", str(ROOT / f"csrc/cpu/isa_{name}.cpp")]
    text = subprocess.run(unit, check=True, capture_output=True, text=True).stdout
    before, switched = (
        {Path(file).resolve() for file in re.findall(r'(?m)^# 1 "([^<"]+)"', part)} for part in text.split('/isa.h"', 1)
    )
    files = switched - before - {ROOT / "csrc/activation.h"}  # always inlined, or templates of a set's own types
    assert ROOT / "csrc/cpu/vec.h" in files
    shared = [str(f) for f in files if ROOT not in f.parents or "PW_ISA" not in f.read_text()]
    assert not shared, "include these in csrc/cpu/common.h, before the set of instructions is switched on"


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
