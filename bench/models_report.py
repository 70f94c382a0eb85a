"""What the rows of whole networks say: ratios, the goals, a table, a bar chart, the README's lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.goals import Verdict
from bench.models import BACKEND, EAGER, FROZEN, FUSED, INDUCTOR, ModelResults, ModelRow
from bench.models_bound import Bound, bounds, over_eager
from bench.report import print_goals, ratio, time, times
from bench.results import geomean

OVER_EAGER = {"ResNet-50": 1.3, "MobileNetV2": 1.5, "EfficientNet-B0": 1.5, "SqueezeNet": 1.5}
NEVER_BELOW = 0.97  # in any layout
OVER_INDUCTOR, BACKEND_OVER_INDUCTOR = 1.0, 1.1
BARS = {
    FUSED: ("fused", "#0072B2", None),
    INDUCTOR: ("torch.compile", "#999999", None),
    BACKEND: ('torch.compile(backend="pointwise_ext")', "#D55E00", None),
    INDUCTOR + FROZEN: ("torch.compile, freezing", "#999999", "//"),
    BACKEND + FROZEN: ('torch.compile(backend="pointwise_ext"), freezing', "#D55E00", "//"),
}

Key = tuple[str, int, str, str]  # network, batch, dtype, mode


class Best:
    """Each contestant in its better layout: what a user who may choose compares."""

    def __init__(self, rows: list[ModelRow]) -> None:
        self.rows = rows
        self.times: dict[tuple[Key, str], float] = {}
        for row in rows:
            key = (self.key(row), row.name)
            self.times[key] = min(row.median_us, self.times.get(key, math.inf))

    @staticmethod
    def key(row: ModelRow) -> Key:
        return (row.network, row.batch, row.dtype, row.mode)

    @property
    def keys(self) -> list[Key]:
        return list(dict.fromkeys(self.key(row) for row in self.rows))

    def faster(self, key: Key, name: str, than: str) -> float:
        """How many times; nan where one of them was not measured."""
        return self.times.get((key, than), math.nan) / self.times.get((key, name), math.nan)


def in_one_layout(rows: list[ModelRow], name: str, than: str) -> dict[ModelRow, float]:
    """How many times faster `name` is than another contestant on the very same setup."""
    times = {(row.setup, row.name): row.median_us for row in rows}
    mine = (row for row in rows if row.name == name and (row.setup, than) in times)
    return {row: times[row.setup, than] / row.median_us for row in mine}


def verdicts(rows: list[ModelRow]) -> list[Verdict]:
    """The goals for whole models, in inference, per dtype; layouts: the better one of each, or both."""
    best, found = Best([row for row in rows if row.mode == "forward"]), []
    dtypes = list(dict.fromkeys(row.dtype for row in best.rows))

    def add(what: str, dtype: str, goal: float, got: float, layout: str = "better layout") -> None:
        found.append(Verdict(what, dtype, layout, goal, got))

    def geometric(keys: list[Key], name: str, than: str) -> float:
        return geomean(x for x in (best.faster(key, name, than) for key in keys) if x == x)

    for dtype in dtypes:
        keys = [key for key in best.keys if key[2] == dtype]
        for network, batch, *_ in keys:
            if goal := OVER_EAGER.get(network):
                got = best.faster((network, batch, dtype, "forward"), FUSED, EAGER)
                add(over_eager(network, batch), dtype, goal, got)
        for layout in ("nchw", "nhwc"):
            group = [row for row in rows if (row.dtype, row.layout) == (dtype, layout)]
            worst = min(in_one_layout(group, FUSED, EAGER).values(), default=math.nan)
            add(f"worst of all, {layout}: {FUSED} over {EAGER}, steps too", dtype, NEVER_BELOW, worst)
        for suffix in ("", FROZEN):
            if suffix and not any(row.name.endswith(FROZEN) for row in best.rows):
                continue
            got = geometric(keys, FUSED, INDUCTOR + suffix)
            add(f"all: {FUSED} over {INDUCTOR}{suffix}", dtype, OVER_INDUCTOR, got)
            got = geometric(keys, BACKEND + suffix, INDUCTOR + suffix)
            add(f"all: {BACKEND}{suffix} over {INDUCTOR}{suffix}", dtype, BACKEND_OVER_INDUCTOR, got)
    return found


def print_models(console: Console, results: ModelResults) -> None:
    rows = results.rows
    table = Table(title="Whole networks (ratios to eager in the same layout; above 1: faster)", title_justify="left")
    for column in ("network", "batch", "layout", "dtype", "mode", "who"):
        table.add_column(column)
    for column in ("time", "spread", "vs eager", "peak MB", "error", "1x1 fused", "prepared in"):
        table.add_column(column, justify="right")
    eager = {row.setup: row.median_us for row in rows if row.name == EAGER}
    for row in sorted(rows, key=lambda row: (str(row.setup), row.name)):
        versus = ratio(eager[row.setup] / row.median_us) if row.setup in eager else "-"
        fused = f"{row.fused}/{row.pointwise}" if row.name == FUSED else ""
        what = (row.network, str(row.batch), row.layout, row.dtype, row.mode, row.name)
        spread = f"{(row.high_us - row.low_us) / row.median_us:.0%}"
        numbers = (time(row.median_us), spread, versus, f"{row.peak_bytes / 1e6:.1f}", f"{row.error:.0e}", fused)
        table.add_row(*what, *numbers, f"{row.prepare_s:.1f} s")
    console.print(table)
    console.print(
        " · ".join(f"{key} {value}" for key, value in results.environment.items()), highlight=False, style="dim"
    )
    for line in results.absent:
        console.print(f"absent: {line}", style="yellow", highlight=False)
    found = verdicts(rows)
    print_goals(console, found, "Goals (each contestant in its better layout): got (wanted)")
    print_bounds(console, list(bounds(results, found)))


def print_bounds(console: Console, found: list[Bound]) -> None:
    table = Table(title="Missed goals, and what 1x1 convolutions can do for them", title_justify="left")
    for column in ("goal", "wanted", "got", "eager", "fused", "in 1x1", "at the floor", "then", "if they were free"):
        table.add_column(column, justify="left" if column == "goal" else "right")
    for b in found:
        times = (time(us) for us in (b.eager, b.fused, b.inside, b.least))
        table.add_row(
            b.verdict.what, ratio(b.verdict.goal), ratio(b.verdict.got), *times, ratio(b.at_floor), ratio(b.free)
        )
    if found:
        console.print(table)


def plot(results: ModelResults, path: Path) -> Path:
    """A PNG: per network and batch, how many times faster than eager, each in its better layout; a panel per dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    best = Best([row for row in results.rows if row.mode == "forward"])
    dtypes = list(dict.fromkeys(key[2] for key in best.keys)) or ["fp32"]
    shown = {name: look for name, look in BARS.items() if any(row.name == name for row in best.rows)}
    lines = max((sum(key[2] == dtype for key in best.keys) for dtype in dtypes), default=1)
    size = (2.5 + 5 * len(dtypes), 2 + 0.22 * max(1, lines) * (len(shown) + 1))
    figure, axes = plt.subplots(1, len(dtypes), squeeze=False, figsize=size)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        keys = [key for key in best.keys if key[2] == dtype]
        width = 1 / (len(shown) + 1)
        for i, (name, (label, colour, hatch)) in enumerate(shown.items()):
            places = [y + (i - (len(shown) - 1) / 2) * width for y in range(len(keys))]
            values = [best.faster(key, name, EAGER) for key in keys]
            bars = axis.barh(places, values, width, color=colour, hatch=hatch, edgecolor="white", label=label)
            axis.bar_label(bars, [f"{value:.2f}" if value == value else "" for value in values], fontsize=7, padding=2)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_yticks(range(len(keys)), [f"{network}, batch {batch}" for network, batch, *_ in keys])
        axis.invert_yaxis()
        axis.set(title=dtype, xlabel="times faster than eager")
        axis.margins(x=0.1)
    facts = results.environment
    device = facts["GPU"] if facts["device"] == "cuda" else f"{facts['CPU']}, {facts['threads']} threads"
    figure.suptitle(
        f"Whole networks, inference, each in its better layout\n{device} · torch {facts['torch']}", fontsize=10
    )
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def markdown(results: ModelResults, picture: str) -> str:
    """A network a line: times faster than eager, each in its better layout, in the first dtype measured."""
    rows = [row for row in results.rows if row.mode == "forward"]
    best, facts, dtype = Best(rows), results.environment, rows[0].dtype
    batches = sorted({row.batch for row in rows})
    shown = [name for name in BARS if any(row.name == name for row in rows) and not name.endswith(FROZEN)]
    device = facts["GPU"] if facts["device"] == "cuda" else f"{facts['CPU']}, {facts['threads']} threads"
    memory = facts.get("freed memory", "as malloc does")
    titles = {FUSED: "fused", INDUCTOR: "torch.compile", BACKEND: "its backend pointwise_ext"}

    def cells(line: Callable[[str, int], str]) -> str:
        return " | ".join(line(name, batch) for batch in batches for name in shown)

    lines = [
        f"Times faster than eager, inference, {dtype}, each in its better layout; "
        "medians measured in turns, layout by layout.",
        f"{device}, torch {facts['torch']}, {facts['date'][:10]}, freed memory {memory}.",
        "",
        f"| network | 1x1 fused | {cells(lambda name, batch: f'batch {batch}: {titles[name]}')} |",
        f"|---|---:|{'---:|' * (len(shown) * len(batches))}",
    ]
    for network in dict.fromkeys(row.network for row in rows):
        fused = next((row for row in rows if (row.network, row.name) == (network, FUSED)), None)

        def cell(name: str, batch: int, network: str = network) -> str:
            return times(best.faster((network, batch, dtype, "forward"), name, EAGER))

        share = f"{fused.fused} of {fused.pointwise}" if fused else "-"
        lines.append(f"| {network} | {share} | {cells(cell)} |")
    return "\n".join([*lines, "", f"![Times faster than eager, network by network]({picture})"])
