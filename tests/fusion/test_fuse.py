"""What fuse takes together, that it computes the same, forward and backward, and what the report says."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointwise_ext as pw
from pointwise_ext.activations import ACTIVATIONS
from pointwise_ext.fusion.packed import AVAILABLE
from tests.fusion.check import assert_same, gradients, patterns
from tests.fusion.nets import MODULES, Net, Pair, chain_net, conv, image, norm


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def leaky(m: Net, x: Tensor) -> Tensor:
    return F.leaky_relu(m.conv(x), 0.2)


def inplace_sum(m: Net, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    y += x
    return F.relu(y, inplace=True)


def residual_first(m: Net, x: Tensor) -> Tensor:
    return (x + m.bn(m.conv(x))).relu()


def summed_into_the_other(m: Net, x: Tensor) -> Tensor:
    other = m.wide(x)
    other += m.conv(x)
    return other.sigmoid()


def method(m: Net, x: Tensor) -> Tensor:
    return m.conv(x).add_(x).clamp_(0.0, 6.0)


CHAINS = {
    "conv": (lambda m, x: m.conv(x), "conv"),
    "bn": (lambda m, x: m.bn(m.conv(x)), "conv + bn"),
    "function": (lambda m, x: torch.relu(m.conv(x)), "conv + relu"),
    "bn, method in place": (lambda m, x: m.bn(m.conv(x)).relu_(), "conv + bn + relu"),
    "parameter": (leaky, "conv + leaky_relu"),
    "gelu": (lambda m, x: F.gelu(m.conv(x), approximate="tanh"), "conv + gelu_tanh"),
    "clamp from below": (lambda m, x: m.conv(x).clamp(min=0.1), "conv + clamp"),
    "hardtanh": (lambda m, x: F.hardtanh(m.conv(x), 0.0, 6.0), "conv + relu6"),
    "add, function": (lambda m, x: torch.add(m.conv(x), x), "conv + add"),
    "add in place": (inplace_sum, "conv + bn + add + relu"),
    "add to": (residual_first, "conv + bn + add + relu"),
    "add into the other": (summed_into_the_other, "conv + add + sigmoid"),
    "add, methods": (method, "conv + add + clamp"),
    "identity between": (lambda m, x: m.bn(m.identity(m.conv(x))), "conv + bn"),
    "cat": (lambda m, x: m.merge(torch.cat([x, m.wide(x)], 1)).relu(), "cat of 2 + conv + relu"),
    "cat, from the end": (lambda m, x: m.merge(torch.cat((x, x), dim=-3)), "cat of 2 + conv"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_call(name: str) -> None:
    body, pattern = CHAINS[name]
    model = chain_net(body)
    fast = pw.fuse(model)
    assert patterns(fast) == [pattern]
    modules = [m for m in fast.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [isinstance(m, pw.PointwiseConv2d) for m in modules] == [True]
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.Identity)) for m in fast.modules())
    for layout in (torch.contiguous_format, torch.channels_last):
        assert_same(model, fast, image().to(memory_format=layout))
    x = image(dtype=torch.float64)
    torch.testing.assert_close(gradients(pw.fuse(model.double()), x)["x"], gradients(model.double(), x)["x"])


@pytest.mark.parametrize("name", CHAINS)
def test_training_keeps_batch_norm_and_gives_every_gradient(name: str) -> None:
    model = chain_net(CHAINS[name][0]).double().train()
    fast = pw.fuse(model)
    x = image(dtype=torch.float64)
    torch.testing.assert_close(gradients(fast, x), gradients(model, x))
    state = model.state_dict()
    torch.testing.assert_close(fast.state_dict(), {key: state[key] for key in fast.state_dict()})


@pytest.mark.parametrize("name", MODULES)
def test_every_activation_module(name: str) -> None:
    model = nn.Sequential(conv(), norm(), MODULES[name]).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == [f"conv + bn + {name}"]
    assert_same(model, fast, image())


def test_every_activation_but_clamp_has_a_module() -> None:
    assert {*MODULES, "clamp"} == set(ACTIVATIONS)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_one_to_three_dimensions_strides_groups_and_no_bias(spatial: int) -> None:
    make, bn = getattr(nn, f"Conv{spatial}d"), getattr(nn, f"BatchNorm{spatial}d")
    model = nn.Sequential(make(6, 8, 1, stride=2, groups=2, bias=False), bn(8), nn.ReLU(), make(8, 4, 1, padding=1))
    fast = pw.fuse(model.eval())
    assert patterns(fast) == ["conv + bn + relu", "conv"]
    assert pw.fusion_report(fast).fused[0].shape == "6 -> 8, stride 2, 2 groups"
    assert_same(model, fast, torch.randn(2, 6, *(5, 4, 3)[:spatial]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_is_no_worse_than_two_roundings(dtype: torch.dtype) -> None:
    model = nn.Sequential(conv(64, 48), norm(48), nn.ReLU()).eval().to(dtype)
    x = image(64).to(dtype)
    exact = copy.deepcopy(model).double()(x.double())
    error = (model(x).double() - exact).abs().max()
    fast = pw.fuse(model)
    assert fast.get_submodule("0").weight.dtype == dtype
    # Folding rounds each weight once: as much as each product of the unfused sum is off.
    assert (fast(x).double() - exact).abs().max() <= 2 * error + 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_a_bottleneck_with_a_projection() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        y = F.relu(m.bn1(m.reduce(x)))
        y = F.relu(m.bn2(m.spatial(y)))
        y = m.bn3(m.expand(y))
        y += m.bn4(m.project(x))
        return F.relu_(y)

    children = {"reduce": conv(8, 4), "spatial": conv(4, 4, 3), "expand": conv(4, 16), "project": conv(8, 16)}
    model = Net(body, **children, bn1=norm(4), bn2=norm(4), bn3=norm(16), bn4=norm(16)).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv + bn + relu", "conv + bn + add + relu", "conv + bn"]
    assert_same(model, fast, image(8))


SHAPES = {
    "broadcast": (2, 1, 5, 7),
    "one image": (6, 1, 1),
    "larger": (4, 2, 6, 5, 7),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_addition_that_turns_out_to_broadcast(name: str) -> None:
    model = Pair(lambda m, x, y: F.relu(m.conv(x) + y), conv=conv()).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv + add + relu"]
    y = torch.randn(SHAPES[name])
    assert_same(model, fast, image(), y)
    assert_same(model, fast, image(), image())


@pytest.mark.parametrize("body", [lambda m, x, y: m.conv(x) + y, lambda m, x, y: m.conv(x).add_(y)])
def test_an_addition_of_another_dtype_promotes_as_it_did(body) -> None:
    model = Pair(body, conv=conv()).eval().bfloat16()
    x, y = image().bfloat16(), image()
    fast = pw.fuse(model)
    assert fast(x, y).dtype == model(x, y).dtype
    torch.testing.assert_close(fast(x, y), model(x, y))


def test_autocast_adds_in_the_dtype_it_did() -> None:
    model = Pair(lambda m, x, y: m.conv(x) + y, conv=conv()).eval()
    fast = pw.fuse(model)
    with torch.autocast("cpu", torch.bfloat16):
        for y in (image(), image().bfloat16()):
            x = image()
            assert fast(x, y).dtype == model(x, y).dtype
            torch.testing.assert_close(fast(x, y), model(x, y), atol=0.02, rtol=0.02)  # bf16 rounds to 0.004


def test_unbatched_concatenation_of_rows_is_not_one_of_channels() -> None:
    model = Pair(lambda m, x, y: m.conv(torch.cat([x, y], 1)), conv=conv()).eval()
    fast = pw.fuse(model)
    assert_same(model, fast, torch.randn(6, 5, 7), torch.randn(6, 3, 7))
    model = Pair(lambda m, x, y: m.conv(torch.cat([x, y], 1)), conv=conv(12)).eval()
    assert_same(model, pw.fuse(model), image(), image())


def test_two_convolutions_that_read_one_concatenation_leave_it() -> None:
    model = Net(lambda m, x: m.a(c := torch.cat([x, x], 1)) + m.b(c), a=conv(12), b=conv(12)).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv + add", "conv"]
    assert_same(model, fast, image())


def test_copies_pickles_and_state_dicts() -> None:
    model = nn.Sequential(conv(), norm(), nn.ReLU(), conv(kernel=3), conv()).eval()
    fast, x = pw.fuse(model), image()
    assert list(fast.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias", "4.weight", "4.bias"]
    again = copy.deepcopy(fast)
    loaded = pickle.loads(pickle.dumps(fast))
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for other in (again, loaded, torch.load(file, weights_only=False)):
        assert torch.equal(other(x), fast(x))
        assert patterns(other) == patterns(fast)
    again.load_state_dict(fast.state_dict())


def test_the_model_itself_is_left_alone_unless_inplace() -> None:
    model = nn.Sequential(conv(), norm(), nn.ReLU()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = pw.fuse(model)
    fast.train()
    with torch.no_grad():
        fast.get_submodule("0").weight.zero_()
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model = nn.Sequential(conv(), nn.ReLU(), conv(kernel=3)).train()
    fast = pw.fuse(model, inplace=True)
    assert fast.get_submodule("0").weight is model[0].weight
    assert fast.get_submodule("2") is model[2]


def test_fusing_again_changes_nothing_and_reports_all() -> None:
    model = nn.Sequential(conv(), norm(), nn.ReLU(), pw.PointwiseConv2d(6, 4), nn.SiLU()).eval()
    once = pw.fuse(model)
    assert patterns(once) == ["conv + bn + relu", "conv + silu"]
    twice = pw.fuse(once)
    assert patterns(twice) == ["as it was", "as it was"]
    assert_same(model, twice, image())


def test_graph_modules_stay_graph_modules() -> None:
    gm = torch.fx.symbolic_trace(nn.Sequential(conv(), norm(), nn.ReLU()).eval())
    fast = pw.fuse(gm)
    assert isinstance(fast, torch.fx.GraphModule)
    assert patterns(fast) == ["conv + bn + relu"]
    assert_same(gm, fast, image())
    assert pw.fuse(gm, inplace=True) is gm


def test_the_report_is_a_table_and_data() -> None:
    fast = pw.fuse(nn.Sequential(conv(8, 16), norm(16), nn.ReLU()).eval())
    report = pw.fusion_report(fast)
    assert report.share == 1.0
    lines = str(report).splitlines()
    assert lines[0] == "1 of 1 1x1 convolutions fused"
    assert lines[2].split() == ["0", "8", "->", "16", "conv", "+", "bn", "+", "relu"]
    with pytest.raises(
        ValueError, match=r"model is a ReLU without a report, expected what pointwise_ext.fuse returned"
    ):
        pw.fusion_report(nn.ReLU())
    with pytest.raises(TypeError, match=r"model is a function, expected a torch.nn.Module"):
        pw.fuse(conv)
    assert str(pw.fusion_report(pw.fuse(nn.ReLU()))) == "0 of 0 1x1 convolutions fused"


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(seen.values())


@pytest.mark.parametrize("name", ["function", "parameter", "gelu", "add in place", "cat", "bn, method in place"])
@pytest.mark.parametrize("training", [True, False])
def test_no_more_is_saved_for_backward(name: str, training: bool) -> None:
    model = chain_net(CHAINS[name][0]).train(training)
    x = image().requires_grad_()
    assert saved_bytes(pw.fuse(model), x) <= saved_bytes(model, x)


def test_batch_norm_is_folded_into_larger_convolutions_too() -> None:
    model = nn.Sequential(conv(kernel=3, bias=False), norm(), conv(), conv(6, 6, 5, groups=6), norm(), norm()).eval()
    fast = pw.fuse(model)
    report = pw.fusion_report(fast)
    assert report.folded == ["0", "3"]
    assert str(report).startswith("1 of 1 1x1 convolutions fused, BatchNorm folded into 2 larger")
    larger = "PackedConv2d" if AVAILABLE else "Conv2d"
    assert [type(m).__name__ for m in fast.children()] == [larger, "PointwiseConv2d", larger, "BatchNorm2d"]
    assert_same(model, fast, image())
    assert pw.fusion_report(pw.fuse(model.train())).folded == []


def decoded(m: Net, x: Tensor) -> Tensor:
    return F.conv_transpose2d(m.bn(m.conv(x)), m.conv.weight)


@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_that_others_read_are_not_folded_into(kernel: int) -> None:
    model = nn.Sequential(conv(), Net(decoded, conv=conv(kernel=kernel), bn=norm())).eval()
    fast = pw.fuse(model)
    notes = [f.note for f in pw.fusion_report(fast).fused]
    assert notes == ["", "its parameters are read by others too"][: len(notes)]
    assert pw.fusion_report(fast).folded == []
    assert_same(model, fast, image())


def test_batch_norm_of_something_else_than_channels_stays() -> None:
    rows = nn.BatchNorm1d(5)
    nn.init.normal_(rows.running_mean)
    model = Net(lambda m, x: m.bn(m.conv(x[0])), conv=conv(cout=5), bn=rows).eval()  # unbatched: rows for channels
    fast = pw.fuse(model)
    assert (patterns(fast), pw.fusion_report(fast).fused[0].note) == (["conv"], "a BatchNorm1d is behind it")
    assert_same(model, fast, image())
    model = nn.Sequential(nn.Conv1d(6, 4, 1), copy.deepcopy(rows)).eval()
    fast = pw.fuse(model)
    assert patterns(fast) == ["conv"]
    assert_same(model, fast, torch.randn(6, 5))


def test_concatenated_rows_are_padded_once() -> None:
    wrapped = nn.Conv2d(6, 6, 1, padding=1, padding_mode="circular")
    model = Net(lambda m, x: m.conv(torch.cat([x[0], x[1]], 1)), conv=wrapped).eval()
    assert_same(model, pw.fuse(model), image())
