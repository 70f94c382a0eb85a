"""One bit for each element of an activation's output in its place: the same gradients, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from pointwise_ext.activations import parse_activation
from pointwise_ext.arguments import stride_and_padding
from tests.emulated.cases import BASE
from tests.layouts import LAYOUTS
from tests.masks import mask_of
from tests.problem import Problem, gradients
from tests.tolerance import assert_bitwise_equal

pytestmark = pytest.mark.emulated

BASE16 = replace(BASE, dtype="bfloat16")
CASES = {
    **{layout: replace(BASE16, layout=layout) for layout in LAYOUTS},
    "residual": replace(BASE16, residual=True),
    "residual-channels_last": replace(BASE16, residual=True, layout="channels_last"),
    "one_channel": replace(BASE16, channels=(1,), out_channels=1),
    "unbatched": replace(BASE16, batch=None),
    "1d": replace(BASE16, size=(49,)),
    "3d": replace(BASE16, size=(3, 4, 5), layout="channels_last"),
    "no_channels": replace(BASE16, channels=(0,), residual=True),
    "as_many_pixels_as_channels": replace(BASE16, out_channels=64, batch=1, size=(8, 8), layout="channels_last"),
}
for name in ("contiguous", "channels_last"):
    CASES |= {
        f"relu6-{name}": replace(BASE16, activation="relu6", layout=name, integers=True),
        f"leaky_relu-{name}": replace(BASE16, activation=("leaky_relu", 0.2), layout=name),
        f"float16-{name}": replace(BASE16, dtype="float16", layout=name),
        f"float32-{name}": replace(BASE16, dtype="float32", layout=name),
        f"hw196-{name}": replace(BASE16, channels=(24,), size=(14, 14), layout=name),
        f"hw1-{name}": replace(BASE16, size=(1, 1), batch=5, layout=name),
        f"3_to_10-{name}": replace(BASE16, channels=(3,), out_channels=10, layout=name),
        f"sources-{name}": replace(BASE16, channels=(3, 61), layout=name),
        f"stride-{name}": replace(BASE16, stride=2, layout=name),
        f"large_tiles-{name}": replace(BASE16, channels=(20,), out_channels=150, batch=3, size=(11, 12), layout=name),
    }


def save(ops, problem: Problem, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The output, and what the forward pass in training saves."""
    strides, paddings = stride_and_padding(problem.stride, problem.padding, 1, problem.groups)
    options = (list(strides), list(paddings), problem.groups, *parse_activation(problem.activation))
    inputs = [v for name, v in t.items() if name.startswith("x")]
    return ops.conv_saved(inputs, t["weight"], t.get("bias"), t.get("residual"), *options)


def with_odd_values(problem: Problem) -> dict[str, Tensor]:
    """The problem's tensors with NaN, Inf and a negative zero among the first input and the gradient."""
    t = problem.placed()
    for name in ("x0", "dy"):
        for i, value in enumerate((torch.nan, torch.inf, -torch.inf, -0.0)):
            if problem.layout != "expanded" and t[name].numel() > 7 * i:
                t[name][torch.unravel_index(torch.tensor(7 * i), t[name].shape)] = value
    return t


def activation_name(problem: Problem) -> str:
    return problem.activation if isinstance(problem.activation, str) else problem.activation[0]


@pytest.mark.parametrize("case", CASES)
def test_bits_say_where_the_gradient_passes(case: str, emulated, emulated_ops) -> None:
    problem = CASES[case]
    t = problem.placed()
    for tile, splits in ((-1, 0), (0, 3), (1, 2)):
        emulated_ops.set_tuning(tile, splits, False, False)
        y, mask = save(emulated_ops, problem, t)
        want = mask_of(y, activation_name(problem), problem.batch is not None)
        assert mask.dtype == torch.int32
        assert torch.equal(mask, want)
        assert mask.count_nonzero() > 0


@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_without_a_mask(case: str, gate: int, emulated, emulated_ops) -> None:
    problem, t = CASES[case], with_odd_values(CASES[case])
    emulated_ops.set_tuning(0, 1, False, False, gate)  # one share: two kernels cut sums at other places
    got = gradients(emulated, t, problem.options)
    want = gradients(partial(emulated, masks=False), t, problem.options)
    torch.testing.assert_close(got.pop("bias"), want["bias"], equal_nan=True)  # whose parts differ too
    for name, value in got.items():
        assert_bitwise_equal(value, want[name], name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("tile", range(6))
def test_every_tile(tile: int, layout: str, emulated, emulated_ops) -> None:
    problem = replace(BASE16, channels=(100,), size=(6, 9), layout=layout, activation="relu6")
    t = problem.placed()
    for splits in (1, 3):
        emulated_ops.set_tuning(tile, splits, False, False, 1)
        y, mask = save(emulated_ops, problem, t)
        assert torch.equal(mask, mask_of(y, "relu6"))
        problem.check(emulated)


@pytest.mark.parametrize(
    "problem",
    [
        replace(BASE16, padding=1),
        replace(BASE16, channels=(24,), out_channels=12, groups=4),
        replace(BASE16, activation="silu"),
        replace(BASE16, activation=("leaky_relu", -0.2)),
        replace(BASE16, dtype="float64"),
    ],
    ids=str,
)
def test_others_keep_no_mask(problem: Problem, emulated, emulated_ops) -> None:
    y, saved = save(emulated_ops, problem, problem.placed())
    assert (saved.dtype, saved.shape, saved.stride()) == (y.dtype, y.shape, y.stride())
    problem.check(emulated)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_warps_may_run_in_any_order(layout: str, emulated, emulated_ops) -> None:
    problem = replace(BASE16, layout=layout)
    t = problem.placed()
    emulated_ops.set_tuning(-1, 0, False, False, 1)
    in_order = gradients(emulated, t, problem.options)
    for seed in range(3):
        emulated_ops.set_schedule(True, seed)
        for name, value in gradients(emulated, t, problem.options).items():
            assert_bitwise_equal(value, in_order[name], f"{name}, seed {seed}")
