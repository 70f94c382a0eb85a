"""The speed goals on an H200: how near classes come to their floors, and the least ratios to each peer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from bench.goals import Verdict
from bench.host import FUNCTION
from bench.peers import EAGER
from bench.results import Results, Row, geomean
from bench.suites import CUDA_LAYERS, LAYOUTS, Layer
from bench.summary import Duel, duels, is_ours

# A call may take floor / share + this: a launch.
LAUNCH_US = 2.5
LONG_US, SHORT_US = 30.0, 4.0  # of a floor
MEMORY, ODD, COMPUTE, SHORT = (
    "bound by memory, 30 us and more",
    "the same, H W no multiple of 8",
    "bound by arithmetic, 30 us and more",
    "4 to 30 us",
)
SHARES = {MEMORY: 0.90, ODD: 0.80, COMPUTE: 0.75, SHORT: 0.75}
SMALLEST, SMALLEST_US = "64->32 at 28x28, batch 1, us", 3.5
# ResNet-50's layers in bf16: (mode, peer) -> (NCHW, NHWC)
RATIOS = {
    ("forward", EAGER): (3.0, 2.0),
    ("forward", "torch.compile"): (2.0, 1.5),
    ("forward", "torch.compile max-autotune"): (2.0, 1.1),
    ("forward", "cudnn_convolution_relu"): (1.1, 1.1),
    ("step", EAGER): (3.0, 1.6),
}
NO_ROW_BELOW = {"torch.compile max-autotune": 0.95}
CONCATENATION = 3.0  # two inputs, over eager with torch.cat
HOST_MICROSECONDS = {"inference": 8.0, "training forward": 15.0}
COLUMNS = [(dtype, layout) for dtype in ("bf16", "fp32") for layout in LAYOUTS]


def floor_class(row: Row, layer: Layer) -> str | None:
    """By its floor; None: too short to be judged by it."""
    if row.floor_us < SHORT_US:
        return None
    if row.floor_us < LONG_US:
        return SHORT
    if row.bound == "compute":
        return COMPUTE
    odd = row.layout == "nchw" and layer.out_size**2 % 8 != 0
    return ODD if odd else MEMORY


def share(row: Row) -> float:
    """Of the floor that is reached behind a launch."""
    return row.floor_us / max(row.median_us - LAUNCH_US, 1e-3)


def _floors(rows: list[Row], layers: dict[str, Layer], dtype: str, layout: str) -> Iterator[Verdict]:
    ours = [row for row in rows if is_ours(row) and row.setting[:3] == ("forward", dtype, layout)]
    for what, goal in SHARES.items():
        if what == ODD and layout == "nhwc":
            continue
        got = geomean(share(row) for row in ours if floor_class(row, layers[row.layer]) == what)
        yield Verdict(f"share of the floor, {what}", dtype, layout, goal, got)
    smallest = [r.median_us for r in ours if r.klass == "28x28, batch 1" and len(layers[r.layer].channels) == 1]
    yield Verdict(SMALLEST, dtype, layout, SMALLEST_US, geomean(smallest), at_most=True)


def floors(rows: list[Row], layers: dict[str, Layer] = CUDA_LAYERS) -> list[Verdict]:
    """The goals that no peer is needed for."""
    return [verdict for column in COLUMNS for verdict in _floors(rows, layers, *column)]


def _ratios(rows: list[Row], mode: str, peer: str, layout: str, counts: Callable[[Row], bool]) -> list[float]:
    """Of times, the peer's over ours, of the layers that count."""
    rows = [row for row in rows if row.setting[:3] == (mode, "bf16", layout) and counts(row)]
    ours = {row.layer: row.median_us for row in rows if is_ours(row)}
    return [row.median_us / ours[row.layer] for row in rows if row.name == peer and row.layer in ours]


def _peers(rows: list[Row], layout: str) -> Iterator[Verdict]:
    for (mode, peer), goals in RATIOS.items():
        found = _ratios(rows, mode, peer, layout, lambda row: row.suite == "resnet50")
        yield Verdict(f"ResNet-50 {mode} over {peer}", "bf16", layout, goals[LAYOUTS.index(layout)], geomean(found))
        if mode == "forward" and peer in NO_ROW_BELOW:
            least = min(found, default=math.nan)
            yield Verdict(f"ResNet-50 {mode} over {peer}, worst row", "bf16", layout, NO_ROW_BELOW[peer], least)
    joined = _ratios(rows, "forward", EAGER, layout, lambda row: len(CUDA_LAYERS[row.layer].channels) == 2)
    yield Verdict("two inputs over torch.cat", "bf16", layout, CONCATENATION, geomean(joined))


def _host(rows: list[Row]) -> Iterator[Verdict]:
    function = [row for row in rows if (row.suite, row.layer, row.dtype) == ("host", FUNCTION, "bf16") and is_ours(row)]
    times = {row.mode: row.median_us for row in function}
    for mode, limit in HOST_MICROSECONDS.items():
        yield Verdict(f"tiny call, {mode}, us", "bf16", "nchw", limit, times.get(mode, math.nan), at_most=True)


def verdicts(results: Results) -> list[Verdict]:
    """Every goal, measured or not; cold where a run has cold rows."""
    rows = [row for row in results.rows if row.suite != "host"]
    cold = [row for row in rows if row.cache == "cold"]
    rows = cold or rows
    return [*floors(rows), *(verdict for layout in LAYOUTS for verdict in _peers(rows, layout)), *_host(results.rows)]


def behind(results: Results) -> list[Duel]:
    """The rows where a peer is faster, the worst first."""
    found = [duel for duel in duels(results.rows) if (duel.vs_best or math.inf) < 1]
    return sorted(found, key=lambda duel: duel.vs_best)
