"""Gradients: only those asked for, of every order, from output gradients of any layout, and what is kept for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pointwise_ext as pw
from tests.layouts import LAYOUTS, place
from tests.problem import Problem, run
from tests.tolerance import assert_equal

ACTIVATIONS = [
    None,
    "relu",
    "relu6",
    ("leaky_relu", 0.2),
    ("leaky_relu", -0.2),
    "silu",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    ("clamp", -0.5, 0.7),
]
CASES = {
    "plain": Problem(channels=(3,), out_channels=4, size=(2, 3)),
    "concat_residual": Problem(channels=(2, 1), out_channels=3, size=(2, 2), residual=True),
    "groups_stride_padding": Problem(channels=(4,), out_channels=4, groups=2, size=(3, 2), stride=2, padding=1),
    "no_bias_1d": Problem(channels=(3,), out_channels=2, size=(4,), bias=False, residual=True),
    "unbatched_3d": Problem(channels=(2, 2), out_channels=2, batch=None, size=(1, 2, 3), stride=(1, 2, 1)),
}
NAMES = ("x0", "x1", "weight", "bias", "residual")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For thousands of tiny calls: on a busy machine a second thread is waited for longer than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def away_from_kinks(problem: Problem) -> tuple[list[str], list[Tensor]]:
    """Leaves in float64 for finite differences, which must not step over a kink."""
    t = problem.tensors()
    names = [name for name in t if name != "dy"]
    for seed in range(100):
        t = replace(problem, seed=seed).tensors()
        if bool((t["dy"] != 0).all()):  # Problem zeroes dy near kinks
            break
    return names, [place(t[name], problem.layout, spatial=len(problem.size)).requires_grad_() for name in names]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradcheck_and_gradgradcheck(one_thread, case: str, activation, layout: str) -> None:
    problem = replace(CASES[case], activation=activation, layout=layout, dtype="float64")
    names, leaves = away_from_kinks(problem)

    def call(*tensors: Tensor) -> Tensor:
        return run(pw.pointwise_conv, dict(zip(names, tensors, strict=True)), problem.options)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("asked", NAMES)
def test_a_gradient_alone(asked: str, activation, device: str) -> None:
    """requires_grad on one argument only: its gradient is right, the others get none."""
    problem = Problem(
        channels=(4, 3), residual=True, activation=activation, device=device, integers=activation != "gelu"
    )
    t = problem.placed()
    leaves = {name: t[name].clone().requires_grad_(name == asked) for name in NAMES}
    run(pw.pointwise_conv, leaves, problem.options).backward(t["dy"])
    expected = {name: t[name].clone().requires_grad_(name == asked) for name in NAMES}
    run(pw.reference.pointwise_conv, expected, problem.options).backward(t["dy"])
    torch.testing.assert_close(leaves[asked].grad, expected[asked].grad)
    assert all(leaves[name].grad is None for name in NAMES if name != asked)


def test_backward_computes_only_what_is_needed(kernels, monkeypatch) -> None:
    """The profiler sees no gradient operator where only the residual's gradient, dy itself, is asked for."""
    x, w = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1)
    r = torch.randn(1, 5, 4, 4, requires_grad=True)
    y = pw.pointwise_conv(x, w, residual=r)
    with torch.profiler.profile() as profile:
        y.sum().backward()
    assert not any(
        "conv" in event.key and "backward" in event.key.lower() and "pointwise_ext::" in event.key
        for event in profile.key_averages()
    )
    torch.testing.assert_close(r.grad, torch.ones_like(r))


def test_no_grad_and_no_requires_grad_give_no_graph(conv) -> None:
    x, w = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1)
    assert conv(x, w).grad_fn is None
    w.requires_grad_()
    with torch.no_grad():
        assert conv(x, w, activation="silu").grad_fn is None
    assert conv(x, w, activation="silu").grad_fn is not None


def test_inference_mode(conv) -> None:
    x, w = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1, requires_grad=True)
    with torch.inference_mode():
        y = conv(x, w, activation="relu")
    assert y.is_inference()
    torch.testing.assert_close(y, F.relu(F.conv2d(x, w)).detach())


def test_inference_tensor_as_input_of_training(conv) -> None:
    with torch.inference_mode():
        x = torch.randn(1, 3, 4, 4)
    w = torch.randn(5, 3, 1, 1, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        conv(x, w)


@pytest.mark.parametrize("dy_layout", [*LAYOUTS, "one_value"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "relu", ("clamp", -2.0, 3.0)], ids=str)
def test_output_gradient_of_any_layout(activation, layout: str, dy_layout: str, device: str) -> None:
    problem = Problem(
        channels=(5, 4), residual=True, activation=activation, layout=layout, integers=True, device=device
    )
    t, exact = problem.placed(), problem.tensors()
    dy = exact["dy"]
    if dy_layout == "one_value":  # what y.sum() sends back: all strides zero
        dy, placed = torch.full_like(dy, 2.0), torch.full((), 2.0, device=device).expand(dy.shape)
    else:
        dy = dy[:1].expand(dy.shape) if dy_layout == "expanded" else dy
        placed = place(dy.float(), dy_layout, device=device)
    got = {name: t[name].clone().requires_grad_() for name in NAMES}
    want = {name: exact[name].clone().requires_grad_() for name in NAMES}
    run(pw.pointwise_conv, got, problem.options).backward(placed)
    run(pw.reference.pointwise_conv, want, problem.options).backward(dy)
    for name in NAMES:
        assert_equal(got[name].grad, want[name].grad, name)


def test_two_backwards_with_retain_graph_accumulate(conv) -> None:
    x, w = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1, requires_grad=True)
    loss = conv(x, w, activation="gelu").square().sum()
    loss.backward(retain_graph=True)
    once = w.grad.clone()
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * once)


def test_backward_twice_without_retain_graph_is_refused(conv) -> None:
    w = torch.randn(5, 3, 1, 1, requires_grad=True)
    loss = conv(torch.randn(1, 3, 4, 4), w, activation="relu").sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("changed", ["x", "w", "y"])
def test_a_saved_tensor_changed_in_place_is_noticed(conv, changed: str) -> None:
    x, w = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1, requires_grad=True)
    x.requires_grad_(changed == "w")
    y = conv(x, w, activation="relu")
    with torch.no_grad():
        {"x": x, "w": w, "y": y}[changed].mul_(2)
    if changed == "y" and y.is_cuda:  # a mask was saved in its place
        y.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "relu6", "sigmoid", "tanh", ("leaky_relu", 0.1)], ids=str)
def test_what_derives_from_the_output_saves_only_the_output(kernels, activation) -> None:
    """Saved: input, weight, y or, on CUDA, a bit for each element of it. No copy and no value before the activation."""
    x, w = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(6, 8, 1, 1, requires_grad=True)
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = pw.pointwise_conv(x, w, activation=activation)
    masked = y.is_cuda and activation not in ("sigmoid", "tanh")
    assert [t.data_ptr() for t in saved[:2]] == [x.data_ptr(), w.data_ptr()]
    assert saved[2].nbytes <= y.nbytes // 8 if masked else saved[2].data_ptr() == y.data_ptr()
    assert len(saved) == 3


def test_checkpoint(conv) -> None:
    from torch.utils.checkpoint import checkpoint

    x, w = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(5, 3, 1, 1)
    y = checkpoint(lambda x: conv(x, w, activation="silu"), x, use_reentrant=False)
    expected = F.silu(F.conv2d(x, w))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x))


def test_gradient_penalty(conv) -> None:
    """The gradient of a gradient's norm, as in WGAN-GP, against plain PyTorch."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    w1 = torch.randn(8, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    w2 = torch.randn(1, 8, 1, 1, dtype=torch.float64, requires_grad=True)

    def penalty(layer, activation):
        y = layer(activation, layer(activation, x, w1), w2)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad((dx.norm() - 1).square(), (w1, w2))

    got = penalty(lambda act, x, w: conv(x, w, activation=act), "silu")
    expected = penalty(lambda act, x, w: act(F.conv2d(x, w)), F.silu)
    torch.testing.assert_close(got, expected)


def test_third_derivative(conv) -> None:
    w = torch.randn(1, 1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 1, 1, dtype=torch.float64)
    y, expected = conv(x, w, activation="tanh").sum(), torch.tanh(x * w).sum()
    for _ in range(3):
        (y,) = torch.autograd.grad(y, w, create_graph=True)
        (expected,) = torch.autograd.grad(expected, w, create_graph=True)
        y, expected = y.sum(), expected.sum()
    torch.testing.assert_close(y, expected)
