"""Timing on a GPU: CUDA graphs of many calls between two events, on buffers in the cache (warm) or not (cold)."""

from __future__ import annotations

import torch

from bench.cold import keeping
from bench.measure import Effort, Run, Sample

_CALLS_PER_GRAPH = 20


def _events_ms(run: Run, calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def cuda_sample(run: Run, sets: int, effort: Effort, stream: torch.cuda.Stream) -> tuple[Sample, str]:
    """The sampler and how it works: "graph", or "events" where a peer cannot be captured (host time counts then).

    `run` takes the next of `sets` buffers each time. Everything, the forward pass of a backward run included, has to
    live on `stream`.
    """
    call = keeping(run, sets)
    with torch.cuda.stream(stream):
        for _ in range(max(3, sets)):
            call()
        torch.cuda.synchronize()
        calls = sets * -(-_CALLS_PER_GRAPH // sets)  # whole rotations
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(calls):
                    call()
            replay, kind = graph.replay, "graph"
        except RuntimeError:  # the library underneath synchronises or allocates outside the pool
            torch.cuda.synchronize()
            replay, calls, kind = call, 1, "events"
        replay()
        replays = max(1, min(1000, round(effort.sample_ms / max(_events_ms(replay, 3) / 3, 1e-3))))

    def sample() -> float:
        with torch.cuda.stream(stream):
            return _events_ms(replay, replays) * 1e3 / (replays * calls)

    return sample, kind
