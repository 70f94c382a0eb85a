"""The picture of a run: per class, how many times faster than nn.Conv2d + ReLU and than the best peer."""

from __future__ import annotations

from pathlib import Path

from bench.results import Results
from bench.summary import EVERYTHING, duels, means

# Two of the Okabe-Ito colours, told apart by every kind of colour vision; the marks differ in shape too.
SERIES = (("vs_eager", "over nn.Conv2d + ReLU", "#0072B2", "o"), ("vs_best", "over the best peer", "#D55E00", "D"))
TITLES = {"nchw": "NCHW", "nhwc": "channels_last"}


def plot(results: Results, path: Path) -> Path:
    """Writes a PNG: a panel per layout, a line per class; each layer a faint mark, their geometric mean a full one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = results.judged
    found = duels(row for row in rows if row.mode != "step") or duels(rows)  # a step is forward and backward
    averages = means(found)
    layouts = [layout for layout in TITLES if any(mean.setting.layout == layout for mean in averages)]
    lines = list(dict.fromkeys(mean.key[:3] for mean in averages))  # (class, mode, dtype)
    size = (3 + 5 * len(layouts), 2.2 + 0.3 * len(lines))
    figure, axes = plt.subplots(1, len(layouts), sharex=True, sharey=True, squeeze=False, figsize=size)
    for axis, layout in zip(axes[0], layouts, strict=True):
        for name, label, colour, mark in SERIES:
            layers = [(getattr(d, name), d.ours) for d in found if d.ours.layout == layout and getattr(d, name)]
            heights = [lines.index((row.klass, row.mode, row.dtype)) for _, row in layers]
            axis.plot([value for value, _ in layers], heights, mark, color=colour, alpha=0.3, markersize=4)
            classes = [mean for mean in averages if mean.setting.layout == layout]
            values, heights = [getattr(m, name) for m in classes], [lines.index(m.key[:3]) for m in classes]
            axis.plot(values, heights, mark, color=colour, markersize=8, label=f"{label} in this layout")
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(TITLES[layout])
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axis.set_xlabel("times faster (log scale)")
        axis.grid(alpha=0.3)
    names = [f"{'all layers' if klass == EVERYTHING else klass} · {mode} {dtype}" for klass, mode, dtype in lines]
    axes[0][0].set_yticks(range(len(lines)), names)
    axes[0][0].invert_yaxis()
    facts = results.environment
    device = facts["GPU"] if facts["device"] == "cuda" else f"{facts['CPU']}, {facts['threads']} threads"
    figure.suptitle(f"{facts['measured']}\n{device} · torch {facts['torch']} · {facts['date'][:10]}", fontsize=11)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
