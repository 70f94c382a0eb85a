"""Larger convolutions of a fused model: PyTorch's own, on weights that are packed once instead of in each call."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

_X86 = platform.machine().lower() in ("x86_64", "amd64")  # measured there; elsewhere oneDNN has other formats
AVAILABLE = _X86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
_pack_weight: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
_DTYPES = [torch.float32] if AVAILABLE else []
if AVAILABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES.append(torch.bfloat16)


def _is_watched() -> bool:
    """Whether something transforms, records, casts or forbids what is called now, and knows nn.Conv2d's operator."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0  # FLOP counters, make_fx, FakeTensorMode
        or not torch._C._get_mkldnn_enabled()
    )


class PackedConv2d(nn.Conv2d):
    """An nn.Conv2d that infers on a copy of its weight in oneDNN's format, for channels_last input on the CPU.

    Equivalent to nn.Conv2d, to the last bit where that calls oneDNN too, which packs the weight in every call: with 512
    channels at 7x7 longer than it multiplies. The copy is made in the first call and made again once the weight is
    another tensor or was written to, by any means that autograd would notice: writing to ``weight.data`` is not one.
    It is dropped by train(), to(), copies and pickles. Everything but inference is nn.Conv2d's.
    """

    # (what tells one weight from another, the weight, so that its memory is not reused meanwhile, the packed weight)
    _packed: tuple[tuple, Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor or _is_watched() or not self._infers(input):
            return super().forward(input)
        return torch.ops.mkldnn._convolution_pointwise(
            input, self._pack(input), self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )

    def _infers(self, x: Tensor) -> bool:
        """Whether nn.Conv2d would call oneDNN and return channels_last, and nothing but the result matters."""
        weight, bias = self.weight, self.bias
        tensors = (x, weight) if bias is None else (x, weight, bias)
        return (
            x.dim() == 4
            and x.shape[1] == self.in_channels
            and x.is_contiguous(memory_format=torch.channels_last)
            and not x.is_contiguous()  # no, or one channel or pixel: the weight's format decides
            and x.dtype in _DTYPES
            and all(t.dtype == x.dtype and t.device.type == "cpu" for t in tensors)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
            and not weight.is_inference()  # does not count what is written to it
        )

    def _pack(self, x: Tensor) -> Tensor:
        """oneDNN's copy of the weight; which format that is depends on x no more than on the processor."""
        weight = self.weight
        key = (weight.data_ptr(), weight.stride(), weight._version)
        if self._packed is None or self._packed[0] != key:
            source = weight.detach()
            packed = _pack_weight(
                source.to_mkldnn(), self.padding, self.stride, self.dilation, self.groups, list(x.shape)
            )
            self._packed = (key, source, packed)
        return self._packed[2]

    def train(self, mode: bool = True) -> PackedConv2d:
        if mode:
            self._packed = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedConv2d:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


def pads_zeros(conv: nn.Conv2d) -> bool:
    """Whether oneDNN pads as `conv` does."""
    return conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
