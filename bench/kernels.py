"""What every contestant starts for a layer: the kernels of a call on a GPU, or the operators on a CPU, and their times.

It shows what a time is made of: layout conversions, a bias or ReLU of its own, a pass over dY.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.operands import Operands, Problem, make_operands
from bench.peers import Peer
from bench.registry import COMPILE, Roster
from bench.roofline import mm_flops
from bench.run import timed
from bench.suites import LAYOUTS, SUITES, Layer

_WARMUP, _CALLS = 3, 5
# A projection, a concatenation, a residual; expanding, reducing, strided and deep layers of ResNet-50; of MobileNetV2
# few channels, and pixels that no vector divides.
_CHOSEN = {
    "resnet50": {(64, 256, 56), (256, 64, 56), (256, 512, 56), (512, 128, 28), (1024, 256, 14), (512, 2048, 7)},
    "mobilenetv2": {(16, 96, 112), (24, 144, 56), (960, 320, 7)},
}


@dataclass(frozen=True)
class Started:
    """A kernel (on a CPU: an operator) that one call of a contestant starts."""

    layer: str
    what: str  # mode, dtype, layout
    peer: str
    kernel: str
    count: float  # of each call
    microseconds: float  # of all of them


def layers(batch: int) -> list[Layer]:
    networks = [layer for suite, keys in _CHOSEN.items() for layer in SUITES[suite] if _key(layer) in keys]
    return list(dict.fromkeys(replace(layer, batch=batch) for layer in [*SUITES["uses"], *networks]))


def _key(layer: Layer) -> tuple[int, int, int]:
    return (layer.in_channels, layer.out_channels, layer.size)


def started(peer: Peer, operands: Operands) -> list[Started]:
    """Of one call; several are recorded, and averaged."""
    problem = operands.problem
    call = timed(peer.prepare(operands), operands)
    for _ in range(_WARMUP):
        call()
    on_cpu = problem.device == "cpu"
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as recorded:
        for _ in range(_CALLS):
            call()
        if not on_cpu:
            torch.cuda.synchronize()
    what = f"{problem.mode} {problem.dtype} {problem.layout}"
    rows = []
    for event in recorded.key_averages():
        total = event.self_cpu_time_total if on_cpu else event.self_device_time_total
        if total > 0:
            spent = (event.count / _CALLS, total / _CALLS)
            rows.append(Started(problem.layer.name, what, peer.name, event.key, *spent))
    return sorted(rows, key=lambda row: -row.microseconds)


def every(todo: list[Problem], roster: Roster) -> Iterator[Started]:
    for problem in todo:
        operands = make_operands(problem)
        for peer in roster.present(problem):
            try:
                with torch.inference_mode(problem.mode == "forward"):
                    yield from started(peer, operands)
            except (RuntimeError, NotImplementedError) as error:
                roster.drop(peer, f"failed: {str(error).splitlines()[0][:120]}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, help="only so many of them")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16", "fp16"), default=["bf16"])
    parser.add_argument("--mode", nargs="+", choices=("forward", "step"), default=["forward", "step"])
    parser.add_argument("--compile", choices=COMPILE, default="no", help="with torch.compile's variants up to this one")
    parser.add_argument("--to", type=Path, help="the table as CSV")
    args = parser.parse_args(argv)
    torch.backends.cudnn.benchmark = True
    mm_flops("bf16", args.device)  # wakes a GPU's clocks
    todo = [
        Problem(layer, mode, dtype, layout, args.device)
        for layer in layers(args.batch)[: args.layers]
        for mode in args.mode
        for dtype in args.dtype
        for layout in LAYOUTS
    ]
    rows, call = [], None
    for row in every(todo, Roster(args.compile)):
        if call != (row.layer, row.what, row.peer):
            call = (row.layer, row.what, row.peer)
            print("\n" + ", ".join(call))
        print(f"  {row.microseconds:10.1f} us {row.count:5.1f} x {row.kernel[:150]}")
        rows.append(row)
    if args.to:
        with args.to.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(Started))
            writer.writerows(map(astuple, rows))


if __name__ == "__main__":
    main()
