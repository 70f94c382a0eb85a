"""What cannot be proven safe is left alone, is named in the report, and the result is the model's own."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import pointwise_ext as pw
from tests.fusion.check import assert_same, patterns, reasons
from tests.fusion.nets import Net, conv, image, norm


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def notes(fast: nn.Module) -> list[str]:
    return [f.note for f in pw.fusion_report(fast).fused]


def test_a_convolution_called_at_two_places() -> None:
    model = Net(lambda m, x: m.conv(F.relu(m.conv(x))), conv=conv()).eval()
    fast = pw.fuse(model)
    assert reasons(fast) == ["is called at 2 places"] * 2
    assert_same(model, fast, image())
    shared = conv()
    model = nn.Sequential(shared, nn.ReLU(), shared, norm()).eval()
    assert_same(model, pw.fuse(model), image())


def test_hooks_and_parametrisations() -> None:
    seen: list[int] = []
    model = nn.Sequential(conv(), nn.ReLU(), conv(), conv(), norm(), nn.ReLU(), conv(), nn.ReLU()).eval()
    model[0].register_forward_hook(lambda *_: seen.append(0))
    prune.l1_unstructured(model[2], "weight", 0.5)
    weight_norm(model[3])
    model[7].register_forward_hook(lambda *_: seen.append(7))
    fast = pw.fuse(model)
    hooks = "has hooks (pruning, weight_norm and spectral_norm use them too)"
    assert reasons(fast) == [hooks, hooks, "has a parametrisation, which computes its weight anew in each call"]
    assert patterns(fast) == ["conv"]
    assert_same(model, fast, image())
    assert seen == [0, 7] * 2


def test_a_block_with_a_hook_stays_a_block() -> None:
    shapes: list[torch.Size] = []
    block = Net(lambda m, x: F.relu(m.conv(x)), conv=conv())
    model = nn.Sequential(conv(), nn.ReLU(), block).eval()
    block.register_forward_hook(lambda m, args, y: shapes.append(y.shape))
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv + relu", "conv"]
    assert notes(fast)[1] == "Net calls it and has hooks"
    assert_same(model, fast, image())
    assert len(shapes) == 2


NORMS = {
    "training": (norm().train(), "the BatchNorm behind it is in training mode"),
    "no statistics": (norm(track_running_stats=False), "the BatchNorm behind it has no running statistics"),
    "synchronised": (nn.SyncBatchNorm(6), ""),
    "instance": (nn.InstanceNorm2d(6), ""),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norms_that_cannot_be_folded(name: str) -> None:
    module, note = NORMS[name]
    model = nn.Sequential(conv(), module, nn.ReLU())
    model.eval() if name != "training" else model.train()
    fast = pw.fuse(model)
    assert (patterns(fast), notes(fast)) == (["conv"], [note])
    assert_same(model, fast, image())


def test_a_batch_norm_without_affine_parameters_is_folded() -> None:
    model = nn.Sequential(conv(), norm(affine=False)).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv + bn"]
    assert_same(model, fast, image())


class Branching(nn.Module):
    """Control flow on data, around things that can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), norm(), nn.ReLU())
        self.block = Net(lambda m, x: F.relu(m.conv(x) + x), conv=conv())
        self.alone = conv()
        self.taps = nn.ModuleList([conv(), nn.Sequential(conv(), nn.SiLU())])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.block(x) if x.sum() > 0 else self.alone(x)
        for tap in self.taps:
            x = tap(x)
        return x


def test_control_flow_on_data_is_fused_module_by_module() -> None:
    model = Branching().eval()
    fast = pw.fuse(model)
    assert isinstance(fast, Branching)
    assert isinstance(fast.stem, nn.Sequential)
    assert patterns(fast) == ["conv + bn + relu", "conv + add + relu", "conv", "conv", "conv + silu"]
    assert notes(fast)[2].startswith("Branching calls it and cannot be traced: symbolically traced variables cannot")
    for x in (image(), -10 - image().abs()):
        assert_same(model, fast, x)
    assert isinstance(pw.fuse(model, inplace=True), Branching)


class Parts(nn.Module):
    """What is called as a whole or in parts, in a forward with an argument that keeps it from being traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), norm(), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Sequential(conv(), norm()), nn.Sequential(nn.Sequential(conv(), nn.ReLU()))])
        self.block = Net(lambda m, x: F.relu(m.conv(x)), conv=conv())
        self.head = nn.Sequential(conv(), nn.ReLU())


class Features(Parts):
    def forward(self, x: Tensor, keep: tuple[int, ...] = (0, 1)) -> list[Tensor]:
        found = []
        for i, layer in enumerate(self.stem):
            x = layer(x)
            found += [x] if i in keep else []
        for block in self.blocks:
            x = block[0](x)
        return [*found, self.block.conv(x), self.head(x)]


class Hidden(Parts):
    def forward(self, x: Tensor, name: str = "stem") -> Tensor:
        return getattr(self, name)[0](x)


class Whole(Parts):
    def forward(self, x: Tensor, keep: int = 0) -> Tensor:
        y = self.stem(self.blocks[0](x))
        for block in self.blocks:
            y = block(y)
        return sum((block(y) for block in self.blocks), y) + self.block(y)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Features(), ["conv", "conv", "conv", "conv", "conv + relu"]),
        (Hidden(), ["conv", "conv", "conv", "conv + relu", "conv"]),
        (Whole(), ["conv + bn + relu", "conv + bn", "conv + relu", "conv + relu", "conv + relu"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sequences_whose_parts_may_be_called_alone(model: nn.Module, expected: list[str]) -> None:
    fast = pw.fuse(model.eval())
    assert patterns(fast) == expected
    assert_same(model, fast, image())


class Dropping(nn.Module):
    """Something else in train() than in eval(), written as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.block(x), 0.5, self.training)


def test_train_and_eval_still_differ_after_fusing() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), Dropping()).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv + relu", "conv + relu"]
    assert_same(model, fast, image())
    x = image()
    assert (fast.train()(x) == 0).float().mean() > (fast.eval()(x) == 0).float().mean() + 0.1


class Optional_(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = conv(), nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return y if mask is None else y * mask * self.scale


def test_optional_arguments_stay_optional() -> None:
    model = Optional_().eval()
    fast = pw.fuse(model)
    assert notes(fast) == ["Optional_ calls it and its forward has optional arguments"]
    x, mask = image(), image()
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(fast(x, mask=mask), model(x, mask=mask))
    assert patterns(pw.fuse(nn.Sequential(Optional_(), conv()))) == ["conv", "conv"]


def counting(m: Net, x: Tensor) -> Tensor:
    m.calls += 1
    return m.conv(x)


def noisy(m: Net, x: Tensor) -> Tensor:
    return m.conv(x) + torch.randn(1)


def by_type(m: Net, x: Tensor) -> Tensor:
    return m.conv(torch.cat(list(x), 0).unsqueeze(0) if not isinstance(x, Tensor) else x)


def constant(m: Net, x: Tensor) -> Tensor:
    return m.conv(x) * torch.tensor(2.0)


def by_chance(m: Net, x: Tensor) -> Tensor:
    return m.conv(x) * random.choice([1.0, 2.0])


def without_gradient(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.conv(x)


FORWARDS = {
    "constant": (constant, "Net calls it and its forward makes tensors of its own"),
    "chance": (by_chance, "Net calls it and its forward draws random numbers"),
    "mode": (
        without_gradient,
        "Net calls it and cannot be traced: it enters a mode such as torch.no_grad or torch.autocast, which a graph "
        "does not hold",
    ),
    "attributes": (counting, "Net calls it and its forward changes its attributes"),
    "random": (noisy, "Net calls it and its forward draws random numbers"),
    "types": (by_type, "Net calls it and cannot be traced: it asks for the type of a value"),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_that_a_graph_cannot_hold(name: str) -> None:
    body, note = FORWARDS[name]
    model = Net(body, conv=conv()).eval()
    model.calls = 0
    before = set(model.__dict__)
    fast = pw.fuse(model)
    assert notes(fast) == [note]
    assert isinstance(fast, Net)
    assert set(model.__dict__) == before
    x = image()
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed)
        want = model(x)
        torch.manual_seed(seed), random.seed(seed)
        torch.testing.assert_close(fast(x), want)
    if name == "attributes":
        assert (model.calls, fast.calls) == (2, 2)


def test_script_modules_lazy_complex_quantised_and_other_convolutions() -> None:
    scripted = torch.jit.script(nn.Sequential(conv(), nn.ReLU()))
    model = nn.Sequential(conv(), scripted).eval()
    fast = pw.fuse(model)
    assert (patterns(fast), reasons(fast)) == (["conv"], ["a ScriptModule, which has a graph of its own"])
    assert_same(model, fast, image())
    assert reasons(pw.fuse(scripted)) == ["a ScriptModule, which has a graph of its own"]

    lazy = nn.Sequential(nn.LazyConv2d(4, 1), nn.ReLU())
    fast = pw.fuse(lazy)
    assert reasons(fast) == ["is lazy: it has no shape before its first call"]
    assert fast(image()).shape == (2, 4, 5, 7)

    wave = nn.Sequential(nn.Conv2d(3, 3, 1, dtype=torch.complex64))
    fast = pw.fuse(wave)
    assert reasons(fast) == ["has complex weights"]
    x = torch.randn(1, 3, 2, 2, dtype=torch.complex64)
    torch.testing.assert_close(fast(x), wave(x))

    prepared = nn.Sequential(conv()).eval()
    prepared[0].qconfig = torch.ao.quantization.default_qconfig
    assert reasons(pw.fuse(prepared)) == ["is prepared for quantisation"]

    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(6, 6, 1), nn.ReLU()).eval()
    fast = pw.fuse(model)
    assert reasons(fast) == ["is a Scaled, not nn.Conv itself: it may compute something else"]
    assert_same(model, fast, image())


def test_a_convolution_that_is_never_called() -> None:
    model = Net(lambda m, x: m.conv(x), conv=conv(), other=conv()).eval()
    fast = pw.fuse(model)
    assert reasons(fast) == ["is not called by forward"]
    assert_same(model, fast, image())


def test_a_module_of_somebody_elses_may_overwrite_what_it_reads() -> None:
    class Scrambler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(-1) if x.sum() > -1e9 else x

    model = Net(lambda m, x: (w := m.wide(x), y := m.conv(w), y + m.scramble(w))[2],
                wide=conv(kernel=3), conv=conv(), scramble=Scrambler()).eval()  # fmt: skip
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv"]
    assert_same(model, fast, image())


def test_a_function_with_a_parameter_is_reported() -> None:
    model = Net(
        lambda m, x: torch.conv2d(F.conv2d(x, m.wide.weight, padding=1), m.conv.weight),
        conv=conv(),
        wide=conv(kernel=3),
    )
    fast = pw.fuse(model.eval())
    assert reasons(fast)[-1] == "is a function's call, not a module's: torch.compile's backend fuses these"
    assert_same(model, fast, image())
