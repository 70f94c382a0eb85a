"""PointwiseConv1d, 2d and 3d: nn.Conv*d with kernel size 1 whose forward is pointwise_conv."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from .activations import ActivationLike, parse_activation
from .arguments import Input, input_list
from .functional import pointwise_conv


class _PointwiseConv:
    """What the three classes add to nn.Conv*d; the convolution class comes next in the order of resolution."""

    _conv: type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]
    activation: ActivationLike

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        _check_kernel_size(type(self), kernel_size)
        parse_activation(activation)
        super().__init__(  # type: ignore[call-arg]
            in_channels, out_channels, 1, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.activation = activation

    @classmethod
    def from_conv(cls, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, activation: ActivationLike = None) -> Self:
        """A module that computes ``activation(conv(x))`` and shares the Parameters of `conv`, an nn.Conv*d.

        Raises:
            TypeError: `conv` is of another class. ValueError: its kernel size is not 1.
        """
        if not isinstance(conv, cls._conv):
            raise TypeError(f"conv is a {type(conv).__name__}, expected a torch.nn.{cls._conv.__name__}")
        _check_kernel_size(cls, conv.kernel_size)
        return built_like(cls, conv, activation=activation)

    def forward(self, *inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(conv(concat(inputs)) + residual); see :func:`pointwise_ext.pointwise_conv`."""
        # nn.Module looks attributes up in Python, 0.5 us each; pruning and parametrizations leave nothing else.
        parameters = self._parameters
        weight = parameters["weight"] if "weight" in parameters else self.weight  # noqa: SIM401
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        return self._conv_forward(inputs[0] if len(inputs) == 1 else inputs, weight, bias, residual)

    def _conv_forward(
        self, input: Input, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input_list(input))
        return pointwise_conv(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            residual=residual,
        )

    def _padded(self, inputs: list[Tensor]) -> tuple[list[Tensor], Any]:
        """The inputs with the padding that pointwise_conv does not know, and what is left for it to do."""
        if self.padding_mode == "zeros":
            return inputs, self.padding
        pads = self._reversed_padding_repeated_twice
        return [F.pad(x, pads, mode=self.padding_mode) for x in inputs], 0

    def extra_repr(self) -> str:
        shown = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + shown


def built_like(cls: Any, conv: Any, **more: Any) -> Any:
    """A `cls`, a subclass of nn.Conv*d, with the arguments of `conv` and more, that shares its Parameters."""
    module = cls(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",  # the conv's own Parameters follow
        **more,
    )
    module.weight, module.bias = conv.weight, conv.bias
    return module.train(conv.training)


def _check_kernel_size(cls: type[_PointwiseConv], kernel_size: int | tuple[int, ...]) -> None:
    sizes = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    if any(size != 1 for size in sizes):
        raise ValueError(
            f"{cls.__name__}: kernel_size is {kernel_size!r}, expected 1; use torch.nn.{cls._conv.__name__} for larger "
            "kernels"
        )


_DOC = """nn.Conv{d}d with kernel size 1, fused with what surrounds it.

    Equivalent to ``act(nn.Conv{d}d(in_channels, out_channels, 1, ...)(torch.cat(inputs, 1)) + residual)``: the same
    parameters, initialisation and state_dict, and so checkpoints of either load into the other.

    Args: those of nn.Conv{d}d (kernel_size must be 1), and
        activation: as for :func:`pointwise_ext.pointwise_conv`, for example "relu" or ("leaky_relu", 0.2).

    Shapes: inputs (N, C_i, {s}) or (C_i, {s}) with the C_i adding up to in_channels; output (N, out_channels, {s_out}).

    Raises: as :func:`pointwise_ext.pointwise_conv`, and ValueError for another kernel size.
    """


class PointwiseConv1d(_PointwiseConv, nn.Conv1d):
    __doc__ = _DOC.format(d=1, s="L", s_out="L_out")
    _conv = nn.Conv1d


class PointwiseConv2d(_PointwiseConv, nn.Conv2d):
    __doc__ = _DOC.format(d=2, s="H, W", s_out="H_out, W_out")
    _conv = nn.Conv2d


class PointwiseConv3d(_PointwiseConv, nn.Conv3d):
    __doc__ = _DOC.format(d=3, s="D, H, W", s_out="D_out, H_out, W_out")
    _conv = nn.Conv3d
