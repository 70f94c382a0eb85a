"""Which kernels a call starts."""

from __future__ import annotations

import torch

import pointwise_ext as pw
from tests.problem import Problem, gradients


def kernels(problem: Problem) -> str:
    """The names of those that a forward and backward pass starts."""
    t = problem.placed()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        gradients(pw.pointwise_conv, t, problem.options)
        torch.cuda.synchronize()
    return " ".join(event.key for event in profile.key_averages())
