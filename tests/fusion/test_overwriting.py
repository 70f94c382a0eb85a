"""Values that somebody else reads or overwrites: what stays apart, and what a gradient is computed from."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointwise_ext as pw
from tests.fusion.check import assert_same, gradients, patterns
from tests.fusion.nets import MODULES, Net, Pair, chain_net, conv, image


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def read_twice(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(y) * y


def read_before_in_place(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    F.relu(y, inplace=True)
    return y


def overwritten_input(m: Net, x: Tensor) -> Tensor:
    x = m.wide(x)
    y = m.conv(x)
    x.mul_(2.0)
    return y + x


def overwritten_through_a_view(m: Net, x: Tensor) -> Tensor:
    x = m.wide(x)
    view = x.view(2, -1)
    y = m.conv(x)
    z = view.mul_(2.0).view(2, 6, 5, 7)
    return y + z


def summed_into_a_read_value(m: Net, x: Tensor) -> Tensor:
    other = m.wide(x)
    other += m.conv(x)
    return other * 2 + other


def overwritten_piece(m: Net, x: Tensor) -> Tensor:
    piece = m.wide(x)
    both = torch.cat([x, piece], 1)
    piece.zero_()
    return m.merge(both) + piece


def overwritten_later(m: Net, x: Tensor) -> Tensor:
    piece = m.wide(x)
    return m.merge(torch.cat([x, piece], 1)) * piece.add_(1.0)


KEPT_APART = {
    "read twice": (read_twice, "conv", "2 read the value"),
    "read before an in-place activation": (read_before_in_place, "conv", "2 read the value"),
    "doubled": (lambda m, x: (lambda y: y + y)(m.conv(x)), "conv", ""),
    "scaled sum": (lambda m, x: torch.add(m.conv(x), x, alpha=2), "conv", ""),
    "number added": (lambda m, x: m.conv(x) + 1.0, "conv", ""),
    "input overwritten": (overwritten_input, "conv", "its input is overwritten before the addition behind it"),
    "view overwritten": (overwritten_through_a_view, "conv", "its input is overwritten before the addition behind it"),
    "piece overwritten": (overwritten_piece, "conv + add", ""),
    "piece overwritten later": (overwritten_later, "conv", ""),
    "cat of another dimension": (lambda m, x: m.conv(torch.cat([x, x], 2)), "conv", ""),
    "cat of nine": (lambda m, x: m.wider(torch.cat([x] * 9, 1)), "conv", ""),
    "other hardtanh": (lambda m, x: F.hardtanh(m.conv(x)), "conv", ""),
    "threshold by a tensor": (lambda m, x: torch.clamp(m.conv(x), min=x), "conv", ""),
}


@pytest.mark.parametrize("name", KEPT_APART)
def test_what_would_change_the_result_stays(name: str) -> None:
    body, pattern, note = KEPT_APART[name]
    model = Net(body, conv=conv(), wide=conv(kernel=3), merge=conv(12), wider=conv(54)).eval()
    fast = pw.fuse(model)
    (fused,) = pw.fusion_report(fast).fused
    assert (fused.pattern, fused.note) == (pattern, note)
    assert_same(model, fast, image())


def test_pieces_that_are_overwritten_after_the_convolution_are_not_saved() -> None:
    model, x = chain_net(overwritten_later), image()
    torch.testing.assert_close(gradients(pw.fuse(model), x), gradients(model, x))


def test_a_sum_into_a_value_that_is_read_later_stays() -> None:
    model = Net(summed_into_a_read_value, conv=conv(), wide=conv(kernel=3)).eval()
    fast = pw.fuse(model)
    assert_same(model, fast, image())
    twice = Pair(lambda m, x, y: y.add_(m.conv(x)) * 2, conv=conv()).eval()  # y is the caller's
    fast = pw.fuse(twice)
    assert patterns(fast) == ["conv"]
    x, ours, theirs = image(), torch.ones(2, 6, 5, 7), torch.ones(2, 6, 5, 7)
    torch.testing.assert_close(fast(x, ours), twice(x, theirs))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["relu6", "leaky_relu", "silu"])
def test_an_activation_that_is_overwritten_later_still_has_its_gradient(name: str) -> None:
    model = Net(lambda m, x: m.act(m.conv(x)).mul_(2.0), conv=conv(), act=copy.deepcopy(MODULES[name])).double()
    fast = pw.fuse(model)
    x = image(dtype=torch.float64)
    torch.testing.assert_close(gradients(fast, x), gradients(model, x))


def counted(m: Net, x: Tensor) -> Tensor:
    m.counter.add_(1)
    m.average.mul_(0.5).add_(x.mean())
    return m.conv(x) * m.counter + m.average


def test_buffers_that_forward_overwrites_are_overwritten_in_each_call() -> None:
    model = Net(counted, conv=conv()).eval()
    model.register_buffer("counter", torch.zeros(()))
    model.register_buffer("average", torch.ones(()))
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv"]
    with torch.no_grad():
        for _ in range(2):
            assert_same(model, fast, image())
    torch.testing.assert_close(dict(fast.named_buffers()), dict(model.named_buffers()))
    assert fast.counter == 2


def summed_under_two_names(m: Net, x: Tensor) -> Tensor:
    y = other = m.wide(x)
    y += m.conv(x)
    return y * other


def powered_under_two_names(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    x **= 2
    return y + x


@pytest.mark.parametrize("body", [summed_under_two_names, powered_under_two_names])
def test_augmented_assignments_overwrite(body) -> None:
    model = Net(body, conv=conv(), wide=conv(kernel=3)).eval()
    fast = pw.fuse(model)
    x = image()
    ours = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(fast(ours), model(x))
    torch.testing.assert_close(ours, x)


def summed_into_a_number(m: Net, x: Tensor) -> Tensor:
    n = x.size(0) * 2
    n += m.conv(x)
    return n


def test_a_sum_into_a_number() -> None:
    model = Net(summed_into_a_number, conv=conv()).eval()
    assert_same(model, pw.fuse(model), image())


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if x.sum() > -1e9 else x


@pytest.mark.parametrize("name", ["relu6", "leaky_relu", "silu", "hardswish"])
def test_an_activation_that_somebody_elses_module_may_overwrite_has_its_gradient(name: str) -> None:
    model = nn.Sequential(conv(), copy.deepcopy(MODULES[name]), Doubling()).double()
    x = image(dtype=torch.float64)
    torch.testing.assert_close(gradients(pw.fuse(model), x), gradients(model, x), rtol=1e-6, atol=1e-6)


def test_what_a_sequence_or_a_hook_overwrites() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        x = m.wide(x)
        y = m.conv(x)
        return y + m.other(x)

    sequence = nn.Sequential(nn.ReLU(inplace=True), conv())
    sequence.register_forward_hook(lambda *_: None)  # a call in the graph
    hooked = conv()
    hooked.register_forward_pre_hook(lambda m, args: (args[0].mul_(2),))
    for other in (sequence, hooked):
        model = Net(body, wide=conv(kernel=3), conv=conv(), other=other).eval()
        assert_same(model, pw.fuse(model), image())
