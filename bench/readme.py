"""Keeps the README's table of results equal to a stored run."""

from __future__ import annotations

import os
from pathlib import Path

from bench.report import percent, times
from bench.results import Results
from bench.summary import EVERYTHING, duels, means

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def markdown(results: Results, picture: str) -> str:
    """The forward classes as a Markdown table: geometric means over the class, with the facts they hold for."""
    facts = results.environment
    device = facts["GPU"] if facts["device"] == "cuda" else f"{facts['CPU']}, {facts['threads']} threads"
    lines = [
        f"{device}, torch {facts['torch']}, {facts['date'][:10]}, {facts['measured']}.",
        "Geometric means over the layers of a class, of medians measured in turns.",
        "",
        "| class | what | layers | over nn.Conv2d + ReLU | over the best peer | of the machine's floor |",
        "|---|---|---:|---:|---:|---:|",
    ]
    averages = sorted(means(duels(results.rows)), key=lambda mean: mean.klass == EVERYTHING)
    for mean in averages:
        klass = "**all layers**" if mean.klass == EVERYTHING else mean.klass
        what = f"{mean.mode} {mean.dtype} {'channels_last' if mean.layout == 'nhwc' else 'NCHW'}"
        cells = [klass, what, str(mean.count), times(mean.vs_eager), times(mean.vs_best), percent(mean.of_floor)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![Times faster per class, for every layer and in the mean]({picture})"])


def update(readme: Path, results: Results, picture: Path) -> None:
    """Replaces what stands between the two markers; ValueError where they are not there, once each and in order."""
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{readme} needs the line '{BEGIN}' once and, below it, '{END}' once: add them where the table goes"
        )
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    link = Path(os.path.relpath(picture, readme.parent)).as_posix()
    readme.write_text(f"{head}{BEGIN}\n{markdown(results, link)}\n{END}{tail}")
