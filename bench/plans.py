"""Every plan of twelve layers on a GPU, the time measured beside the time predicted.

The constants of csrc/cuda/model.h are set from this table: they decide which plan is taken.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from bench.cold import image_sets
from bench.kernels import layers
from bench.measure import Effort
from bench.operands import Operands, Problem, make_operands
from bench.peers import ours
from bench.roofline import mm_flops
from bench.run import timed
from bench.suites import LAYOUTS

PASSES = ("forward", "dx", "dw", "backward")
_TILES, _STRICT_TILES = 6, 3  # kMmaTiles, and those of float32 in three TF32 products
_SHARES = {"forward": (1, 2, 4, 8), "dx": (1, 2, 4, 8), "dw": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)}
_HOPELESS = 5  # times the time predicted for the plan that is taken
_EFFORT = Effort(rounds=3, sample_ms=1.5)


@dataclass(frozen=True)
class Measured:
    """One plan of one pass: `chosen` is the one that is taken where none is forced."""

    layer: str
    what: str  # pass, dtype, layout
    plan: str  # the kernels of its launches
    chosen: bool
    predicted_us: float
    measured_us: float


def forced(pass_: str, strict: bool) -> Iterator[dict[str, int]]:
    """What to force, in turn; nothing first."""
    yield {}
    if pass_ == "backward":
        yield from ({"gate": gate} for gate in (0, 1))
        return
    tiles = _STRICT_TILES if strict else _TILES
    for tile, splits, stays in itertools.product(range(tiles), _SHARES[pass_], (0, 1)):
        if not stays or splits == 1:
            yield {"tile": tile, "splits": splits, "stays": stays, "gate": 1}


def wanted(pass_: str, inputs: int) -> list[bool]:
    """Of which operands (each input, weight, bias) the pass works out the gradient."""
    x, w = pass_ in ("dx", "backward"), pass_ in ("dw", "backward")
    return [] if pass_ == "forward" else [x] * inputs + [w, w]


def predicted(operands: Operands, pass_: str, tf32: bool) -> tuple[str, float]:
    """The launches of the plan in force, and the time predicted."""
    from pointwise_ext import _C

    layer = operands.problem.layer
    options = ([layer.stride], [0], 1, "relu", 0.0, 0.0, tf32, wanted(pass_, len(operands.inputs)))
    launches = _C.predict_cuda(
        [x.detach() for x in operands.inputs],
        operands.weight.detach(),
        operands.bias.detach(),
        None if operands.residual is None else operands.residual.detach(),
        *options,
    )
    return " + ".join(launch[0] for launch in launches), sum(launch[-1] for launch in launches)


def call_of(operands: Operands, pass_: str) -> Callable[[], object]:
    """One pass on the next set of images; forward passes of gradients are done here."""
    conv, sets = ours(operands), range(len(operands.images))
    if pass_ == "forward":
        return timed(conv, operands)
    flags, leaves, saved = wanted(pass_, len(operands.inputs)), [], []
    for index in sets:
        operands.use(index)
        candidates = [*operands.inputs, operands.weight, operands.bias]
        for leaf, flag in zip(candidates, flags, strict=True):
            leaf.requires_grad_(flag)
        leaves.append([leaf for leaf, flag in zip(candidates, flags, strict=True) if flag])
        saved.append(conv())

    def run() -> object:
        index = operands.advance()
        return torch.autograd.grad(saved[index], leaves[index], operands.grad_output, retain_graph=True)

    return run


def plans(problem: Problem, pass_: str, tf32: bool, stream: torch.cuda.Stream) -> Iterator[Measured]:
    """Each plan once, the chosen one first."""
    from bench.measure_cuda import cuda_sample
    from pointwise_ext import _C

    operands = make_operands(problem, image_sets(problem))
    dtype = "tf32" if tf32 else problem.dtype
    chosen, least, seen = "", 0.0, set()
    for force in forced(pass_, problem.dtype == "fp32" and not tf32):
        _C.force_cuda_plan(**force)
        try:
            plan, us = predicted(operands, pass_, tf32)
            chosen, least = chosen or plan, least or us
            if plan in seen or us > _HOPELESS * least:
                continue
            seen.add(plan)
            with torch.cuda.stream(stream):
                run = call_of(operands, pass_)
            sample, _ = cuda_sample(run, len(operands.images), _EFFORT, stream)
            best = sorted(sample() for _ in range(_EFFORT.rounds))[_EFFORT.rounds // 2]
            what = f"{pass_} {dtype} {problem.layout}"
            yield Measured(problem.layer.name, what, plan, plan == chosen, round(us, 2), round(best, 2))
        finally:
            _C.force_cuda_plan()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--layers", type=int, help="only so many of them")
    parser.add_argument("--dtype", nargs="+", choices=("bf16", "fp16", "tf32", "fp32"), default=["bf16", "tf32"])
    parser.add_argument("--pass", dest="passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which nothing more is begun")
    parser.add_argument("--to", type=Path, required=True, help="the table as CSV")
    args = parser.parse_args(argv)
    mm_flops("bf16", "cuda")  # wakes the GPU's clocks
    stream, end = torch.cuda.Stream(), time.monotonic() + args.limit
    with args.to.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Measured))
        for dtype, pass_, batch in itertools.product(args.dtype, args.passes, args.batch):
            tf32 = dtype == "tf32"
            torch.backends.cudnn.allow_tf32 = tf32
            for layer, layout in itertools.product(layers(batch)[: args.layers], LAYOUTS):
                if time.monotonic() > end:
                    return
                problem = Problem(
                    layer,
                    "forward" if pass_ == "forward" else "backward",
                    "fp32" if tf32 else dtype,
                    layout,
                    "cuda",
                    cold=True,
                )
                for row in plans(problem, pass_, tf32, stream):
                    writer.writerow(astuple(row))
                file.flush()


if __name__ == "__main__":
    main()
