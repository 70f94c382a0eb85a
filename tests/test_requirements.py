"""What users asked of other projects, issue by issue: the test, benchmark or document that answers each, or a refusal.

A row that needs a test of its own has it below, named after the issue.
"""

from __future__ import annotations

import re
import timeit
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import pointwise_ext as pw
from pointwise_ext import _ops, reference
from pointwise_ext.activations import PARSED

X = torch.randn(2, 8, 4, 5)
ROOT = Path(__file__).resolve().parents[1]

# (issue, what was asked, file: words in it that answer; "def test_..." for a test, which pytest runs where it stands)
ANSWERS = [
    ("pytorch-116506", "route a pointwise convolution to a matrix product", "csrc/problem.h: One matrix product"),
    ("pytorch-44482", "no im2col", "tests/test_requirements.py: def test_pytorch_44482_no_im2col"),
    ("pytorch-52772", "how far from the machine's limit", "bench/roofline.py: def "),
    ("ConvNeXt-18", "faster than F.linear on channels_last", "bench/peers.py: linear"),
    (
        "keras-23178",
        "a direct path for 1x1",
        "tests/test_forward.py: def test_stands_in_for_the_functional_convolution",
    ),
    ("diffusion-fast-2", "swap modules", "tests/test_modules.py: def test_from_conv_shares_parameters"),
    (
        "pytorch-3823",
        "bias and activation in one call",
        "tests/test_compile.py: def test_the_graph_has_one_node_per_call",
    ),
    ("pytorch-62926", "always a fallback", "tests/test_info.py: def test_explain_a_call_that_the_reference_runs"),
    ("pytorch-68506", "never slower than native", "bench/peers.py: conv2d"),
    ("apex-309", "NCHW as well as channels_last", "tests/test_forward.py: def test_case"),
    (
        "pytorch-50036",
        "no hidden conversions",
        "tests/test_requirements.py: def test_pytorch_50036_no_hidden_conversions",
    ),
    ("pytorch-24090", "ambiguous formats", "tests/test_memory_format.py: def test_strides_are_those_of_conv2d"),
    (
        "pytorch-117845",
        "the input's format is the output's",
        "tests/test_memory_format.py: def test_the_first_input_decides",
    ),
    ("mamba-351", "strides of any multiple", "tests/test_forward.py: def test_layout"),
    ("fla-871", "any output gradient", "tests/test_autograd.py: def test_output_gradient_of_any_layout"),
    ("qkan-26", "misaligned pointers", 'tests/layouts.py: layout == "misaligned"'),
    ("pytorch-117736", "more than 2^31 elements", "tests/test_forward.py: def test_more_than_2_to_31_elements"),
    ("pytorch-12013", "empty batch", "tests/test_empty.py: def test_empty_input"),
    ("NNlib-763", "gradients of an empty batch are zeros", "tests/test_empty.py: def test_empty_input"),
    ("onnxruntime-11010", "NaN passes a ReLU", "tests/test_activations.py: def test_nan_and_infinities"),
    (
        "pytorch-46178",
        "half meets float under autocast",
        "tests/test_autocast.py: def test_output_has_the_active_dtype",
    ),
    ("pytorch-88029", "backward under bfloat16 autocast", "tests/test_autocast.py: def test_backward_under_autocast"),
    ("NATTEN-191", "double backward", "tests/test_autograd.py: def test_gradcheck_and_gradgradcheck"),
    ("pytorch-128071", "no graph break", "tests/test_compile.py: def test_fullgraph_forward_and_backward"),
    (
        "cuEquivariance-223",
        "strides of fake tensors",
        "tests/test_opcheck.py: def test_fake_strides_in_ambiguous_sizes",
    ),
    ("pytorch-141545", "export and AOTInductor", "tests/test_compile.py: def test_aot_inductor"),
    ("pytorch-176592", "host time of small calls", "tests/test_requirements.py: def test_pytorch_176592_host_time"),
    (
        "pytorch-54077",
        "the device of the tensors, not the current one",
        "tests/gpu/test_cases.py: def test_second_device",
    ),
    ("SageAttention-380", "the current stream, CUDA graphs", "tests/gpu/test_cases.py: def test_cuda_graph"),
    ("pytorch-157363", "stream synchronisation", "tests/gpu/test_cases.py: def test_current_stream"),
    ("vision-7579", "deterministic", "tests/test_threads.py: def test_deterministic_algorithms_are_granted"),
    ("pytorch-107514", "TF32 surprises", "tests/gpu/test_cases.py: def test_tf32_follows_the_switches"),
    ("pytorch-156154", "not bitwise equal to another kernel", "README.md: not bitwise equal to"),
    (
        "pytorch-63027",
        "ReLU saves its output only",
        "tests/test_autograd.py: def test_what_derives_from_the_output_saves",
    ),
    ("pytorch-89128", "an exact bias gradient", "tests/test_requirements.py: def test_pytorch_89128_bias_gradient"),
    (
        "causal-conv1d-47",
        "no module named torch",
        "tests/install/test_setup.py: def test_missing_torch_prints_the_commands",
    ),
    ("causal-conv1d-18", "no network in setup.py", "setup.py: no GPU and no network"),
    ("causal-conv1d-35", "torch upgraded", "tests/test_info.py: def test_an_extension_that_cannot_load_says_built_for"),
    ("diso-25", "CUDA versions differ", "tests/install/test_setup.py: def test_stops_with_plain_words"),
    ("flash-attention-1785", "no kernel image", "tests/install/test_setup.py: def test_default_architectures"),
    (
        "linear-assignment-29",
        "a build without a GPU",
        "tests/install/test_setup.py: def test_decides_for_or_against_cuda",
    ),
    ("xformers-1263", "which kernel, why not", "tests/test_info.py: def test_info_names_versions_and_kernels"),
    ("pytorch-57535", "a module without kernel_size", "tests/test_modules.py: def test_is_a_convolution"),
    (
        "pytorch-50962",
        "channels in the last dimension",
        "tests/test_requirements.py: def test_pytorch_50962_channels_in_the",
    ),
]


@pytest.mark.parametrize(("asked", "where"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_answered(asked: str, where: str) -> None:
    file, words = where.split(": ", 1)
    assert words in (ROOT / file).read_text(), f"{asked}: {words!r} is no longer in {file}"


def test_setup_opens_no_connection() -> None:
    """causal-conv1d-18: nothing in setup.py can reach the network."""
    text = (ROOT / "setup.py").read_text()
    assert not re.search(r"urllib|requests\.|http\.client|socket|urlretrieve", text)


def test_pytorch_44482_no_im2col(kernels) -> None:
    """Memory beyond the output stays far below that of the input, of which an im2col would make a copy."""
    x, w = torch.randn(4, 256, 56, 56), torch.randn(8, 256, 1, 1)
    pw.pointwise_conv(x, w, activation="relu")
    with torch.profiler.profile(profile_memory=True) as profile:
        y = pw.pointwise_conv(x, w, activation="relu")
    allocated = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
    assert y.nbytes <= allocated < y.nbytes + x.nbytes // 8


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorch_50036_no_hidden_conversions(kernels, memory_format, dtype) -> None:
    """Neither forward nor backward copies, transposes or reorders a tensor in any of the two formats."""
    x = torch.randn(2, 16, 8, 8).to(dtype).to(memory_format=memory_format).requires_grad_()
    w, b = torch.randn(24, 16, 1, 1, dtype=dtype, requires_grad=True), torch.randn(24, dtype=dtype, requires_grad=True)
    dy = torch.ones(2, 24, 8, 8, dtype=dtype).to(memory_format=memory_format)
    with torch.profiler.profile() as profile:
        torch.autograd.grad(pw.pointwise_conv(x, w, b, activation="relu"), (x, w, b), dy)
    names = {event.key for event in profile.key_averages()}
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy", "aten::cat", "aten::mm"}


def test_pytorch_176592_host_time(kernels) -> None:
    """A call too small to compute much takes no longer than the convolution and ReLU of PyTorch."""
    x, w, b = torch.randn(1, 8, 4, 4), torch.randn(8, 8, 1, 1), torch.randn(8)

    def seconds(call) -> float:
        return sorted(timeit.repeat(call, number=50, repeat=200))[10]

    with torch.no_grad():
        ours = seconds(lambda: pw.pointwise_conv(x, w, b, activation="relu"))
        theirs = seconds(lambda: F.relu(F.conv2d(x, w, b)))
    assert ours < theirs


PLAIN = {
    "a tensor": {},
    "a list": {"input": [X[:, :5], X[:, 5:]]},
    "a tuple": {"input": (X,)},
    "eight": {"input": [X[:, i : i + 1] for i in range(8)]},
    "numbers of each dimension": {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 1)},
    "one number of all dimensions": {"stride": (2,), "dilation": [3]},
}
NOT_PLAIN = {
    "no tensors": {"input": []},
    "nine": {"input": [X] * 9},
    "not a tensor among them": {"input": [X, None]},
    "a subclass": {"input": [X, X.as_subclass(type("Tagged", (torch.Tensor,), {}))]},
    "three numbers for two dimensions": {"stride": (1, 1, 1)},
    "a truth value": {"padding": (0, False)},
    "too small": {"dilation": (1, 0)},
    "a word": {"padding": "same"},
}


@pytest.mark.parametrize("case", PLAIN | NOT_PLAIN)
def test_pytorch_176592_what_is_called_directly(case: str, kernels) -> None:
    """Python and torch.ops take 3 to 4 us to read arguments: plain ones go to C++ as they are, others do not."""
    changed = (PLAIN | NOT_PLAIN)[case]
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": "relu"} | changed
    x, w, b = options.pop("input", X), torch.randn(6, 8, 1, 1), torch.randn(6)
    activation = options.pop("activation")
    y = _ops.eager_conv(x, w, b, *options.values(), activation, PARSED, None)
    assert (y is NotImplemented) == (case in NOT_PLAIN)
    if case in PLAIN:
        want = reference.pointwise_conv(x, w, b, **options, activation=activation)
        torch.testing.assert_close(y, want)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pytorch_89128_bias_gradient(memory_format, device: str) -> None:
    """16384 ones in bfloat16, whose running sum would stop at 256; masked by the ReLU on the way."""
    x = torch.zeros(4, 2, 64, 64, dtype=torch.bfloat16, device=device).to(memory_format=memory_format)
    w = torch.zeros(3, 2, 1, 1, dtype=torch.bfloat16, device=device)
    b = torch.tensor([1.0, -1.0, 2.0], dtype=torch.bfloat16, device=device, requires_grad=True)
    y = pw.pointwise_conv(x, w, b, activation="relu")
    (db,) = torch.autograd.grad(y, b, torch.ones_like(y))
    assert db.tolist() == [16384.0, 0.0, 16384.0]


def test_pytorch_50962_channels_in_the_last_dimension(device: str) -> None:
    """Tensors (N, L, C), as of transformers, are a transposed view: no copy on the way in or out."""
    x, w, b = torch.randn(2, 7, 16), torch.randn(24, 16), torch.randn(24)
    x, w, b = (t.to(device) for t in (x, w, b))
    y = pw.pointwise_conv(x.mT, w[..., None], b, activation="gelu").mT
    torch.testing.assert_close(y, F.gelu(F.linear(x, w, b)))
    assert y.is_contiguous()
