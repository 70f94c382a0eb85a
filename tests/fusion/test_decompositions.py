"""pointwise_ext.decompositions(): exported programs without operators of ours, and ONNX Runtime running one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import pointwise_ext as pw
from bench.networks import resnet
from pointwise_ext.activations import ACTIVATIONS

BATCH = torch.export.Dim("batch", min=1, max=64)
PARAMETERS = {"leaky_relu": (0.2,), "clamp": (-0.5, 0.5)}


class Bottleneck(nn.Module):
    """ResNet's, written with our modules, and then a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = pw.PointwiseConv2d(16, 8, activation="relu")
        self.spatial = nn.Conv2d(8, 8, 3, padding=1)
        self.expand = pw.PointwiseConv2d(8, 16, activation="relu")
        self.merge = pw.PointwiseConv2d(24, 12, stride=2, groups=2, bias=False, activation=("leaky_relu", 0.2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.spatial(self.reduce(x)))
        return self.merge(self.expand(y, residual=x), y)


def fused_bottleneck() -> nn.Module:
    """ResNet's in plain PyTorch, after fuse, with BatchNorms that have seen images."""
    plain = resnet.Bottleneck(16, 8, stride=1)
    for _ in range(10):
        plain(torch.randn(8, 16, 6, 6))
    return pw.fuse(plain.eval())


@pytest.fixture(params=["written", "fused"])
def bottleneck(request: pytest.FixtureRequest) -> nn.Module:
    return Bottleneck().eval() if request.param == "written" else fused_bottleneck()


def operators(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def ours(graph: torch.fx.Graph) -> set[str]:
    return {name for name in operators(graph) if "pointwise_ext" in name}


def export(module: nn.Module, x: Tensor, strict: bool = False) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (x,), dynamic_shapes=({0: BATCH},), strict=strict)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_bottleneck(kernels, bottleneck: nn.Module, strict: bool, channels_last: bool) -> None:
    """With a batch of any size, and the output's strides, on which later layers decide."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module, x = bottleneck, torch.randn(4, 16, 6, 6).to(memory_format=memory_format)
    program = export(module, x, strict)
    assert ours(program.graph)
    plain = program.run_decompositions(pw.decompositions())
    assert not ours(plain.graph)
    for n in (1, 4, 7):
        x = torch.randn(n, 16, 6, 6).to(memory_format=memory_format)
        got, expected = plain.module()(x), module(x)
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


def test_only_what_the_formula_names_is_left(kernels) -> None:
    plain = export(Bottleneck(), torch.randn(4, 16, 6, 6)).run_decompositions(pw.decompositions())
    names = {"conv2d.default", "relu.default", "add.Tensor", "cat.default", "leaky_relu.default"}
    assert operators(plain.graph) == {f"aten.{name}" for name in names}


def test_beside_pytorchs_own_table(kernels) -> None:
    module, x = Bottleneck(), torch.randn(4, 16, 6, 6)
    table = {**torch.export.default_decompositions(), **pw.decompositions()}
    plain = export(module, x).run_decompositions(table)
    assert not ours(plain.graph)
    assert "aten.convolution.default" in operators(plain.graph)
    torch.testing.assert_close(plain.module()(x), module(x))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_the_traced_derivative(kernels, activation: str | None, batched: bool) -> None:
    """conv_saved and conv_backward, which a graph of a training step has."""
    weight, bias = torch.randn(6, 4, 1, 1), torch.randn(6)
    shapes = ((2, 3, 5, 5), (2, 5, 5, 5), (2, 6, 4, 4)) if batched else ((3, 5, 5), (5, 5, 5), (6, 4, 4))
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes] + [weight.requires_grad_(), bias]
    parameters = PARAMETERS.get(activation or "", ())

    def step(a: Tensor, b: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        chosen = (activation, *parameters) if activation else None
        y = pw.pointwise_conv([a, b], weight, bias, 2, 1, groups=2, activation=chosen, residual=residual)
        return (y, *torch.autograd.grad(y.square().sum(), (b, residual, weight)))

    graph = make_fx(step, decomposition_table=pw.decompositions())(*tensors)
    assert not ours(graph.graph)
    torch.testing.assert_close(graph(*tensors), step(*tensors))


def test_a_traced_call_with_out(kernels) -> None:
    x, weight, out = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1), torch.zeros(2, 5, 4, 4)

    def call(x: Tensor, out: Tensor) -> Tensor:
        pw.pointwise_conv(x, weight, activation="relu", out=out)
        return out + 1

    graph = make_fx(call, decomposition_table=pw.decompositions())(x, out)
    assert not ours(graph.graph)
    torch.testing.assert_close(graph(x, out), pw.pointwise_conv(x, weight, activation="relu") + 1)


def test_every_operator_has_an_entry(kernels) -> None:
    names = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("pointwise_ext::")
    }
    assert {operator.name().split("::")[1] for operator in pw.decompositions()} == names


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_runtime_runs_the_bottleneck(kernels, bottleneck: nn.Module, tmp_path) -> None:
    """With a dynamic batch, from one file."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")
    program = export(bottleneck, torch.randn(4, 16, 6, 6)).run_decompositions(pw.decompositions())
    path = tmp_path / "bottleneck.onnx"
    torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    for n in (1, 5):
        x = torch.randn(n, 16, 6, 6)
        (y,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), bottleneck(x))
