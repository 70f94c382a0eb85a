"""Other runtimes, timed where installed: ONNX Runtime and OpenVINO. Both infer only, on buffers bound beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operands import Operands, Problem
from bench.peers import Call, inference_only, installed


def onnxruntime_missing(problem: Problem) -> str | None:
    if problem.dtype != "fp32":
        return "its CPU convolution takes fp32 only"
    return inference_only(problem) or installed("onnx", "onnxruntime")


def onnxruntime(operands: Operands) -> Call:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    layer = operands.problem.layer

    def value(name: str, x: Tensor) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape))

    feeds = {f"x{i}": x for i, x in enumerate(operands.inputs)}
    if operands.residual is not None:
        feeds["residual"] = operands.residual
    y = torch.empty(layer.batch, layer.out_channels, layer.out_size, layer.out_size)
    joined = "joined" if len(operands.inputs) > 1 else "x0"
    nodes = [helper.make_node("Concat", [f"x{i}" for i in range(len(operands.inputs))], ["joined"], axis=1)]
    nodes = nodes if joined == "joined" else []
    nodes.append(helper.make_node("Conv", [joined, "w", "b"], ["z"], strides=[layer.stride] * 2))
    if operands.residual is not None:
        nodes.append(helper.make_node("Add", ["z", "residual"], ["sum"]))
    nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["y"]))
    constants = [
        numpy_helper.from_array(t.detach().numpy(), n) for n, t in (("w", operands.weight), ("b", operands.bias))
    ]
    graph = helper.make_graph(nodes, "layer", [value(n, x) for n, x in feeds.items()], [value("y", y)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # else its idle threads slow the others down
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, x in feeds.items():
        binding.bind_input(name, "cpu", 0, "float32", list(x.shape), x.data_ptr())
    binding.bind_output("y", "cpu", 0, "float32", list(y.shape), y.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    return call


def openvino_missing(problem: Problem) -> str | None:
    if problem.dtype == "fp16":
        return "computes fp16 in fp32 on CPU"
    return inference_only(problem) or installed("openvino")


def openvino(operands: Operands) -> Call:
    """NHWC is its own graph: transposes around the convolution, which it folds into the layout it chooses."""
    import openvino as ov
    from openvino import opset13 as ops

    layer, dtype = operands.problem.layer, operands.problem.dtype
    nhwc = operands.problem.layout == "nhwc"
    element = ov.Type.bf16 if dtype == "bf16" else ov.Type.f32

    def shared(x: Tensor) -> ov.Tensor:
        """The same memory under OpenVINO's type; numpy has no bf16, so the bits travel as int16."""
        x = x.detach()
        array = (x.permute(0, 2, 3, 1) if nhwc and x.dim() == 4 and x.shape[2:] != (1, 1) else x).contiguous()
        return ov.Tensor(array.view(torch.int16).numpy() if dtype == "bf16" else array.numpy(), array.shape, element)

    def parameter(x: Tensor) -> tuple[ov.Node, ov.Node]:
        tensor = shared(x)
        node = ops.parameter(list(tensor.shape), element)
        return node, ops.transpose(node, [0, 3, 1, 2]) if nhwc else node

    images = [*operands.inputs, *([] if operands.residual is None else [operands.residual])]
    parameters, nodes = zip(*(parameter(x) for x in images), strict=True)
    count = len(operands.inputs)
    x = nodes[0] if count == 1 else ops.concat(list(nodes[:count]), 1)
    weight, bias = (
        ops.constant(shared(operands.weight)),
        ops.constant(shared(operands.bias.detach()[None, :, None, None])),
    )
    z = ops.add(ops.convolution(x, weight, [layer.stride] * 2, [0, 0], [0, 0], [1, 1]), bias)
    y = ops.relu(z if operands.residual is None else ops.add(z, nodes[-1]))
    model = ov.Model([ops.transpose(y, [0, 2, 3, 1]) if nhwc else y], list(parameters), "layer")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    hints["INFERENCE_PRECISION_HINT"] = "bf16" if dtype == "bf16" else "f32"
    request = ov.Core().compile_model(model, "CPU", hints).create_infer_request()
    buffers = [shared(image) for image in images]
    for index, buffer in enumerate(buffers):
        request.set_input_tensor(index, buffer)
    size = layer.out_size
    shape = (layer.batch, size, size, layer.out_channels) if nhwc else (layer.batch, layer.out_channels, size, size)
    result = torch.empty(shape, dtype=operands.weight.dtype)
    bits = result.view(torch.int16).numpy() if dtype == "bf16" else result.numpy()
    request.set_output_tensor(0, ov.Tensor(bits, list(shape), element))
    y_view = result.permute(0, 3, 1, 2) if nhwc else result

    def call(keep: object = (buffers, bits)) -> Tensor:  # bound memory must outlive the request
        request.infer()
        return y_view

    return call
