"""The device that the tests here run on: a GPU, or tests/ptx, which has one in name only and runs what nvcc made."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pointwise_ext as pw
from tests.problem import Problem, gradients, run

RUNTIME = ctypes.CDLL(None)
NOMINAL = hasattr(RUNTIME, "ptx_launches")  # PyTorch's own kernels do not run there
if NOMINAL:
    RUNTIME.ptx_launches.restype = ctypes.c_char_p
    RUNTIME.ptx_waits.restype = RUNTIME.ptx_memory_calls.restype = ctypes.c_int64
real = pytest.mark.skipif(NOMINAL, reason="needs a GPU that runs PyTorch's own kernels")
nominal = pytest.mark.skipif(not NOMINAL, reason="counts what tests/ptx is asked for")


def to_device(t: Tensor) -> Tensor:
    """A copy with the same strides, offset and surroundings, without a kernel."""
    memory = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).cuda()
    return memory.as_strided(t.shape, t.stride(), t.storage_offset())


def to_host(t: Tensor) -> Tensor:
    memory = torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage()).cpu()
    return memory.as_strided(t.shape, t.stride(), t.storage_offset())


class _Conv(torch.autograd.Function):
    """pw.pointwise_conv on the device, of tensors that are the host's."""

    @staticmethod
    def forward(ctx: Any, names: list[str], options: dict, *tensors: Tensor) -> Tensor:
        placed = {name: to_device(t.detach()).requires_grad_() for name, t in zip(names, tensors, strict=True)}
        with torch.enable_grad():
            ctx.y = run(pw.pointwise_conv, placed, options)
        ctx.leaves = list(placed.values())
        return to_host(ctx.y.detach())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        return (None, None, *map(to_host, torch.autograd.grad(ctx.y, ctx.leaves, to_device(dy))))


def conv(input: Tensor | list[Tensor], weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    residual = options.pop("residual", None)
    inputs = [input] if isinstance(input, Tensor) else input
    named = {f"x{i}": t for i, t in enumerate(inputs)} | {"weight": weight, "bias": bias, "residual": residual}
    named = {name: t for name, t in named.items() if t is not None}
    return _Conv.apply(list(named), options, *named.values())


def placed(problem: Problem) -> dict[str, Tensor]:
    """Its tensors, on the device."""
    if NOMINAL:
        return {name: to_device(t) for name, t in problem.placed().items()}
    return replace(problem, device="cuda").placed()


def check(problem: Problem) -> None:
    """Output and all gradients are right, on the device."""
    if NOMINAL:
        problem.check(conv)
    else:
        replace(problem, device="cuda").check()


def results(problem: Problem) -> dict[str, Tensor]:
    """The output and all gradients, computed on the device."""
    return {n: to_host(t) for n, t in gradients(pw.pointwise_conv, placed(problem), problem.options).items()}


def kernels(problem: Problem) -> str:
    """The names of the kernels that a forward and backward pass starts."""
    if NOMINAL:
        RUNTIME.ptx_reset()
        results(problem)
        return launches()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        results(problem)
        torch.cuda.synchronize()
    return " ".join(event.key for event in profile.key_averages())


def launches() -> str:
    """A line for each launch since the last reset: threads, blocks, shared memory, whether that is right, kernel."""
    return RUNTIME.ptx_launches().decode()
