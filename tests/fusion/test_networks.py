"""fuse on whole networks: the same answers in eval, the same gradients in training, nearly every 1x1 taken in."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import pointwise_ext as pw
from bench.networks import NETWORKS, build
from bench.pointwise_part import pointwise_convolutions

SHARE = 0.95
NO_BF16 = {"GoogLeNet"}  # PyTorch has no LocalResponseNorm in it


@cache
def network(name: str) -> nn.Module:
    return build(name)


def image(name: str, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    size = NETWORKS[name].small
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(2, 3, size, size, dtype=torch.float64).to(dtype, memory_format=memory_format)


def largest_error(got: Tensor, exact: Tensor) -> float:
    assert got.shape == exact.shape
    return ((got.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_in_eval(name: str, channels_last: bool) -> None:
    """In fp32 and bf16 as near to float64 as the network itself is in that dtype."""
    x = image(name, channels_last=channels_last)
    with torch.no_grad():
        exact = copy.deepcopy(network(name)).double().eval()(x.double())
        for dtype in (torch.float32, *([] if name in NO_BF16 else [torch.bfloat16])):
            plain = copy.deepcopy(network(name)).eval().to(dtype)
            fast, own = pw.fuse(plain), largest_error(plain(x.to(dtype)), exact)
            assert largest_error(fast(x.to(dtype)), exact) <= 2 * own + 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", NETWORKS)
def test_nearly_all_are_fused_and_the_rest_is_explained(name: str) -> None:
    plain = copy.deepcopy(network(name)).eval()
    report = pw.fusion_report(pw.fuse(plain))
    count = pointwise_convolutions(plain)
    assert len(report.fused) >= SHARE * count
    assert len(report.fused) + len(report.left) >= count
    assert all(str(left) for left in report.left)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_in_training(name: str) -> None:
    """In float64, where BatchNorms over few pixels do not blow rounding up; running statistics follow too."""
    plain = copy.deepcopy(network(name)).double().train()
    fast = pw.fuse(copy.deepcopy(plain))
    assert fast.training
    x, results = image(name, torch.float64), []
    for model in (plain, fast):
        torch.manual_seed(0)  # dropout
        y = model(leaf := x.clone().requires_grad_())
        y.square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        results.append((y.detach(), leaf.grad, gradients, dict(model.named_buffers())))
    torch.testing.assert_close(results[1][:2], results[0][:2], rtol=1e-6, atol=1e-8)
    for got, expected in zip(results[1][2:], results[0][2:], strict=True):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-8 * max(1.0, value.abs().max().item()))


@pytest.mark.parametrize("name", ["ResNet-50", "SqueezeNet"])
def test_a_step_saves_no_more_than_eager(name: str) -> None:
    """What autograd keeps for the backward pass, counted by storage: parameters and the image are there anyway."""

    def saved_bytes(model: nn.Module) -> int:
        x, kept = image(name), {}
        known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}

        def pack(t: Tensor) -> Tensor:
            if t.untyped_storage().data_ptr() not in known:
                kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
        total = sum(t.untyped_storage().nbytes() for t in kept.values())
        assert y.requires_grad
        return total

    plain = copy.deepcopy(network(name)).train()
    assert saved_bytes(pw.fuse(copy.deepcopy(plain))) <= saved_bytes(plain)


@pytest.mark.parametrize("name", ["ResNet-50", "GoogLeNet", "U-Net"])
def test_fusing_leaves_the_original_alone(name: str) -> None:
    plain = copy.deepcopy(network(name)).eval()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    kinds = [type(module) for module in plain.modules()]
    pw.fuse(plain)
    assert [type(module) for module in plain.modules()] == kinds
    torch.testing.assert_close(plain.state_dict(), before, rtol=0, atol=0)
