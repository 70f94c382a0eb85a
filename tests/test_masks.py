"""Masks, one bit for each element of an output that CUDA's forward pass leaves: what the operators make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import pointwise_ext as pw
from pointwise_ext.activations import parse_activation
from tests.masks import mask_of
from tests.problem import Problem, run
from tests.tolerance import assert_bitwise_equal

BASE = Problem(channels=(5, 4), out_channels=40, size=(5, 7), activation="relu", integers=True)
CASES = {
    "relu": BASE,
    "relu6": replace(BASE, activation="relu6"),
    "leaky_relu": replace(BASE, activation=("leaky_relu", 0.5)),
    "stride": replace(BASE, stride=2),
    "unbatched": replace(BASE, batch=None),
    "1d": replace(BASE, size=(7,)),
    "3d": replace(BASE, size=(2, 3, 4)),
    "one_pixel": replace(BASE, size=(1, 1)),
    "one_channel": replace(BASE, out_channels=1),
    "empty": replace(BASE, batch=0),
}


@pytest.fixture(autouse=True)
def _needs_kernels(kernels) -> None:
    pass


def backward_arguments(problem: Problem) -> tuple[Tensor, Tensor, list]:
    """The output, its mask, and the arguments of conv_backward with the mask as what was saved."""
    t = problem.placed()
    name, alpha, beta = parse_activation(problem.activation)
    y = run(pw.pointwise_conv, t, problem.options).detach()
    inputs = [v for key, v in t.items() if key.startswith("x")]
    stride = [problem.stride] if isinstance(problem.stride, int) else list(problem.stride)
    mask = mask_of(y, name, problem.batch is not None)
    options = [stride, [0], problem.groups, name, alpha, beta, [True] * (len(inputs) + 3)]
    return y, mask, [t["dy"], inputs, t["weight"], mask, *options]


def conv_backward(arguments: list) -> list[Tensor]:
    return torch.ops.pointwise_ext.conv_backward(*arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_output(case: str, layout: str, dtype: str) -> None:
    y, mask, arguments = backward_arguments(replace(CASES[case], layout=layout, dtype=dtype))
    want = conv_backward([*arguments[:3], y, *arguments[4:]])
    for masks in (mask, mask.mT.contiguous().mT):
        for got, exact in zip(conv_backward([*arguments[:3], masks, *arguments[4:]]), want, strict=True):
            assert_bitwise_equal(got, exact, case)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", ["relu", "leaky_relu", "unbatched", "one_channel"])
def test_the_operator_is_registered_for_masks(case: str, layout: str) -> None:
    _, _, arguments = backward_arguments(replace(CASES[case], layout=layout))
    torch.library.opcheck(torch.ops.pointwise_ext.conv_backward.default, arguments)


@pytest.mark.parametrize("case", ["relu", "relu6", "leaky_relu", "unbatched"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_derivatives(case: str, layout: str) -> None:
    """The derivative of a gradient with respect to dY, weight and inputs, from a mask and from the output."""
    y, mask, arguments = backward_arguments(replace(CASES[case], layout=layout))
    dy, inputs, weight, _, *options = arguments
    leaves = [t.detach().requires_grad_() for t in (dy, weight, *inputs)]
    second = []
    for saved in (mask, y):
        grads = conv_backward([leaves[0], leaves[2:], leaves[1], saved, *options])
        second.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    for got, want in zip(*second, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", ["relu", "leaky_relu", "unbatched", "3d"])
def test_decomposed(case: str, layout: str) -> None:
    _, mask, arguments = backward_arguments(replace(CASES[case], layout=layout))

    def step(dy: Tensor, mask: Tensor) -> list[Tensor]:
        return conv_backward([dy, *arguments[1:3], mask, *arguments[4:]])

    graph = make_fx(step, decomposition_table=pw.decompositions())(arguments[0], mask)
    assert not any("pointwise_ext" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(arguments[0], mask), step(arguments[0], mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: torch.zeros(40, 4, dtype=torch.int32)}, r"saved has shape \[40, 4\], expected \[40, 3\] or \[2, 35, 2\]"),
        ({3: torch.zeros(2, 70, 2, dtype=torch.int32)}, "saved has shape .*pass on what conv_saved returned"),
        ({3: torch.zeros(2, 40, 5, 7, dtype=torch.uint8)}, "residual has dtype|saved has dtype"),
        ({7: "silu"}, "saved has dtype int32.*expected Float; masks are those of relu, relu6 and leaky_relu"),
        ({7: "leaky_relu", 8: -0.5}, "a slope that is not negative"),
        ({5: [1]}, "without padding"),
    ],
    ids=str,
)
def test_errors(change: dict, message: str) -> None:
    _, _, arguments = backward_arguments(BASE)
    if 5 in change:  # a gradient as large as the padded output
        arguments[0] = torch.zeros(2, 40, 7, 9)
    with pytest.raises(RuntimeError, match=message):
        conv_backward([change.get(i, a) for i, a in enumerate(arguments)])


@pytest.mark.parametrize(
    ("problem", "size"),
    [
        (replace(BASE, dtype="bfloat16"), (40, 3)),
        (replace(BASE, dtype="float16", layout="channels_last"), (2, 35, 2)),
        (replace(BASE, layout="channels_last", out_channels=1), (1, 3)),
        (replace(BASE, size=(1, 1)), (2, 1, 2)),
        (replace(BASE, batch=None, layout="channels_last"), (1, 35, 2)),
        (replace(BASE, activation=("leaky_relu", 0.0)), (40, 3)),
        (replace(BASE, padding=1), None),
        (replace(BASE, dtype="float64"), None),
        (replace(BASE, activation="silu"), None),
    ],
    ids=str,
)
def test_the_compiler_knows_what_cuda_saves(problem: Problem, size: tuple[int, ...] | None) -> None:
    t, options = problem.placed(), [[1], [problem.padding], 1, *parse_activation(problem.activation)]
    for device in ("cuda", "cpu"):
        with FakeTensorMode():
            fake = {k: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=device) for k, v in t.items()}
            inputs = [fake["x0"], fake["x1"]]
            y, saved = torch.ops.pointwise_ext.conv_saved(inputs, fake["weight"], fake["bias"], None, *options)
            grads = torch.ops.pointwise_ext.conv_backward(
                torch.empty_like(y), inputs, fake["weight"], saved, *options, [True] * 5
            )
        assert y.device.type == saved.device.type == device
        if size and device == "cuda":
            assert (saved.dtype, tuple(saved.shape), saved.is_contiguous()) == (torch.int32, size, True)
        else:
            assert (saved.dtype, saved.shape, saved.stride()) == (y.dtype, y.shape, y.stride())
        want = [*inputs, fake["weight"], fake["bias"], y]
        assert [g.shape for g in grads] == [v.shape for v in want]
        assert grads[-1].stride() == y.stride()
