"""Timing: interleaved rounds A B C A B C ..., medians. Only ratios from one such run count on a shared machine."""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]
Sample = Callable[[], float]  # one sample: microseconds per call


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` samples of every contestant, each of at least `sample_ms`; on a machine so
    busy that this takes longer than `limit_s`, what was taken by then, but never less than three rounds."""

    rounds: int = 15
    sample_ms: float = 5.0
    limit_s: float = 10.0


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: the median of the rounds, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), tenths[0], tenths[-1])

    @property
    def spread(self) -> float:
        return (self.high - self.low) / self.median


@contextmanager
def no_garbage_collection():
    """A collection inside one sample would be charged to whoever runs then."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


BUSY = 0.05  # of the CPUs taken by others: times with all threads mean nothing beyond this
T = TypeVar("T")


class OtherLoad:
    """The share of all CPUs that others take. OpenMP's threads wait for each other, so one busy core is enough to make
    every parallel region last a time slice (8 ms), while runtimes that hand work to whoever is free hardly notice."""

    def __init__(self) -> None:
        self.taken = self.available = 0.0

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """CPU seconds that were used, and that there were; zeros where the system does not tell."""
        path = Path("/proc/stat")
        ticks = [int(x) for x in path.read_text().split("\n")[0].split()[1:9]] if path.exists() else [0] * 8
        idle = ticks[3] + ticks[4]  # and waiting for disks
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), sum(ticks) / os.sysconf("SC_CLK_TCK")

    def undisturbed(self, measure: Callable[[], T], attempts: int = 3) -> T:
        """The result of `measure()`, repeated while others took more than BUSY of the CPUs; the last attempt counts."""
        for left in reversed(range(attempts)):
            own, (used, available) = time.process_time(), self._seconds()
            result = measure()
            own, (used_now, available_now) = time.process_time() - own, self._seconds()
            taken, there = used_now - used - own, available_now - available
            if left == 0 or taken <= BUSY * there:
                break
        self.taken += taken
        self.available += there
        return result

    @property
    def share(self) -> float:
        return max(0.0, self.taken / self.available) if self.available else 0.0


def in_turn(names: list[str], turn: int) -> list[str]:
    """The order of a round: of as many rounds as there are names, hardly anyone follows the same one in two."""
    prime = next(p for p in count(max(2, len(names))) if all(p % divisor for divisor in range(2, p)))
    step = turn % (prime - 1) + 1
    places = ((turn + k * step) % prime for k in range(prime))
    return [names[place] for place in places if place < len(names)]


def interleave(samples: dict[str, Sample], effort: Effort) -> dict[str, Timing]:
    """One sample of every contestant per round, each round in another order: who always followed another runtime found
    the scheduler with both of OpenMP's threads on one core, and took up to a hundred times as long."""
    names = list(samples)
    taken: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    with no_garbage_collection():
        for turn in range(effort.rounds):
            if turn >= 3 and time.perf_counter() - begin > effort.limit_s:
                break
            for name in in_turn(names, turn):
                taken[name].append(samples[name]())
    return {name: Timing.of(values) for name, values in taken.items()}


def repetitions(run: Run, sample_ms: float, limit: int = 10000) -> int:
    """Calls per sample, so that a sample takes about `sample_ms`: far above the timer's resolution."""
    run()
    begin = time.perf_counter()
    calls = 0
    while (elapsed := time.perf_counter() - begin) < sample_ms / 4e3 and calls < limit:
        run()
        calls += 1
    return max(1, min(limit, round(calls * sample_ms / 1e3 / elapsed))) if calls else 1


def cpu_sample(run: Run, effort: Effort) -> Sample:
    calls = repetitions(run, effort.sample_ms)

    def sample() -> float:
        begin = time.perf_counter_ns()
        for _ in range(calls):
            run()
        return (time.perf_counter_ns() - begin) / 1e3 / calls

    return sample


WAKE_S = 0.002  # of calls outside the clock: the first ones find threads asleep and the processor slow
QUIET_S, LONGEST_REST_S = 0.012, 1.0  # three of the ticks in which Linux counts CPU time at its slowest


def rest() -> None:
    """Waits until no thread of this process is busy. ONNX Runtime's spin for 40 to 60 ms after their last work: in
    steps of `pause`, which takes 140 cycles on some processors and 40 on others."""
    end = time.perf_counter() + LONGEST_REST_S
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(QUIET_S)
        if time.process_time() - used < QUIET_S / 6:
            return


def settled(sample: Sample, run: Run, spins: bool) -> Sample:
    """`sample` beside runtimes with threads of their own: those spin after their last work (`spins`) and OpenMP's for
    up to 8 ms, on the very cores that whoever comes next is timed on. All contestants wait and wake alike: where only
    such runtimes did, everybody else lost a quarter."""

    def waiting() -> float:
        time.sleep(0.01)
        awake = time.perf_counter() + WAKE_S
        run()
        while time.perf_counter() < awake:
            run()
        microseconds = sample()
        if spins:
            rest()
        return microseconds

    return waiting


def host_sample(run: Run, effort: Effort, device: str) -> Sample:
    """The time a call keeps the host busy; on a GPU the queue is emptied between samples, outside the clock."""
    sample = cpu_sample(run, effort)
    if device == "cpu":
        return sample

    def drained() -> float:
        torch.cuda.synchronize()
        return sample()

    return drained


def peak_memory(run: Run, device: str) -> int:
    """Bytes that PyTorch's allocator holds at most during `run`, beyond what it held before."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler prints when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    return max(totals, default=0)
