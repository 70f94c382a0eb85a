"""torch.func transforms and forward-mode derivatives: the reference runs, and gives what nn.functional.conv2d gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, func
from torch.autograd import forward_ad

import pointwise_ext as pw

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "hardsigmoid": F.hardsigmoid, "tanh": torch.tanh}


@pytest.fixture(params=ACTIVATIONS)
def pair(request: pytest.FixtureRequest):
    """(ours, PyTorch's) as functions of (x, w, b)."""
    name = request.param
    return (
        lambda x, w, b: pw.pointwise_conv(x, w, b, activation=name),
        lambda x, w, b: ACTIVATIONS[name](F.conv2d(x, w, b)),
    )


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 1), torch.randn(6)


def test_grad(pair, tensors) -> None:
    got, expected = (func.grad(lambda *t, f=f: f(*t).square().sum(), argnums=(0, 1, 2))(*tensors) for f in pair)
    torch.testing.assert_close(got, expected)


def test_vjp(pair, tensors) -> None:
    dy = torch.randn(2, 6, 4, 5)
    got, expected = (func.vjp(f, *tensors)[1](dy) for f in pair)
    torch.testing.assert_close(got, expected)


def test_jvp(pair, tensors) -> None:
    tangents = tuple(torch.randn_like(t) for t in tensors)
    got, expected = (func.jvp(f, tensors, tangents) for f in pair)
    torch.testing.assert_close(got, expected)


def test_vmap_over_input(pair, tensors) -> None:
    x, w, b = tensors
    xs = torch.randn(3, *x.shape)
    got, expected = (func.vmap(f, in_dims=(0, None, None))(xs, w, b) for f in pair)
    torch.testing.assert_close(got, expected)


def test_vmap_over_weights_as_in_an_ensemble(pair, tensors) -> None:
    x, w, b = tensors
    ws, bs = torch.randn(3, *w.shape), torch.randn(3, *b.shape)
    got, expected = (func.vmap(f, in_dims=(None, 0, 0))(x, ws, bs) for f in pair)
    torch.testing.assert_close(got, expected)


def test_per_sample_gradients(pair, tensors) -> None:
    x, w, b = tensors
    got, expected = (
        func.vmap(func.grad(lambda w, b, x, f=f: f(x[None], w, b).sum(), argnums=(0, 1)), in_dims=(None, None, 0))(
            w, b, x
        )
        for f in pair
    )
    torch.testing.assert_close(got, expected)


def test_hessian(tensors) -> None:
    x, w, b = (t.double() for t in tensors)
    got = func.hessian(lambda b: pw.pointwise_conv(x, w, b, activation="silu").sum())(b)
    expected = func.hessian(lambda b: F.silu(F.conv2d(x, w, b)).sum())(b)
    torch.testing.assert_close(got, expected)


def test_functional_call_of_a_module() -> None:
    module = pw.PointwiseConv2d(3, 6, activation="relu")
    parameters = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    x = torch.randn(2, 3, 4, 5)
    y = func.functional_call(module, parameters, (x,))
    torch.testing.assert_close(y, F.relu(F.conv2d(x, parameters["weight"], parameters["bias"])))
    grads = func.grad(lambda p: func.functional_call(module, p, (x,)).sum())(parameters)
    assert grads["weight"].shape == (6, 3, 1, 1)


def test_forward_ad(pair, tensors) -> None:
    tangents = [torch.randn_like(t) for t in tensors]

    def tangent(f) -> Tensor:
        with forward_ad.dual_level():
            y = f(*(forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)))
            return forward_ad.unpack_dual(y).tangent

    got, expected = (tangent(f) for f in pair)
    torch.testing.assert_close(got, expected)


def test_channels_last_under_transforms(pair, tensors) -> None:
    x, w, b = tensors
    x = x.to(memory_format=torch.channels_last)
    got, expected = (func.grad(lambda x, f=f: f(x, w, b).sum())(x) for f in pair)
    torch.testing.assert_close(got, expected)


def test_several_inputs_and_residual_under_vmap() -> None:
    a, b = torch.randn(3, 2, 2, 4, 5), torch.randn(3, 2, 1, 4, 5)
    w, r = torch.randn(6, 3, 1, 1), torch.randn(3, 2, 6, 4, 5)
    y = func.vmap(lambda a, b, r: pw.pointwise_conv([a, b], w, activation="relu", residual=r))(a, b, r)
    expected = F.relu(F.conv2d(torch.cat([a, b], 2).flatten(0, 1), w).unflatten(0, (3, 2)) + r)
    torch.testing.assert_close(y, expected)
