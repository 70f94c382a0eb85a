"""torch.compile(model, backend="pointwise_ext"): the same results, every pattern, and never a graph that breaks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager

import pointwise_ext as pw
from pointwise_ext.fusion import backend as backend_module
from pointwise_ext.fusion.backend import compile_backend
from pointwise_ext.fusion.dynamo import rewrite

ROOT = Path(__file__).resolve().parents[2]
CONV = torch.ops.pointwise_ext.conv.default

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


class Rewritten:
    """A backend that fuses like ours and then runs without generating code: quick, and shows the graphs."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []  # of our operator: (inputs, has residual, activation)
        self.targets: list = []

    def __call__(self, gm, example_inputs, **kwargs):
        rewrite(gm)
        self.targets += [node.target for node in gm.graph.nodes]
        for node in gm.graph.nodes:
            if node.target is CONV:
                self.calls.append((len(node.args[0]), node.args[3] is not None, node.args[7]))
        return aot_eager(gm, example_inputs)


def run(f, *args, dynamic: bool | None = None) -> Rewritten:
    """f compiled gives what f gives, fullgraph; returns what was compiled."""
    backend = Rewritten()
    compiled = torch.compile(f, backend=backend, fullgraph=True, dynamic=dynamic)
    got, expected = compiled(*copies(args)), f(*copies(args))
    torch.testing.assert_close(got, expected, rtol=1.3e-6, atol=1e-5)  # of fp32, also where it is widened afterwards
    return backend


def copies(args: tuple) -> list:
    return [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]


def bn_with_statistics(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias):
            t.copy_(torch.rand(channels) + 0.5)
    return bn


class Bottleneck(nn.Module):
    def __init__(self, channels: int = 16, width: int = 4) -> None:
        super().__init__()
        self.reduce, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), bn_with_statistics(width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.expand, self.bn2 = nn.Conv2d(width, channels, 1), bn_with_statistics(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.reduce(x)))
        y = self.bn2(self.expand(self.spatial(y)))
        y += x
        return self.relu(y)


X = torch.Generator().manual_seed(1)
W = torch.randn(6, 6, 1, 1, generator=X)
PATTERNS = {
    "conv": (lambda x, r: F.conv2d(x, W), (1, False, "none")),
    "relu": (lambda x, r: F.relu(F.conv2d(x, W)), (1, False, "relu")),
    "relu_ method": (lambda x, r: F.conv2d(x, W).relu_(), (1, False, "relu")),
    "leaky": (lambda x, r: F.leaky_relu(F.conv2d(x, W), 0.2, inplace=True), (1, False, "leaky_relu")),
    "gelu tanh": (lambda x, r: F.gelu(F.conv2d(x, W), approximate="tanh"), (1, False, "gelu_tanh")),
    "clamp": (lambda x, r: F.conv2d(x, W).clamp(-0.5, 0.5), (1, False, "clamp")),
    "add": (lambda x, r: F.conv2d(x, W) + r, (1, True, "none")),
    "add turned": (lambda x, r: r + F.conv2d(x, W), (1, True, "none")),
    "add_ silu": (lambda x, r: F.silu(F.conv2d(x, W).add_(r)), (1, True, "silu")),
    "cat": (lambda x, r: F.conv2d(torch.cat([x[:, :2], r[:, :4]], 1), W), (2, False, "none")),
    "cat from behind": (lambda x, r: F.conv2d(torch.cat([x[:, :2], r[:, :4]], -3), W), (2, False, "none")),
    "unbatched cat": (lambda x, r: F.conv2d(torch.cat([x[0, :2], r[0, :4]], 0), W), (2, False, "none")),
    "all": (lambda x, r: torch.sigmoid(r + F.conv2d(torch.cat([x[:, :1], r[:, 1:]], 1), W)), (2, True, "sigmoid")),
    "1d": (lambda x, r: F.relu(F.conv1d(x[..., 0], W[..., 0])), (1, False, "relu")),
    "stride and padding": (lambda x, r: F.relu(F.conv2d(x, W, None, 2, "valid")), (1, False, "relu")),
}


# Of slices of a channels_last tensor PyTorch makes rows again in these, and no operator of ours would.
ROWS = ("unbatched cat", "1d")


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [(name, last) for name in PATTERNS for last in (False, True) if not (last and name in ROWS)],
)
def test_pattern_is_one_operator(name: str, channels_last: bool) -> None:
    f, expected = PATTERNS[name]
    x, r = torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)
    if channels_last:
        x, r = x.to(memory_format=torch.channels_last), r.to(memory_format=torch.channels_last)
    assert run(f, x, r).calls == [expected]


def read_twice(x: Tensor, r: Tensor) -> Tensor:
    y = F.conv2d(x, W)
    return F.relu(y) * y


def overwritten_input(x: Tensor, r: Tensor) -> Tensor:
    x = x * 1
    y = F.conv2d(x, W)
    x.mul_(2)
    return y + r


def overwritten_through_a_view(x: Tensor, r: Tensor) -> Tensor:
    x = x * 1
    y = F.conv2d(x, W)
    x[0].zero_()
    return y + x


def broadcast(x: Tensor, r: Tensor) -> Tensor:
    return F.conv2d(x, W) + r[:, :, :1, :1]


def scalar(x: Tensor, r: Tensor) -> Tensor:
    return F.conv2d(x, W) + 1.0


def scaled(x: Tensor, r: Tensor) -> Tensor:
    return torch.add(F.conv2d(x, W), r, alpha=2)


def wider(x: Tensor, r: Tensor) -> Tensor:
    return F.conv2d(x, W) + r.double()


def written_into_the_residual(x: Tensor, r: Tensor) -> Tensor:
    r += F.conv2d(x, W)
    return F.relu(r)


def cat_of_rows(x: Tensor, r: Tensor) -> Tensor:
    return F.conv2d(torch.cat([x, r], 2), W)


def cat_read_twice(x: Tensor, r: Tensor) -> Tensor:
    y = torch.cat([x[:, :2], r[:, :4]], 1)
    return F.conv2d(y, W) * y


def cat_of_nine(x: Tensor, r: Tensor) -> Tensor:
    return F.conv2d(torch.cat([x[:, :1]] * 9, 1), W.repeat(1, 2, 1, 1)[:, :9])


def grad_mode_between(x: Tensor, r: Tensor) -> Tensor:
    with torch.no_grad():
        y = F.conv2d(x, W)
    return F.relu(y)


REFUSED = [
    read_twice, overwritten_input, overwritten_through_a_view, broadcast, scalar, scaled, wider,
    written_into_the_residual, cat_of_rows, cat_read_twice, cat_of_nine, grad_mode_between,
]  # fmt: skip


@pytest.mark.parametrize("f", REFUSED, ids=lambda f: f.__name__)
def test_only_the_convolution_is_taken(f) -> None:
    assert run(f, torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)).calls == [(1, False, "none")]


LEFT = {
    "complex": lambda x: F.conv2d(x + 0j, W + 0j).abs(),
    "larger kernel": lambda x: F.relu(F.conv2d(x, W.expand(6, 6, 3, 3))),
    "integers": lambda x: F.conv2d(x.int(), W.int()),
    "another layout": lambda x: F.conv1d(x.permute(0, 2, 3, 1)[:, 0].mT, W[..., 0]),
    "torch.func": lambda x: torch.func.grad(lambda x: F.conv2d(x, W).sum())(x),
}


@pytest.mark.parametrize("name", LEFT)
def test_convolution_is_left(name: str) -> None:
    x = torch.randn(2, 6, 5, 5)
    x = x.to(memory_format=torch.channels_last) if name == "another layout" else x
    assert run(LEFT[name], x).calls == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_batch_norm_is_folded(dtype: torch.dtype, device: str) -> None:
    model = Bottleneck().eval().to(device, dtype)
    x = torch.randn(2, 16, 6, 6, device=device, dtype=dtype)
    backend = Rewritten()
    with torch.no_grad():
        got, own = torch.compile(model, backend=backend, fullgraph=True)(x), model(x)
        exact = model.double()(x.double())
    assert backend.calls == [(1, False, "relu"), (1, True, "relu")]
    assert F.batch_norm not in backend.targets
    error, allowed = (got - exact).abs().max(), (own - exact).abs().max()
    assert error <= 2 * allowed + 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_batch_norm_without_weight_and_convolution_without_bias() -> None:
    w, mean, var = torch.randn(6, 6, 1, 1), torch.randn(6), torch.rand(6) + 0.5
    backend = run(lambda x: F.batch_norm(F.conv2d(x, w), mean, var, eps=0.1), torch.randn(2, 6, 9, 9))
    assert F.batch_norm not in backend.targets


def test_batch_norm_of_rows_stays() -> None:
    """Unbatched, BatchNorm takes the rows for channels."""
    mean, var = torch.randn(6), torch.rand(6) + 0.5
    backend = run(lambda x: F.batch_norm(F.conv2d(x, W), mean, var), torch.randn(6, 6, 9))
    assert F.batch_norm in backend.targets


def test_batch_norm_stays_where_folding_costs_more() -> None:
    model = nn.Sequential(nn.Conv2d(512, 64, 1), bn_with_statistics(64), nn.ReLU()).eval()
    with torch.no_grad():
        backend = run(model, torch.randn(1, 512, 3, 3))
    assert backend.calls == [(1, False, "none")]
    assert F.batch_norm in backend.targets


@pytest.mark.parametrize("training", [False, True])
def test_gradients(training: bool) -> None:
    model, x = Bottleneck().double().train(training), torch.randn(3, 16, 6, 6, dtype=torch.float64)
    backend = Rewritten()
    results = []
    for f in (torch.compile(model, backend=backend, fullgraph=True), model):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = f(leaf * 1)
        y.square().sum().backward()
        results.append([y, leaf.grad, *[p.grad.clone() for p in model.parameters()]])
    assert len(backend.calls) == 2
    assert F.batch_norm in backend.targets
    torch.testing.assert_close(*results)


def test_dynamic_shapes_compile_no_more_often() -> None:
    """Fusing asks nothing of a shape that would have to be checked in each call."""

    def graphs_compiled(fuse: bool) -> int:
        torch._dynamo.reset()
        model, count = Bottleneck().eval(), 0

        def backend(gm, example_inputs):
            nonlocal count
            count += 1
            assert not fuse or len(rewrite(gm)) == 2
            return aot_eager(gm, example_inputs)

        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
        with torch.no_grad():
            for batch, size in [(4, 8), (2, 9), (5, 14), (7, 31)]:
                x = torch.randn(batch, 16, size, size)
                torch.testing.assert_close(compiled(x), model(x))
        return count

    assert graphs_compiled(fuse=True) == graphs_compiled(fuse=False)


def test_autocast() -> None:
    model = Bottleneck().eval()
    backend = Rewritten()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            got, own = compiled(x), model(x)
        exact = model.double()(x.double())
    assert len(backend.calls) == 2
    assert got.dtype == own.dtype
    assert (got - exact).abs().max() <= 2 * (own - exact).abs().max() + 0.02


def test_graph_breaks_and_control_flow_on_data() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return F.relu(self.b(y)) if y.sum() > 0 else self.a(y)

    model, backend = Model(), Rewritten()
    compiled = torch.compile(model, backend=backend)
    for x in (torch.randn(2, 4, 3, 3), -torch.ones(1, 4, 1, 1) * 1e3, torch.zeros(1, 4, 2, 2)):
        torch.testing.assert_close(compiled(x), model(x))
    assert len(backend.calls) >= 2


def test_inductor_in_eval_with_options() -> None:
    model, x = Bottleneck().eval(), torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        for arguments in ({}, {"options": {"freezing": True}}):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend=compile_backend, fullgraph=True, **arguments)
            torch.testing.assert_close(compiled(x), model(x))


def test_inductor_in_training_with_dynamic_shapes() -> None:
    model = Bottleneck().train()
    compiled = torch.compile(model, backend=compile_backend, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        results = []
        x = torch.randn(batch, 16, 6, 6)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        for f in (compiled, model):
            model.load_state_dict(state)
            model.zero_grad()
            y = f(x)
            y.square().mean().backward()
            results.append([y, *[p.grad.clone() for p in model.parameters()], model.bn1.running_mean.clone()])
        torch.testing.assert_close(*results)


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Inductor's place taken by something quick; the list of options it was called with."""
    calls: list[dict] = []

    def compile_fx(gm, example_inputs, config_patches=None, **kwargs):
        calls.append(config_patches)
        return aot_autograd(fw_compiler=lambda gm, _: gm.forward)(gm, example_inputs)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    return calls


def test_mode_and_options_reach_inductor(inductor: list[dict]) -> None:
    x = torch.randn(2, 16, 6, 6)
    torch.compile(Bottleneck(), backend=compile_backend, mode="max-autotune-no-cudagraphs")(x)
    assert inductor.pop()["max_autotune"] is True
    torch._dynamo.reset()
    torch.compile(Bottleneck(), backend=compile_backend, options={"epilogue_fusion": False})(x)
    assert inductor.pop() == {"epilogue_fusion": False}


def test_an_unknown_option_is_an_error_as_for_inductor() -> None:
    with pytest.raises(Exception, match="Unexpected optimization option no_such_option"):
        torch.compile(Bottleneck(), backend=compile_backend, options={"no_such_option": 1})(torch.randn(1, 16, 4, 4))


@pytest.mark.parametrize("fails", ["while fusing", "halfway", "in Inductor"])
def test_falls_back_to_inductor_alone(
    fails: str, inductor: list[dict], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(gm, **kwargs):
        if fails != "while fusing":
            fused = rewrite(gm, **kwargs)
        if fails == "halfway":
            next(n for n in gm.graph.nodes if n.target is CONV).args = ()
        if fails != "in Inductor":
            raise ArithmeticError("planted")
        next(n for n in gm.graph.nodes if n.target is CONV).args = ()
        return fused

    monkeypatch.setattr(backend_module, "rewrite", broken)
    model, x = Bottleneck().eval(), torch.randn(2, 16, 6, 6)
    with caplog.at_level(logging.WARNING, logger="pointwise_ext"):
        torch.testing.assert_close(torch.compile(model, backend=compile_backend)(x), model(x))
    assert "Inductor alone" in caplog.text
    assert len(inductor) == (2 if fails == "in Inductor" else 1)


def test_backend_is_found_by_its_name(tmp_path: Path) -> None:
    """What packaging makes of pyproject.toml is enough for torch.compile to find the backend."""
    egg = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    environment = {**os.environ, "FORCE_CPU": "1"}
    subprocess.run(egg, cwd=ROOT, check=True, env=environment, capture_output=True)
    program = (
        "import sys, torch; assert 'pointwise_ext' in torch._dynamo.list_backends();"
        "assert 'pointwise_ext.fusion.backend' not in sys.modules;"
        "from torch._dynamo.backends.registry import lookup_backend;"
        "assert lookup_backend('pointwise_ext').__module__ == 'pointwise_ext.fusion.backend'"
    )
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)


def test_importing_the_package_loads_no_compiler() -> None:
    program = (
        "import sys, pointwise_ext; "
        "assert not {m for m in sys.modules if m.startswith(('torch._dynamo', 'torch._inductor'))} - before"
    )
    program = (
        "import sys, torch; before = {m for m in sys.modules if m.startswith(('torch._dynamo', 'torch._inductor'))}; "
        + program
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_fused_model_compiles() -> None:
    fast, x = pw.fuse(Bottleneck().eval()), torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        assert len(run(fast, x).calls) == 2
