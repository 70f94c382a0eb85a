"""Who is timed: this package, and every other way PyTorch offers to compute the same layer.

A peer turns operands into a call without arguments that returns y. Preparation (module, prepacked weights, compilation)
is outside the clock; whatever a user would pay per call, such as the concatenation of two inputs, is inside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pointwise_ext as pw
from bench.operands import Operands, Problem

Call = Callable[[], Tensor]
EXTENSION_LOADED = pw._ops.loaded
OURS = "pointwise_ext" if EXTENSION_LOADED else "pointwise_ext (reference, extension not loaded)"
EAGER = "nn.Conv2d + ReLU"


def always(problem: Problem) -> str | None:
    return None


def inference_only(problem: Problem) -> str | None:
    return None if problem.mode == "forward" else "has no gradient"


def installed(*modules: str) -> str | None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"not installed: pip install {' '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Peer:
    """`prepare(operands)` builds the call; `missing(problem)` says why this peer cannot take part, or None.

    `spins`: a runtime with threads of its own, which stay busy for a while after their last work.
    """

    name: str
    prepare: Callable[[Operands], Call]
    missing: Callable[[Problem], str | None] = always
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    devices: tuple[str, ...] = ("cpu", "cuda")
    spins: bool = False


def concatenated(operands: Operands) -> Tensor:
    x = operands.input
    return x if isinstance(x, Tensor) else torch.cat(x, 1)


def finish(y: Tensor, residual: Tensor | None) -> Tensor:
    """In place: the fastest eager way, and allowed in training too, for none of the products saves its output."""
    return (y if residual is None else y.add_(residual)).relu_()


def ours(operands: Operands) -> Call:
    weight, bias, stride = operands.weight, operands.bias, operands.problem.layer.stride
    conv = pw.pointwise_conv
    if operands.residual is None:
        return lambda: conv(operands.input, weight, bias, stride, activation="relu")
    return lambda: conv(operands.input, weight, bias, stride, activation="relu", residual=operands.residual)


def conv_module(operands: Operands) -> nn.Conv2d:
    """nn.Conv2d on these very parameters."""
    layer = operands.problem.layer
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, layer.stride, device="meta")
    conv.weight, conv.bias = operands.weight, operands.bias
    return conv


def eager(operands: Operands) -> Call:
    conv, relu = conv_module(operands), nn.ReLU(inplace=True)
    if operands.residual is None:
        return lambda: relu(conv(concatenated(operands)))
    return lambda: relu(conv(concatenated(operands)).add_(operands.residual))


def _used_pixels(x: Tensor, stride: int) -> Tensor:
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def linear(operands: Operands) -> Call:
    """F.linear over the channels of the NHWC view."""
    stride, weight = operands.problem.layer.stride, operands.weight.flatten(1)

    def call() -> Tensor:
        x = _used_pixels(concatenated(operands), stride).permute(0, 2, 3, 1)
        return finish(F.linear(x, weight, operands.bias).permute(0, 3, 1, 2), operands.residual)

    return call


def baddbmm(operands: Operands) -> Call:
    """One matrix product per image of an NCHW batch."""
    layer = operands.problem.layer
    weight = operands.weight.flatten(1).expand(layer.batch, -1, -1)
    bias = operands.bias[None, :, None]
    shape = (layer.batch, layer.out_channels, layer.out_size, layer.out_size)

    def call() -> Tensor:
        x = _used_pixels(concatenated(operands), layer.stride).flatten(2)
        return finish(torch.baddbmm(bias, weight, x).view(shape), operands.residual)

    return call


def mkldnn(operands: Operands, prepacked: bool = False) -> Call:
    """Inductor's fused oneDNN operator, called directly; prepacked: on the weight in oneDNN's blocked format."""
    stride, weight = [operands.problem.layer.stride] * 2, operands.weight.detach()
    if prepacked:
        size = list(concatenated(operands).shape)
        weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), [0, 0], stride, [1, 1], 1, size)
    pointwise, bias, residual = torch.ops.mkldnn._convolution_pointwise, operands.bias, operands.residual
    if residual is None:
        return lambda: pointwise(concatenated(operands), weight, bias, [0, 0], stride, [1, 1], 1, "relu", [], "")
    return lambda: finish(
        pointwise(concatenated(operands), weight, bias, [0, 0], stride, [1, 1], 1, "none", [], ""), residual
    )


def mkldnn_missing(problem: Problem) -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    return inference_only(problem)


def compiled(operands: Operands, **options: object) -> Call:
    """torch.compile of nn.Conv2d + ReLU; in inference on CPU with the weights frozen into the graph."""
    import torch._functorch.config
    import torch._inductor.config

    torch._functorch.config.donated_buffer = False  # the timed backward keeps its graph
    frozen = operands.problem.mode == "forward" and operands.problem.device == "cpu"

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv_module(operands)

        def forward(self, x: Tensor | list[Tensor], residual: Tensor | None) -> Tensor:
            y = self.conv(x if isinstance(x, Tensor) else torch.cat(x, 1))
            return torch.relu(y if residual is None else y + residual)

    torch.compiler.reset()  # else the tenth shape runs into the recompile limit
    module = torch.compile(Module().eval(), **options)
    with torch._inductor.config.patch(freezing=frozen):
        module(operands.input, operands.residual)
    return lambda: module(operands.input, operands.residual)
