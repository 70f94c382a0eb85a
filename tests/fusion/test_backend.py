"""torch.compile(model, backend="pointwise_ext"): the same results, and never a graph that breaks."""

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
from tests.fusion.rewritten import CONV, Bottleneck, Rewritten, run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


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
