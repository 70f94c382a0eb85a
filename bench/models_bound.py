"""Why a network misses its goal: how fast it would be if its 1x1 convolutions took the least time, or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.goals import Verdict
from bench.models import EAGER, FUSED, ModelResults, ModelRow


def over_eager(network: str, batch: int) -> str:
    """What the goal of one network is called."""
    return f"{network}, batch {batch}: {FUSED} over {EAGER}"


@dataclass(frozen=True)
class Bound:
    """A fused network beside its goal; times in microseconds, of the better layouts."""

    verdict: Verdict
    eager: float
    fused: float
    inside: float  # of `fused`, in 1x1 convolutions
    least: float  # what those would take at the machine's ceilings

    @property
    def at_floor(self) -> float:
        """How many times faster than eager, were every 1x1 convolution as fast as arithmetic and memory allow."""
        return self.eager / (self.fused - self.inside + self.least)

    @property
    def free(self) -> float:
        """The same if they took no time."""
        return self.eager / (self.fused - self.inside)


def bounds(results: ModelResults, verdicts: list[Verdict]) -> Iterator[Bound]:
    """Of the networks that miss their goals against eager, where the run knows what is 1x1 in them."""

    def fastest(network: str, batch: int, dtype: str, name: str) -> ModelRow | None:
        what = (network, batch, dtype, "forward", name)
        found = [row for row in results.rows if (row.network, row.batch, row.dtype, row.mode, row.name) == what]
        return min(found, key=lambda row: row.median_us, default=None)

    for network, batch, dtype in dict.fromkeys((row.network, row.batch, row.dtype) for row in results.rows):
        goal = next((v for v in verdicts if (v.what, v.dtype) == (over_eager(network, batch), dtype)), None)
        eager, fused = (fastest(network, batch, dtype, name) for name in (EAGER, FUSED))
        if goal and goal.word == "missed" and eager and fused and fused.pointwise_floor_us:
            inside = fused.pointwise_share * fused.median_us
            least = min(inside, fused.pointwise_floor_us)
            yield Bound(goal, eager.median_us, fused.median_us, inside, least)
