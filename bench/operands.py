"""The tensors of one timed problem, and the answer every contestant has to give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.suites import Layer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Largest error of y over the largest |y|. bf16 has 8 bits, and some peers round twice (bias apart).
_FORWARD_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 4e-3}
# Largest norm of a gradient's error over its norm: one ReLU argument in a million that rounds across zero makes 6e-4.
_GRADIENT_TOLERANCE = {"fp32": 3e-3, "bf16": 8e-2, "fp16": 2e-2}
_TF32_TOLERANCE = 4e-3  # what CUDA makes of fp32 unless told otherwise


@dataclass(frozen=True)
class Problem:
    """One layer in one mode, dtype and layout on one device; `threads` 0: as many as PyTorch is set to.

    `cold`: images come from memory. Otherwise each call finds them where the last one left them.
    """

    layer: Layer
    mode: str
    dtype: str
    layout: str
    device: str = "cpu"
    threads: int = 0
    cold: bool = False

    @property
    def bytes(self) -> int:
        return self.layer.elements(self.mode) * DTYPES[self.dtype].itemsize

    @property
    def image_bytes(self) -> int:
        return self.layer.elements(self.mode, weights=False) * DTYPES[self.dtype].itemsize

    @property
    def flops(self) -> int:
        return self.layer.flops(self.mode)


@dataclass(frozen=True)
class Images:
    """One set of the tensors that differ from call to call."""

    inputs: list[Tensor]
    residual: Tensor | None
    grad_output: Tensor


class Operands:
    """Random tensors in the problem's layout. In backward and step they are leaves that ask for gradients.

    `use(i)` chooses the images that the next call sees, `advance()` those after the last: all contestants share one
    rotation, else one would find in the cache what another has just read.
    """

    def __init__(self, problem: Problem, weight: nn.Parameter, bias: nn.Parameter, images: list[Images]) -> None:
        self.problem, self.weight, self.bias, self.images = problem, weight, bias, images
        self.use(0)

    def use(self, index: int) -> None:
        self.index, images = index, self.images[index]
        self.inputs, self.residual, self.grad_output = images.inputs, images.residual, images.grad_output
        self.input = images.inputs[0] if len(images.inputs) == 1 else images.inputs
        residual = [] if images.residual is None else [images.residual]
        self.leaves = [*images.inputs, self.weight, self.bias, *residual]

    def advance(self) -> int:
        self.use((self.index + 1) % len(self.images))
        return self.index


def make_operands(problem: Problem, sets: int = 1, seed: int = 0) -> Operands:
    layer, train = problem.layer, problem.mode != "forward"
    generator = torch.Generator(problem.device).manual_seed(seed)
    memory_format = torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=problem.device) * scale).to(DTYPES[problem.dtype])

    def image(channels: int, size: int) -> Tensor:
        return random(layer.batch, channels, size, size).contiguous(memory_format=memory_format)

    def images() -> Images:
        return Images(
            [image(channels, layer.size).requires_grad_(train) for channels in layer.channels],
            image(layer.out_channels, layer.out_size).requires_grad_(train) if layer.residual else None,
            image(layer.out_channels, layer.out_size),
        )

    weight = random(layer.out_channels, layer.in_channels, 1, 1, scale=layer.in_channels**-0.5)
    parameters = (nn.Parameter(weight, train), nn.Parameter(random(layer.out_channels), train))
    return Operands(problem, *parameters, [images() for _ in range(sets)])


def gradients(y: Tensor, operands: Operands, retain_graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, operands.leaves, operands.grad_output, retain_graph=retain_graph)


def expected(operands: Operands) -> list[Tensor]:
    """y, and in backward and step the gradients, by plain PyTorch in fp32 from the same (rounded) operands."""
    layer = operands.problem.layer
    train = operands.problem.mode != "forward"
    leaves = [leaf.detach().float().requires_grad_(train) for leaf in operands.leaves]
    count = len(operands.inputs)
    y = nn.functional.conv2d(torch.cat(leaves[:count], 1), leaves[count], leaves[count + 1], layer.stride)
    y = torch.relu(y + leaves[-1] if layer.residual else y)
    if not train:
        return [y]
    return [y.detach(), *torch.autograd.grad(y, leaves, operands.grad_output.float())]


def disagreement(operands: Operands, got: list[Tensor], want: list[Tensor]) -> str | None:
    """Why `got` is not the answer, or None. y is judged by its largest error, a gradient by the norm of its error,
    since a ReLU whose argument rounds across zero flips whole products of a gradient."""
    problem = operands.problem
    tf32 = problem.device != "cpu" and problem.dtype == "fp32"
    names = ["y", *(f"gradient {i}" for i in range(len(want) - 1))]
    for name, mine, reference in zip(names, got, want, strict=True):
        if mine.shape != reference.shape:
            return f"{name} has shape {tuple(mine.shape)}, expected {tuple(reference.shape)}"
        difference = mine.detach().float() - reference
        tolerances = _FORWARD_TOLERANCE if name == "y" else _GRADIENT_TOLERANCE
        tolerance = max(tolerances[problem.dtype], _TF32_TOLERANCE if tf32 else 0.0)
        size = torch.norm if name != "y" else lambda x: x.abs().max()
        error = size(difference) / size(reference)
        if not error <= tolerance:  # also catches NaN
            return f"{name} is off by {error:.1e}, tolerance {tolerance:.0e}"
    return None
