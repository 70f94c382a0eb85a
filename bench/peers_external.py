"""Other runtimes, timed where installed: ONNX Runtime and OpenVINO. Both infer only, from and into buffers bound
beforehand, a binding for each set of images: what a careful user of theirs does, and pays no allocation for."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operands import Images, Operands, Problem
from bench.peers import Call, inference_only, installed


def onnxruntime_missing(problem: Problem) -> str | None:
    if problem.dtype != "fp32":
        return "its CPU convolution takes fp32 only"
    return inference_only(problem) or installed("onnx", "onnxruntime")


def onnxruntime(operands: Operands) -> Call:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    layer = operands.problem.layer
    outputs = [torch.empty_like(images.grad_output) for images in operands.images]

    def value(name: str, x: Tensor) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape))

    def feeds(images: Images) -> dict[str, Tensor]:
        inputs = {f"x{i}": x for i, x in enumerate(images.inputs)}
        return inputs if images.residual is None else {**inputs, "residual": images.residual}

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
    inputs = [value(name, x) for name, x in feeds(operands.images[0]).items()]
    graph = helper.make_graph(nodes, "layer", inputs, [value("y", outputs[0])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bindings = [session.io_binding() for _ in outputs]
    for binding, images, y in zip(bindings, operands.images, outputs, strict=True):
        for name, x in feeds(images).items():
            binding.bind_input(name, "cpu", 0, "float32", list(x.shape), x.data_ptr())
        binding.bind_output("y", "cpu", 0, "float32", list(y.shape), y.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(bindings[operands.index])
        return outputs[operands.index]

    return call


def openvino_missing(problem: Problem) -> str | None:
    return inference_only(problem) or installed("openvino")


def openvino(operands: Operands) -> Call:
    """NHWC is its own graph: transposes around the convolution, which it folds into the layout it chooses."""
    import openvino as ov
    from openvino import opset13 as ops

    layer, dtype = operands.problem.layer, operands.problem.dtype
    nhwc = operands.problem.layout == "nhwc"
    element = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16, "fp16": ov.Type.f16}[dtype]

    def shared(x: Tensor, image: bool = True) -> ov.Tensor:
        """The same memory under OpenVINO's type; numpy has no bf16, so the bits travel as int16."""
        array = (x.detach().permute(0, 2, 3, 1) if nhwc and image else x.detach()).contiguous()
        return ov.Tensor(array.view(torch.int16).numpy() if dtype == "bf16" else array.numpy(), array.shape, element)

    def feeds(images: Images) -> list[ov.Tensor]:
        return [shared(x) for x in (*images.inputs, *([] if images.residual is None else [images.residual]))]

    def parameter(tensor: ov.Tensor) -> tuple[ov.Node, ov.Node]:
        node = ops.parameter(list(tensor.shape), element)
        return node, ops.transpose(node, [0, 3, 1, 2]) if nhwc else node

    parameters, nodes = zip(*map(parameter, feeds(operands.images[0])), strict=True)
    count = len(operands.inputs)
    x = nodes[0] if count == 1 else ops.concat(list(nodes[:count]), 1)
    weight, bias = (ops.constant(shared(t, image=False)) for t in (operands.weight, operands.bias[None, :, None, None]))
    z = ops.add(ops.convolution(x, weight, [layer.stride] * 2, [0, 0], [0, 0], [1, 1]), bias)
    y = ops.relu(z if operands.residual is None else ops.add(z, nodes[-1]))
    model = ov.Model([ops.transpose(y, [0, 2, 3, 1]) if nhwc else y], list(parameters), "layer")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    hints["INFERENCE_PRECISION_HINT"] = "bf16" if dtype == "bf16" else "f32"
    compiled = ov.Core().compile_model(model, "CPU", hints)
    requests = [compiled.create_infer_request() for _ in operands.images]
    outputs = [torch.empty_like(images.grad_output) for images in operands.images]
    bound = [(*feeds(images), shared(y)) for images, y in zip(operands.images, outputs, strict=True)]
    for request, (*buffers, result) in zip(requests, bound, strict=True):
        for index, buffer in enumerate(buffers):
            request.set_input_tensor(index, buffer)
        request.set_output_tensor(0, result)

    def call(keep: object = bound) -> Tensor:  # bound memory must outlive the requests
        requests[operands.index].infer()
        return outputs[operands.index]

    return call
