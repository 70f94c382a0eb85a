"""The speed goals on CPU: the least ratio to the best peer of the same layout, as geometric mean of a class."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.host import FUNCTION
from bench.peers import EAGER
from bench.results import Row, geomean
from bench.suites import LAYERS, LAYOUTS
from bench.summary import EVERYTHING, Duel, duels, is_ours, means

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
BACKWARD, BACKWARD_EXPAND, BACKWARD_SMALL = 1.2, 1.5, 1.8  # any; Cout > 2 Cin; 28x28 at batch 1
NO_ROW_BELOW = 0.9
OVERALL_BEST = 1.25
OVERALL_EAGER = {"nchw": 2.0, "nhwc": 1.6}
HOST_MICROSECONDS = {"inference": 3.0, "training forward": 6.0}


@dataclass(frozen=True)
class Verdict:
    """`got` against `goal`; at_most turns the comparison round. nan: not measured in this run."""

    what: str
    goal: float
    got: float
    at_most: bool = False

    @property
    def word(self) -> str:
        if math.isnan(self.got):
            return "not measured"
        return "met" if (self.got <= self.goal if self.at_most else self.got >= self.goal) else "missed"


def _vs_best(group: list[Duel]) -> float:
    return geomean(duel.vs_best for duel in group if duel.vs_best)


def _expands(duel: Duel) -> bool:
    layer = LAYERS[duel.ours.layer]
    return layer.out_channels > 2 * layer.in_channels


def _backward(found: list[Duel]) -> list[Verdict]:
    result = []
    for dtype in ("fp32", "bf16"):
        group = [duel for duel in found if (duel.ours.mode, duel.ours.dtype) == ("backward", dtype)]
        small = [duel for duel in group if duel.ours.klass == "28x28, batch 1"]
        result.append(Verdict(f"backward, all, {dtype}", BACKWARD, _vs_best(group)))
        if dtype == "fp32":
            expanding = [duel for duel in group if _expands(duel)]
            result.append(Verdict("backward, Cout > 2 Cin, fp32", BACKWARD_EXPAND, _vs_best(expanding)))
            result.append(Verdict("backward, 28x28, batch 1, fp32", BACKWARD_SMALL, _vs_best(small)))
    return result


def _host(rows: list[Row]) -> list[Verdict]:
    function = [row for row in rows if (row.suite, row.layer, row.dtype) == ("host", FUNCTION, "fp32") and is_ours(row)]
    times = {row.mode: row.median_us for row in function}
    return [
        Verdict(f"tiny call, {mode}, us", limit, times.get(mode, math.nan), at_most=True)
        for mode, limit in HOST_MICROSECONDS.items()
    ]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """Every goal, in the order of the table, whether it was measured or not."""
    found = duels(rows)
    averages = means(found)
    by_key = {mean.key: mean for mean in averages}
    result = []
    for klass, goals in FORWARD.items():
        for dtype, pair in zip(("fp32", "bf16"), goals, strict=True):
            for layout, goal in zip(LAYOUTS, pair, strict=True):
                mean = by_key.get((klass, "forward", dtype, layout))
                result.append(Verdict(f"{klass}, {dtype} {layout}", goal, mean.vs_best if mean else math.nan))
    result += _backward(found) + _host(rows)
    for mean in averages:
        if mean.klass == EVERYTHING and mean.mode == "forward":
            what = f"all forward, {mean.dtype} {mean.layout}"
            result.append(Verdict(what, OVERALL_BEST, mean.vs_best))
            result.append(Verdict(f"{what}, against {EAGER}", OVERALL_EAGER[mean.layout], mean.vs_eager))
    worst = min((duel.vs_best for duel in found if duel.vs_best), default=math.nan)
    return [*result, Verdict("worst single row", NO_ROW_BELOW, worst)]
