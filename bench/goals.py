"""The speed goals on CPU: the least ratio to the best peer of the same layout, as geometric mean of a class. The
bottleneck's layers (with a residual) have a class of their own, which counts in "all" and in backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.host import FUNCTION
from bench.operands import DTYPES
from bench.peers import EAGER
from bench.results import Results, Row, geomean
from bench.suites import LAYERS, LAYOUTS
from bench.summary import Duel, duels, is_ours

# class -> ((fp32 NCHW, fp32 NHWC), (bf16 NCHW, bf16 NHWC))
FORWARD = {
    "tiny": ((2.5, 2.5), (3.0, 3.0)),
    "28x28, batch 1": ((1.7, 1.4), (2.3, 1.6)),
    "28x28, batch 32": ((1.25, 1.1), (1.25, 1.1)),
    "MobileNetV2, batch 1": ((1.4, 1.25), (1.7, 1.35)),
    "MobileNetV2, batch 8": ((1.2, 1.15), (1.25, 1.2)),
    "ResNet-50, batch 1": ((1.15, 1.05), (1.25, 1.1)),
    "ResNet-50, batch 8": ((1.1, 1.03), (1.05, 1.03)),
    "stride 2, batch 1": ((1.05, 1.05), (1.05, 1.05)),
    "stride 2, batch 8": ((1.05, 1.05), (1.05, 1.05)),
}
BACKWARD, BACKWARD_EXPAND, BACKWARD_SMALL = 1.2, 1.5, 1.8  # every class; Cout > 2 Cin and 28x28, batch 1 in fp32
SMALL = "28x28, batch 1"
NO_ROW_BELOW = 0.9
OVERALL_BEST = 1.25
OVERALL_EAGER = {"nchw": 2.0, "nhwc": 1.6}
HOST_MICROSECONDS = {"inference": 3.0, "training forward": 6.0}
STRIDED_PEAK = 1.05  # a strided call's peak memory over its output's: no room for a copy of the used pixels
FP16_OVER_BF16 = 1.0  # where the kernels in use have no bf16 instructions: POINTWISE_EXT_CPU=avx512
COLUMNS = [(dtype, layout) for dtype in ("fp32", "bf16") for layout in LAYOUTS]


@dataclass(frozen=True)
class Verdict:
    """`got` against `goal` in one dtype and layout; at_most turns the comparison round. nan: not measured."""

    what: str
    dtype: str
    layout: str
    goal: float
    got: float
    at_most: bool = False
    # Of a class: the share of the floor that this package and the best peer reach, how many rows have a floor, and
    # in how many of them the goal lies below it.
    of_floor: float = math.nan
    best_of_floor: float = math.nan
    floors: int = 0
    beyond: int = 0

    @property
    def word(self) -> str:
        if math.isnan(self.got):
            return "not measured"
        return "met" if (self.got <= self.goal if self.at_most else self.got >= self.goal) else "missed"


def _class(what: str, dtype: str, layout: str, goal: float, group: list[Duel]) -> Verdict:
    """The mean ratio to the best peers, and how near the floor both are."""
    bound = [duel for duel in group if duel.best_of_floor]
    return Verdict(
        what,
        dtype,
        layout,
        goal,
        geomean(duel.vs_best for duel in group if duel.vs_best),
        of_floor=geomean(duel.of_floor for duel in bound),
        best_of_floor=geomean(duel.best_of_floor for duel in bound),
        floors=len(bound),
        beyond=sum(duel.best_of_floor * goal > 1 for duel in bound),
    )


def _expands(duel: Duel) -> bool:
    layer = LAYERS[duel.ours.layer]
    return layer.out_channels > 2 * layer.in_channels


def _strided_peak(group: list[Duel]) -> float:
    rows = [duel.ours for duel in group if LAYERS[duel.ours.layer].stride > 1 and duel.ours.peak_bytes]
    return max(
        (row.peak_bytes / (LAYERS[row.layer].outputs * DTYPES[row.dtype].itemsize) for row in rows), default=math.nan
    )


def _forward(found: list[Duel], dtype: str, layout: str) -> Iterator[Verdict]:
    group = [duel for duel in found if duel.ours.setting[:3] == ("forward", dtype, layout)]
    for klass, goals in FORWARD.items():
        goal = goals[dtype == "bf16"][LAYOUTS.index(layout)]
        yield _class(klass, dtype, layout, goal, [duel for duel in group if duel.ours.klass == klass])
    yield _class("all forward", dtype, layout, OVERALL_BEST, group)
    over_eager = geomean(duel.vs_eager for duel in group if duel.vs_eager)
    yield Verdict(f"all forward, over {EAGER}", dtype, layout, OVERALL_EAGER[layout], over_eager)
    yield Verdict("stride 2: peak memory over y's", dtype, layout, STRIDED_PEAK, _strided_peak(group), at_most=True)


def _backward(found: list[Duel], dtype: str, layout: str) -> Iterator[Verdict]:
    group = [duel for duel in found if duel.ours.setting[:3] == ("backward", dtype, layout)]
    for klass in dict.fromkeys(layer.klass for layer in LAYERS.values()):
        goal = BACKWARD_SMALL if (klass, dtype) == (SMALL, "fp32") else BACKWARD
        members = [duel for duel in group if duel.ours.klass == klass]
        yield _class(f"backward, {klass}", dtype, layout, goal, members)
    yield _class("backward, all", dtype, layout, BACKWARD, group)
    if dtype == "fp32":
        expanding = [duel for duel in group if _expands(duel)]
        yield _class("backward, Cout > 2 Cin", dtype, layout, BACKWARD_EXPAND, expanding)


def _host(rows: list[Row]) -> Iterator[Verdict]:
    function = [row for row in rows if (row.suite, row.layer, row.dtype) == ("host", FUNCTION, "fp32") and is_ours(row)]
    times = {row.mode: row.median_us for row in function}
    for mode, limit in HOST_MICROSECONDS.items():
        yield Verdict(f"tiny call, {mode}, us", "fp32", "nchw", limit, times.get(mode, math.nan), at_most=True)


def _fp16(results: Results, layout: str) -> Verdict:
    """fp16 against bf16 on the same layers, forward, where both are computed in fp32."""
    rows = [row for row in results.judged if (row.mode, row.layout) == ("forward", layout) and is_ours(row)]
    times = {(row.dtype, row.layer): row.median_us for row in rows if row.suite != "host"}
    fallback = results.environment.get("kernels") not in ("amx", "avx512_bf16")
    ratios = [times["bf16", layer] / us for (dtype, layer), us in times.items()
              if fallback and dtype == "fp16" and ("bf16", layer) in times]  # fmt: skip
    return Verdict("fp16 over bf16 computed in fp32", "fp16", layout, FP16_OVER_BF16, geomean(ratios))


def verdicts(results: Results) -> list[Verdict]:
    """Every goal, in the order of the table, whether it was measured or not."""
    found = duels(results.judged)
    result = [verdict for column in COLUMNS for verdict in _forward(found, *column)]
    result += [verdict for column in COLUMNS for verdict in _backward(found, *column)]
    for dtype, layout in COLUMNS:
        group = [duel for duel in found if duel.ours.setting[1:3] == (dtype, layout)]
        worst = min((duel.vs_best for duel in group if duel.vs_best), default=math.nan)
        result.append(Verdict("worst single row", dtype, layout, NO_ROW_BELOW, worst))
    result += _host(results.judged)
    return [*result, *(_fp16(results, layout) for layout in LAYOUTS)]


def behind(results: Results) -> list[Duel]:
    """The rows that miss the goal for single rows, the worst first."""
    found = [duel for duel in duels(results.judged) if (duel.vs_best or math.inf) < NO_ROW_BELOW]
    return sorted(found, key=lambda duel: duel.vs_best)
