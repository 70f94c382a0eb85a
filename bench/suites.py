"""The layers that are timed: every 1x1 convolution of two networks, the README's three uses, and the two extremes."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("forward", "backward", "step")
LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class Layer:
    """y = relu(conv1x1(concat(inputs), weight, stride) + bias [+ residual]) on images of `size` x `size` pixels."""

    suite: str
    batch: int
    channels: tuple[int, ...]  # of each input; more than one: their concatenation
    out_channels: int
    size: int
    stride: int = 1
    residual: bool = False

    @property
    def in_channels(self) -> int:
        return sum(self.channels)

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def outputs(self) -> int:
        """Elements of y."""
        return self.batch * self.out_size**2 * self.out_channels

    @property
    def name(self) -> str:
        extra = (f" /{self.stride}" if self.stride > 1 else "") + (" +residual" if self.residual else "")
        channels = "+".join(map(str, self.channels))
        return f"{self.suite} {self.batch}x{channels}->{self.out_channels} {self.size}x{self.size}{extra}"

    @property
    def klass(self) -> str:
        """The class whose geometric mean is judged: single cells are +-10 % on a shared machine, classes are not."""
        if self.suite in ("tiny", "big"):
            return self.suite
        label = {"resnet50": "ResNet-50", "mobilenetv2": "MobileNetV2", "uses": "28x28"}[self.suite]
        if self.stride > 1:
            label = "stride 2"
        elif self.residual:
            label = "28x28 bottleneck"
        return f"{label}, batch {self.batch}"

    def flops(self, mode: str) -> int:
        """A multiply and an add per weight and output pixel; backward is two such, dX = W^T dZ and dW = dZ X^T."""
        product = 2 * self.outputs * self.in_channels
        return product * {"forward": 1, "backward": 2, "step": 3}[mode]

    def elements(self, mode: str, weights: bool = True) -> int:
        """Least elements moved. Forward reads x, w, b, the residual and writes y; backward reads x, w, y, dY and writes
        dX, dW, db and the residual's gradient. Of a strided input only the pixels that are used count."""
        pixels = self.batch * self.out_size**2
        operands = pixels * self.in_channels + self.out_channels * (self.in_channels + 1) * weights
        forward = operands + self.outputs * (1 + self.residual)
        backward = 2 * operands + self.outputs * (2 + self.residual)
        return {"forward": forward, "backward": backward, "step": forward + backward}[mode]


# (Cin, Cout, input size, stride), in the order the networks run them
RESNET50 = (
    (64, 64, 56, 1), (64, 256, 56, 1), (256, 64, 56, 1), (256, 128, 56, 1), (256, 512, 56, 2),
    (512, 128, 28, 1), (128, 512, 28, 1), (512, 256, 28, 1), (512, 1024, 28, 2), (1024, 256, 14, 1),
    (256, 1024, 14, 1), (1024, 512, 14, 1), (1024, 2048, 14, 2), (2048, 512, 7, 1), (512, 2048, 7, 1),
)  # fmt: skip
MOBILENETV2 = (
    (32, 16, 112, 1), (16, 96, 112, 1), (96, 24, 56, 1), (24, 144, 56, 1), (144, 32, 28, 1),
    (32, 192, 28, 1), (192, 64, 14, 1), (64, 384, 14, 1), (384, 96, 14, 1), (96, 576, 14, 1),
    (576, 160, 7, 1), (160, 960, 7, 1), (960, 320, 7, 1), (320, 1280, 7, 1),
)  # fmt: skip


BATCHES = {"cpu": (1, 8), "cuda": (32, 256)}  # of the networks


def _network(suite: str, table: tuple[tuple[int, int, int, int], ...], batches: tuple[int, ...]) -> list[Layer]:
    return [Layer(suite, batch, (cin,), cout, size, stride) for batch in batches for cin, cout, size, stride in table]


def _uses(batch: int) -> list[Layer]:
    """A projection, a concatenation of two, and the expanding end of a bottleneck (its reducing 1x1 is the first)."""
    return [
        Layer("uses", batch, (64,), 32, 28),
        Layer("uses", batch, (32, 64), 64, 28),
        Layer("uses", batch, (32,), 64, 28, residual=True),
    ]


def _suites(device: str) -> dict[str, list[Layer]]:
    return {
        "uses": _uses(1) + _uses(32),
        "resnet50": _network("resnet50", RESNET50, BATCHES[device]),
        "mobilenetv2": _network("mobilenetv2", MOBILENETV2, BATCHES[device]),
        "tiny": [Layer("tiny", 1, (8,), 8, 4)],
        "big": [Layer("big", 4, (512,), 512, 64)],
    }


SUITES, CUDA_SUITES = _suites("cpu"), _suites("cuda")
LAYERS: dict[str, Layer] = {layer.name: layer for layers in SUITES.values() for layer in layers}
CUDA_LAYERS: dict[str, Layer] = {layer.name: layer for layers in CUDA_SUITES.values() for layer in layers}

# Expanding, reducing, strided and deep layers of ResNet-50; shallow, middle and deep ones of MobileNetV2
_QUICK_NETWORKS = {
    "resnet50": {(64, 256, 56, 1), (512, 128, 28, 1), (512, 1024, 28, 2), (1024, 256, 14, 1), (512, 2048, 7, 1)},
    "mobilenetv2": {(96, 24, 56, 1), (24, 144, 56, 1), (192, 64, 14, 1), (960, 320, 7, 1)},
}

_EXPANDING = {("resnet50", batches[0], (64,)) for batches in BATCHES.values()}


def _in_quick(layer: Layer, mode: str) -> bool:
    if mode != "forward":  # a few: the three uses at both batches, and an expanding layer
        return layer.suite == "uses" or (layer.suite, layer.batch, layer.channels) in _EXPANDING
    chosen = _QUICK_NETWORKS.get(layer.suite)
    return chosen is None or (layer.in_channels, layer.out_channels, layer.size, layer.stride) in chosen


def select(suites: list[str], mode: str, quick: bool = False, device: str = "cpu") -> list[Layer]:
    """The layers of `suites`; `quick` keeps the representatives of each."""
    of = CUDA_SUITES if device == "cuda" else SUITES
    return [layer for suite in suites for layer in of[suite] if not quick or _in_quick(layer, mode)]
