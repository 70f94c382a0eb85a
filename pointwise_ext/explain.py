"""Which kernel runs a call: one predicate both decides and explains."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops
from .activations import ActivationLike, parse_activation
from .arguments import (
    Input,
    IntOrInts,
    Padding,
    check_shapes,
    check_tensor,
    input_list,
    stride_and_padding,
)

_DTYPES = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def why_no_kernels(device: str) -> str | None:
    """Why the extension has no kernels for a device type, or None where it has."""
    if not _ops.loaded:
        return f"the extension is not loaded: {_ops.load_error}"
    if device not in ("cpu", "cuda"):
        return f"there are no kernels for device type {device}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("pointwise_ext::conv", device.upper()):
        return "the extension was built without CUDA"
    return None


def cpu_kernels() -> list[tuple[str, str]]:
    """(name, state) of the CPU kernels in this build, the one in use first; empty without the extension."""
    if not _ops.loaded:
        return []
    from . import _C

    used = _C.cpu_capability()
    rest = [
        (name, f"available with POINTWISE_EXT_CPU={name}" if fits else "not available: this processor lacks it")
        for name, fits in _C.cpu_capabilities()
        if name != used
    ]
    return [(used, "in use"), *rest]


_NO_CPU, _NO_CUDA = why_no_kernels("cpu"), why_no_kernels("cuda")


def why_reference(weight: Tensor) -> str | None:
    """Why a call runs as plain PyTorch, or None where a kernel of ours runs it."""
    if weight.dtype not in _DTYPES:
        return f"there are no kernels for {weight.dtype}"
    # C++ autograd functions refuse to run under these.
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode automatic differentiation is active"
    if weight.is_cpu:
        return _NO_CPU
    if weight.is_cuda:
        return _NO_CUDA
    return why_no_kernels(weight.device.type)


def explain(
    input: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> str:
    """Which kernel runs this call of :func:`pointwise_ext.pointwise_conv`, and why the others do not, as text.

    Takes the call's arguments, raises what the call raises, computes nothing.
    """
    inputs = input_list(input)
    check_tensor("weight", weight, optional=False)
    for name, value in (("bias", bias), ("residual", residual), ("out", out)):
        check_tensor(name, value, optional=True)
    parse_activation(activation)  # raises for an unknown one
    strides, paddings = stride_and_padding(stride, padding, dilation, groups)
    shape = check_shapes(inputs, weight, bias, residual, strides, paddings, groups)

    sources = " + ".join(str(tuple(t.shape)) for t in inputs)
    order = "channels" if _ops.is_channels_last(inputs[0], batched=inputs[0].dim() == weight.dim()) else "pixels"
    reason, device = why_reference(weight), weight.device.type
    lines = [f"{sources}, weight {tuple(weight.shape)} -> {shape}: {inputs[0].dtype} on {device}, {order} innermost"]
    for kernel in ("cpu", "cuda"):
        why = reason if kernel == device else f"the tensors are on {device}"
        variant = f": {cpu_kernels()[0][0]}" if kernel == "cpu" and why is None else ""
        lines.append(f"  {kernel:<10} {f'does not: {why}' if why else f'runs{variant}'}")
        if why is None:
            options = (strides, paddings, groups, *parse_activation(activation))
            lines += [f"             {line}" for line in _plan(inputs, weight, bias, residual, options)]
    lines.append(f"  {'reference':<10} {'does not: a kernel fits' if reason is None else 'runs: ' + reason}")
    return "\n".join(lines)


def _plan(
    inputs: list[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None, options: tuple
) -> list[str]:
    """The products that the kernels compute for a call, with their tiles, one a line."""
    from . import _C

    device = weight.device.type
    autocast = torch.is_autocast_enabled(device) and weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype

    def shape_only(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.empty_strided(t.shape, t.stride(), dtype=dtype, device=t.device)

    tensors = [[shape_only(x) for x in inputs], *map(shape_only, (weight, bias, residual))]
    return _C.explain(*tensors, *options)
