"""One random call of pointwise_conv as plain data, how to run it, and when its result counts as right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import chain

import torch
from torch import Tensor

import pointwise_ext as pw
from tests.layouts import place
from tests.tolerance import assert_equal, assert_within

# Where a derivative jumps: a sample rounded across it has another gradient, in PyTorch too.
KINKS = {
    "relu": (0.0,),
    "relu6": (0.0, 6.0),
    "leaky_relu": (0.0,),
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
}


@dataclass(frozen=True)
class Problem:
    """A call: sizes, options, and how every tensor lies in memory. Equal problems have equal tensors."""

    channels: tuple[int, ...] = (8,)  # of each input
    out_channels: int = 6
    batch: int | None = 2  # None: unbatched
    size: tuple[int, ...] = (5, 4)
    groups: int = 1
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    bias: bool = True
    residual: bool = False
    activation: str | tuple | None = None
    dtype: str = "float32"
    layout: str = "contiguous"  # of inputs, residual and the output's gradient
    weight_layout: str = "contiguous"
    device: str = "cpu"
    integers: bool = False  # small integers: sums are exact, and so results must be equal
    seed: int = 0

    @classmethod
    def from_json(cls, text: str) -> Problem:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()})

    def repro(self) -> str:
        """One line for a shell that runs this problem alone."""
        changed = {k: v for k, v in asdict(self).items() if v != getattr(Problem, k)}
        return f"python -m tests.repro '{json.dumps(changed)}'"

    @property
    def options(self) -> dict:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "groups": self.groups,
            "activation": self.activation,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Inputs "x0", "x1", ..., "weight", "bias", "residual" and the gradient "dy", in float64, contiguous."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            if self.integers:
                return torch.randint(-2, 3, shape, generator=generator).double()
            t = torch.randn(shape, generator=generator, dtype=torch.float64)
            return t.to(getattr(torch, self.dtype)).double()  # the same values in every precision

        batch = () if self.batch is None else (self.batch,)
        t = {f"x{i}": draw(*batch, c, *self.size) for i, c in enumerate(self.channels)}
        t["weight"] = draw(self.out_channels, sum(self.channels) // self.groups, *[1] * len(self.size))
        if self.bias:
            t["bias"] = draw(self.out_channels)
        y_shape = self._output_shape(t)
        if self.residual:
            t["residual"] = draw(*y_shape)
        t["dy"] = draw(*y_shape)
        if self._kinks() and not self.integers:
            z = run(pw.reference.pointwise_conv, t, {**self.options, "activation": None})
            for kink in self._kinks():
                t["dy"][(z - kink).abs() < 0.05] = 0
        if self.layout == "expanded" and self.batch:
            t |= {name: v[:1].expand(v.shape) for name, v in t.items() if name not in ("weight", "bias")}
        return t

    def _output_shape(self, t: dict[str, Tensor]) -> torch.Size:
        meta = {name: v.to("meta") for name, v in t.items()}
        return run(pw.reference.pointwise_conv, meta, self.options).shape

    def _kinks(self) -> tuple[float, ...]:
        name, *parameters = self.activation if isinstance(self.activation, tuple) else (self.activation,)
        return tuple(parameters) if name == "clamp" else KINKS.get(name, ())

    def placed(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors in this problem's dtype, device and layouts."""
        return {
            name: place(
                t.to(getattr(torch, self.dtype)),
                {"weight": self.weight_layout, "bias": "sliced"}.get(name, self.layout),
                spatial=len(self.size),
                device=self.device,
            )
            for name, t in (tensors or self.tensors()).items()
        }

    def check(self, conv: Callable[..., Tensor] | None = None) -> None:
        """Output and every gradient of `conv` are right: equal for integers, else within twice PyTorch's own error."""
        conv = pw.pointwise_conv if conv is None else conv
        exact = self.tensors()
        placed = self.placed(exact)
        got = gradients(conv, placed, self.options)
        want = gradients(pw.reference.pointwise_conv, exact, self.options)
        if self.integers:
            for name, value in got.items():
                assert_equal(value, want[name], name)
            return
        plain = {name: t.to(getattr(torch, self.dtype)).to(self.device) for name, t in exact.items()}
        own = gradients(pw.reference.pointwise_conv, plain, self.options)
        # Root of the sum of squares of all terms: what rounding errors are proportional to.
        squares = {name: t.square() for name, t in exact.items()}
        scale = gradients(pw.reference.pointwise_conv, squares, {**self.options, "activation": None})
        for name, value in got.items():
            assert_within(value, want[name], own[name], scale[name].sqrt(), name)


def run(conv: Callable[..., Tensor], t: dict[str, Tensor], options: dict, **more) -> Tensor:
    inputs = [v for name, v in t.items() if name.startswith("x")]
    input = inputs[0] if len(inputs) == 1 else inputs
    return conv(input, t["weight"], t.get("bias"), residual=t.get("residual"), **options, **more)


def gradients(conv: Callable[..., Tensor], t: dict[str, Tensor], options: dict) -> dict[str, Tensor]:
    """The output "y" and the gradient of each argument, under its name."""
    leaves = {name: v.detach().requires_grad_() for name, v in t.items() if name != "dy"}
    y = run(conv, leaves, options)
    grads = torch.autograd.grad(y, list(leaves.values()), t["dy"])
    return dict(chain([("y", y.detach())], zip(leaves, grads, strict=True)))


def variants(problem: Problem, **choices) -> list[Problem]:
    """The problem with each field set to each of its choices, one field at a time."""
    return [replace(problem, **{field: value}) for field, values in choices.items() for value in values]
