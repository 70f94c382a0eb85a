"""python -m bench.kernels: twelve layers, and what each contestant starts for one of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench import kernels
from bench.peers import OURS


def test_twelve_layers() -> None:
    layers = kernels.layers(batch=32)
    assert len(set(layers)) == len(layers) == 12
    assert {layer.batch for layer in layers} == {32}
    assert any(layer.stride == 2 for layer in layers)


def test_lists_what_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "kernels.csv"
    asked = ["--device", "cpu", "--batch", "1", "--layers", "1", "--dtype", "fp32", "--to", str(table)]
    kernels.main(asked)
    rows = list(csv.DictReader(table.open()))
    said = capsys.readouterr().out
    assert all(row["kernel"][:150] in said for row in rows)
    assert {row["what"] for row in rows} == {
        f"{m} fp32 {layout}" for m in ("forward", "step") for layout in ("nchw", "nhwc")
    }
    ours = [row for row in rows if row["peer"] == OURS]
    forward = [row["kernel"] for row in ours if row["what"] == "forward fp32 nchw"]
    assert [name for name in forward if name.startswith("pointwise_ext::")] == ["pointwise_ext::conv"]
    assert all(float(row["microseconds"]) > 0 and float(row["count"]) >= 0.2 for row in rows)
    eager = [row["kernel"] for row in rows if row["peer"] == "nn.Conv2d + ReLU"]
    assert any("convolution" in name for name in eager)
