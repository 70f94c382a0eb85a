"""What the host does for a call: launches, memory, waits. Its time is printed; a driver adds some 2 us a launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import pointwise_ext as pw
from tests.emulated.cases import BASE
from tests.gpu.device import RUNTIME, launches, nominal, placed
from tests.problem import Problem, run

pytestmark = [pytest.mark.gpu, nominal]

LAYER = replace(BASE, channels=(32, 64), out_channels=64, size=(28, 28), activation="relu")


@pytest.fixture(autouse=True)
def as_users_run(cuda_kernels) -> None:
    torch.use_deterministic_algorithms(False)  # else memory is filled


def started(call: Callable[[], object]) -> list[str]:
    """The launches of a call that has been made before, which waits for nothing."""
    call()
    RUNTIME.ptx_reset()
    call()
    assert RUNTIME.ptx_waits() == 0
    lines = launches().splitlines()
    assert all(" right _ZN2pw" in line for line in lines), lines
    return lines


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_forward_is_one_launch(dtype: str, layout: str) -> None:
    """It allocates the output alone."""
    problem = replace(LAYER, dtype=dtype, layout=layout, residual=True)
    t = placed(problem)
    kept = []
    with torch.no_grad():
        assert len(started(lambda: kept.append(run(pw.pointwise_conv, t, problem.options)))) == 1
    assert RUNTIME.ptx_memory_calls() == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_a_training_step_is_ours_alone(activation: str | None, layout: str) -> None:
    problem = replace(LAYER, channels=(64,), dtype="bfloat16", layout=layout, activation=activation)
    t = placed(problem)
    leaves = {name: v.requires_grad_() for name, v in t.items() if name != "dy"}

    def step() -> None:
        torch.autograd.grad(run(pw.pointwise_conv, leaves, problem.options), list(leaves.values()), t["dy"])

    # Forward; dX; dW with db, and the sum of its shares; for SiLU also a pass for dZ, and the sum of db's.
    assert len(started(step)) <= (6 if activation == "silu" else 4)


def test_a_launch_asks_for_memory_that_a_block_may_have(force: Callable) -> None:
    problem = Problem(channels=(512,), out_channels=128, size=(14, 14), dtype="bfloat16", layout="channels_last")
    t = placed(problem)
    for tile in range(6):
        for stays in (0, 1):
            force(tile=tile, splits=1, stays=stays)
            with torch.no_grad():
                started(lambda: run(pw.pointwise_conv, t, problem.options))


def test_host_time() -> None:
    x = placed(replace(BASE, channels=(8,), batch=1, size=(4, 4)))["x0"]
    module = pw.PointwiseConv2d(8, 8, activation="relu").cuda()
    calls = {
        "function": lambda: pw.pointwise_conv(x, module.weight, module.bias, activation="relu"),
        "module": lambda: module(x),
    }
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for name, call in calls.items():
                samples = []
                for _ in range(30):
                    start = time.perf_counter()
                    for _ in range(10):
                        call()
                    samples.append((time.perf_counter() - start) / 10)
                print(f"{name}{', training forward' if grad else ''}: {statistics.median(samples) * 1e6:.1f} us")
