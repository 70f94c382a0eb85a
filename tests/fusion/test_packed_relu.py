"""A ReLU that a larger convolution takes in: the same values and gradients, and nobody else's convolution changed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointwise_ext as pw
from pointwise_ext.fusion.packed import AVAILABLE, PackedConv2d

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="weights are packed by oneDNN, on x86")


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 8, 10, 9, dtype=dtype).to(memory_format=torch.channels_last)


class Net(nn.Module):
    """A 1x1 convolution, without which fuse leaves a model alone, and a larger one that `behind` follows."""

    def __init__(self, behind: Callable[[Tensor], object], **arguments: object) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(8, 8, 1)
        self.spatial = nn.Conv2d(8, 6, 3, **{"padding": 1, **arguments})  # type: ignore[arg-type]
        self.behind = behind

    def forward(self, x: Tensor) -> object:
        return self.behind(self.spatial(self.reduce(x)))


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": lambda y: F.relu(y),
    "function in place": lambda y: F.relu(y, inplace=True),
    "torch's": lambda y: torch.relu(y),
    "method": lambda y: y.relu(),
    "method in place": lambda y: y.relu_(),
}


def fused(model: nn.Module, **options: bool) -> nn.Module:
    fast = pw.fuse(model, **options)
    assert isinstance(fast.spatial, PackedConv2d) == options.get("pack", True)
    return fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, dtype: torch.dtype) -> None:
    model = Net(FORMS[form]).to(dtype).eval()
    fast = fused(model)
    assert fast.spatial.relu
    assert not model.spatial.__dict__.get("relu")
    assert sum(node.op.startswith("call") for node in fast.graph.nodes) == 2
    x = image(dtype)
    x[0, 0, 0, 0] = float("nan")  # it stays, as in PyTorch's ReLU
    with torch.no_grad():
        between = fast.reduce(x)
        expected = torch.relu(model.spatial(between))
        for _ in range(2):  # and once more on the packed weight
            torch.testing.assert_close(fast(x), expected, rtol=0, atol=0, equal_nan=True)
    assert expected.isnan().any()
    assert list(fast.state_dict()) == list(model.state_dict())


def test_gradients() -> None:
    model = Net(nn.ReLU()).double().train()
    fast = fused(model)
    x = image(torch.float64).requires_grad_()
    grads = [torch.autograd.grad(m(x).square().sum(), [x, *m.parameters()]) for m in (model, fast)]
    for expected, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_batch_norm_first() -> None:
    norm = nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    model = Net(nn.Sequential(norm, nn.ReLU())).eval()
    fast = pw.fuse(model)
    assert fast.spatial.relu
    assert pw.fusion_report(fast).folded == ["spatial"]
    x = image()
    torch.testing.assert_close(fast(x), model(x))


LEFT: dict[str, Callable[[Tensor], object]] = {
    "two readers": lambda y: (torch.relu(y), y),
    "the result itself": lambda y: y,
    "another activation": nn.SiLU(),
    "addition first": lambda y: torch.relu(y + 1),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left(case: str) -> None:
    model = Net(LEFT[case]).eval()
    fast = fused(model)
    assert not fast.spatial.relu
    x = image()
    torch.testing.assert_close(fast(x), model(x))


def test_hooks_padding_and_an_argument_keep_it_out() -> None:
    model = Net(nn.ReLU()).eval()
    model.behind.register_forward_hook(lambda module, inputs, y: y + 1)
    assert not fused(model).spatial.relu
    model = Net(nn.ReLU()).eval()
    model.spatial.register_forward_hook(lambda module, inputs, y: y + 1)
    assert type(pw.fuse(model).spatial) is nn.Conv2d
    assert type(pw.fuse(Net(nn.ReLU(), padding_mode="reflect")).spatial) is nn.Conv2d
    fast = fused(Net(nn.ReLU()).eval(), pack=False)
    assert type(fast.spatial) is nn.Conv2d
    assert "ReLU" in str(fast)


class Shares(nn.Module):
    """Its convolution is called with a ReLU here, and without one by whoever else holds it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(8, 8, 1)
        self.with_relu = nn.Sequential(nn.Conv2d(8, 8, 1), conv, nn.ReLU())
        self.without = nn.Sequential(nn.Conv2d(8, 8, 1), conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_relu(x) - self.without(x)


@pytest.mark.parametrize("inplace", [False, True])
def test_others_keep_their_convolution(inplace: bool) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = Shares(conv).eval()
    x = image()
    expected, alone = model(x), conv(x)
    fast = pw.fuse(model, inplace=inplace)
    torch.testing.assert_close(fast(x), expected)
    torch.testing.assert_close(conv(x), alone)


def test_a_sequence_stays_one() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) if float(x.sum()) < 1e9 else x  # not to be traced

    model = Indexed().eval()
    fast = pw.fuse(model)
    assert [type(layer) for layer in fast.layers][1:3] == [PackedConv2d, nn.Identity]
    x = image()
    torch.testing.assert_close(fast(x), model(x))


def test_copies_and_another_fuse() -> None:
    model = Net(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6))).eval()
    fast = fused(model)
    x = image()
    with torch.no_grad():
        expected = model(x)
        fast(x)
        buffer = io.BytesIO()
        torch.save(fast.spatial, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        torch.testing.assert_close(loaded(fast.reduce(x)), torch.relu(model.spatial(fast.reduce(x))))
        for other in (copy.deepcopy(fast), pw.fuse(fast)):  # BatchNorm behind the ReLU is not folded before it
            assert other.spatial.relu
            assert "relu" in repr(other.spatial)
            torch.testing.assert_close(other(x), expected)
