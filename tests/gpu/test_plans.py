"""Every plan on the device, whether it is predicted to be the fastest or not: tiles, shares, gates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.emulated.cases import BASE, GATED
from tests.gpu.device import check, kernels, results
from tests.tolerance import assert_bitwise_equal

pytestmark = pytest.mark.gpu

TILES = 6


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tile", range(TILES))
def test_every_tile_and_share(tile: int, dtype: str, layout: str, force) -> None:
    problem = replace(BASE, channels=(40, 100), size=(6, 9), dtype=dtype, layout=layout, residual=True)
    for splits in (1, 3):
        force(tile=tile, splits=splits)
        check(problem)


@pytest.mark.parametrize("case", GATED)
def test_products_make_dz(case: str, force) -> None:
    force(gate=1)
    check(GATED[case])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tile", range(TILES))
def test_weight_stays(tile: int, dtype: str, layout: str, force) -> None:
    """In shared memory; each block has several tiles, and the bits are those of W copied for each."""
    problem = replace(BASE, channels=(60,), out_channels=150, size=(28, 28), dtype=dtype, layout=layout)
    problem = replace(problem, integers=True)
    force(tile=tile, splits=1, stays=0)
    want = results(problem)
    for gate in (0, 1):
        force(tile=tile, splits=1, gate=gate, stays=1, blocks=12)
        check(problem)
        for name, value in results(problem).items():
            assert_bitwise_equal(value, want[name], name)


@pytest.mark.parametrize("tile", range(TILES))
def test_every_tile_makes_dz(tile: int, force) -> None:
    for dtype, layout in (("float32", "contiguous"), ("bfloat16", "channels_last")):
        problem = replace(BASE, channels=(100,), size=(6, 9), dtype=dtype, layout=layout)
        for splits in (1, 3):
            force(tile=tile, splits=splits, gate=1)
            check(problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fma_kernel_of_float32(layout: str, force) -> None:
    force(fma=True)
    problem = replace(BASE, layout=layout, activation="tanh", channels=(300,), out_channels=150)
    check(problem)
    assert "gemm_fma" in kernels(problem)
