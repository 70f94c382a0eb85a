"""What is printed: the table of problems, geometric means, host times, the goals, a comparison with an earlier run."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from bench.goals import Verdict
from bench.results import Results, Row
from bench.suites import MODES
from bench.summary import EVERYTHING, Change, Duel, duels, means

FOOTNOTES = """
Peak memory: of one call, added up over the class, by PyTorch's allocator; buffers that libraries keep for themselves
(MKL's, and this package's panel per thread) are not in it, nor what runtimes with an allocator of their own take.
ONNX Runtime and OpenVINO write into outputs bound beforehand. All others, this package too, allocate y in every call as
their users do, which costs most above 32 MB, where glibc asks the system for new pages each time. ONNX Runtime has no
channels_last convolution. Where one of them takes part, every sample starts after the others' idle threads sleep.
""".strip()


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
        ours.layer, str(ours.setting),
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
        ["problems", "vs eager", "vs best", "worst vs best", "of floor", "peak MB", "eager's"],
    )
    for mean in sorted(means(found), key=lambda m: (m.klass == EVERYTHING, MODES.index(m.setting.mode))):
        cells = [ratio(mean.vs_eager), ratio(mean.vs_best), ratio(mean.worst), percent(mean.of_floor)]
        cells += [f"{peak / 1e6:.2f}" if peak else "-" for peak in (mean.peak_bytes, mean.eager_peak_bytes)]
        style = "bold" if mean.klass == EVERYTHING else None
        table.add_row(mean.klass, str(mean.setting), str(mean.count), *cells, style=style)
    console.print(table)
    console.print(FOOTNOTES, style="dim", highlight=False)


def print_host(console: Console, rows: list[Row]) -> None:
    host = [row for row in rows if row.suite == "host"]
    if not host:
        return
    table = _table("Host time of a tiny call (8->8 channels, 4x4)", ["who", "called as", "what"], ["time", "spread"])
    for row in host:
        table.add_row(row.name, row.layer, f"{row.mode} {row.dtype}", time(row.median_us), f"{row.spread:.0%}")
    console.print(table)


def print_facts(console: Console, results: Results) -> None:
    facts = [f"{key} {value}" for key, value in {**results.environment, **results.ceilings}.items()]
    console.print(" · ".join(facts), highlight=False, style="dim")
    for line in results.absent:
        console.print(f"absent: {line}", style="yellow", highlight=False)


def print_results(console: Console, results: Results) -> None:
    found = duels(results.rows)
    print_problems(console, found)
    print_host(console, results.rows)
    print_means(console, found)
    print_facts(console, results)


_COLOURS = {"met": "green", "missed": "red", "not measured": "dim"}


def _verdict_cell(verdict: Verdict) -> str:
    got = "-" if math.isnan(verdict.got) else f"{verdict.got:.2f}"
    return f"[{_COLOURS[verdict.word]}]{got}[/] ({'<=' if verdict.at_most else '>='} {verdict.goal:g})"


GOALS_CUDA = "Goals on an H200, bf16 and TF32, cold where that was measured: got (wanted)"
GOALS = "Goals (ratio to the best peer of the same layout, all threads): got (wanted)"


def print_goals(console: Console, verdicts: list[Verdict], title: str = GOALS) -> None:
    """A line per goal, a column per dtype and layout; a goal is missed if it is in one of them."""
    columns = list(dict.fromkeys((verdict.dtype, verdict.layout) for verdict in verdicts))
    table = _table(title, ["goal"], [*map(" ".join, columns), "verdict"])
    for what in dict.fromkeys(verdict.what for verdict in verdicts):
        members = {(verdict.dtype, verdict.layout): verdict for verdict in verdicts if verdict.what == what}
        words = {verdict.word for verdict in members.values()}
        word = next(word for word in ("missed", "not measured", "met") if word in words)
        cells = [_verdict_cell(members[column]) if column in members else "" for column in columns]
        table.add_row(what, *cells, f"[{_COLOURS[word]}]{word}[/]")
    console.print(table)


def print_limits(console: Console, verdicts: list[Verdict]) -> None:
    """Why a class misses its goal: how near the machine's ceilings it is already."""
    missed = [verdict for verdict in verdicts if verdict.word == "missed" and verdict.floors]
    table = _table(
        "Missed goals and the floor (the least time by the machine's arithmetic and copy ceilings)",
        ["goal", "what"],
        ["got", "wanted", "of floor", "best peer's", "rows with the goal below the floor"],
    )
    for verdict in missed:
        shares = [percent(verdict.of_floor), percent(verdict.best_of_floor), f"{verdict.beyond} of {verdict.floors}"]
        setting = f"{verdict.dtype} {verdict.layout}"
        table.add_row(verdict.what, setting, f"{verdict.got:.2f}", f"{verdict.goal:g}", *shares)
    console.print(table if missed else "No class misses its goal.")


def print_behind(console: Console, behind: list[Duel]) -> None:
    table = _table(
        "Rows under the goal for single rows (the best peer beside this package)",
        ["layer", "what", "best peer"],
        ["time", "its time", "vs best"],
    )
    for duel in behind:
        ours, best = duel.ours, duel.best
        cells = [time(ours.median_us), time(best.median_us), ratio(duel.vs_best)]
        table.add_row(ours.layer, str(ours.setting), best.name, *cells)
    console.print(table if behind else "No row is under the goal for single rows.")


def print_changes(console: Console, changes: list[Change], tolerance: float) -> None:
    table = _table(
        f"Against the earlier run (ratios to nn.Conv2d + ReLU; a loss beyond {tolerance:.0%} is a regression)",
        ["class", "what"],
        ["before", "now", "change"],
    )
    for change in changes:
        table.add_row(
            change.klass, str(change.setting), f"{change.before:.2f}x", f"{change.now:.2f}x", f"{change.ratio - 1:+.1%}"
        )
    console.print(table)
