"""The device that the tests here run on: a GPU, or tests/ptx, which has one in name only and runs what nvcc made."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

import pointwise_ext as pw
from tests.problem import Problem, gradients, run

_runtime = ctypes.CDLL(None)
NOMINAL = hasattr(_runtime, "ptx_launches")  # PyTorch's own kernels do not run there
if NOMINAL:
    _runtime.ptx_launches.restype = ctypes.c_char_p
    _runtime.ptx_waits.restype = _runtime.ptx_memory_calls.restype = ctypes.c_int64


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


def check(problem: Problem) -> None:
    """Output and all gradients are right, on the device."""
    if NOMINAL:
        problem.check(conv)
    else:
        problem.on("cuda").check()


def results(problem: Problem) -> dict[str, Tensor]:
    """The output and all gradients, computed on the device."""
    if NOMINAL:
        return gradients(conv, problem.placed(), problem.options)
    return gradients(pw.pointwise_conv, problem.on("cuda").placed(), problem.options)


def kernels(problem: Problem) -> str:
    """The names of the kernels that a forward and backward pass starts."""
    if NOMINAL:
        _runtime.ptx_reset()
        results(problem)
        return launches()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        results(problem)
        torch.cuda.synchronize()
    return " ".join(event.key for event in profile.key_averages())


def launches() -> str:
    """A line for each launch since the last reset: threads, blocks, shared memory, whether that is right, kernel."""
    return _runtime.ptx_launches().decode()
