"""Larger convolutions of a fused model: PyTorch's own, on weights that are packed once instead of in each call."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

from .. import _ops
from ..modules import built_like

_X86 = platform.machine().lower() in ("x86_64", "amd64")  # measured there; elsewhere oneDNN has other formats
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
AVAILABLE = _X86 and _ONEDNN and _ops.loaded
_pack_weight: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
_convolution: Any = torch.ops.mkldnn._convolution_pointwise.default if AVAILABLE else None
_weight_key: Any = _ops.weight_key
_is_compiling = torch.compiler.is_compiling
_DTYPES = [torch.float32]
if AVAILABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES.append(torch.bfloat16)


class PackedConv2d(nn.Conv2d):
    """An nn.Conv2d that infers on a copy of its weight in oneDNN's format, for channels_last input on the CPU.

    Equivalent to nn.Conv2d, to the last bit where that calls oneDNN too, which packs the weight in every call: with 512
    channels at 7x7 longer than it multiplies. The copy is made in the first call, and made again once the weight's
    contents are others, which are read in every call: whoever wrote them, the result is right. It is dropped by
    train(), to(), copies and pickles. Everything but inference is nn.Conv2d's. With `relu` set it is nn.Conv2d and then
    nn.ReLU, in place: 1.05 times as fast in SqueezeNet as one that makes a tensor of its own.
    """

    relu: bool = False
    _packed: tuple[int, Tensor] | None = None  # the weight's key, and the weight in oneDNN's format

    @classmethod
    def with_relu(cls, conv: nn.Conv2d) -> PackedConv2d:
        """A module that shares the Parameters of `conv`, which others may call too."""
        module = built_like(cls, conv)
        module.relu = True
        return module

    def forward(self, input: Tensor) -> Tensor:
        y = self._convolution(input)
        return y.relu_() if self.relu else y

    def _convolution(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        key = None if _is_compiling() or not AVAILABLE else _weight_key(input, weight, bias, self.groups)
        if key is None or input.dtype not in _DTYPES:
            return super().forward(input)
        arguments = (self.padding, self.stride, self.dilation, self.groups)
        packed = self._packed  # once: another thread may drop it
        if packed is None or packed[0] != key:  # the format depends on the processor, not on the image
            packed = (key, _pack_weight(weight.detach().to_mkldnn(), *arguments, list(input.shape)))
            self._packed = packed
        return _convolution(input, packed[1], bias, *arguments, "none", [], "")

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu" if self.relu else "")

    def train(self, mode: bool = True) -> PackedConv2d:
        if mode:
            self._packed = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedConv2d:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


def can_pack(conv: Any) -> bool:
    """Whether a PackedConv2d computes what `conv` does: a larger nn.Conv2d that pads as oneDNN does."""
    plain = AVAILABLE and type(conv) in (nn.Conv2d, PackedConv2d) and any(size != 1 for size in conv.kernel_size)
    return plain and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
