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
    assert launch.memory_bytes == 2 * (PIXELS * (64 + 256) + 64 * 256)
    assert launch.product == (f"256x{PIXELS}x64" if layout == "nchw" else f"{PIXELS}x256x64")
    assert launch.cache_bytes >= 2 * (PIXELS * 64 + 64 * 256)
    assert launch.microseconds > launch.memory_bytes / predict._MEMORY_BYTES_PER_US


def test_backward_names_every_kernel() -> None:
    grad, dx, dw, total = predict.launches(LAYER, "bf16", "nhwc", backward=True)
    assert (grad.kernel, total.kernel) == ("activation_backward", "reduce")
    assert grad.memory_bytes == 3 * 2 * PIXELS * 256  # reads dy and y, writes dz
    assert dx.product == f"{PIXELS}x64x256"
    assert dw.product == f"256x64x{PIXELS}"
    assert "shares of K" in dw.kernel
    assert total.memory_bytes == 0


def test_every_layer_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BATCHES", (1,))
    path = tmp_path / "table.csv"
    assert predict.write(path) == len(path.read_text().splitlines()) - 1
    names = {line.split(",")[0] for line in path.read_text().splitlines()[1:]}
    assert names == {layer.name for layer in predict.layers()}
    assert len(names) == 3 + 15 + 14
