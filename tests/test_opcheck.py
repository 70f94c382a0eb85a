"""torch.library.opcheck on every operator: schema, fake tensors stride for stride, autograd, AOT dispatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pointwise_ext.activations import parse_activation
from tests.layouts import place
from tests.problem import Problem

PROBLEMS = {
    "plain": Problem(),
    "concat_residual_silu": Problem(channels=(3, 5), residual=True, activation="silu"),
    "groups_stride_padding_relu": Problem(channels=(4,), groups=2, stride=2, padding=1, bias=False, activation="relu"),
    "unbatched_1d_clamp": Problem(channels=(4,), batch=None, size=(7,), activation=("clamp", -0.5, 1.0)),
    "3d_tanh": Problem(channels=(2, 2), size=(2, 3, 4), stride=(1, 2, 1), activation="tanh"),
    "one_pixel_leaky_relu": Problem(size=(1, 1), activation=("leaky_relu", -0.1)),
    "one_channel": Problem(channels=(1,), out_channels=1, activation="gelu"),
}
OPS = ("conv", "conv_saved", "conv_out", "conv_backward")


@pytest.fixture(autouse=True)
def _needs_kernels(kernels) -> None:
    pass


def op(name: str):
    return getattr(torch.ops.pointwise_ext, name).default


def ints(value: int | tuple[int, ...]) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value]


def arguments(problem: Problem, requires_grad: bool) -> list:
    t = problem.placed()
    for v in t.values():
        v.requires_grad_(requires_grad)
    inputs = [v for name, v in t.items() if name.startswith("x")]
    name, alpha, beta = parse_activation(problem.activation)
    options = [ints(problem.stride), ints(problem.padding), problem.groups, name, alpha, beta]
    return [inputs, t["weight"], t.get("bias"), t.get("residual"), *options]


def samples(name: str, problem: Problem) -> Iterator[list]:
    """Argument lists of one operator."""
    plain = arguments(problem, requires_grad=False)
    if name in ("conv", "conv_saved"):
        yield plain
        if name == "conv":
            yield arguments(problem, requires_grad=True)
        return
    y, z = op("conv_saved")(*plain)
    if name == "conv_out":
        yield [*plain, torch.zeros_like(y)]
        return
    inputs, weight, bias, residual, *options = plain
    for saved in {"none": [None], "relu": [y], "tanh": [y]}.get(options[3], [z]):
        everything = [True] * (len(inputs) + 1) + [bias is not None, residual is not None]
        for needed in (everything, [i == len(inputs) for i in range(len(inputs) + 3)]):
            for layout in ("contiguous", "channels_last"):
                dy = place(problem.tensors()["dy"].to(y.dtype), layout, spatial=len(problem.size))
                yield [dy, inputs, weight, saved, *options, needed]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", OPS)
def test_schema_and_fake_tensor(name: str, case: str, layout: str, dtype: str) -> None:
    problem = replace(PROBLEMS[case], layout=layout, weight_layout=layout, dtype=dtype)
    for sample in samples(name, problem):
        torch.library.opcheck(op(name), sample, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", OPS)
def test_autograd_and_dynamic_dispatch(name: str, case: str, layout: str) -> None:
    for sample in samples(name, replace(PROBLEMS[case], layout=layout)):
        torch.library.opcheck(op(name), sample, test_utils=("test_autograd_registration", "test_aot_dispatch_dynamic"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 8, 4, 5), (2, 8, 1, 1), (2, 1, 4, 5), (1, 1, 1, 1), (0, 8, 4, 5), (2, 8, 0, 5)])
@pytest.mark.parametrize("out_channels", [1, 6])
def test_fake_strides_in_ambiguous_sizes(shape, out_channels: int, memory_format) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.empty(shape, memory_format=memory_format).fill_(1.0)
    w = torch.ones(out_channels, shape[1], 1, 1)
    call = lambda x, w: op("conv_saved")([x], w, None, None, [1], [1], 1, "silu", 0.0, 0.0)  # noqa: E731
    with FakeTensorMode() as mode:
        fake = call(mode.from_tensor(x), mode.from_tensor(w))
    for real, traced in zip(call(x, w), fake, strict=True):
        assert (real.shape, real.stride()) == (traced.shape, traced.stride())


def test_an_operator_without_a_derivative_says_so() -> None:
    sample = arguments(Problem(), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"conv_saved has no derivative of its own; call pointwise_ext::conv"):
        op("conv_saved")(*sample)


@pytest.mark.parametrize("needed", [[], [True], [True] * 5])
def test_needed_of_a_wrong_length(needed: list[bool]) -> None:
    inputs, weight, _, _, *options = arguments(Problem(), requires_grad=False)
    dy: Tensor = torch.ones(2, 6, 5, 4)
    with pytest.raises(RuntimeError, match=r"needed has \d+ entries, expected 4"):
        op("conv_backward")(dy, inputs, weight, None, *options, needed)
