"""Larger convolutions of a fused model on packed weights: nn.Conv2d to the bit, and never the weights of before."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import pointwise_ext as pw
from pointwise_ext.fusion.packed import AVAILABLE, PackedConv2d

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="weights are packed by oneDNN, on x86")

# oneDNN has no bf16 for processors with AVX2 alone.
BF16 = AVAILABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported()
PACKED = (torch.float32, torch.bfloat16) if BF16 else (torch.float32,)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def image(channels: int = 32, size: int = 14, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)


def pair(**arguments: object) -> tuple[nn.Conv2d, PackedConv2d]:
    """An nn.Conv2d and what fuse makes of it, with the same values."""
    made = {"in_channels": 32, "out_channels": 48, "kernel_size": 3, "padding": 1, **arguments}
    conv = nn.Conv2d(**made).eval()  # type: ignore[arg-type]
    packed = pw.fuse(conv)
    assert type(packed) is PackedConv2d
    return conv, packed


def same(conv: nn.Module, packed: nn.Module, x: Tensor) -> None:
    expected, y = conv(x), packed(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bias": False},
        {"stride": 2, "kernel_size": 5, "padding": 2},
        {"dilation": 2, "padding": (2, 0)},
        {"groups": 32, "out_channels": 32},
        {"groups": 4},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"in_channels": 3, "kernel_size": 7, "stride": 2, "padding": 3},
    ],
    ids=str,
)
def test_nothing_but_the_time_differs(arguments: dict, dtype: torch.dtype) -> None:
    conv, packed = pair(dtype=dtype, **arguments)
    for size, batch in ((14, 2), (14, 8), (17, 2), (31, 3)):
        x = image(conv.in_channels, size, batch, dtype)
        with torch.no_grad():
            same(conv, packed, x)
        with torch.inference_mode():
            same(conv, packed, x)
    assert (packed._packed is not None) == (dtype in PACKED)
    with torch.no_grad():
        x[0, 0, 3, 3], x[1, 0, 3, 3] = float("nan"), float("inf")
        same(conv, packed, x)


def reassigned(conv: nn.Module) -> None:
    conv.weight = nn.Parameter(conv.weight.detach() * 3)


def data_assigned(conv: nn.Module) -> None:
    conv.weight.data = conv.weight.data * 3


def data_transposed(conv: nn.Module) -> None:
    conv.weight.data = conv.weight.data.transpose(2, 3)


def there_and_back(conv: nn.Module) -> None:
    """Rounded on the way; the memory of before may be handed out again."""
    conv.to(torch.bfloat16)
    conv.to(torch.float32)


def written(conv: nn.Module) -> None:
    with torch.no_grad():
        conv.weight.mul_(3)


def written_past_autograd(conv: nn.Module) -> None:
    conv.weight.data.mul_(3)


def one_element_by_numpy(conv: nn.Module) -> None:
    conv.weight.detach().numpy()[5, 3, 1, 1] += 1


def signs_swapped(conv: nn.Module) -> None:
    """Nothing but the highest bits of words of 8 bytes."""
    conv.weight.data.view(-1)[1::2].neg_()


def rows_exchanged(conv: nn.Module) -> None:
    conv.weight.data.copy_(conv.weight.data.flip(0))


def loaded(conv: nn.Module) -> None:
    conv.load_state_dict({key: value * 3 for key, value in conv.state_dict().items()})


def assigned_when_loading(conv: nn.Module) -> None:
    conv.load_state_dict({key: value * 3 for key, value in conv.state_dict().items()}, assign=True)


def trained(conv: nn.Module) -> None:
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    conv(torch.ones(2, 32, 14, 14).to(memory_format=torch.channels_last)).square().mean().backward()
    optimizer.step()


CHANGES = [reassigned, data_assigned, data_transposed, there_and_back, written, written_past_autograd]
CHANGES += [one_element_by_numpy, signs_swapped, rows_exchanged, loaded, assigned_when_loading, trained]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_weight_is_packed_again(change: Callable[[nn.Module], None]) -> None:
    conv, packed = pair()
    x = image()
    with torch.no_grad():
        before = packed(x)
    for module in (conv, packed):
        change(module)
    with torch.no_grad():
        same(conv, packed, x)
        assert not torch.equal(packed(x), before)
    assert packed._packed is not None


def test_weights_of_one_call_are_used_in_that_call_only() -> None:
    conv, packed = pair()
    x = image()
    with torch.no_grad():
        same(conv, packed, x)
        for factor in (2.0, 3.0):
            other = {"weight": conv.weight * factor, "bias": conv.bias}
            expected = torch.func.functional_call(conv, other, x)
            torch.testing.assert_close(torch.func.functional_call(packed, other, x), expected, rtol=0, atol=0)
        same(conv, packed, x)


def test_inference_tensors() -> None:
    """They do not count what is written to them."""
    with torch.inference_mode():
        conv, packed = pair()
        for _ in range(2):
            same(conv, packed, image())
            for module in (conv, packed):
                module.weight.mul_(3)
    assert packed._packed is not None


def test_it_trains_like_nn_conv2d() -> None:
    conv, packed = pair()
    for module in (conv, packed):
        module.train()
        module(image().requires_grad_())
    torch.manual_seed(1)
    x, g = image().requires_grad_(), image(48)
    torch.testing.assert_close(
        torch.autograd.grad(packed(x), [x, *packed.parameters()], g),
        torch.autograd.grad(conv(x), [x, *conv.parameters()], g),
        rtol=0,
        atol=0,
    )
    assert packed._packed is None


def no_batch(x: Tensor) -> Tensor:
    return x[0]


def one_pixel(x: Tensor) -> Tensor:
    return x[:, :, :1, :1]


def of_no_images(x: Tensor) -> Tensor:
    return x[:0]


def sliced(x: Tensor) -> Tensor:
    return x[:, :, 1:, 2:]


def nchw(x: Tensor) -> Tensor:
    return x.contiguous()


@pytest.mark.parametrize("change", [no_batch, one_pixel, of_no_images, sliced, nchw], ids=lambda c: c.__name__)
def test_what_is_not_channels_last_is_left_to_pytorch(change: Callable[[Tensor], Tensor]) -> None:
    conv, packed = pair()
    with torch.no_grad():
        same(conv, packed, change(image()))
    assert packed._packed is None


def test_one_channel_keeps_its_format() -> None:
    conv, packed = pair(in_channels=1)
    with torch.no_grad():
        same(conv, packed, image(1))
        same(conv, packed, torch.randn(2, 1, 14, 14))


def test_wrong_input_raises_as_before() -> None:
    conv, packed = pair(padding=0)
    for x in (image(31), image(size=2), image(dtype=torch.float64), torch.randn(32, 14)):
        with torch.no_grad(), pytest.raises(RuntimeError) as expected:
            conv(x)
        with torch.no_grad(), pytest.raises(RuntimeError) as raised:
            packed(x)
        assert str(raised.value) == str(expected.value)


def test_modes_see_the_operator_of_nn_conv2d() -> None:
    conv, packed = pair()
    x = image()
    counts = []
    for module in (conv, packed):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.no_grad():
        packed(x)
        for traced in (make_fx(packed)(x), torch.export.export(packed, (x,)), torch.fx.symbolic_trace(packed)):
            assert "mkldnn" not in str(traced.graph)
            assert "conv" in str(traced.graph)
        assert "mkldnn::" not in str(torch.jit.trace(packed, (x,)).inlined_graph)
        expected = torch.vmap(conv)(torch.stack([x, x]))
        torch.testing.assert_close(torch.vmap(packed)(torch.stack([x, x])), expected)
        compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), conv(x), rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packed(x).dtype == torch.bfloat16
            same(conv, packed, x)
        with torch.backends.mkldnn.flags(enabled=False):
            torch.testing.assert_close(packed(x), conv(x), rtol=0, atol=0)


def test_the_copy_stays_here_and_goes_when_it_is_of_no_use() -> None:
    conv, packed = pair()
    x = image()
    with torch.no_grad():
        packed(x)
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(packed), torch.load(buffer, weights_only=False)):
        assert type(other) is PackedConv2d
        assert other._packed is None
        with torch.no_grad():
            same(conv, other, x)
    assert list(packed.state_dict()) == ["weight", "bias"]
    assert packed._packed is not None
    packed.train()
    assert packed._packed is None
    with torch.no_grad():
        packed.eval()(x)
        assert packed._packed is not None
        assert packed.to(torch.float64)._packed is None


def test_a_pickle_read_elsewhere_is_an_nn_conv2d(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, packed = pair()
    monkeypatch.setattr("pointwise_ext.fusion.packed.AVAILABLE", False)
    monkeypatch.setattr("pointwise_ext.fusion.packed._weight_key", None)
    with torch.no_grad():
        same(conv, pickle.loads(pickle.dumps(packed)), image())


def test_threads_share_a_module_that_changes() -> None:
    conv, packed = pair()
    x = image()
    with torch.no_grad():
        expected = conv(x)

        def call(i: int) -> bool:
            if i % 7 == 0:
                packed.train().eval()  # drops the copy
            with torch.no_grad():
                return torch.equal(packed(x), expected)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(call, range(200)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.expand = nn.Conv2d(32, 64, 1)
        self.reflected = nn.Conv2d(64, 32, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(32, 32, 3, padding="same")
        self.hooked = nn.Conv2d(32, 32, 3)
        self.hooked.register_forward_hook(lambda module, inputs, y: y * 2)
        self.shared = nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reflected(self.expand(self.norm(self.spatial(x))))
        return self.shared(self.shared(self.hooked(self.same(x))))


def test_which_convolutions_are_packed() -> None:
    model = Net().eval()
    fast, plain = pw.fuse(model), pw.fuse(model, pack=False)
    assert pw.fusion_report(fast).packed == ["spatial", "shared"]
    assert "2 larger with packed weights" in str(pw.fusion_report(fast))
    assert not pw.fusion_report(plain).packed
    assert not any(isinstance(m, PackedConv2d) for m in (*plain.modules(), *model.modules()))
    with torch.no_grad():
        x = image()
        torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)
        torch.testing.assert_close(fast(x), model(x))


def test_what_was_fused_in_training_is_folded_when_fused_again() -> None:
    model = Net()
    for _ in range(3):
        model(image())
    fast = pw.fuse(pw.fuse(model).eval())
    model.eval()
    assert pw.fusion_report(fast).folded == ["spatial"]
    assert isinstance(fast.spatial, PackedConv2d)
    with torch.no_grad():
        x = image()
        torch.testing.assert_close(fast(x), model(x))


def test_a_model_that_cannot_be_traced() -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    fast = pw.fuse(Branching().eval())
    assert type(fast) is Branching
    assert type(fast.spatial) is PackedConv2d
