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
    chosen, *candidates = emulated_ops.plans(m, n, k, groups, dtype)
    assert chosen in candidates
    lean = k > 0 and max(m * n, m * k, k * n) < 2**31 - 2**16  # gemm_mma has one tile
    wide = n % 8 == 0 and k % 8 == 0  # 16 bytes at a time, in the largest tile too
    tiles = {torch.float32: 3, torch.float64: 1, torch.bfloat16: 6 if wide else 5}
    assert len(candidates) == (tiles[dtype] if lean else 1)
    for tile_m, tile_n, tiles_m, tiles_n, splits, steps, share, depth, work, workspace, weight_blocks in candidates:
        assert tiles_m == -(-m // tile_m)
        assert tiles_n == -(-n // tile_n)
        assert steps == -(-k // depth)
        assert splits * share >= steps > (splits - 1) * share - (k == 0), "every share has steps"
        assert work == tiles_m * tiles_n * groups * splits
        assert weight_blocks == 0 or (splits == 1 and weight_blocks % tiles_m == 0), "as many for each tile of channels"
        sums = groups * splits * m * (n + n % 2)  # pairs of columns
        assert workspace == (0 if splits == 1 else sums * (8 if dtype == torch.float64 else 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_sides_get_narrow_tiles(emulated_ops, dtype) -> None:
    assert emulated_ops.plans(10, 100_000, 64, 1, dtype)[0][:2] == [32, 128]
    assert emulated_ops.plans(100_000, 16, 96, 1, dtype)[0][:2] == [128, 32]


def test_large_products_get_large_tiles(emulated_ops) -> None:
    assert emulated_ops.plans(1024, 50176, 256, 1, torch.bfloat16)[0][:2] == [128, 128]


def test_weights_that_fit_stay_in_shared_memory(emulated_ops) -> None:
    """64 -> 256 channels of 56x56, batch 32, as on an H200: tiles that copied W each time would take longer."""
    assert 0 < emulated_ops.plans(256, 32 * 3136, 64, 1, torch.bfloat16)[0][-1] <= 2 * 132
    assert emulated_ops.plans(256, 784, 64, 1, torch.bfloat16)[0][-1] == 0, "each block has one tile"
    assert emulated_ops.plans(512, 256 * 49, 2048, 1, torch.bfloat16)[0][-1] == 0, "W does not fit"


def test_sum_over_many_pixels_is_split(emulated_ops) -> None:
    assert emulated_ops.plans(64, 256, 802816, 1, torch.bfloat16)[0][4] > 8


def test_explanation_names_the_choice_and_the_others(emulated_ops) -> None:
    text = emulated_ops.explain(512, 49, 2048, 1, torch.float32)
    assert text.startswith("gemm_lean, three TF32 products, predicted for an H200: ")
    assert "shares of k" in text
    assert text.count(" us") == 3
    assert "reads 16 and 4 bytes at a time, writes 4" in text, "49 floats are no multiple of 8 bytes"


@pytest.mark.parametrize(
    ("shape", "slices", "expected"),
    [
        ((64, 64), (slice(None), slice(None)), 16),
        ((64, 60), (slice(None), slice(None)), 8),
        ((64, 50), (slice(None), slice(None)), 4),
        ((64, 49), (slice(None), slice(None)), 2),
        ((64, 72), (slice(None), slice(8, None)), 16),
        ((64, 72), (slice(None), slice(4, None)), 8),
        ((64, 72), (slice(None), slice(1, None)), 2),
        ((64, 72), (slice(None), slice(None, None, 2)), 2),
    ],
)
def test_bytes_that_lie_together(emulated_ops, shape, slices, expected) -> None:
    """What limits an access: the row's length, where it starts, and whether neighbours are neighbours."""
    x = torch.zeros(shape, dtype=torch.bfloat16)[slices]
    y = torch.zeros(64, 64, dtype=torch.bfloat16)
    w = torch.zeros(64, x.shape[1], dtype=torch.bfloat16)
    assert emulated_ops.access(x, w.T.contiguous(), y)[1] == expected  # as A, rows of X
    assert emulated_ops.access(y, x, torch.zeros_like(w))[3] == expected  # as B
    assert emulated_ops.access(y, w, x)[4] == (2 if expected == 4 else expected)  # as C, whose pairs are written singly


def test_direction_of_the_operands(emulated_ops) -> None:
    row_major, column_major = torch.zeros(64, 64), torch.zeros(64, 64).T
    directions = {
        (a_name, b_name): emulated_ops.access(a, b, row_major)
        for a_name, a in (("rows", row_major), ("columns", column_major))
        for b_name, b in (("rows", row_major), ("columns", column_major))
    }
    assert directions["rows", "rows"][:4] == [1, 16, 0, 16]
    assert directions["rows", "columns"][:4] == [1, 16, 1, 16]
    assert directions["columns", "rows"][:4] == [0, 16, 0, 16]
    assert directions["columns", "columns"][:4] == [1, 4, 1, 16], "such an A is read element by element"
