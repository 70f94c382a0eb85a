"""From rows to verdicts: ratios within one run, geometric means per class, comparison with an earlier run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from bench.peers import EAGER
from bench.results import Row, Setting, geomean


@dataclass(frozen=True)
class Duel:
    """This package against the peers on one problem; ratios above 1 mean this package is faster."""

    ours: Row
    eager: Row | None
    best: Row | None  # the fastest peer of the same layout

    @property
    def vs_eager(self) -> float | None:
        return self.eager.median_us / self.ours.median_us if self.eager else None

    @property
    def vs_best(self) -> float | None:
        return self.best.median_us / self.ours.median_us if self.best else None

    @property
    def of_floor(self) -> float | None:
        """1.0: as fast as the machine's arithmetic and copy ceilings allow. A tiny call has no floor but the host's."""
        return self.ours.floor_us / self.ours.median_us if self.ours.suite != "tiny" else None

    @property
    def best_of_floor(self) -> float | None:
        return self.best.floor_us / self.best.median_us if self.best and self.best.suite != "tiny" else None


def is_ours(row: Row) -> bool:
    """Also true of a stored run in which the extension was not loaded, whose name says so."""
    return row.name.startswith("pointwise_ext")


def duels(rows: Iterable[Row]) -> list[Duel]:
    groups: dict[tuple[str, Setting], list[Row]] = defaultdict(list)
    for row in rows:
        if row.suite != "host":
            groups[row.problem].append(row)
    result = []
    for group in groups.values():
        ours = next((row for row in group if is_ours(row)), None)
        peers = [row for row in group if row is not ours]
        if ours:
            eager = next((row for row in peers if row.name == EAGER), None)
            result.append(Duel(ours, eager, min(peers, key=lambda row: row.median_us, default=None)))
    return result


@dataclass(frozen=True)
class Mean:
    """Geometric means of one class in one setting."""

    klass: str
    setting: Setting
    count: int
    vs_eager: float
    vs_best: float
    worst: float  # the smallest vs_best
    of_floor: float
    peak_bytes: int  # of a call of this package, added up over the layers
    eager_peak_bytes: int

    @property
    def key(self) -> tuple[str, ...]:
        """Of one thread count: what goals and tables are about."""
        return (self.klass, *self.setting[:3])


EVERYTHING = "all"


def _mean(klass: str, setting: Setting, members: list[Duel]) -> Mean:
    eager = [d.vs_eager for d in members if d.vs_eager]
    best = [d.vs_best for d in members if d.vs_best]
    floors = geomean(d.of_floor for d in members if d.of_floor)
    peaks = (sum(d.ours.peak_bytes for d in members), sum(d.eager.peak_bytes for d in members if d.eager))
    worst = min(best, default=float("nan"))
    return Mean(klass, setting, len(members), geomean(eager), geomean(best), worst, floors, *peaks)


def means(found: list[Duel]) -> list[Mean]:
    """Per class, and over all classes (named EVERYTHING), in each setting."""
    groups: dict[tuple[str, Setting], list[Duel]] = defaultdict(list)
    for duel in found:
        groups[duel.ours.klass, duel.ours.setting].append(duel)
    for duel in found:
        groups[EVERYTHING, duel.ours.setting].append(duel)
    return [_mean(*key, members) for key, members in groups.items()]


@dataclass(frozen=True)
class Change:
    """One class now and in an earlier run, by its ratio to nn.Conv2d + ReLU, which cancels the machine's mood."""

    klass: str
    setting: Setting
    before: float
    now: float

    @property
    def ratio(self) -> float:
        return self.now / self.before


def changes(now: Iterable[Row], before: Iterable[Row]) -> list[Change]:
    """Class by class, on the problems both runs have."""
    old = {duel.ours.problem: duel for duel in duels(before)}
    new = [duel for duel in duels(now) if duel.ours.problem in old]
    earlier = means([old[duel.ours.problem] for duel in new])  # in the order of means(new)
    return [
        Change(mean.klass, mean.setting, was.vs_eager, mean.vs_eager)
        for was, mean in zip(earlier, means(new), strict=True)
        if was.vs_eager == was.vs_eager and mean.vs_eager == mean.vs_eager  # not nan
    ]


def regressions(found: list[Change], tolerance: float) -> list[Change]:
    """The classes whose ratio fell by more than `tolerance`, 0.1 meaning 10 %."""
    return [change for change in found if change.ratio < 1 - tolerance]
