"""The machine's two ceilings, and the least time a problem can take below them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

import pointwise_ext as pw
from bench.operands import DTYPES, Problem
from bench.results import threads_word

# Working sets (bytes read plus written) for which a copy is timed: a tensor that fits a cache is not bound by DRAM.
_CPU_WORKING_SETS = (1 << 20, 8 << 20, 64 << 20, 512 << 20)
_CUDA_WORKING_SETS = (16 << 20, 2 << 30)


def _best_seconds(run: Callable[[], object], device: str, at_least: float = 0.1) -> float:
    """The fastest call within `at_least` seconds: a ceiling is what the machine can do, not what it usually does."""
    run()
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < at_least:
        if device == "cpu":
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
        else:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            events[1].synchronize()
            best = min(best, events[0].elapsed_time(events[1]) / 1e3)
    return best


_seen: dict[tuple[str, str, int], float] = {}  # the fastest FLOP/s of a run, by dtype, device and threads


def saw(problem: Problem | Work, flops: float) -> None:
    """A contestant reached `flops` per second: a shared machine is often faster later than when a run begins."""
    key = (problem.dtype, problem.device, problem.threads)
    _seen[key] = max(flops, _seen.get(key, 0.0))


def mm_flops(dtype: str, device: str) -> float:
    """FLOP/s of a large square matrix product on random data, now: a shared machine is twice as fast at times. On the
    CPU the better of torch.mm and this package: on a Zen 5 MKL reaches 220 GFLOP/s of fp32 where 495 are possible."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _best_seconds(lambda: torch.mm(a, b, out=out), device)
    if device == "cpu":
        x, weight = b[None], a[..., None]
        with torch.no_grad():
            seconds = min(seconds, _best_seconds(lambda: pw.pointwise_conv(x, weight), device))
    return 2 * size**3 / seconds


@cache
def _peak_of_mm(dtype: str, device: str, threads: int) -> float:
    return mm_flops(dtype, device)


def peak_flops(dtype: str, device: str, threads: int = 0) -> float:
    """FLOP/s of a large square matrix product on random data, for the multiply-add peak (fp32 on CUDA: as set), or the
    fastest contestant's.

    A CPU without instructions for fp16 or bf16 computes them in fp32, so their ceiling is never below that. `threads`
    is what PyTorch is set to, and tells the measurements apart.
    """
    peak = max(_peak_of_mm(dtype, device, threads), _seen.get((dtype, device, threads), 0.0))
    return peak if dtype == "fp32" else max(peak, peak_flops("fp32", device, threads))


@cache
def copy_bandwidths(device: str, threads: int = 0) -> tuple[tuple[int, float], ...]:
    """(working set, bytes read plus written per second) of Tensor.copy_, ascending."""
    measured = []
    for working_set in _CPU_WORKING_SETS if device == "cpu" else _CUDA_WORKING_SETS:
        source = torch.rand(working_set // 8, device=device)
        target = torch.empty_like(source)
        measured.append((working_set, working_set / _best_seconds(lambda s=source, t=target: t.copy_(s), device)))
    return tuple(measured)


def bandwidth(problem: Problem | Work) -> float:
    """The copy bandwidth of the smallest working set timed that holds what moves; cold, that of the largest."""
    table = copy_bandwidths(problem.device, problem.threads)
    moved = table[-1][0] if problem.cold else problem.bytes
    return next((rate for working_set, rate in table if moved <= working_set), table[-1][1])


@dataclass(frozen=True)
class Work:
    """What a floor asks of a problem, of a convolution that is no layer of the benchmark's."""

    flops: int
    bytes: int
    dtype: str
    device: str
    threads: int
    cold: bool = False


@dataclass(frozen=True)
class Floor:
    """The larger of arithmetic and traffic time, in microseconds, and which of the two it is."""

    microseconds: float
    bound: str


def floor(problem: Problem | Work) -> Floor:
    arithmetic = problem.flops / peak_flops(problem.dtype, problem.device, problem.threads) * 1e6
    traffic = problem.bytes / bandwidth(problem) * 1e6
    return Floor(max(arithmetic, traffic), "compute" if arithmetic >= traffic else "memory")


def ceilings(device: str, dtypes: list[str], threads: list[int]) -> dict[str, float]:
    """The measured ceilings, for the record: GFLOP/s per dtype, GB/s per working set, with each number of threads."""
    result = {}
    for count in threads:
        if count:
            torch.set_num_threads(count)
        mark = f", {threads_word(count)}" if count else ""
        for dtype in dtypes:
            result[f"{dtype} GFLOP/s{mark}"] = round(peak_flops(dtype, device, count) / 1e9, 1)
        for working_set, rate in copy_bandwidths(device, count):
            result[f"copy GB/s, {working_set >> 20} MB{mark}"] = round(rate / 1e9, 1)
    return result
