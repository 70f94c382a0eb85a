"""What is printed: the table of problems, geometric means, host times, the goals, a comparison with an earlier run."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from bench.goals import Verdict
from bench.results import Results, Row
from bench.summary import EVERYTHING, Change, Duel, duels, means


def times(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}x"


def ratio(value: float | None) -> str:
    """Coloured: green from 1.05, red below 0.95, where noise between neighbours ends."""
    text = times(value)
    if text == "-":
        return text
    return f"[green]{text}[/]" if value >= 1.05 else f"[red]{text}[/]" if value < 0.95 else text


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.0%}"


def time(microseconds: float) -> str:
    return f"{microseconds:.1f} us" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def _table(title: str, words: list[str], numbers: list[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in words:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _problem_cells(duel: Duel) -> list[str]:
    ours, best = duel.ours, duel.best
    return [
        ours.layer, f"{ours.mode} {ours.dtype} {ours.layout}" + (" cold" if ours.cache == "cold" else ""),
        best.name if best else "-", time(ours.median_us), f"{ours.spread:.0%}", f"{ours.gflops:.0f}",
        f"{percent(duel.of_floor)} {ours.bound[0]}", ratio(duel.vs_eager), ratio(duel.vs_best),
    ]  # fmt: skip


def print_problems(console: Console, found: list[Duel]) -> None:
    table = _table(
        "Every problem (floor: c compute-bound, m memory-bound; ratios above 1: pointwise_ext is faster)",
        ["layer", "what", "best peer"],
        ["time", "spread", "GFLOP/s", "of floor", "vs eager", "vs best"],
    )
    for duel in found:
        table.add_row(*_problem_cells(duel))
    console.print(table)


def print_means(console: Console, found: list[Duel]) -> None:
    table = _table(
        "Geometric means by class (eager: nn.Conv2d + ReLU in the same layout; best: the fastest peer in that layout)",
        ["class", "what"],
        ["problems", "vs eager", "vs best", "worst vs best", "of floor"],
    )
    for mean in sorted(means(found), key=lambda m: (m.klass == EVERYTHING, m.mode != "forward", m.mode)):
        cells = [ratio(mean.vs_eager), ratio(mean.vs_best), ratio(mean.worst), percent(mean.of_floor)]
        what = f"{mean.mode} {mean.dtype} {mean.layout}"
        table.add_row(mean.klass, what, str(mean.count), *cells, style="bold" if mean.klass == EVERYTHING else None)
    console.print(table)


def print_host(console: Console, rows: list[Row]) -> None:
    host = [row for row in rows if row.suite == "host"]
    if not host:
        return
    table = _table("Host time of a tiny call (8->8 channels, 4x4)", ["who", "called as", "what"], ["time", "spread"])
    for row in host:
        table.add_row(row.name, row.layer, f"{row.mode} {row.dtype}", time(row.median_us), f"{row.spread:.0%}")
    console.print(table)


def print_memory(console: Console, rows: list[Row]) -> None:
    steps = [row for row in rows if row.mode == "step"]
    if not steps:
        return
    table = _table("Peak memory of a training step (PyTorch's allocator)", ["layer", "what", "who"], ["MB", "time"])
    for row in steps:
        cells = (row.name, f"{row.peak_bytes / 1e6:.2f}", time(row.median_us))
        table.add_row(row.layer, f"{row.dtype} {row.layout}", *cells)
    console.print(table)


def print_facts(console: Console, results: Results) -> None:
    facts = [f"{key} {value}" for key, value in {**results.environment, **results.ceilings}.items()]
    console.print(" · ".join(facts), highlight=False, style="dim")
    for line in results.absent:
        console.print(f"absent: {line}", style="yellow", highlight=False)


def print_results(console: Console, results: Results) -> None:
    found = duels(results.rows)
    print_problems(console, found)
    print_memory(console, results.rows)
    print_host(console, results.rows)
    print_means(console, found)
    print_facts(console, results)


def print_goals(console: Console, verdicts: list[Verdict]) -> None:
    table = _table("Goals (ratio to the best peer of the same layout)", ["goal"], ["wanted", "got", "verdict"])
    colours = {"met": "green", "missed": "red", "not measured": "dim"}
    for verdict in verdicts:
        wanted = f"{'<=' if verdict.at_most else '>='} {verdict.goal:g}"
        got = "-" if math.isnan(verdict.got) else f"{verdict.got:.2f}"
        table.add_row(verdict.what, wanted, got, f"[{colours[verdict.word]}]{verdict.word}[/]")
    console.print(table)


def print_changes(console: Console, changes: list[Change], tolerance: float) -> None:
    table = _table(
        f"Against the earlier run (ratios to nn.Conv2d + ReLU; a loss beyond {tolerance:.0%} is a regression)",
        ["class", "what"],
        ["before", "now", "change"],
    )
    for change in changes:
        klass, *what = change.key
        table.add_row(klass, " ".join(what), f"{change.before:.2f}x", f"{change.now:.2f}x", f"{change.ratio - 1:+.1%}")
    console.print(table)
