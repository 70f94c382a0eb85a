"""Every case on the emulated CUDA kernels: right, the same in any order of warps, with NaN in all unwritten memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pointwise_ext as pw
from pointwise_ext.activations import ACTIVATIONS, parse_activation
from tests.emulated.cases import BASE, CASES, GATED, PARAMETERS
from tests.problem import gradients
from tests.tolerance import assert_bitwise_equal, assert_equal

pytestmark = pytest.mark.emulated


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, emulated) -> None:
    CASES[case].check(emulated)


@pytest.mark.parametrize("case", GATED)
def test_products_make_dz(case: str, emulated, emulated_ops) -> None:
    """dX, dW and db of dY and what was saved, where the plan would rather write dZ too."""
    emulated_ops.set_tuning(-1, 0, False, False, 1)
    GATED[case].check(emulated)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "gelu", None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dz_in_memory_or_not(dtype: str, activation: str | None, layout: str, emulated, emulated_ops) -> None:
    problem = replace(BASE, channels=(40, 30), dtype=dtype, layout=layout, activation=activation)
    t = problem.placed()
    t["x1"][0, 3, 2] = torch.nan
    t["dy"][1, 5, 0] = torch.nan
    t["dy"][1, 6, 0] = torch.inf
    results = []
    for gate in (0, 1):
        emulated_ops.set_tuning(0, 1, False, False, gate)  # one share: two kernels cut sums at other places
        results.append(gradients(emulated, t, problem.options))
    for name in ("x0", "x1", "weight"):  # the pass adds db up in another order
        assert torch.equal(results[0][name].nan_to_num(nan=7.0), results[1][name].nan_to_num(nan=7.0)), name


@pytest.mark.parametrize("tile", range(6))
def test_every_tile_makes_dz(tile: int, emulated, emulated_ops) -> None:
    for dtype, layout in (("float32", "contiguous"), ("bfloat16", "channels_last")):
        problem = replace(BASE, channels=(100,), size=(6, 9), dtype=dtype, layout=layout)
        for splits in (1, 3):
            emulated_ops.set_tuning(tile, splits, False, False, 1)
            problem.check(emulated)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_output_alone_has_the_same_bits(activation: str, dtype: str, layout: str, emulated, emulated_ops) -> None:
    """It ends as fragments, where z or a mask, or rows that no vector divides, take what the general ending does."""
    for size in ((6, 8), (5, 5)):
        problem = replace(BASE, channels=(64,), out_channels=136, size=size, dtype=dtype, layout=layout, residual=True)
        t = problem.placed()
        options = ([1, 1], [0, 0], 1, *parse_activation(PARAMETERS.get(activation, activation)))
        for tile in range(6):
            emulated_ops.set_tuning(tile, 1, False, False)
            arguments = ([t["x0"]], t["weight"], t["bias"], t["residual"], *options)
            saved, _ = emulated_ops.conv_saved(*arguments)
            assert_bitwise_equal(emulated_ops.conv(*arguments), saved)


@pytest.mark.parametrize("needed", ["x0", "weight", "bias"])
def test_only_what_is_needed(needed: str, emulated, emulated_ops) -> None:
    problem = replace(BASE, integers=True)
    t = problem.placed()
    want = gradients(pw.reference.pointwise_conv, {n: v.double() for n, v in t.items()}, problem.options)[needed]
    for gate in (-1, 0, 1):
        emulated_ops.set_tuning(-1, 0, False, False, gate)
        leaves = {name: v.detach().requires_grad_(name == needed) for name, v in t.items()}
        y = emulated(leaves["x0"], leaves["weight"], leaves["bias"], **problem.options)
        (got,) = torch.autograd.grad(y, leaves[needed], t["dy"])
        assert_equal(got, want, needed)


@pytest.mark.parametrize(
    "case", ["float32-contiguous", "float16-channels_last", "float64-long_sum", "contiguous-sources_8"]
)
def test_warps_may_run_in_any_order(case: str, emulated, emulated_ops) -> None:
    problem = CASES[case]
    in_order = gradients(emulated, problem.placed(), problem.options)
    for seed in range(4):
        emulated_ops.set_schedule(True, seed)
        shuffled = gradients(emulated, problem.placed(), problem.options)
        for name, value in shuffled.items():
            assert_bitwise_equal(value, in_order[name], f"{name}, seed {seed}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tile", range(6))
def test_every_tile_and_share(tile: int, dtype: str, layout: str, emulated, emulated_ops) -> None:
    problem = replace(BASE, channels=(40, 100), size=(6, 9), dtype=dtype, layout=layout, residual=True)
    for splits in (1, 3):
        emulated_ops.set_tuning(tile, splits, False, False)
        problem.check(emulated)


STAYS = [
    name for name, problem in CASES.items() if problem.dtype in ("float32", "bfloat16") and "activation" not in name
]


@pytest.mark.parametrize("case", STAYS)
def test_weight_stays(case: str, emulated, emulated_ops) -> None:
    """In shared memory, forward and for dX; with the bits that it has when each tile copies it."""
    problem = CASES[case]
    emulated_ops.set_tuning(-1, 1, False, False, 1, 0)
    want = gradients(emulated, problem.placed(), problem.options)
    emulated_ops.set_tuning(-1, 1, False, False, 1, 1)
    problem.check(emulated)
    for name, value in gradients(emulated, problem.placed(), problem.options).items():
        assert_bitwise_equal(value, want[name], name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fma_kernel_of_float32(layout: str, emulated, emulated_ops) -> None:
    emulated_ops.set_tuning(-1, 0, True, False)
    replace(BASE, layout=layout, activation="tanh", residual=True).check(emulated)
    replace(BASE, layout=layout, activation="tanh", channels=(300,), out_channels=150).check(emulated)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tf32_has_its_own_error(layout: str, emulated, emulated_ops) -> None:
    """10 bits of fraction: exact for small integers, else wrong in the fourth digit, which float32 is not."""
    emulated_ops.set_tuning(-1, 0, False, True)
    replace(BASE, layout=layout, integers=True, residual=True).check(emulated)
    problem = replace(BASE, layout=layout, channels=(300,), activation=None)
    t = problem.placed()
    exact = gradients(pw.reference.pointwise_conv, {n: v.double() for n, v in t.items()}, problem.options)["y"]
    errors = {}
    for tf32 in (False, True):
        emulated_ops.set_tuning(-1, 0, False, tf32)
        y = gradients(emulated, t, problem.options)["y"]
        errors[tf32] = float((y - exact).abs().max() / exact.abs().max())
    assert errors[False] < 1e-6 < 1e-5 < errors[True] < 1e-3


@pytest.mark.parametrize("tf32", [False, True])
def test_extreme_values(tf32: bool, emulated, emulated_ops) -> None:
    """Parts of a float32 keep what it is: Inf stays Inf, the largest numbers stay finite, tiny ones do not vanish."""
    emulated_ops.set_tuning(-1, 0, False, tf32)
    largest, inf = torch.finfo(torch.float32).max, torch.inf
    values = torch.tensor([inf, -inf, torch.nan, largest, -largest, 1e-30, 0.0, 3.0, 1 + 2**-20])
    x = values.view(1, 1, 1, -1)
    w = torch.tensor([1.0, -0.5, 2.0**-10, inf, 1.2345678]).view(-1, 1, 1, 1)
    got, want = emulated(x, w), torch.nn.functional.conv2d(x, w)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf() & ~tf32, want.isinf() & ~tf32)
    finite = want.isfinite() & got.isfinite()
    torch.testing.assert_close(got[finite], want[finite], rtol=2e-3 if tf32 else 3e-7, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gradient", ["contiguous", "channels_last", "transposed", "expanded"])
def test_gradient_in_another_format(gradient: str, layout: str, emulated, emulated_ops) -> None:
    problem = replace(BASE, layout=layout, integers=True)  # exact, whatever the order of the sums
    t = problem.placed()
    t["dy"] = {
        "contiguous": lambda dy: dy.contiguous(),
        "channels_last": lambda dy: dy.contiguous(memory_format=torch.channels_last),
        "transposed": lambda dy: dy.mT.contiguous().mT,
        "expanded": lambda dy: torch.full((), 3.0).expand(dy.shape),  # as from y.sum()
    }[gradient](t["dy"])
    want = gradients(pw.reference.pointwise_conv, {name: v.double() for name, v in t.items()}, problem.options)
    for gate in (-1, 1):
        emulated_ops.set_tuning(-1, 0, False, False, gate)
        for name, value in gradients(emulated, t, problem.options).items():
            assert_equal(value, want[name], name)


def test_nan_passes_relu(emulated) -> None:
    x = torch.randn(1, 3, 5, 5)
    x[0, 1, 2, 3] = torch.nan
    y = emulated(x, torch.randn(10, 3, 1, 1), activation="relu")
    assert bool(y[0, :, 2, 3].isnan().all())
    assert int(y.isnan().sum()) == 10
