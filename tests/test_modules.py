"""PointwiseConv1d, 2d and 3d stand in for nn.Conv*d wherever one is looked for."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pointwise_ext as pw
from pointwise_ext.activations import ACTIVATIONS

PAIRS = {
    1: (pw.PointwiseConv1d, nn.Conv1d),
    2: (pw.PointwiseConv2d, nn.Conv2d),
    3: (pw.PointwiseConv3d, nn.Conv3d),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest):
    """(number of spatial dimensions, our class, PyTorch's)."""
    return request.param, *PAIRS[request.param]


def test_is_a_convolution(pair) -> None:
    _, ours, theirs = pair
    assert issubclass(ours, theirs)
    assert ours(3, 4).kernel_size == theirs(3, 4, 1).kernel_size


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"bias": False}, {"dtype": torch.float64}])
def test_same_initialisation_from_the_same_seed(pair, options) -> None:
    _, ours, theirs = pair
    torch.manual_seed(3)
    a = ours(4, 6, **options)
    torch.manual_seed(3)
    b = theirs(4, 6, 1, **options)
    assert list(a.state_dict()) == list(b.state_dict())
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def test_checkpoints_load_both_ways(pair) -> None:
    spatial, ours, theirs = pair
    a, b = ours(4, 6, activation="relu"), theirs(4, 6, 1)
    x = torch.randn(2, 4, *[3] * spatial)
    a.load_state_dict(b.state_dict())
    torch.testing.assert_close(a(x), F.relu(b(x)))
    c = theirs(4, 6, 1)
    c.load_state_dict(a.state_dict())
    assert torch.equal(c.weight, b.weight)


@pytest.mark.parametrize("options", [
    {"stride": 2},
    {"padding": 1},
    {"padding": "same"},
    {"padding": "valid", "stride": 3},
    {"dilation": 4},
    {"groups": 2},
    {"bias": False},
    {"stride": 2, "padding": 2, "groups": 2},
])  # fmt: skip
def test_options(pair, options) -> None:
    spatial, ours, theirs = pair
    a, b = ours(4, 6, **options), theirs(4, 6, 1, **options)
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 4, *[5] * spatial)
    torch.testing.assert_close(a(x), b(x))
    torch.testing.assert_close(a(x[0]), b(x[0]))


def test_options_per_dimension() -> None:
    a, b = (
        pw.PointwiseConv3d(4, 6, (1, 1, 1), (1, 2, 3), (3, 0, 1), (1, 2, 1)),
        nn.Conv3d(4, 6, (1, 1, 1), (1, 2, 3), (3, 0, 1), (1, 2, 1)),
    )
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(a(x), b(x))


@pytest.mark.parametrize("padding", [1, 2, "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(pair, mode: str, padding) -> None:
    spatial, ours, theirs = pair
    options = {"padding": padding, "padding_mode": mode}
    a, b = ours(4, 6, activation="tanh", **options), theirs(4, 6, 1, **options)
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 4, *[5] * spatial)
    expected = torch.tanh(b(x))
    torch.testing.assert_close(a(x), expected)
    torch.testing.assert_close(a(x[:, :1], x[:, 1:]), expected)


def test_several_inputs_and_residual(pair) -> None:
    spatial, ours, theirs = pair
    a, b = ours(6, 4, activation="relu"), theirs(6, 4, 1)
    b.load_state_dict(a.state_dict())
    x, y, r = (torch.randn(2, c, *[3] * spatial) for c in (1, 5, 4))
    expected = F.relu(b(torch.cat([x, y], 1)) + r)
    torch.testing.assert_close(a(x, y, residual=r), expected)
    torch.testing.assert_close(a([x, y], residual=r), expected)


@pytest.mark.parametrize("activation", [*(a for a in ACTIVATIONS if a != "clamp"), ("clamp", -1.0, 1.0), None], ids=str)
def test_activation(activation) -> None:
    module = pw.PointwiseConv2d(3, 5, activation=activation)
    x = torch.randn(2, 3, 4, 4)
    expected = pw.reference.pointwise_conv(x, module.weight, module.bias, activation=activation)
    torch.testing.assert_close(module(x), expected)
    assert ("activation=" in repr(module)) == (activation is not None)
    assert activation is None or repr(activation) in repr(module)


def test_repr() -> None:
    module = pw.PointwiseConv2d(64, 256, activation=("leaky_relu", 0.2))
    expected = "PointwiseConv2d(64, 256, kernel_size=(1, 1), stride=(1, 1), activation=('leaky_relu', 0.2))"
    assert repr(module) == expected
    assert repr(pw.PointwiseConv1d(3, 4)) == "PointwiseConv1d(3, 4, kernel_size=(1,), stride=(1,))"


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2, "padding": 1, "groups": 2}])
def test_from_conv_shares_parameters(pair, options) -> None:
    spatial, ours, theirs = pair
    conv = theirs(4, 6, 1, **options).eval()
    conv.weight.requires_grad_(False)
    module = ours.from_conv(conv, activation="relu")
    assert type(module) is ours
    assert module.weight is conv.weight
    assert module.bias is conv.bias
    assert not module.training
    x = torch.randn(2, 4, *[5] * spatial)
    torch.testing.assert_close(module(x), F.relu(conv(x)))


def test_from_conv_keeps_padding_mode_dtype_and_string_padding() -> None:
    conv = nn.Conv2d(3, 4, 1, padding="same", padding_mode="reflect", dtype=torch.float64)
    module = pw.PointwiseConv2d.from_conv(conv)
    assert (module.padding, module.padding_mode, module.weight.dtype) == ("same", "reflect", torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x), conv(x))


@pytest.mark.parametrize("through", ["pickle", "deepcopy", "torch.save"])
def test_copies(pair, through: str) -> None:
    spatial, ours, _ = pair
    module = ours(3, 4, stride=2, activation=("clamp", -1.0, 1.0))
    if through == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    elif through == "deepcopy":
        copied = copy.deepcopy(module)
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    x = torch.randn(2, 3, *[5] * spatial)
    assert repr(copied) == repr(module)
    assert torch.equal(copied(x), module(x))
    assert copied.weight is not module.weight


def test_to_moves_and_casts() -> None:
    module = pw.PointwiseConv2d(3, 4, activation="relu").to(torch.bfloat16, memory_format=torch.channels_last)
    y = module(torch.randn(2, 3, 5, 5, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous()


def test_meta_device_and_to_empty() -> None:
    module = pw.PointwiseConv2d(3, 4, device="meta", activation="gelu")
    assert module(torch.empty(2, 3, 5, 5, device="meta")).shape == (2, 4, 5, 5)
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.randn(2, 3, 5, 5)).isfinite().all()


def test_pruning() -> None:
    """torch.nn.utils.prune replaces the parameter by a computed attribute."""
    from torch.nn.utils import prune

    module = pw.PointwiseConv2d(8, 8, activation="relu")
    prune.l1_unstructured(module, "weight", amount=0.5)
    x = torch.randn(2, 8, 4, 4)
    assert int((module.weight == 0).sum()) == 32
    torch.testing.assert_close(module(x), F.relu(F.conv2d(x, module.weight, module.bias)))


def test_parametrizations() -> None:
    from torch.nn.utils.parametrizations import weight_norm

    module = weight_norm(pw.PointwiseConv2d(8, 6))
    x = torch.randn(2, 8, 4, 4)
    y = module(x)
    torch.testing.assert_close(y, F.conv2d(x, module.weight, module.bias))
    y.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_batch_norm_folding_of_pytorch() -> None:
    """torch.nn.utils.fuse_conv_bn_eval takes it for the convolution it is."""
    module, norm = pw.PointwiseConv2d(3, 4).eval(), nn.BatchNorm2d(4).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    folded = torch.nn.utils.fuse_conv_bn_eval(module, norm)
    x = torch.randn(2, 3, 5, 5)
    assert isinstance(folded, pw.PointwiseConv2d)
    torch.testing.assert_close(folded(x), norm(module(x)))


def test_quantisation_aware_training_finds_it() -> None:
    """A tool that looks for isinstance(module, nn.Conv2d) and calls _conv_forward with weights of its own."""
    module = pw.PointwiseConv2d(3, 4, activation="relu")
    x = torch.randn(2, 3, 5, 5)
    rounded = torch.fake_quantize_per_tensor_affine(module.weight, 0.01, 0, -128, 127)
    y = module._conv_forward(x, rounded, module.bias)
    torch.testing.assert_close(y, F.relu(F.conv2d(x, rounded, module.bias)))


def test_hooks_run() -> None:
    module, seen = pw.PointwiseConv2d(3, 4), []
    module.register_forward_pre_hook(lambda m, args: seen.append(len(args)))
    module.register_forward_hook(lambda m, args, y: seen.append(y.shape[1]))
    module(torch.randn(1, 1, 2, 2), torch.randn(1, 2, 2, 2))
    assert seen == [2, 4]


def test_changed_attributes_take_effect() -> None:
    """Detection and segmentation code sets the stride of a built backbone."""
    module = pw.PointwiseConv2d(3, 4)
    x = torch.randn(1, 3, 6, 6)
    module.stride = (2, 3)
    assert module(x).shape == (1, 4, 3, 2)
    module.stride = 3
    assert module(x).shape == (1, 4, 2, 2)


def test_training_step_matches_conv2d() -> None:
    ours, theirs = pw.PointwiseConv2d(3, 4, activation="relu"), nn.Conv2d(3, 4, 1)
    theirs.load_state_dict(ours.state_dict())
    x, target = torch.randn(8, 3, 5, 5), torch.randn(8, 4, 5, 5)
    for module, call in ((ours, ours), (theirs, lambda x: F.relu(theirs(x)))):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            F.mse_loss(call(x), target).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
