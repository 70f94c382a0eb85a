"""Peers that exist on CUDA only."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operands import Operands, Problem
from bench.peers import Call, concatenated, inference_only


def cudnn_relu(operands: Operands) -> Call:
    """cuDNN's fused convolution, bias and ReLU; with a residual cudnn_convolution_add_relu."""
    weight, bias = operands.weight.detach(), operands.bias.detach()
    geometry = ([operands.problem.layer.stride] * 2, [0, 0], [1, 1], 1)
    if operands.problem.layout == "nhwc":
        weight = weight.contiguous(memory_format=torch.channels_last)
    if operands.residual is None:
        return lambda: torch.cudnn_convolution_relu(concatenated(operands), weight, bias, *geometry)
    return lambda: torch.cudnn_convolution_add_relu(
        concatenated(operands), weight, operands.residual, 1.0, bias, *geometry
    )


def addmm_missing(problem: Problem) -> str | None:
    if problem.layer.residual:
        return "takes no residual"
    return inference_only(problem)


def addmm_relu(operands: Operands) -> Call:
    """cuBLASLt's product with the bias and ReLU in its epilogue, over the channels of the NHWC view."""
    layer, bias = operands.problem.layer, operands.bias.detach()
    weight = operands.weight.detach().flatten(1).t()
    shape = (layer.batch, layer.out_size, layer.out_size, layer.out_channels)

    def call() -> Tensor:
        x = concatenated(operands)[:, :, :: layer.stride, :: layer.stride].permute(0, 2, 3, 1)
        return torch._addmm_activation(bias, x.reshape(-1, layer.in_channels), weight).view(shape).permute(0, 3, 1, 2)

    return call
