"""Every pattern of Dynamo's graphs becomes one operator, with the same results; what is not one is left."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.rewritten import Bottleneck, Rewritten, bn_with_statistics, run

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


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
