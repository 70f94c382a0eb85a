"""The choice of kernel, tiles and shares: complete, without overflow, the same for every GPU, and explained."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.emulated

SIZES = [
    (1, 1, 1),
    (64, 256, 0),
    (64, 256, 802816),
    (10, 49, 3),
    (512, 49, 2048),
    (256, 2**33, 64),
    (2**20, 2**20, 2**35),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 7])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_tiles_and_shares_cover_the_product(emulated_ops, m, n, k, groups, dtype) -> None:
    tile, tiles_m, tiles_n, splits, steps, share, work, workspace = emulated_ops.plan(m, n, k, groups, dtype)
    assert tiles_m == -(-m // tile)
    assert tiles_n == -(-n // tile)
    assert steps == -(-k // 16)
    assert splits * share >= steps > (splits - 1) * share - (k == 0), "every share has steps"
    assert work == tiles_m * tiles_n * groups * splits
    assert workspace == (0 if splits == 1 else groups * splits * m * n * (8 if dtype == torch.float64 else 4))
    assert workspace <= 256 * 128 * 128 * 8, "the more shares, the fewer tiles"


def test_sum_over_many_pixels_is_split(emulated_ops) -> None:
    assert emulated_ops.explain(64, 256, 802816, 1, torch.float32) == (
        "gemm_fma 64x64: a side of the product is at most 64; "
        "sum over k in 64 shares, as 4 tiles do not fill 256 blocks"
    )


@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [
        ((256, 100_000, 64), torch.float32, "gemm_fma 128x128: at least 256 large tiles"),
        ((256, 100_000, 64), torch.float64, "gemm_fma 64x64: float64 has no large tile"),
        ((256, 1000, 64), torch.float32, "gemm_fma 64x64: fewer than 256 large tiles"),
        ((10, 100_000, 64), torch.float16, "gemm_fma 64x64: a side of the product is at most 64"),
    ],
)
def test_reason_for_the_tile(emulated_ops, size, dtype, reason) -> None:
    assert emulated_ops.explain(*size, 1, dtype) == reason
