"""Concurrent calls, repeated calls, and any number of threads inside: always the same bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp

import pointwise_ext as pw
from tests.problem import Problem, gradients
from tests.tolerance import assert_bitwise_equal

TILES = {"layout": "channels_last", "dtype": "bfloat16"}
PROBLEMS = [
    Problem(channels=(67, 40), out_channels=130, size=(19, 23), residual=True, activation="silu"),
    Problem(
        channels=(64,), out_channels=48, size=(28, 28), layout="channels_last", dtype="bfloat16", activation="relu"
    ),
    Problem(channels=(24,), out_channels=24, size=(33, 31), groups=4, stride=2, padding=1, layout="sliced"),
    # 2.5 MB of dY: the CPU's backward pass in chunks
    Problem(channels=(96,), out_channels=400, batch=1, size=(40, 40), activation="relu"),
    # K in pieces but for threads of few rows: dX of 517 channels in three, of 434 in two, and y of two inputs
    Problem(channels=(300,), out_channels=517, batch=7, size=(7, 7), **TILES, activation="gelu"),
    Problem(channels=(300,), out_channels=434, batch=7, size=(7, 7), **TILES, activation="gelu"),
    Problem(channels=(434, 434), out_channels=128, size=(7, 8), dtype="bfloat16"),
]
IDS = ["nchw", "channels_last_bfloat16", "groups_sliced", "large", "three_pieces", "two_pieces", "two_inputs_in_pieces"]


def results(problem: Problem) -> dict[str, torch.Tensor]:
    return gradients(pw.pointwise_conv, problem.placed(), problem.options)


def assert_same_bits(got: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert_bitwise_equal(got[name], value, name)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_repeated_calls_have_the_same_bits(problem: Problem, device: str) -> None:
    problem = replace(problem, device=device)
    first = results(problem)
    for _ in range(5):
        assert_same_bits(results(problem), first)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_the_number_of_threads_changes_no_bit(kernels, problem: Problem) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(problem)
        for count in (2, 3, 8, 48):
            torch.set_num_threads(count)
            assert_same_bits(results(problem), one)
    finally:
        torch.set_num_threads(threads)


def test_deterministic_algorithms_are_granted() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        problem = PROBLEMS[0]
        assert_same_bits(results(problem), results(problem))
    finally:
        torch.use_deterministic_algorithms(False)


def test_concurrent_calls(device: str) -> None:
    """Eight Python threads, each with another problem, forward and backward."""
    problems = [replace(p, seed=seed, device=device) for seed in range(4) for p in PROBLEMS]
    expected = [results(p) for p in problems]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(results, problems * 3), expected * 3, strict=True):
            assert_same_bits(got, want)


def test_concurrent_calls_of_one_module() -> None:
    module = pw.PointwiseConv2d(32, 48, activation="relu")
    x = torch.randn(4, 32, 17, 17)
    expected = module(x).detach()
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: module(x).detach(), range(16)):
            assert_bitwise_equal(y, expected)


def _in_child(x: torch.Tensor, w: torch.Tensor, queue) -> None:
    torch.set_num_threads(1)  # as DataLoader does: the parent's OpenMP threads do not survive a fork
    queue.put(pw.pointwise_conv(x, w, activation="relu").sum().item())


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_in_another_process(method: str) -> None:
    """As a transform in a worker of a DataLoader, after the parent has computed in parallel."""
    x, w = torch.randn(8, 32, 64, 64), torch.randn(48, 32, 1, 1)
    expected = pw.pointwise_conv(x, w, activation="relu").sum().item()
    context = mp.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_in_child, args=(x, w, queue), daemon=True)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    assert queue.get() == pytest.approx(expected, rel=1e-4)
