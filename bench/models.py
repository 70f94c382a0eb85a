"""Whole networks, measured: eager, fused, compiled by Inductor, and compiled by Inductor behind our fusions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

import pointwise_ext as pw
from bench.measure import Effort, OtherLoad, cpu_sample, host_sample, interleave, peak_memory
from bench.networks import NETWORKS, build
from bench.operands import DTYPES
from bench.pointwise_part import pointwise_convolutions, pointwise_share, pointwise_work
from bench.results import Results
from bench.roofline import floor, mm_flops, saw
from pointwise_ext.fusion.backend import compile_backend

EAGER, FUSED, INDUCTOR, BACKEND = "eager", "fused", "torch.compile", "torch.compile, pointwise_ext"
FROZEN = ", freezing"  # Inductor folds BatchNorm and packs weights beforehand
MODES = ("forward", "step")
BATCHES = (1, 8)
QUICK = ("MobileNetV2", "SqueezeNet")
EFFORT = Effort(rounds=9, sample_ms=20.0, limit_s=20.0)
# Largest difference from eager over the largest output: rounding grows with depth, a mistake is far beyond. In 16 bits
# eager itself is off by a tenth after 50 layers, so both are compared with fp32: twice eager's error is allowed.
WRONG = "off by"
TOLERANCE = 1e-4
OF_EAGERS = 2.0

Prepare = Callable[[nn.Module], nn.Module]


def contestants(compile_: bool, freezing: bool, mode: str) -> dict[str, Prepare]:
    """Who takes part: name -> what makes it of the eager model. In training steps nothing is compiled."""
    found: dict[str, Prepare] = {EAGER: lambda model: model, FUSED: pw.fuse}
    for suffix, options in (("", None), (FROZEN, {"freezing": True})):
        if mode == "forward" and (freezing if suffix else compile_):
            found[INDUCTOR + suffix] = partial(torch.compile, options=options)
            found[BACKEND + suffix] = partial(torch.compile, backend=compile_backend, options=options)
    return found


@dataclass(frozen=True)
class Setup:
    """One network on one kind of input. "step": forward and backward in training mode, eager and fused only."""

    network: str
    batch: int
    layout: str
    dtype: str
    mode: str = "forward"
    device: str = "cpu"
    threads: int = 0

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, {self.layout}, {self.dtype}, {self.mode}"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "nhwc" else torch.contiguous_format

    def model(self) -> nn.Module:
        model = build(self.network).train(self.mode == "step")
        return model.to(self.device, DTYPES[self.dtype], memory_format=self.memory_format)

    def image(self) -> Tensor:
        size = NETWORKS[self.network].size
        image = torch.randn(self.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        return image.to(self.device, DTYPES[self.dtype], memory_format=self.memory_format)


@dataclass(frozen=True)
class ModelRow:
    """One contestant on one setup. Times in microseconds per call; prepare_s: seconds to fuse or to compile."""

    network: str
    batch: int
    layout: str
    dtype: str
    mode: str
    device: str
    threads: int
    name: str
    median_us: float
    low_us: float
    high_us: float
    peak_bytes: int
    error: float  # largest difference from eager, in 16 bits from eager in fp32, over its largest output
    fused: int  # 1x1 convolutions that fuse took in, of so many; 0 where it was not asked
    pointwise: int
    prepare_s: float
    pointwise_share: float = 0.0  # of a fused model's time that its 1x1 convolutions take; 0: not asked
    pointwise_flops: int = 0  # of theirs
    pointwise_floor_us: float = 0.0  # the least time they can take, each at the machine's arithmetic or copy ceiling

    @property
    def setup(self) -> Setup:
        return Setup(self.network, self.batch, self.layout, self.dtype, self.mode, self.device, self.threads)


@dataclass
class ModelResults(Results):
    row: ClassVar[type] = ModelRow
    rows: list[ModelRow]

    def add(self, rows: list[ModelRow]) -> None:
        """A setup measured again replaces all its rows: a long benchmark can run in pieces, and yet compares only what
        was measured in turns."""
        new = {row.setup for row in rows}
        self.rows = [row for row in self.rows if row.setup not in new] + rows


def setups(
    networks: list[str], batches: list[int], layouts: list[str], dtypes: list[str], modes: list[str], **where: object
) -> list[Setup]:
    return [Setup(*chosen, **where) for chosen in product(networks, batches, layouts, dtypes, modes)]


def call_of(model: nn.Module, setup: Setup, image: Tensor) -> Callable[[], Tensor]:
    if setup.mode == "forward":
        return lambda: model(image)

    def step() -> Tensor:
        y = model(image)
        y.square().mean().backward()
        model.zero_grad()  # here, so that every step starts without gradients and their memory is all its own
        return y.detach()

    return step


def in_fp32(setup: Setup, image: Tensor) -> Tensor:
    """What eager makes of the same weights and image in fp32."""
    model = setup.model().float()
    torch.manual_seed(0)
    return call_of(model, setup, image.float())()


def pointwise_least(setup: Setup, model: nn.Module, image: Tensor) -> tuple[int, float]:
    """FLOPs of the model's 1x1 convolutions, and their floor in microseconds, by ceilings as they are now."""
    work = pointwise_work(model, partial(model, image), setup.dtype, setup.device, setup.threads)
    saw(work[0], mm_flops(setup.dtype, setup.device))
    return sum(w.flops for w in work), sum(floor(w).microseconds for w in work)


def after_own(call: Callable[[], Tensor], sample: Callable[[], float]) -> Callable[[], float]:
    """`sample` right after a call of the same model: what malloc holds after another one's is of other sizes, and the
    pages it has to fetch anew cost a tenth of a ResNet-50 at batch 8."""

    def own() -> float:
        call()
        return sample()

    return own


def measure(setup: Setup, who: dict[str, Prepare], effort: Effort, others: OtherLoad) -> Iterator[ModelRow | str]:
    """A row per contestant, or a line that says why it has none; timed interleaved."""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    image, calls, facts, tolerance = setup.image(), {}, {}, TOLERANCE
    torch.compiler.reset()
    with torch.set_grad_enabled(setup.mode == "step"):
        want = None if setup.dtype == "fp32" else in_fp32(setup, image)
        for name, prepare in who.items():
            begin, original = time.perf_counter(), setup.model()
            try:
                model = prepare(original)
                call = call_of(model, setup, image)
                torch.manual_seed(0)  # dropout
                y = call().float()
                want = y if want is None else want  # eager comes first
                error = ((y - want).abs().max() / want.abs().max()).item()
            except Exception as problem:  # whatever a compiler raises: the others are measured all the same
                yield f"{name}: {setup}: {type(problem).__name__}: {str(problem).splitlines()[0][:160]}"
                continue
            prepare_s = time.perf_counter() - begin
            if name == EAGER:
                tolerance = max(TOLERANCE, OF_EAGERS * error)
            if not error <= tolerance:
                yield f"{name}: {setup}: {WRONG} {error:.1e}, tolerance {tolerance:.0e}"
                continue
            fused = len(pw.fusion_report(model).fused) if name == FUSED else 0
            calls[name], facts[name] = call, (error, fused, pointwise_convolutions(original), prepare_s)
            if name == FUSED and setup.device == "cpu" and setup.mode == "forward":
                facts[name] += (pointwise_share(call), *pointwise_least(setup, original, image))
        if not calls:
            return
        sample = cpu_sample if setup.device == "cpu" else partial(host_sample, device=setup.device)
        samples = {name: after_own(call, sample(call, effort)) for name, call in calls.items()}
        timings = others.undisturbed(partial(interleave, samples, effort), attempts=2)
        for name, t in timings.items():
            peak = peak_memory(calls[name], setup.device)
            what = (setup.network, setup.batch, setup.layout, setup.dtype, setup.mode, setup.device, setup.threads)
            yield ModelRow(*what, name, t.median, t.low, t.high, peak, *facts[name])


def stored(path: Path, facts: dict[str, str]) -> ModelResults:
    """The run in the file that this one continues, or an empty one: of another processor or PyTorch, another run."""
    if path.exists():
        earlier = ModelResults.load(path)
        if all(earlier.environment.get(fact) == facts[fact] for fact in ("CPU", "GPU", "torch", "measured")):
            earlier.environment = facts
            return earlier
    return ModelResults(facts, {}, [])
