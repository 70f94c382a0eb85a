"""The table of predicted launches: every kernel of a call, with the traffic of its operands."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import predict
from bench.suites import Layer

LAYER = Layer("test", 32, (64,), 256, 56)
PIXELS = 32 * 56 * 56


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_forward_is_one_launch_at_the_floor_of_its_traffic(layout: str) -> None:
    (launch,) = predict.launches(LAYER, "bf16", layout, backward=False)
    assert launch.kernel.startswith("gemm_lean ")
    assert launch.memory_bytes == 2 * (PIXELS * (64 + 256) + 64 * 256)
    assert launch.product == (f"256x{PIXELS}x64" if layout == "nchw" else f"{PIXELS}x256x64")
    assert launch.cache_bytes >= 2 * (PIXELS * 64 + 64 * 256)
    assert launch.microseconds > launch.memory_bytes / predict._MEMORY_BYTES_PER_US


def test_backward_names_every_kernel() -> None:
    dx, dw, total = predict.launches(Layer("test", 32, (64,), 512, 56), "bf16", "nhwc", backward=True)
    assert total.kernel == "reduce"
    assert dx.memory_bytes == 2 * (PIXELS * (512 + 64) + 64 * 512) + PIXELS * 512 / 8  # dy and a bit each, and dx
    assert dx.product == f"{PIXELS}x64x512"
    assert " of dY by bits" in dx.kernel
    assert " of dY by bits with db" in dw.kernel
    assert dw.product == f"512x64x{PIXELS}"
    assert "shares of K" in dw.kernel
    assert total.memory_bytes == 0


def test_dz_is_written_where_the_products_are_bound_by_the_tensor_cores() -> None:
    dz, *products = predict.launches(Layer("test", 32, (2048,), 2048, 28), "fp32", "nchw", True)
    assert dz.kernel == "activation_backward"
    assert dz.memory_bytes == 32 * 28 * 28 * 2048 * (4 + 4 + 1 / 8)  # dy, dz and a bit
    assert not any("of dY" in launch.kernel for launch in products)


def test_every_layer_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BATCHES", (1,))
    path = tmp_path / "table.csv"
    assert predict.write(path) == len(path.read_text().splitlines()) - 1
    names = {line.split(",")[0] for line in path.read_text().splitlines()[1:]}
    assert names == {layer.name for layer in predict.layers()}
    assert len(names) == 3 + 15 + 14
