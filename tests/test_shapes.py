"""802 sizes of 1x1 convolutions in networks and benchmarks, forward and backward, in integers: results are equal."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

import pointwise_ext as pw
from tests.memory import require
from tests.problem import Problem, gradients
from tests.tolerance import assert_equal


def each(text: str) -> tuple[int, ...]:
    return tuple(int(v) for v in text.split("x"))


def read() -> list[dict[str, str]]:
    with (Path(__file__).parent / "data" / "shapes_1x1.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def problem(row: dict[str, str], index: int) -> Problem:
    """One sample of the row's batch, or two where there are few pixels; layouts, dtypes and extras by turns."""
    size, stride, padding = each(row["spatial"]), each(row["stride"]), each(row["padding"])
    return Problem(
        channels=(int(row["cin"]),),
        out_channels=int(row["cout"]),
        batch=min(int(row["batch"]), 1 if math.prod(size) > 1024 else 2),
        size=size,
        groups=int(row["groups"]),
        stride=stride if len(stride) > 1 else stride[0],
        padding=padding if len(padding) > 1 else padding[0],
        activation=("relu", None)[index % 2],
        residual=index % 3 == 0,
        layout=("contiguous", "channels_last")[index // 2 % 2],
        dtype=("float32", "float32", "bfloat16", "float16")[index // 4 % 4],
        integers=True,
    )


def name(row: dict[str, str]) -> str:
    size = f"n{row['batch']}_g{row['groups']}_{row['cin']}to{row['cout']}_{row['spatial']}"
    return f"{size}_s{row['stride']}_p{row['padding']}"


def multiplications(p: Problem) -> int:
    return (p.batch or 1) * math.prod(p.size) * sum(p.channels) * p.out_channels // p.groups


def elements(p: Problem) -> int:
    return math.prod(p.size) * sum(p.channels) + sum(p.channels) * p.out_channels + math.prod(p.size) * p.out_channels


ROWS = read()
PROBLEMS = [problem(row, i) for i, row in enumerate(ROWS)]
BEYOND_INT32 = [i for i, p in enumerate(PROBLEMS) if elements(p) > 2**31]


def parameter(index: int):
    slow = multiplications(PROBLEMS[index]) > 1e9 or elements(PROBLEMS[index]) > 1e7
    return pytest.param(index, id=name(ROWS[index]), marks=[pytest.mark.slow] if slow else [])


def test_there_are_802() -> None:
    assert len(ROWS) == 802


@pytest.mark.parametrize("index", [parameter(i) for i in range(len(ROWS)) if i not in BEYOND_INT32])
def test_forward_and_backward(index: int) -> None:
    """Against PyTorch in float32, where every sum of these integers is exact; the gradient of a ReLU at 0 included."""
    p = PROBLEMS[index]
    exact = {key: t.float() for key, t in p.tensors().items()}
    placed = p.placed(exact)
    want = gradients(pw.reference.pointwise_conv, exact, p.options)
    got = gradients(pw.pointwise_conv, placed, p.options)
    for key, value in got.items():
        assert_equal(value, want[key], f"{key} of {p.repro()}")


@pytest.mark.slow
@pytest.mark.parametrize("index", [pytest.param(i, id=name(ROWS[i])) for i in BEYOND_INT32])
def test_forward_beyond_int32(index: int) -> None:
    """More than 2^31 input or output channels: ones but for the far end, so that 16 bits hold the result."""
    p = PROBLEMS[index]
    require(2 * elements(p) * 5 // 4)
    x = torch.zeros(1, sum(p.channels), 1, dtype=torch.bfloat16)
    w = torch.zeros(p.out_channels, sum(p.channels), 1, dtype=torch.bfloat16)
    x[0, -1] = 3
    w[-1, -1] = 5
    y = pw.pointwise_conv(x, w)
    assert y[0, -1].item() == 15
    assert y.count_nonzero().item() == 1
