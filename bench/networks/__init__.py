"""Networks from their papers in plain PyTorch, as their users write them, with random weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bench.networks.efficientnet import EfficientNet
from bench.networks.googlenet import GoogLeNet
from bench.networks.mobilenetv2 import MobileNetV2
from bench.networks.resnet import ResNet50
from bench.networks.shufflenet import ShuffleNet
from bench.networks.squeezenet import SqueezeNet
from bench.networks.unet import UNet


@dataclass(frozen=True)
class Network:
    """`size`: height and width of the images it is timed on; the tests take `small` ones."""

    make: Callable[[], nn.Module]
    size: int = 224
    small: int = 64


NETWORKS = {
    "ResNet-50": Network(ResNet50),
    "MobileNetV2": Network(MobileNetV2),
    "EfficientNet-B0": Network(EfficientNet),
    "SqueezeNet": Network(SqueezeNet),
    "GoogLeNet": Network(GoogLeNet),
    "ShuffleNet": Network(ShuffleNet),
    "U-Net": Network(UNet, small=32),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network in training mode, made so that mistakes show: no BatchNorm has scale 1 and shift 0, its statistics
    are those of random images, and values stay in range at any depth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name].make()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            norm.momentum = None  # the plain average over the images below
        with torch.no_grad():
            network(torch.randn(4, 3, 128, 128))
        for norm in norms:
            norm.momentum = 0.1
    return network
