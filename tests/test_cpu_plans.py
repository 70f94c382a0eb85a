"""Every way the CPU kernels can compute a product, forced on every class of shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import pointwise_ext as pw
from tests.layouts import LAYOUTS
from tests.problem import Problem, gradients
from tests.tolerance import assert_bitwise_equal

_C = pytest.importorskip("pointwise_ext._C")

PLANS = [
    {"turned": 1},
    {"turned": 1, "packed": 1},
    {"turned": 0},
    {"packed": 1},
    {"streamed": 1},
    {"streamed": 1, "turned": 1},
    {"dots": 0},
    {"dots": 0, "turned": 1},
    {"at_once": 0},
    {"at_once": 0, "packed": 1},
    {"split": 1},
    {"chunked": 20},
    {"chunked": 1000, "packed": 1},
    {"chunked": 100, "turned": 1, "streamed": 1},
    {"widened": 0},
    {"widened": 0, "turned": 1, "packed": 1},
    {"widened": 0, "chunked": 100},
    {"widened": 1},
    {"widened": 1, "turned": 1, "streamed": 1},
    {"widened": 1, "chunked": 100},
    {"vectors": 1},
    {"vectors": 2},
    {"beside": 0},
    {"beside": 1},
    {"beside": 1, "packed": 1, "vectors": 1},
    {"beside": 1, "streamed": 1},
    {"pieces": 0},
    {"pieces": 1},
    {"pieces": 1, "packed": 1},
    {"pieces": 1, "turned": 1},
    {"pieces": 1, "widened": 1},
]
# 49 and 196 pixels leave 1 and 4 columns over; 64 channels are whole lines; the others are ragged in every dimension.
SHAPES = {
    "7x7": Problem(channels=(130,), out_channels=67, batch=1, size=(7, 7), activation="relu"),
    "7x7 batch": Problem(channels=(48,), out_channels=64, batch=3, size=(7, 7), residual=True, activation="silu"),
    "14x14": Problem(channels=(64,), out_channels=64, batch=1, size=(14, 14), activation="relu", residual=True),
    "28x28 stride 2": Problem(channels=(33,), out_channels=40, size=(29, 28), stride=2, activation="relu6"),
    "14x14 of 28x28": Problem(channels=(64,), out_channels=40, batch=2, size=(28, 28), stride=2, activation="relu"),
    "wide": Problem(channels=(512,), out_channels=128, batch=4, size=(14, 14), activation="relu"),
    "one pixel": Problem(channels=(96,), out_channels=33, batch=1, size=(1, 1), activation="sigmoid"),
    "few channels": Problem(channels=(3,), out_channels=10, size=(13, 11), activation="hardswish"),
    "two inputs, padding": Problem(channels=(37, 70), out_channels=53, size=(13, 11), padding=1, activation="gelu"),
    "groups": Problem(channels=(48,), out_channels=36, groups=3, size=(9, 9), activation="relu"),
    "long sum": Problem(channels=(700, 601), out_channels=20, batch=1, size=(5, 5), activation="relu"),
    "rows pages apart": Problem(channels=(80,), out_channels=60, batch=1, size=(32, 32), activation="relu"),
    "deep": Problem(channels=(300,), out_channels=40, batch=1, size=(14, 14), activation="relu"),
    "panels beside one another": Problem(
        channels=(37, 27), out_channels=40, batch=2, size=(20, 24), activation="relu", residual=True
    ),
    "many pixels": Problem(channels=(16,), out_channels=24, size=(40, 33), activation="relu"),
}
DTYPES = ["float32", "bfloat16", "float16", "float64"]


@pytest.fixture
def force() -> Iterator:
    yield _C.force_cpu_plan
    _C.force_cpu_plan()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_is_right(force, plan: dict, shape: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for dtype in DTYPES:
            force(**plan)
            replace(SHAPES[shape], layout=layout, dtype=dtype).check()


# Every reason for which a gradient of the output, an input or its gradient lies otherwise than the others.
CHUNKED = {
    "linear": Problem(channels=(40,), out_channels=30, size=(14, 14)),
    "no bias": Problem(channels=(40,), out_channels=30, size=(9, 31), bias=False),
    "three inputs": Problem(channels=(8, 33, 5), out_channels=64, size=(12, 12), activation="relu"),
    "residual": Problem(channels=(24,), out_channels=48, size=(20, 11), residual=True, activation="relu"),
    "1d": Problem(channels=(24,), out_channels=48, size=(300,), activation="tanh"),
    "3d, stride 2": Problem(channels=(17,), out_channels=16, size=(9, 7, 6), stride=2, activation="relu"),
    "unbatched": Problem(channels=(17,), out_channels=16, batch=None, size=(19, 13), activation="silu"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_of_pixels_in_every_layout(force, name: str, layout: str) -> None:
    for pixels in (1, 33, 500):
        force(chunked=pixels)
        for dtype in ("float32", "bfloat16"):
            replace(CHUNKED[name], layout=layout, dtype=dtype).check()


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_chunks_make_only_the_gradients_asked_for(force, needed: tuple[bool, ...]) -> None:
    """dX, dW or db alone has the bits that it has among all."""
    t = Problem(channels=(24,), out_channels=48, size=(40, 30), activation="relu").placed()
    saved = pw.pointwise_conv(t["x0"], t["weight"], t["bias"], activation="relu")

    def backward(*wanted: bool) -> list[torch.Tensor]:
        arguments = ([1, 1], [0, 0], 1, "relu", 0.0, 0.0, [*wanted, False])
        return torch.ops.pointwise_ext.conv_backward(t["dy"], [t["x0"]], t["weight"], saved, *arguments)

    force(chunked=100)
    every = backward(True, True, True)
    (alone,) = backward(*needed)
    assert_bitwise_equal(alone, every[needed.index(True)], str(needed))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("plan", [{}, {"packed": 1}, {"turned": 1}, {"pieces": 1}, {"widened": 1}], ids=str)
def test_what_is_not_finite_stays_where_it_belongs(force, plan: dict, layout: str) -> None:
    """Operands are filled up with zeros, and zero times infinity is not zero."""
    force(**plan)
    for channels, dtype in [(c, dtype) for c in (3, 24, 33, 34, 100, 300) for dtype in DTYPES]:
        t = Problem(channels=(channels,), out_channels=21, size=(5, 9), layout=layout, dtype=dtype).placed()
        x, weight = t["x0"].requires_grad_(), t["weight"].requires_grad_()
        with torch.no_grad():
            x[0, :, 2, 3], x[1, 0, 4, 8] = math.inf, math.nan
            weight[7, 0], weight[20, -1] = -math.inf, math.nan
        lost = torch.zeros(2, 21, 5, 9, dtype=torch.bool)
        lost[:, 7] = lost[:, 20] = lost[0, :, 2, 3] = lost[1, :, 4, 8] = True
        y = pw.pointwise_conv(x, weight, t["bias"])
        assert torch.equal(~y.isfinite(), lost), (channels, dtype)
        with torch.no_grad():
            x[0, 1:, 2, 3] = 1  # all that is left in dW are channel 0, and a gradient's
        y = pw.pointwise_conv(x, weight, t["bias"])
        dy = torch.ones_like(y)
        dy[0, 4, 1, 1] = math.inf
        dx, dw = torch.autograd.grad(y, [x, weight], dy)
        pixel = torch.zeros_like(lost[:, 0])
        pixel[0, 1, 1] = True
        for channel in range(channels):
            everywhere = channel in (0, channels - 1)  # where W is not finite
            assert torch.equal(~dx.isfinite()[:, channel], pixel | everywhere), (channels, dtype, channel)
        rows = torch.zeros(21, dtype=torch.bool)
        rows[4] = True
        for channel in range(channels):
            assert torch.equal(~dw.isfinite()[:, channel, 0, 0], rows | (channel == 0)), (channels, dtype, channel)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_streaming_changes_no_bit(force, dtype: str, shape: str) -> None:
    for layout in ("contiguous", "channels_last"):
        problem = replace(SHAPES[shape], layout=layout, dtype=dtype)
        force(streamed=0)
        want = gradients(pw.pointwise_conv, problem.placed(), problem.options)
        force(streamed=1)
        got = gradients(pw.pointwise_conv, problem.placed(), problem.options)
        for name, value in want.items():
            assert_bitwise_equal(got[name], value, name)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_no_plan_depends_on_the_threads(force, plan: dict, threads: int) -> None:
    force(**plan)
    before = torch.get_num_threads()
    problems = [replace(SHAPES["two inputs, padding"], channels=(120, 70), layout=layout, size=(24, 25), dtype=dtype)
                for layout in ("contiguous", "channels_last") for dtype in ("float32", "bfloat16")]  # fmt: skip
    try:
        for problem in problems:
            torch.set_num_threads(1)
            want = gradients(pw.pointwise_conv, problem.placed(), problem.options)
            torch.set_num_threads(threads)
            got = gradients(pw.pointwise_conv, problem.placed(), problem.options)
            for name, value in want.items():
                assert_bitwise_equal(got[name], value, name)
    finally:
        torch.set_num_threads(before)


def plan_of(problem: Problem) -> str:
    t = problem.placed()
    inputs = [t[f"x{i}"] for i in range(len(problem.channels))]
    return str(pw.explain(inputs, t["weight"], t.get("bias"), activation=problem.activation))


@pytest.mark.skipif(not _C.cpu_capability().startswith(("amx", "avx512")), reason="sizes of AVX-512's tiles")
def test_the_rules_choose_what_was_measured_to_be_faster() -> None:
    deep = Problem(channels=(512,), out_channels=1024, batch=1, size=(7, 7), layout="channels_last")
    assert "transposed" in plan_of(deep)
    assert "1 columns along K" in plan_of(deep)
    assert "transposed" not in plan_of(replace(deep, size=(56, 56)))
    assert "transposed" not in plan_of(replace(deep, layout="contiguous"))
    assert "bypasses" in plan_of(Problem(channels=(16,), out_channels=96, batch=2, size=(112, 112)))
    assert "bypasses" not in plan_of(Problem(channels=(64,), out_channels=32, batch=1, size=(28, 28)))
    halves = Problem(channels=(16,), out_channels=24, batch=8, size=(112, 112), layout="channels_last")
    assert "bypasses" not in plan_of(halves), "a pixel is one line and a half"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_columns_along_k_in_all_that_a_tile_may_end_in(force, columns: int, layout: str) -> None:
    """Dot products for several tiles at once, of rows that make up no whole vector, with k's last values masked."""
    force(widened=0)  # where pairs of bf16 are slow, they would not be multiplied
    wide, narrow = 48 + columns, 43
    size, channels = (wide, narrow) if layout == "contiguous" else (narrow, wide)
    for dtype in DTYPES:
        for activation, residual in (("relu", False), ("silu", True)):
            problem = Problem(
                channels=(40, 30), out_channels=channels, size=(1, size), layout=layout, dtype=dtype,
                activation=activation, residual=residual,
            )  # fmt: skip
            paired = dtype == "bfloat16" and _C.cpu_capability() == "avx512_bf16" and layout == "contiguous"
            if paired or (dtype == "float32" and _C.cpu_capability() != "portable"):
                assert f"{columns} columns along K" in plan_of(problem), dtype
            problem.check()


def test_panels_beside_one_another_are_of_narrow_tiles_in_nchw(force) -> None:
    few = Problem(channels=(24,), out_channels=144, batch=1, size=(56, 56))
    force(vectors=2)
    assert ("beside one another" in plan_of(few)) == _C.cpu_capability().startswith(("avx2", "portable"))
    force(beside=1)
    assert "beside one another" in plan_of(few)
    assert "beside one another" not in plan_of(replace(few, layout="channels_last"))
    force(beside=0)
    assert "beside one another" not in plan_of(few)


def test_an_upright_result_beside_what_must_not_change() -> None:
    """Channels_last with few pixels is stored in squares: nothing outside of a sliced result is written."""
    x = torch.randn(1, 300, 3, 3).to(memory_format=torch.channels_last)
    weight = torch.randn(301, 300, 1, 1)
    whole = torch.full((1, 3, 3, 400), 7.0).permute(0, 3, 1, 2)
    out = whole[:, 50:351]
    pw.pointwise_conv(x, weight, out=out)
    assert torch.allclose(out, torch.conv2d(x, weight), atol=1e-3)
    assert (whole[:, :50] == 7).all()
    assert (whole[:, 351:] == 7).all()
