"""The number that tells a weight's contents from those of before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointwise_ext import _C

LARGE = 3 * (256 << 10) + 13  # bytes: several chunks, and a rest


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def some_bytes(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8)


@settings(deadline=None)
@given(st.one_of(st.integers(1, 300), st.just(LARGE)), st.data())
def test_every_bit_counts(size: int, data: st.DataObject) -> None:
    contents = some_bytes(size)
    before = _C.fingerprint(contents)
    assert _C.fingerprint(contents.clone()) == before
    at, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    contents[at] ^= 1 << bit
    assert _C.fingerprint(contents) != before
    contents[at] ^= 1 << bit
    assert _C.fingerprint(contents) == before


def test_so_do_order_and_length() -> None:
    words = torch.arange(100_000)
    numbers = [
        words,
        words.flip(0),
        words.roll(8),
        words[:-1],
        words[:-8],
        torch.zeros(9),
        torch.zeros(10),
        torch.zeros(0),
    ]
    assert len({_C.fingerprint(t) for t in numbers}) == len(numbers)
    rows = words.view(100, 1000).clone()
    exchanged = rows[torch.randperm(100)]
    assert _C.fingerprint(rows) != _C.fingerprint(exchanged)


def test_threads_do_not() -> None:
    contents, found = some_bytes(LARGE), set()
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.add(_C.fingerprint(contents))
    torch.set_num_threads(threads)
    assert len(found) == 1


def test_strides_count_and_what_lies_between_does_not() -> None:
    t = torch.randn(6, 8, 3, 3)
    assert _C.fingerprint(t) != _C.fingerprint(t.transpose(2, 3))
    larger = torch.randn(6, 9, 3, 3)
    larger[:, :8] = t
    before = _C.fingerprint(larger[:, :8])
    larger[:, 8] = 0
    assert _C.fingerprint(larger[:, :8]) == before
    larger[5, 7, 2, 2] += 1
    assert _C.fingerprint(larger[:, :8]) != before
