"""Runs a list of problems: checks every contestant's answer, then times those that gave the right one, interleaved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench import measure
from bench.cold import image_sets, keeping
from bench.measure import Effort, Run, Sample, Timing
from bench.operands import Operands, Problem, disagreement, expected, gradients, make_operands
from bench.peers import Call, Peer
from bench.registry import Roster
from bench.results import Row
from bench.roofline import floor, saw
from bench.suites import select


def problems(
    suites: list[str],
    modes: list[str],
    dtypes: list[str],
    layouts: list[str],
    quick: bool = False,
    device: str = "cpu",
    **where: object,
) -> list[Problem]:
    """Every problem asked for, a layer's dtypes beside each other; `quick` does backward and step in fp32 only."""
    return [
        Problem(layer, mode, dtype, layout, device, **where)
        for mode in modes
        for layer in select(suites, mode, quick, device)
        for dtype in dtypes
        if not (quick and mode != "forward" and dtype != dtypes[0])
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

    def run() -> object:
        index = operands.advance()
        if mode == "backward":
            return gradients(saved[index], operands, retain_graph=True)
        return call() if mode == "forward" else gradients(call(), operands)

    return run


class Bench:
    """Times problems with one effort on one roster."""

    def __init__(self, effort: Effort, roster: Roster) -> None:
        self.effort, self.roster, self.others = effort, roster, measure.OtherLoad()
        torch.backends.cudnn.benchmark = True  # on a GPU: has cuDNN choose its kernels by trying them
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

    def _sample(self, peer: Peer, call: Call, operands: Operands, crowded: bool) -> tuple[Sample, str]:
        if operands.problem.device == "cpu":
            run = keeping(timed(call, operands), len(operands.images))
            sample = measure.cpu_sample(run, self.effort)
            return measure.settled(sample, run, peer.spins) if crowded else sample, "cpu"
        from bench.measure_cuda import cuda_sample

        with torch.cuda.stream(self.stream):  # a backward pass runs where its forward pass ran
            run = timed(call, operands)
        return cuda_sample(run, len(operands.images), self.effort, self.stream)

    def run(self, problem: Problem) -> list[Row]:
        if problem.threads:
            torch.set_num_threads(problem.threads)
        operands = make_operands(problem, image_sets(problem))
        want = expected(operands)
        with torch.inference_mode(problem.mode == "forward"):
            calls = {peer: self._prepare(peer, operands, want) for peer in self.roster.present(problem)}
            ready = {peer: call for peer, call in calls.items() if call is not None}
            crowded = problem.threads != 1 and any(peer.spins for peer in ready)
            samples = {peer.name: self._sample(peer, call, operands, crowded) for peer, call in ready.items()}
            takers = {name: sample for name, (sample, _) in samples.items()}
            timings = self.others.undisturbed(lambda: measure.interleave(takers, self.effort))
            operands.images = operands.images[:1]  # one call shows the peak, whichever images it sees
            peaks = {
                peer.name: measure.peak_memory(timed(call, operands), problem.device) for peer, call in ready.items()
            }
        return [self._row(problem, name, timings[name], samples[name][1], peaks[name]) for name in samples]

    def _row(self, problem: Problem, name: str, timing: Timing, timer: str, peak: int) -> Row:
        layer = problem.layer
        saw(problem, problem.flops / timing.median * 1e6)
        return Row(
            layer.suite, layer.klass, layer.name, problem.mode, problem.dtype, problem.layout, name,
            timing.median, timing.low, timing.high, problem.flops / timing.median / 1e3,
            0.0, "", "cold" if problem.cold else "warm", timer, peak, problem.threads,
        )  # fmt: skip


def with_floor(problem: Problem, row: Row) -> Row:
    least = floor(problem)
    return replace(row, floor_us=least.microseconds, bound=least.bound)


def run_all(bench: Bench, todo: list[Problem], progress: Callable[[str], None]) -> list[Row]:
    """All problems in turn; `progress` is told the name of each that is done. Floors follow from what all reached."""
    rows: list[tuple[Problem, Row]] = []
    for problem in todo:
        rows += [(problem, row) for row in bench.run(problem)]
        progress(f"{problem.layer.name} {problem.mode} {problem.dtype} {problem.layout}")
    return [with_floor(problem, row) for problem, row in rows]
