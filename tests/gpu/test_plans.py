"""Every plan on the device, whether it is predicted to be the fastest or not: tiles, shares, gates."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pointwise_ext as pw
from tests.emulated.cases import BASE, GATED
from tests.gpu.kernels import kernels
from tests.problem import gradients
from tests.tolerance import assert_bitwise_equal

pytestmark = pytest.mark.gpu

TILES = 6


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tile", range(TILES))
def test_every_tile_and_share(tile: int, dtype: str, layout: str, force) -> None:
    problem = replace(BASE, channels=(40, 100), size=(6, 9), dtype=dtype, layout=layout, residual=True, device="cuda")
    for splits in (1, 3):
        force(tile=tile, splits=splits)
        problem.check()


@pytest.mark.parametrize("case", GATED)
def test_products_make_dz(case: str, force) -> None:
    force(gate=1)
    replace(GATED[case], device="cuda").check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tile", range(TILES))
def test_weight_stays(tile: int, dtype: str, layout: str, force) -> None:
    """In shared memory; each block has several tiles, and the bits are those of W copied for each."""
    problem = replace(BASE, channels=(60,), out_channels=150, batch=40, size=(28, 28), dtype=dtype, layout=layout)
    problem = replace(problem, device="cuda", integers=True)
    force(tile=tile, splits=1, stays=0)
    want = gradients(pw.pointwise_conv, problem.placed(), problem.options)
    for gate in (0, 1):
        force(tile=tile, splits=1, gate=gate, stays=1)
        problem.check()
        for name, value in gradients(pw.pointwise_conv, problem.placed(), problem.options).items():
            assert_bitwise_equal(value, want[name], name)


@pytest.mark.parametrize("tile", range(TILES))
def test_every_tile_makes_dz(tile: int, force) -> None:
    for dtype, layout in (("float32", "contiguous"), ("bfloat16", "channels_last")):
        problem = replace(BASE, channels=(100,), size=(6, 9), dtype=dtype, layout=layout, device="cuda")
        for splits in (1, 3):
            force(tile=tile, splits=splits, gate=1)
            problem.check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fma_kernel_of_float32(layout: str, force) -> None:
    force(fma=True)
    problem = replace(BASE, layout=layout, activation="tanh", channels=(300,), out_channels=150, device="cuda")
    problem.check()
    assert "gemm_fma" in kernels(problem)
