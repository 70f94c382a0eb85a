"""Bad input: an error of the right type that names the argument, what it got and what was expected."""

from __future__ import annotations

import pytest
import torch

import pointwise_ext as pw

X, W, B = torch.ones(2, 8, 4, 5), torch.ones(6, 8, 1, 1), torch.ones(6)
R = torch.ones(2, 6, 4, 5)

# name: (type, words of the message in order, arguments)
BAD = {
    "not_a_tensor": (TypeError, "input is of type list, expected a tensor|input.0. is of type float", {"input": [1.0]}),
    "input_number": (TypeError, "input is of type int, expected a tensor", {"input": 3}),
    "input_none": (TypeError, "input is None, expected a tensor", {"input": None}),
    "input_array": (TypeError, "input is of type ndarray, expected a tensor", {"input": X.numpy()}),
    "weight_number": (TypeError, "weight is of type float, expected a tensor", {"weight": 1.0}),
    "weight_none": (TypeError, "weight is None, expected a tensor", {"weight": None}),
    "bias_number": (TypeError, "bias is of type float, expected a tensor or None", {"bias": 1.0}),
    "residual_list": (TypeError, "residual is of type list, expected a tensor or None", {"residual": [R]}),
    "out_number": (TypeError, "out is of type int, expected a tensor or None", {"out": 1}),
    "empty_list": (ValueError, "input is a sequence of 0 tensors, expected 1 to 8", {"input": []}),
    "nine_inputs": (ValueError, "input is a sequence of 9 tensors, expected 1 to 8", {"input": [X] * 9}),
    "stride_zero": (ValueError, "stride is 0, expected at least 1", {"stride": 0}),
    "stride_negative_entry": (ValueError, r"stride is \(1, -1\), expected at least 1", {"stride": (1, -1)}),
    "stride_float": (TypeError, "stride is 1.0, expected an int", {"stride": 1.0}),
    "stride_float_entry": (TypeError, r"stride is \(1, 1.0\), expected an int", {"stride": (1, 1.0)}),
    "stride_string": (TypeError, "stride is 'same', expected an int", {"stride": "same"}),
    "stride_none": (TypeError, "stride is None, expected an int", {"stride": None}),
    "stride_three_for_two": (RuntimeError, "stride has 3 entries, expected 1 or 2", {"stride": (1, 1, 1)}),
    "padding_negative": (ValueError, "padding is -1, expected at least 0", {"padding": -1}),
    "padding_float": (TypeError, "padding is 0.5, expected an int", {"padding": 0.5}),
    "padding_unknown": (ValueError, "padding is 'full', expected .* 'valid' or 'same'", {"padding": "full"}),
    "padding_same_strided": (ValueError, "padding='same' with stride 2", {"padding": "same", "stride": 2}),
    "padding_three_for_two": (RuntimeError, "padding has 3 entries, expected 1 or 2", {"padding": (0, 0, 0)}),
    "dilation_zero": (ValueError, "dilation is 0, expected at least 1", {"dilation": 0}),
    "dilation_float": (TypeError, "dilation is 1.5, expected an int", {"dilation": 1.5}),
    "groups_zero": (ValueError, "groups is 0, expected at least 1", {"groups": 0}),
    "groups_float": (TypeError, "groups is 1.0, expected an int", {"groups": 1.0}),
    "groups_do_not_divide": (RuntimeError, "weight has 6 output channels.*groups = 4", {"groups": 4}),
    "groups_and_channels": (RuntimeError, "input has 8 channels, expected 16", {"groups": 2}),
    "activation_unknown": (ValueError, "activation is 'swish', expected None or one of relu", {"activation": "swish"}),
    "wrong_channel_count": (RuntimeError, "input has 3 channels, expected 8 for a weight", {"input": X[:, :3]}),
    "wrong_channel_sum": (RuntimeError, "input has 11 channels in all, expected 8", {"input": [X, X[:, :3]]}),
    "inputs_of_two_sizes": (RuntimeError, "inputs have shapes", {"input": [X[:, :4], X[:, 4:, :2]]}),
    "inputs_of_two_ranks": (RuntimeError, "inputs have 4 and 3 dimensions", {"input": [X[:, :4], X[0, 4:]]}),
    "inputs_of_two_dtypes": (RuntimeError, "input has dtype", {"input": [X[:, :4], X[:, 4:].double()]}),
    "kernel_size_3": (
        RuntimeError,
        "expected a kernel of size 1; use torch.*conv2d",
        {"weight": torch.ones(6, 8, 3, 3)},
    ),
    "weight_without_ones": (RuntimeError, "weight has shape .*trailing ones", {"weight": W[:, :, 0, 0]}),
    "weight_4d": (RuntimeError, "weight has shape .*trailing ones", {"weight": W[..., None, None]}),
    "input_too_few_dimensions": (RuntimeError, "input has shape .* expected 4 dimensions", {"input": X[0, 0]}),
    "input_too_many_dimensions": (RuntimeError, "input has shape .* expected 4 dimensions", {"input": X[None]}),
    "dtype_mix": (RuntimeError, "weight has dtype .*convert one of them", {"weight": W.double()}),
    "dtype_mix_bias": (RuntimeError, "bias has dtype .*convert one of them", {"bias": B.half()}),
    "dtype_mix_residual": (RuntimeError, "residual has dtype .*convert one of them", {"residual": R.double()}),
    "bias_length": (RuntimeError, "bias has shape .5.*, expected .6", {"bias": B[:5]}),
    "bias_2d": (RuntimeError, "bias has shape .*, expected .6", {"bias": B[None]}),
    "residual_shape": (RuntimeError, "residual has shape .*, expected the output's", {"residual": R[:, :, :3]}),
    "residual_broadcast": (RuntimeError, "residual has shape .*, expected the output's", {"residual": R[:1]}),
    "residual_unbatched": (RuntimeError, "residual has shape .*, expected the output's", {"residual": R[0]}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(conv, case: str) -> None:
    error, words, changed = BAD[case]
    arguments = {"input": X, "weight": W, "bias": B} | changed
    with pytest.raises(error, match=words):
        conv(**arguments)


@pytest.mark.parametrize("case", BAD)
def test_explain_raises_what_the_call_raises(case: str) -> None:
    error, words, changed = BAD[case]
    with pytest.raises(error, match=words):
        pw.explain(**({"input": X, "weight": W, "bias": B} | changed))


@pytest.mark.parametrize("case", BAD)
def test_nothing_is_written_before_the_error(conv, case: str) -> None:
    error, words, changed = BAD[case]
    out = torch.full((2, 6, 4, 5), 7.0)
    with pytest.raises(error, match=words):
        conv(**({"input": X, "weight": W, "bias": B, "out": out} | changed))
    assert bool((out == 7).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
@pytest.mark.parametrize("name", ["input", "weight", "bias", "residual"])
def test_device_mix(conv, name: str) -> None:
    arguments = {"input": X, "weight": W, "bias": B, "residual": R}
    with pytest.raises(RuntimeError, match="move one of them"):
        conv(**(arguments | {name: arguments[name].cuda()}))


def test_device_mix_with_meta() -> None:
    """The mix that a machine without a GPU can show."""
    with pytest.raises(RuntimeError, match="weight is on meta, expected cpu as the input's; move one of them"):
        pw.pointwise_conv(X, W.to("meta"), B)


@pytest.mark.parametrize("module", [pw.PointwiseConv1d, pw.PointwiseConv2d, pw.PointwiseConv3d])
@pytest.mark.parametrize("kernel_size", [3, 0, (1, 3)])
def test_kernel_size_other_than_1_names_the_module_to_use(module, kernel_size) -> None:
    name = module.__name__.replace("Pointwise", "")
    with pytest.raises(ValueError, match=rf"kernel_size is .*, expected 1; use torch\.nn\.{name}"):
        module(8, 6, kernel_size)


def test_module_without_inputs() -> None:
    with pytest.raises(ValueError, match="input is a sequence of 0 tensors"):
        pw.PointwiseConv2d(8, 6)()


def test_module_with_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation is 'swish', expected None or one of relu"):
        pw.PointwiseConv2d(8, 6, activation="swish")


def test_from_conv_of_something_else() -> None:
    with pytest.raises(ValueError, match=r"kernel_size is \(3, 3\), expected 1; use torch\.nn\.Conv2d"):
        pw.PointwiseConv2d.from_conv(torch.nn.Conv2d(8, 6, 3))
    with pytest.raises(TypeError, match="conv is a Conv1d, expected a torch"):
        pw.PointwiseConv2d.from_conv(torch.nn.Conv1d(8, 6, 1))
    with pytest.raises(TypeError, match="conv is a Linear"):
        pw.PointwiseConv2d.from_conv(torch.nn.Linear(8, 6))


def test_integer_tensors_behave_as_in_pytorch() -> None:
    """No kernel of ours has integers: whatever nn.functional.conv2d does with them happens."""
    x, w = X.long(), W.long()
    try:
        expected = torch.nn.functional.conv2d(x, w)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            pw.pointwise_conv(x, w)
    else:
        assert torch.equal(pw.pointwise_conv(x, w), expected)
