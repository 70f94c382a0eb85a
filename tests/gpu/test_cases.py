"""The cases of tests/emulated on the device, and what only a device shows: streams, graphs, devices, sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pointwise_ext as pw
from tests.emulated.cases import BASE, CASES, DTYPES
from tests.gpu.device import NOMINAL, check, kernels, placed, real, results, to_device, to_host
from tests.masks import mask_of
from tests.problem import Problem, gradients, run
from tests.tolerance import assert_bitwise_equal

pytestmark = pytest.mark.gpu

# Large enough for large tiles and for sums over pixels in many shares; fewer of them where it takes seconds.
LAYER = Problem(channels=(64,), out_channels=256, batch=1 if NOMINAL else 6, size=(56, 56), activation="silu")
SANITIZED = (
    "float32-contiguous",
    "float64-contiguous",
    "bfloat16-channels_last",
    "contiguous-large_tiles-bfloat16",
    "contiguous-sources_3_61",
    "channels_last-stride_padding",
)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.sanitizer) if c in SANITIZED else c for c in CASES])
def test_case(case: str) -> None:
    check(CASES[case])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer(dtype: str, layout: str) -> None:
    check(replace(LAYER, dtype=dtype, layout=layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_make_dz(dtype: str, layout: str) -> None:
    problem = replace(LAYER, dtype=dtype, layout=layout, activation="relu")
    check(problem)
    started = kernels(problem)
    assert "gemm_lean" in started or "gemm_mma" in started
    assert "activation_backward" not in started


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "relu6", ("leaky_relu", 0.2)], ids=str)
def test_a_mask_is_saved_for_the_output(activation: str | tuple, dtype: str, layout: str) -> None:
    problem = replace(LAYER, dtype=dtype, layout=layout, activation=activation)
    check(problem)
    leaves = {name: v.requires_grad_() for name, v in placed(problem).items()}
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = run(pw.pointwise_conv, leaves, problem.options)
    (mask,) = [t for t in saved if t.dtype == torch.int32]
    name = activation if isinstance(activation, str) else activation[0]
    assert torch.equal(to_host(mask), mask_of(to_host(y.detach()), name))
    assert y.data_ptr() not in [t.data_ptr() for t in saved]


@real
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "relu6", ("leaky_relu", 0.2)], ids=str)
def test_second_derivatives_of_masks(activation: str | tuple, layout: str) -> None:
    problem = replace(BASE, activation=activation, layout=layout, integers=True)
    second = []
    for conv in (pw.pointwise_conv, pw.reference.pointwise_conv):
        leaves = {name: v.requires_grad_() for name, v in placed(problem).items()}
        y = run(conv, leaves, problem.options)
        (dx,) = torch.autograd.grad(y, leaves["x0"], leaves["dy"], create_graph=True)
        second.append(torch.autograd.grad(dx.square().sum(), (leaves["dy"], leaves["weight"])))
    for got, want in zip(*second, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_bitwise_repeatable(activation: str, layout: str) -> None:
    problem = replace(LAYER, layout=layout, dtype="float16", activation=activation)
    first = results(problem)
    for _ in range(3):
        for name, value in results(problem).items():
            assert_bitwise_equal(value, first[name], name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tf32_follows_the_switches(layout: str) -> None:
    problem = replace(LAYER, layout=layout, activation=None)
    exact = gradients(pw.reference.pointwise_conv, problem.tensors(), problem.options)
    errors = {}
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        got = results(problem)
        errors[allowed] = {n: float((v - exact[n]).abs().max() / exact[n].abs().max()) for n, v in got.items()}
    for name in ("y", "x0", "weight"):
        assert errors[False][name] < 1e-5 < errors[True][name] < 2e-3, name


def test_extreme_values() -> None:
    """Parts of a float32 keep what it is: Inf stays Inf, the largest numbers stay finite, tiny ones do not vanish."""
    values = [torch.inf, -torch.inf, torch.nan, torch.finfo(torch.float32).max, 1e-30, 0.0, 3.0, 1 + 2**-20]
    x = torch.tensor(values).view(1, 1, 1, -1)
    w = torch.tensor([1.0, -0.5, 2.0**-10, torch.inf, 1.2345678]).view(-1, 1, 1, 1)
    y = to_host(pw.pointwise_conv(to_device(x), to_device(w)))
    torch.testing.assert_close(y, x * w.view(1, -1, 1, 1), rtol=1e-6, atol=0, equal_nan=True)


def test_nan_passes_relu() -> None:
    x = torch.randn(1, 3, 5, 5)
    x[0, 1, 2, 3] = torch.nan
    y = to_host(pw.pointwise_conv(to_device(x), to_device(torch.randn(10, 3, 1, 1)), activation="relu"))
    assert bool(y[0, :, 2, 3].isnan().all())
    assert int(y.isnan().sum()) == 10


@real
def test_current_stream() -> None:
    x, w = torch.randn(8, 64, 56, 56, device="cuda"), torch.randn(64, 64, 1, 1, device="cuda")
    want = pw.pointwise_conv(x, w)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # so that a kernel on another stream would read x too early
        late = x * 2
        got = pw.pointwise_conv(late, w)
    stream.synchronize()
    torch.testing.assert_close(got, want * 2)


@real
def test_cuda_graph() -> None:
    x, w = torch.randn(2, 300, 7, 7, device="cuda"), torch.randn(10, 300, 1, 1, device="cuda")
    pw.pointwise_conv(x, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = pw.pointwise_conv(x, w, activation="relu")
    x.normal_()
    graph.replay()
    assert_bitwise_equal(y, pw.pointwise_conv(x, w, activation="relu"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device() -> None:
    replace(BASE, device="cuda:1").check()


@real
@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "out_channels"), [(2, 64), (64, 2)])
def test_more_than_2_31_elements(channels: int, out_channels: int, layout: torch.memory_format) -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    x = torch.zeros(3, channels, 8192, 1408, dtype=torch.float16, device="cuda").to(memory_format=layout)
    x[-1, -2:, -1, -1] = 1
    w = torch.arange(out_channels, dtype=torch.float16, device="cuda").view(-1, 1, 1, 1).expand(-1, channels, 1, 1)
    y = pw.pointwise_conv(x, w, activation="relu")
    assert max(x.numel(), y.numel()) > 2**31
    assert y[-1, :, -1, -1].tolist() == [2.0 * i for i in range(out_channels)]
    assert int(torch.count_nonzero(y[-1, 1])) == 1
    assert int(torch.count_nonzero(y[0, -1])) == 0
