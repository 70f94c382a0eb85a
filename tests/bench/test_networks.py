"""The benchmark's networks are those of the papers: their published sizes, and the shape of what they answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.networks import NETWORKS, build

PARAMETERS = {
    "ResNet-50": 25_557_032,
    "MobileNetV2": 3_504_872,
    "EfficientNet-B0": 5_288_548,
    "SqueezeNet": 1_235_496,
    "GoogLeNet": 6_998_552,
}
# Multiplications for one image in the papers' tables, in millions
MULTIPLICATIONS = {"ResNet-50": 4090, "MobileNetV2": 300, "EfficientNet-B0": 390, "SqueezeNet": 350, "ShuffleNet": 137}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name].make()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_multiplications(name: str) -> None:
    size = NETWORKS[name].size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        NETWORKS[name].make().eval()(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e6 == pytest.approx(MULTIPLICATIONS[name], rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_built_network_shows_mistakes(name: str) -> None:
    """The same from the same seed, with BatchNorms that do something, and answers that depend on the image."""
    network, again = build(name).eval(), build(name).eval()
    size = NETWORKS[name].small
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(again(x), y, rtol=0, atol=0)
    assert y.isfinite().all()
    assert (y[0] - y[1]).abs().max() > 0.01 * y.abs().max()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean.abs().min() > 0
            assert norm.running_var.min() > 0
            assert (norm.weight - 1).abs().max() > 0.1
