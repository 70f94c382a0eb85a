"""EfficientNet-B0 (Tan and Le, 2019), without stochastic depth, which drops whole blocks in training only."""

from __future__ import annotations

from torch import Tensor, nn

# (expansion, output channels, how many, stride of the first, kernel)
STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip


def conv_bn(cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


class SqueezeExcitation(nn.Module):
    """x times a weight per channel, which two 1x1 convolutions compute of the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gate = nn.SiLU(inplace=True), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


class MBConv(nn.Module):
    """x + project(squeeze-excite(depthwise(expand(x)))); a quarter of the block's input channels are squeezed to."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = cin * expansion
        self.residual = stride == 1 and cin == cout
        expand = [*conv_bn(cin, hidden), nn.SiLU(inplace=True)] if expansion > 1 else []
        self.block = nn.Sequential(
            *expand,
            *conv_bn(hidden, hidden, kernel, stride, groups=hidden),
            nn.SiLU(inplace=True),
            SqueezeExcitation(hidden, cin // 4),
            *conv_bn(hidden, cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.residual:
            y += x
        return y


class EfficientNet(nn.Module):
    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers = [*conv_bn(3, 32, 3, 2), nn.SiLU(inplace=True)]
        channels = 32
        for expansion, cout, count, stride, kernel in STAGES:
            for i in range(count):
                layers.append(MBConv(channels, cout, expansion, stride if i == 0 else 1, kernel))
                channels = cout
        layers += [*conv_bn(channels, 1280), nn.SiLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
