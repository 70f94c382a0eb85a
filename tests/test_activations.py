"""Activations: formulas, NaN, infinities, derivatives at the kinks, and how the argument is read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

import pointwise_ext as pw
from pointwise_ext.activations import ACTIVATIONS
from tests.problem import Problem

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)

# Written out once more, so that the table of the package is itself tested.
FORMULAS = {
    None: lambda z: z,
    "relu": lambda z: torch.maximum(z, tensor(0.0)),
    "relu6": lambda z: z.clip(0, 6),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    ("leaky_relu", 0.2): lambda z: torch.where(z > 0, z, 0.2 * z),
    ("leaky_relu", -0.5): lambda z: torch.where(z > 0, z, -0.5 * z),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z / 2 * (1 + torch.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: z / 2 * (1 + torch.tanh(SQRT_2_OVER_PI * (z + 0.044715 * z**3))),
    "hardswish": lambda z: z * (z + 3).clip(0, 6) / 6,
    "hardsigmoid": lambda z: (z + 3).clip(0, 6) / 6,
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "tanh": lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)),
    ("clamp", -1.0, 2.0): lambda z: z.clip(-1, 2),
    ("clamp", 0, 6): lambda z: z.clip(0, 6),
    ("clamp", -math.inf, 0.5): lambda z: z.clip(max=0.5),
    ("clamp", 1.0, -1.0): lambda z: torch.full_like(z, -1.0),  # the upper bound wins
}
IDS = [str(name) for name in FORMULAS]


def identity(z: Tensor, conv, activation, **more) -> Tensor:
    """activation(z), computed by a convolution with the weight 1."""
    one = torch.ones(1, 1, 1, dtype=z.dtype, device=z.device)
    return conv(z[None, None], one, activation=activation, **more)[0, 0]


def test_every_activation_is_in_the_list() -> None:
    tested = {a[0] if isinstance(a, tuple) else a for a in FORMULAS} - {None}
    assert tested == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", FORMULAS, ids=IDS)
def test_formula(conv, activation, device: str) -> None:
    z = torch.linspace(-8, 8, 4097, dtype=torch.float64)
    y = identity(z.to(device), conv, activation).cpu()
    torch.testing.assert_close(y, FORMULAS[activation](z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", FORMULAS, ids=IDS)
def test_output_and_gradients(activation, dtype: str, layout: str, device: str) -> None:
    Problem(
        channels=(21,),
        out_channels=18,
        size=(6, 7),
        activation=activation,
        residual=True,
        dtype=dtype,
        layout=layout,
        device=device,
    ).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", [a for a in FORMULAS if a is not None], ids=IDS[1:])
def test_nan_and_infinities(activation, dtype: torch.dtype, device: str) -> None:
    """NaN stays NaN, and large values become what the formula has in float64, not NaN."""
    z = tensor([math.nan, math.inf, -math.inf, 1e4, -1e4, 0.0, -0.0, math.nan] * 9, dtype=dtype, device=device)
    expected = identity(z.cpu().double(), pw.reference.pointwise_conv, activation)
    torch.testing.assert_close(
        identity(z, pw.pointwise_conv, activation).cpu(), expected.to(dtype), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", [a for a in FORMULAS if a is not None], ids=IDS[1:])
def test_gradient_at_kinks_and_far_out(activation, dtype: torch.dtype, device: str) -> None:
    """Where a derivative jumps, the convention is PyTorch's."""
    z = tensor([-100.0, -8, -3, -1, -0.0, 0, 0.5, 1, 2, 3, 6, 8, 100] * 5, dtype=dtype, device=device)

    def grad(conv) -> Tensor:
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(identity(leaf, conv, activation).sum(), leaf)[0]

    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(grad(pw.pointwise_conv), grad(pw.reference.pointwise_conv), rtol=2 * eps, atol=2 * eps)


def test_nan_in_the_gradient_passes(conv, device: str) -> None:
    x = torch.randn(1, 3, 2, 2, device=device, requires_grad=True)
    w = torch.ones(2, 3, 1, 1, device=device)
    y = conv(x, w, tensor([10.0, 10.0], device=device), activation="relu")
    dy = torch.ones_like(y)
    dy[0, 0, 0, 0] = math.nan
    (dx,) = torch.autograd.grad(y, x, dy)
    assert bool(dx[0, :, 0, 0].isnan().all())
    assert not bool(dx[0, :, 1, 1].isnan().any())


@pytest.mark.parametrize("activation", ["swish", "Relu", "", "none", ("relu7",)])
def test_an_unknown_name_lists_the_known_ones(conv, activation) -> None:
    with pytest.raises(ValueError, match=r"relu6, leaky_relu, silu.*clamp"):
        identity(torch.ones(3), conv, activation)


@pytest.mark.parametrize("activation", [["relu"], 3, torch.relu, (), ("leaky_relu", "0.1"), ("clamp", None, 6.0), True])
def test_a_wrong_type(conv, activation) -> None:
    with pytest.raises(TypeError, match="expected"):
        identity(torch.ones(3), conv, activation)


@pytest.mark.parametrize("activation", ["clamp", ("clamp", 1.0), ("relu", 1.0), ("leaky_relu", 0.1, 0.2)])
def test_a_wrong_number_of_parameters(conv, activation) -> None:
    with pytest.raises(ValueError, match="parameters, expected"):
        identity(torch.ones(3), conv, activation)
