"""Keeps the README's table of results equal to a stored run."""

from __future__ import annotations

import os
from pathlib import Path

from bench.report import times
from bench.results import Results
from bench.summary import EVERYTHING, duels, means

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MODELS = ("<!-- models:begin -->", "<!-- models:end -->")


COLUMNS = {("fp32", "nchw"): "fp32 NCHW", ("fp32", "nhwc"): "fp32 channels_last"}
COLUMNS |= {("bf16", "nchw"): "bf16 NCHW", ("bf16", "nhwc"): "bf16 channels_last"}


def markdown(results: Results, picture: str) -> str:
    """A class a line: how many times faster than nn.Conv2d + ReLU, with the facts that this holds for."""
    facts = results.environment
    cpu = f"{facts['CPU']}, kernels {facts.get('kernels', 'none')}, {facts['threads']} threads"
    device = facts["GPU"] if facts["device"] == "cuda" else cpu
    memory = facts.get("freed memory", "as malloc does")
    lines = [
        "Times faster than nn.Conv2d + ReLU in the same layout, forward; geometric means over a class, of medians",
        f"measured in turns, freed memory {memory}. {device}, torch {facts['torch']}, {facts['date'][:10]}, "
        f"{facts['measured']}.",
        "",
        f"| class | layers | {' | '.join(COLUMNS.values())} |",
        f"|---|---:|{'---:|' * len(COLUMNS)}",
    ]
    found = {mean.key: mean for mean in means(duels(results.judged))}

    def line(title: str, klass: str, mode: str, value: str) -> str:
        cells = [found.get((klass, mode, *column)) for column in COLUMNS]
        count = max(mean.count for mean in cells if mean)
        return f"| {title} | {count} | {' | '.join(times(getattr(m, value)) if m else '-' for m in cells)} |"

    classes = dict.fromkeys(klass for klass, mode, *_ in found if mode == "forward" and klass != EVERYTHING)
    lines += [line(klass, klass, "forward", "vs_eager") for klass in classes]
    lines.append(line("**all layers**", EVERYTHING, "forward", "vs_eager"))
    lines.append(line("all layers, over the best of all peers", EVERYTHING, "forward", "vs_best"))
    for mode, title in (("backward", "backward"), ("step", "forward and backward together")):
        if any(key[:2] == (EVERYTHING, mode) for key in found):
            lines.append(line(f"all layers, {title}", EVERYTHING, mode, "vs_eager"))
    return "\n".join([*lines, "", f"![Times faster per class, for every layer and in the mean]({picture})"])


def check_markers(readme: Path, begin: str = BEGIN, end: str = END) -> None:
    """ValueError unless the file has the two markers, once each and in order."""
    text = readme.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{readme} needs the line '{begin}' once and, below it, '{end}' once: add them where the table goes"
        )


def replace_between(readme: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Puts the text between the two markers, in place of what stands there."""
    check_markers(readme, begin, end)
    head, rest = readme.read_text().split(begin)
    tail = rest.split(end)[1]
    readme.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def link(readme: Path, picture: Path) -> str:
    return Path(os.path.relpath(picture, readme.parent)).as_posix()


def update(readme: Path, results: Results, picture: Path) -> None:
    """The table of layers between its markers."""
    replace_between(readme, markdown(results, link(readme, picture)))
