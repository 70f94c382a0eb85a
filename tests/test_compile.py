"""torch.compile without graph breaks, dynamic shapes, torch.export, AOTInductor."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn

import pointwise_ext as pw

# Traces, and runs what was traced without generating code: quick, and all that concerns a custom operator.
EAGER = {"backend": "aot_eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def bottleneck(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """Every kind of argument: stride, padding, groups, activations with parameters, residual, several inputs."""
    y = pw.pointwise_conv(x, w1, b1, 2, 1, activation=("leaky_relu", 0.2))
    z = pw.pointwise_conv(y, w2, groups=2, activation="silu", residual=y)
    return pw.pointwise_conv([y, z], torch.cat([w1[:, :2], w1], 1).repeat(1, 3, 1, 1)[:, :12], padding="same")


def arguments(channels_last: bool = False, batch: int = 2, size: int = 6) -> list[Tensor]:
    x = torch.randn(batch, 3, size, size)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (x, torch.randn(6, 3, 1, 1), torch.randn(6), torch.randn(6, 3, 1, 1))]


def with_gradients(f, arguments: list[Tensor]) -> list[Tensor]:
    y = f(*arguments)
    return [y, *torch.autograd.grad(y.square().sum(), arguments)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_forward_and_backward(dynamic: bool, channels_last: bool) -> None:
    compiled = torch.compile(bottleneck, dynamic=dynamic, **EAGER)
    for batch, size in [(2, 6), (3, 9), (5, 4)]:
        tensors = arguments(channels_last, batch, size)
        got, expected = with_gradients(compiled, tensors), with_gradients(bottleneck, tensors)
        torch.testing.assert_close(got, expected)
        assert got[0].stride() == expected[0].stride()


def test_dynamic_shapes_compile_once() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(bottleneck, dynamic=True, fullgraph=True, backend=counter)
    for batch, size in [(4, 8), (2, 9), (5, 14), (7, 31)]:  # no size that is also a number of channels
        compiled(*arguments(False, batch, size))
    assert counter.frame_count == 1


def test_the_graph_has_one_node_per_call(kernels) -> None:
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(bottleneck, backend=backend, fullgraph=True)(*arguments())
    targets = [node.target for node in graphs[0].graph.nodes]
    assert targets.count(torch.ops.pointwise_ext.conv.default) == 3


def test_inductor() -> None:
    """The real compiler, in training, with pointwise code around the operator to fuse."""
    module = nn.Sequential(pw.PointwiseConv2d(3, 8, activation="relu"), nn.BatchNorm2d(8), pw.PointwiseConv2d(8, 4))
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    y = compiled(x)
    y.square().mean().backward()
    got = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    expected = module(x)
    expected.square().mean().backward()
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(got, [p.grad for p in module.parameters()])


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_torch_func_inside_of_compile(transform: str) -> None:
    """The C++ autograd function must not be traced under a transform: the reference is."""
    x, w = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1)

    def call(x: Tensor) -> Tensor:
        def f(x: Tensor) -> Tensor:
            return pw.pointwise_conv(x, w, activation="silu")

        if transform == "grad":
            return torch.func.grad(lambda x: f(x).sum())(x)
        if transform == "vmap":
            return torch.func.vmap(f)(x)
        return torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]

    torch.testing.assert_close(torch.compile(call, **EAGER)(x), call(x))


def test_autocast_inside_of_compile() -> None:
    x, w = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1)

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return pw.pointwise_conv(x, w, activation="relu")

    y = torch.compile(call, **EAGER)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, call(x))


def test_out_inside_of_compile() -> None:
    x, w, out = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1), torch.zeros(2, 5, 4, 4)

    def call(x: Tensor, out: Tensor) -> Tensor:
        pw.pointwise_conv(x, w, activation="relu", out=out)
        return out + 1

    y = torch.compile(call, **EAGER)(x, out)
    torch.testing.assert_close(out, pw.pointwise_conv(x, w, activation="relu"))
    torch.testing.assert_close(y, out + 1)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_modules_compile(padding_mode: str) -> None:
    module = pw.PointwiseConv2d(3, 8, padding=1, padding_mode=padding_mode, activation="gelu")
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(torch.compile(module, **EAGER)(x), module(x))
    a, b, r = torch.randn(2, 1, 5, 5), torch.randn(2, 2, 5, 5), torch.randn(2, 8, 7, 7)
    compiled = torch.compile(lambda a, b, r: module(a, b, residual=r), **EAGER)
    torch.testing.assert_close(compiled(a, b, r), module(a, b, residual=r))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_batch_and_size(strict: bool) -> None:
    module = nn.Sequential(pw.PointwiseConv2d(3, 8, stride=2, activation="relu"), pw.PointwiseConv2d(8, 4)).eval()
    batch, height = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("height", min=3, max=512)
    program = torch.export.export(
        module, (torch.randn(4, 3, 8, 8),), dynamic_shapes=({0: batch, 2: height},), strict=strict
    )
    for n, h in [(1, 5), (7, 8), (3, 31)]:
        x = torch.randn(n, 3, h, 8)
        torch.testing.assert_close(program.module()(x), module(x))


def test_export_saves_and_loads(tmp_path) -> None:
    module = pw.PointwiseConv2d(3, 8, activation=("clamp", 0.0, 1.0)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "module.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "module.pt2").module()(x), module(x))


@pytest.mark.slow
def test_aot_inductor(kernels, tmp_path) -> None:
    """Packaged, loaded and run without Python operators."""
    module = nn.Sequential(pw.PointwiseConv2d(3, 8, activation="relu"), pw.PointwiseConv2d(8, 4)).eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=16)},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for n in (4, 9):
            x = torch.randn(n, 3, 8, 8)
            torch.testing.assert_close(loaded(x), module(x))


def test_make_fx_sees_the_backward_operator(kernels) -> None:
    """The derivative is one operator, too, which a compiler can see and schedule."""
    from torch.fx.experimental.proxy_tensor import make_fx

    w = torch.randn(5, 3, 1, 1)

    def gradient(x: Tensor) -> Tensor:
        y = pw.pointwise_conv(x, w, activation="relu")
        return torch.autograd.grad(y.sum(), x)[0]

    graph = make_fx(gradient)(torch.randn(2, 3, 4, 4, requires_grad=True))
    targets = {str(node.target) for node in graph.graph.nodes}
    assert "pointwise_ext.conv_backward.default" in targets


def test_torch_jit_trace() -> None:
    x, w = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: pw.pointwise_conv(x, w, activation="relu"), (x,))
        x = torch.randn(3, 3, 6, 2)
        torch.testing.assert_close(traced(x), F.relu(F.conv2d(x, w)))
