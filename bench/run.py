"""Runs a list of problems: checks every contestant's answer, then times those that gave the right one, interleaved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from bench import measure
from bench.measure import Effort, Run, Sample, Timing
from bench.operands import Operands, Problem, disagreement, expected, gradients, make_operands
from bench.peers import Call, Peer
from bench.registry import Roster
from bench.results import Row
from bench.roofline import floor
from bench.suites import select


def problems(suites: list[str], modes: list[str], dtypes: list[str], layouts: list[str], device: str, quick: bool):
    """Every problem asked for; `quick` does backward and step in fp32 only."""
    return [
        Problem(layer, mode, dtype, layout, device)
        for mode in modes
        for dtype in dtypes
        if not (quick and mode != "forward" and dtype != dtypes[0])
        for layer in select(suites, mode, quick)
        for layout in layouts
    ]


def answer(call: Call, operands: Operands) -> list[Tensor]:
    """y, and in backward and step the gradients."""
    y = call()
    return [y] if operands.problem.mode == "forward" else [y, *gradients(y, operands)]


def timed(call: Call, operands: Operands) -> Run:
    """What is inside the clock in this mode; each call takes the next set of images."""
    mode, sets = operands.problem.mode, len(operands.images)
    if mode == "forward" and sets == 1:
        return call
    saved: list[Tensor | None] = [None] * sets
    if mode == "backward":
        for index in range(sets):
            operands.use(index)
            saved[index] = call()
    turns = cycle(range(sets))

    def run() -> object:
        index = next(turns)
        operands.use(index)
        if mode == "backward":
            return gradients(saved[index], operands, retain_graph=True)
        return call() if mode == "forward" else gradients(call(), operands)

    return run


class Bench:
    """Times problems with one effort on one roster. `cold` rotates a GPU's buffers past its cache."""

    def __init__(self, effort: Effort, roster: Roster, cold: bool = False) -> None:
        self.effort, self.roster, self.cold = effort, roster, cold
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None

    def _prepare(self, peer: Peer, operands: Operands, want: list[Tensor]) -> Call | None:
        """A call that has given the right answer; a peer that cannot, or gives another, is reported and left out."""
        try:
            call = peer.prepare(operands)
            problem = disagreement(operands, answer(call, operands), want)
        except (RuntimeError, NotImplementedError) as error:
            problem = f"failed: {str(error).splitlines()[0][:120]}"
        if problem is None:
            return call
        self.roster.drop(peer, problem)
        return None

    def _sample(self, call: Call, operands: Operands) -> tuple[Sample, str]:
        if operands.problem.device == "cpu":
            return measure.cpu_sample(timed(call, operands), self.effort), "cpu"
        from bench.measure_cuda import cuda_sample

        with torch.cuda.stream(self.stream):  # a backward pass runs where its forward pass ran
            run = timed(call, operands)
        return cuda_sample(run, len(operands.images), self.effort, self.stream)

    def run(self, problem: Problem) -> list[Row]:
        sets = 1
        if problem.device == "cuda" and self.cold:
            from bench.measure_cuda import rotation

            sets = rotation(problem.bytes)
        operands = make_operands(problem, sets)
        want = expected(operands)
        with torch.inference_mode(problem.mode == "forward"):
            calls = {peer.name: self._prepare(peer, operands, want) for peer in self.roster.present(problem)}
            ready = {name: call for name, call in calls.items() if call is not None}
            samples = {name: self._sample(call, operands) for name, call in ready.items()}
            timings = measure.interleave({name: sample for name, (sample, _) in samples.items()}, self.effort)
            peaks = {
                name: measure.peak_memory(timed(call, operands), problem.device) if problem.mode == "step" else 0
                for name, call in ready.items()
            }
        cache = "cold" if sets > 1 else "warm"
        return [self._row(problem, name, timings[name], cache, samples[name][1], peaks[name]) for name in ready]

    def _row(self, problem: Problem, name: str, timing: Timing, cache: str, timer: str, peak: int) -> Row:
        layer, least = problem.layer, floor(problem)
        return Row(
            layer.suite, layer.klass, layer.name, problem.mode, problem.dtype, problem.layout, name,
            timing.median, timing.low, timing.high, problem.flops / timing.median / 1e3,
            least.microseconds, least.bound, cache, timer, peak,
        )  # fmt: skip


def run_all(bench: Bench, todo: list[Problem], progress: Callable[[str], None]) -> list[Row]:
    """All problems in turn; `progress` is told the name of each that is done."""
    rows: list[Row] = []
    for problem in todo:
        rows += bench.run(problem)
        progress(f"{problem.layer.name} {problem.mode} {problem.dtype} {problem.layout}")
    return rows
