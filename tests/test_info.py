"""explain and info: what runs, why the rest does not, and an installation without its extension."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pointwise_ext as pw
from pointwise_ext import _ops

ROOT = Path(__file__).resolve().parents[1]
X, W = torch.ones(2, 3, 4, 5), torch.ones(6, 3, 1, 1)


def lines(text: str) -> dict[str, str]:
    """{kernel: verdict} of explain's answer."""
    return dict(line.split(maxsplit=1) for line in text.splitlines()[1:])


def test_the_extension_is_loaded() -> None:
    assert _ops.loaded, _ops.load_error


def test_explain_a_call_that_a_kernel_runs(kernels) -> None:
    text = pw.explain(X, W, activation="relu")
    verdict = lines(text)
    assert "(2, 3, 4, 5), weight (6, 3, 1, 1) -> (2, 6, 4, 5): torch.float32 on cpu, pixels innermost" in text
    assert verdict["cpu"].startswith("runs")
    assert verdict["cuda"] == "does not: the tensors are on cpu"
    assert verdict["reference"] == "does not: a kernel fits"


def test_explain_names_channels_last_and_all_inputs() -> None:
    x = X.to(memory_format=torch.channels_last)
    text = pw.explain([x, x], torch.ones(6, 6, 1, 1), padding=1, stride=2)
    assert "(2, 3, 4, 5) + (2, 3, 4, 5), weight (6, 6, 1, 1) -> (2, 6, 3, 4)" in text
    assert "channels innermost" in text


@pytest.mark.parametrize(
    ("x", "w", "reason"),
    [
        (X.to(torch.complex64), W.to(torch.complex64), "there are no kernels for torch.complex64"),
        (X.to("meta"), W.to("meta"), "there are no kernels for device type meta"),
    ],
)
def test_explain_a_call_that_the_reference_runs(kernels, x, w, reason: str) -> None:
    assert lines(pw.explain(x, w))["reference"] == f"runs: {reason}"
    y = pw.pointwise_conv(x, w)
    assert (y.shape, y.dtype, y.device) == ((2, 6, 4, 5), x.dtype, x.device)


def test_explain_under_transforms(kernels) -> None:
    seen = []

    def f(x):
        seen.append(lines(pw.explain(x, W))["reference"])
        return pw.pointwise_conv(x, W).sum()

    torch.func.grad(f)(X)
    with torch.autograd.forward_ad.dual_level():
        f(X)
    assert seen == [
        "runs: a torch.func transform is active",
        "runs: forward-mode automatic differentiation is active",
    ]


def test_complex_runs_and_is_differentiable() -> None:
    x, w = torch.randn(2, 3, 4, 5, dtype=torch.complex64), torch.randn(6, 3, 1, 1, dtype=torch.complex64)
    w.requires_grad_()
    y = pw.pointwise_conv(x, w, activation="tanh")
    torch.testing.assert_close(y, torch.tanh(torch.nn.functional.conv2d(x, w)))
    assert torch.autograd.grad(y.abs().sum(), w)[0].shape == w.shape


def test_info_names_versions_and_kernels() -> None:
    text = pw.info()
    for word in ("version", "torch", "CUDA", "compiler", "CPU", "cpu", "cuda fma", "reference"):
        assert re.search(rf"^{word} ", text, re.MULTILINE), word
    assert torch.__version__ in text
    assert pw.__version__ in text


def test_version_is_the_packages() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert declared[1] == pw.__version__


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )


def test_command_line() -> None:
    result = python("-m", "pointwise_ext")
    assert result.returncode == 0, result.stderr
    assert "in use" in result.stdout


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A copy of the package whose extension is another version's: it cannot load."""
    package, built = tmp_path / "pointwise_ext", shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    shutil.copytree(ROOT / "pointwise_ext", package, ignore=built)
    return package


def run_in(folder: Path, code: str) -> subprocess.CompletedProcess:
    return python("-W", "always", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}")


def test_without_the_extension_one_warning_and_the_reference(unbuilt: Path) -> None:
    result = run_in(
        unbuilt.parent,
        "import torch, pointwise_ext as pw; x = torch.randn(2, 3, 4, 4, requires_grad=True);"
        "m = pw.PointwiseConv2d(3, 5, activation='silu'); y = m(x); y.sum().backward(); m(x);"
        "torch.testing.assert_close(y, torch.nn.functional.silu(torch.nn.functional.conv2d(x, m.weight, m.bias)));"
        "print(pw.__file__); print(pw.explain(x, m.weight)); print(pw.info())",
    )
    assert result.returncode == 0, result.stderr
    assert str(unbuilt) in result.stdout
    assert "runs: the extension is not loaded: it was not built" in result.stdout
    assert "not available: the extension is not loaded" in result.stdout
    assert result.stderr.count("RuntimeWarning") == 1


def test_an_extension_that_cannot_load_says_built_for_and_found(unbuilt: Path) -> None:
    suffix = __import__("sysconfig").get_config_var("EXT_SUFFIX")
    (unbuilt / f"_C{suffix}").write_bytes(b"not a library")
    (unbuilt / "_build_info.json").write_text('{"torch": "1.0.0", "cuda": "10.2", "archs": [], "flags": []}')
    result = run_in(unbuilt.parent, "import pointwise_ext as pw; print(pw.info())")
    assert result.returncode == 0, result.stderr
    assert "1.0.0" in result.stderr
    assert torch.__version__ in result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert re.search(r"^torch +built for 1.0.0, found", result.stdout, re.MULTILINE)
