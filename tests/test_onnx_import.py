"""The ONNX importer against onnxruntime, operator by operator, and what it says about files it cannot use."""

import itertools
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fastcloak import assets
from fastcloak.models import load_model
from fastcloak.models.onnx import load_onnx_net

RANDOM = np.random.default_rng(0)
SIZE = 9  # odd on purpose


def f32(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def i64(*numbers):
    return np.array(numbers, np.int64)


def node(kind, inputs="x", output="y", **attributes):
    return helper.make_node(kind, inputs.split(",") if inputs else [], output.split(","), **attributes)


def constants(**arrays):
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def model(nodes, *, opset=17, size=SIZE, shape=None, output="y", **arrays):
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["n", 3, size, size])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in output.split(",")]
    graph = helper.make_graph(nodes, "g", [picture], outputs, constants(**arrays))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def saved(tmp_path, made):
    path = tmp_path / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def by_onnxruntime(made, pictures):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pictures.numpy()})[0])


CONV = {"w": f32(5, 3, 3, 3), "b": f32(5)}
FLAT = [node("Flatten", output="f")]
NORM = {"s": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3)) + 0.5}
UP = {"kernel_shape": [3, 2], "strides": [2, 2]}

# name -> nodes, options of `model`
CASES = {
    "abs": ([node("Abs")], {}),
    "relu": ([node("Relu")], {}),
    "leaky_relu": ([node("LeakyRelu", alpha=0.3)], {}),
    "leaky_relu_default": ([node("LeakyRelu")], {}),
    "sigmoid": ([node("Sigmoid")], {}),
    "clip_attributes": ([node("Clip", min=-0.5, max=0.7)], {"opset": 10}),
    "clip_inputs": ([node("Clip", "x,a,c")], {"a": np.float32(-0.5), "c": np.float32(0.7)}),
    "clip_low_only": ([node("Clip", "x,a")], {"a": np.float32(-0.2)}),
    "clip_high_only": ([node("Clip", "x,,a")], {"a": np.float32(0.2)}),
    "clip_nothing": ([node("Clip")], {}),
    "prelu_channels": ([node("PRelu", "x,w")], {"w": f32(3, 1, 1)}),
    "prelu_one": ([node("PRelu", "x,w")], {"w": f32(1)}),
    "prelu_flat": ([*FLAT, node("PRelu", "f,w")], {"w": f32(243)}),
    "add_scalar": ([node("Add", "x,a")], {"a": np.float32(0.4)}),
    "add_channels": ([node("Add", "x,a")], {"a": f32(3, 1, 1)}),
    "add_computed": ([node("Relu", output="r"), node("Add", "x,r")], {}),
    "sub_constant_first": ([node("Sub", "a,x")], {"a": f32(1, 3, 1, 1)}),
    "mul": ([node("Mul", "x,a")], {"a": f32(1, 1, 9, 9)}),
    "div": ([node("Div", "x,a")], {"a": f32(3, 1, 1) + 5}),
    "conv": ([node("Conv", "x,w,b", pads=[1, 1, 1, 1])], CONV),
    "conv_no_bias_strided": ([node("Conv", "x,w", strides=[2, 3])], {"w": CONV["w"]}),
    "conv_groups": ([node("Conv", "x,w", group=3, kernel_shape=[3, 3])], {"w": f32(6, 1, 3, 3)}),
    "conv_asymmetric": ([node("Conv", "x,w,b", pads=[0, 1, 2, 0], strides=[2, 2])], CONV),
    "conv_dilated": ([node("Conv", "x,w,b", pads=[2, 2, 2, 2], dilations=[2, 2])], CONV),
    "conv_same_upper": ([node("Conv", "x,w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": f32(4, 3, 2, 3)}),
    "conv_same_lower": ([node("Conv", "x,w", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": f32(4, 3, 2, 3)}),
    "conv_valid": ([node("Conv", "x,w,b", auto_pad="VALID", strides=[2, 2])], CONV),
    "norm": ([node("BatchNormalization", "x,s,b,m,v", epsilon=2e-3)], NORM),
    "norm_old_attributes": ([node("BatchNormalization", "x,s,b,m,v", spatial=1)], {**NORM, "opset": 8}),
    "norm_flat": (
        [*FLAT, node("Gemm", "f,w", "g", transB=1), node("BatchNormalization", "g,s,b,m,v")],
        {"w": f32(3, 243), **NORM},
    ),
    "flatten": ([node("Flatten")], {}),
    "flatten_negative": ([node("Flatten", axis=-3)], {}),
    "reshape_zero": ([node("Reshape", "x,s")], {"s": i64(0, -1)}),
    "reshape_minus_one": ([node("Reshape", "x,s")], {"s": i64(-1, 27, 9)}),
    "reshape_keeps_channels": ([node("Reshape", "x,s")], {"s": i64(-1, 3, 81)}),
    "flatten_as_pytorch_writes_it": (
        [
            node("Shape", output="s"),
            node("Gather", "s,zero", "n", axis=0),
            node("Unsqueeze", "n,axes", "u"),
            node("Concat", "u,rest", "t", axis=0),
            node("Reshape", "x,t"),
        ],
        {"zero": np.int64(0), "axes": i64(0), "rest": i64(-1)},
    ),
    "flatten_by_slice_of_shape": (
        [
            node("Shape", output="s"),
            node("Slice", "s,zero,one", "n"),
            node("Cast", "n", "c", to=TensorProto.INT64),
            node("Constant", "", "rest", value=numpy_helper.from_array(i64(-1))),
            node("Concat", "c,rest", "t", axis=0),
            node("Reshape", "x,t"),
        ],
        {"zero": i64(0), "one": i64(1)},
    ),
    "shape_start": (
        [node("Shape", output="s", start=0, end=2), node("Concat", "s,rest", "t", axis=0), node("Reshape", "x,t")],
        {"rest": i64(-1)},
    ),
    "transpose": ([node("Transpose", perm=[0, 2, 3, 1])], {}),
    "squeeze_attribute": (
        [node("GlobalAveragePool", output="p"), node("Squeeze", "p", axes=[2, -1])],
        {"opset": 11},
    ),
    "squeeze_input": ([node("GlobalAveragePool", output="p"), node("Squeeze", "p,a")], {"a": i64(3, 2)}),
    "unsqueeze_attribute": ([node("Unsqueeze", axes=[1, -1])], {"opset": 11}),
    "unsqueeze_input": ([node("Unsqueeze", "x,a")], {"a": i64(2)}),
    "concat": ([node("Relu", output="r"), node("Concat", "x,r,x", axis=-3)], {}),
    "gemm": (
        [*FLAT, node("Gemm", "f,w,b", alpha=0.5, beta=2.0)],
        {"w": f32(243, 7), "b": f32(1, 7)},
    ),
    "gemm_transposed": ([*FLAT, node("Gemm", "f,w,b", transB=1)], {"w": f32(7, 243), "b": f32(7)}),
    "gemm_no_bias": ([*FLAT, node("Gemm", "f,w")], {"w": f32(243, 1)}),
    "gemm_scalar_bias": ([*FLAT, node("Gemm", "f,w,b")], {"w": f32(243, 7), "b": f32(1)}),
    "matmul": ([*FLAT, node("MatMul", "f,w")], {"w": f32(243, 7)}),
    "matmul_on_pictures": ([node("MatMul", "x,w")], {"w": f32(9, 4)}),
    "matmul_constant_first": ([node("MatMul", "w,x")], {"w": f32(4, 9)}),
    "matmul_computed": ([node("Transpose", output="t", perm=[0, 1, 3, 2]), node("MatMul", "x,t")], {}),
    "max_pool": ([node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "max_pool_ceil": ([node("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}),
    "max_pool_asymmetric": ([node("MaxPool", **UP, pads=[0, 0, 2, 1])], {}),
    "max_pool_same": ([node("MaxPool", **UP, auto_pad="SAME_UPPER")], {}),
    "max_pool_dilated": ([node("MaxPool", kernel_shape=[2, 2], dilations=[3, 2])], {}),
    "average_pool": ([node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "average_pool_with_pad": ([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {}),
    "average_pool_asymmetric": ([node("AveragePool", **UP, pads=[0, 0, 1, 1])], {}),
    "average_pool_asymmetric_with_pad": ([node("AveragePool", **UP, pads=[0, 0, 1, 1], count_include_pad=1)], {}),
    "average_pool_same": ([node("AveragePool", **UP, auto_pad="SAME_LOWER")], {}),
    "average_pool_ceil": ([node("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {"opset": 19}),
    "global_average_pool": ([node("GlobalAveragePool")], {}),
    "reduce_mean_attribute": ([node("ReduceMean", axes=[2, 3])], {}),
    "reduce_mean_input": ([node("ReduceMean", "x,a", keepdims=0)], {"a": i64(-1, 2), "opset": 18}),
    "pad_attribute": ([node("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 3])], {"opset": 10}),
    "pad_symmetric": ([node("Pad", "x,p")], {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "pad_value_and_channels": ([node("Pad", "x,p,c")], {"p": i64(0, 1, 1, 2, 0, 2, 0, 3), "c": np.float32(1.5)}),
    "pad_crops": ([node("Pad", "x,p")], {"p": i64(0, 0, -1, 2, 0, 0, 0, -3)}),
    "pad_axes": ([node("Pad", "x,p,,a")], {"p": i64(2, 1), "a": i64(-1), "opset": 18}),
    "pad_reflect": ([node("Pad", "x,p", mode="reflect")], {"p": i64(0, 0, 1, 2, 0, 0, 0, 3)}),
    "pad_edge": ([node("Pad", "x,p", mode="edge")], {"p": i64(0, 0, 1, 2, 0, 0, 0, 3)}),
    "dropout_attribute": ([node("Dropout", ratio=0.4)], {"opset": 10}),
    "dropout_input": ([node("Dropout", "x,r", "y,mask")], {"r": np.float32(0.4)}),
    "identity": ([node("Identity")], {}),
    "cast": ([node("Cast", to=TensorProto.FLOAT)], {}),
    "dequantize_without_zero": (
        [node("DequantizeLinear", "q,s", "w"), node("Conv", "x,w")],
        {"q": RANDOM.integers(-9, 9, (4, 3, 3, 3), np.int8), "s": np.float32(0.1), "opset": 10},
    ),
    "flatten_as_old_pytorch_writes_it": (
        [
            node("Shape", output="s"),
            node("Gather", "s,zero", "n", axis=0),
            node("Unsqueeze", "n", "u", axes=[0]),
            node("Concat", "u,rest", "t", axis=0),
            node("Reshape", "x,t"),
        ],
        {"zero": np.int64(0), "rest": i64(-1), "opset": 9},
    ),
    "constant": (
        [node("Constant", "", "c", value_floats=[0.1, 0.2, 0.3]), node("Reshape", "c,s", "k"), node("Add", "x,k")],
        {"s": i64(3, 1, 1)},
    ),
    "slice_attributes": ([node("Slice", starts=[1, 0], ends=[3, -2], axes=[1, 3])], {"opset": 9}),
    "slice_inputs": (
        [node("Slice", "x,a,e,d,t")],
        {"a": i64(1, 0), "e": i64(2**62, 8), "d": i64(2, -1), "t": i64(1, 3)},
    ),
    "gather_one": ([node("Gather", "x,i", axis=1)], {"i": np.int64(-1)}),
    "gather_some": ([node("Gather", "x,i", axis=1)], {"i": i64(2, 0, 2)}),
    "dequantize_tensor": (
        [node("DequantizeLinear", "q,s,z", "w"), node("Conv", "x,w")],
        {"q": RANDOM.integers(-9, 9, (4, 3, 3, 3), np.int8), "s": np.float32(0.1), "z": np.int8(2), "opset": 13},
    ),
    "dequantize_channels": (
        [node("DequantizeLinear", "q,s,z", "w", axis=0), node("Conv", "x,w")],
        {
            "q": RANDOM.integers(0, 99, (4, 3, 3, 3), np.uint8),
            "s": np.abs(f32(4)) / 50,
            "z": RANDOM.integers(0, 99, 4, np.uint8),
            "opset": 13,
        },
    ),
    "dequantize_blocks": (
        [
            node("DequantizeLinear", "q,s,z", "d", axis=1, block_size=32),
            node("Reshape", "d,r", "w"),
            node("Conv", "x,w"),
        ],
        {
            "q": RANDOM.integers(-99, 99, (4, 96), np.int8),
            "s": np.abs(f32(4, 3)) / 50,
            "z": RANDOM.integers(-9, 9, (4, 3), np.int8),
            "r": i64(32, 3, 2, 2),
            "opset": 21,
        },
    ),
    "prelu_written_out": (
        [
            node("Relu", output="r"),
            node("Abs", output="a"),
            node("Sub", "x,a", "d"),
            node("Mul", "c,d", "m"),
            node("Add", "r,m"),
        ],
        {"c": f32(1, 3, 1, 1)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_operator_agrees_with_onnxruntime(name, tmp_path):
    nodes, options = CASES[name]
    made = model(nodes, **options)
    net = load_onnx_net(saved(tmp_path, made)).net
    for n in (1, 3):
        pictures = torch.from_numpy(f32(n, 3, SIZE, SIZE))
        expected = by_onnxruntime(made, pictures)
        got = net(pictures)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-4


def test_every_supported_operator_has_a_case():
    from fastcloak.models.onnx_ops import OPERATORS

    assert {one.op_type for nodes, _ in CASES.values() for one in nodes} == set(OPERATORS)


def test_operators_become_torch_modules(tmp_path):
    made = model(
        [
            node("Conv", "x,w,b", "c"),
            node("BatchNormalization", "c,s,t,m,v", "n"),
            node("PRelu", "n,p", "r"),
            node("Flatten", "r", "f"),
            node("Gemm", "f,g", "y"),
        ],
        **CONV, s=f32(5), t=f32(5), m=f32(5), v=np.abs(f32(5)), p=f32(5, 1, 1), g=f32(245, 4),
    )  # fmt: skip
    net = load_onnx_net(saved(tmp_path, made)).net
    kinds = [type(module) for module in net.children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.PReLU, nn.Flatten, nn.Linear]
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_prelu_written_out_becomes_one_module(tmp_path):
    nodes, options = CASES["prelu_written_out"]
    net = load_onnx_net(saved(tmp_path, model(nodes, **options))).net
    assert [type(module) for module in net.children()] == [nn.PReLU]
    assert torch.equal(net.get_submodule(next(iter(net._modules))).weight, torch.from_numpy(options["c"]).flatten() * 2)


def test_prelu_of_two_different_inputs_is_left_alone(tmp_path):
    nodes, options = CASES["prelu_written_out"]
    made = model([node("Sigmoid", output="s"), node("Relu", "s", "r"), *nodes[1:]], **options)
    net = load_onnx_net(saved(tmp_path, made)).net
    pictures = torch.from_numpy(f32(2, 3, SIZE, SIZE))
    assert (net(pictures) - by_onnxruntime(made, pictures)).abs().max() <= 1e-6


def test_sface_agrees_with_onnxruntime():
    made = onnx.load(assets.sface_file())
    # onnxruntime wants a value for every input, also those that nothing reads
    picture = [entry for entry in made.graph.input if entry.name == "data"]
    del made.graph.input[:]
    made.graph.input.extend(picture)
    faces = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([by_onnxruntime(made, face[None] * 255) for face in faces])
    assert (load_model("sface")(faces) - expected).abs().max() <= 1e-4


def test_channels_last_pictures_are_permuted(tmp_path):
    made = model(
        [node("Transpose", output="t", perm=[0, 3, 1, 2]), node("Conv", "t,w,b")], shape=["n", 9, 9, 3], **CONV
    )
    net = load_onnx_net(saved(tmp_path, made)).net
    pictures = torch.from_numpy(f32(2, 3, 9, 9))
    expected = by_onnxruntime(made, pictures.permute(0, 2, 3, 1).contiguous())
    assert (net(pictures) - expected).abs().max() <= 1e-4


def test_a_fixed_batch_in_the_file_is_freed(tmp_path):
    made = model([node("Reshape", "x,s")], shape=[1, 3, 9, 9], s=i64(1, -1))
    assert load_onnx_net(saved(tmp_path, made)).net(torch.zeros(5, 3, 9, 9)).shape == (5, 243)


def test_an_open_size_is_112_unless_said(tmp_path):
    path = saved(tmp_path, model([node("GlobalAveragePool")], shape=["n", 3, "h", "w"]))
    assert load_onnx_net(path).input_size == 112
    assert load_onnx_net(path, 64).input_size == 64


def test_initialisers_may_be_listed_as_inputs(tmp_path):
    made = model([node("Conv", "x,w,b")], **CONV)
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5, 3, 3, 3]))
    assert load_onnx_net(saved(tmp_path, made)).net(torch.zeros(1, 3, 9, 9)).shape == (1, 5, 7, 7)


def test_half_precision_weights_become_float32(tmp_path):
    made = model(
        [node("Cast", "h", "w", to=TensorProto.FLOAT), node("Conv", "x,w")], h=f32(4, 3, 3, 3).astype(np.float16)
    )
    pictures = torch.from_numpy(f32(2, 3, SIZE, SIZE))
    assert (load_onnx_net(saved(tmp_path, made)).net(pictures) - by_onnxruntime(made, pictures)).abs().max() <= 1e-4


def test_the_first_of_several_outputs_is_used_and_said(tmp_path, caplog):
    made = model([node("Flatten"), node("Unknown", "x", "z")], output="y,z")
    with caplog.at_level(logging.WARNING, "fastcloak"):
        net = load_onnx_net(saved(tmp_path, made)).net
    assert net(torch.zeros(2, 3, 9, 9)).shape == (2, 243)
    assert "2 outputs; the first, 'y', is used" in caplog.text


BAD = {
    "unknown_operator": (model([node("Softmax")]), r"operator Softmax; supported are Abs, Add, .*Unsqueeze"),
    "foreign_domain": (model([node("Conv", domain="com.acme")]), r"unsupported operator com\.acme\.Conv"),
    "old_opset": (model([node("Relu")], opset=6), r"opset must be 7 or later, got 6"),
    "grey": (model([node("Relu")], shape=["n", 1, 9, 9]), r"must take square RGB pictures .* \[0, 1, 9, 9\]"),
    "oblong": (model([node("Relu")], shape=["n", 3, 9, 8]), r"must take square RGB pictures"),
    "flat_input": (model([node("Relu")], shape=["n", 27]), r"must take float pictures \[n, 3, H, W\]"),
    "no_input": (model([node("Relu", "a")], a=f32(2)), r"must take one picture, got 0 inputs"),
    "missing_value": (model([node("Add", "x,ghost")]), r"Add \(node 0 ''\): no value named 'ghost'"),
    "missing_output": (model([node("Relu", output="z")]), r"must take one picture|does not depend"),
    "computed_weight": (
        model([node("Conv", "x,w", "c"), node("Conv", "x,c")], w=f32(3, 3, 1, 1)),
        r"Conv \(node 1 ''\): input 1 must be a constant of the file, got a computed value",
    ),
    "wrong_weight": (model([node("Conv", "x,w")], w=f32(5, 4, 3, 3)), r"Conv \(node 0 ''\)"),
    "wrong_bias": (model([node("Conv", "x,w,b")], w=f32(5, 3, 3, 3), b=f32(4)), r"bias must be \[5\], got \[4\]"),
    "moves_batch": (model([node("Transpose", perm=[1, 0, 2, 3])]), r"perm must leave the batch in front"),
    "mixes_pictures": (model([node("Reshape", "x,s")], s=i64(-1, 1)), r"must keep pictures apart"),
    "mean_of_everything": (model([node("ReduceMean")]), r"axes must be given"),
    "reduces_batch": (model([node("ReduceMean", axes=[0])]), r"axis 0 is the batch"),
    "no_such_axis": (model([node("Concat", "x,x", axis=7)]), r"axis must be in \[-4, 3\], got 7"),
    "computes_with_batch": (
        model([node("Shape", output="s"), node("Mul", "s,s", "t"), node("Reshape", "x,t")]),
        r"computes with the number of pictures",
    ),
    "training_norm": (
        model([node("BatchNormalization", "x,s,b,m,v", training_mode=1)], **NORM),
        r"must be in inference mode",
    ),
    "huge_pad": (model([node("Pad", "x,p")], p=i64(0, 0, 9**6, 0, 0, 0, 0, 0)), r"pads must be 8 whole numbers within"),
    "bomb": (
        model([node("Concat", f"{a},{a}", b, axis=2) for a, b in itertools.pairwise(["x", *map(str, range(40)), "y"])]),
        r"must make at most 16777216 numbers a picture",
    ),
    "bomb_of_32_gb_at_once": (
        model(
            [
                node("Reshape", "x,tall", "t"),
                node("Reshape", "x,wide", "u"),
                node("Conv", "t,w", "c"),
                node("MatMul", "c,u"),
            ],
            tall=i64(-1, 1, 243, 1),
            wide=i64(-1, 1, 1, 243),
            w=np.zeros((65536, 1, 1, 1), np.float32),
        ),
        r"MatMul \(node 3 ''\): must make at most 16777216 numbers a picture, got shape \[65536, 243, 243\]",
    ),
    "index_beyond": (
        model([node("Gather", "x,i", axis=1)], i=i64(0, 3)),
        r"indices must be in \[-3, 2\], got 0 to 3",
    ),
    "norm_of_another_size": (
        model([node("BatchNormalization", "x,s,b,m,v")], **{**NORM, "m": f32(4)}),
        r"mean and variance must be \[3\], got \[4\], \[3\]",
    ),
    "bomb_of_constants": (
        model([node("Add", "a,b", "c"), node("Add", "x,c")], a=f32(40000, 1), b=f32(1, 40000)),
        r"must make a constant of at most 67108864 numbers, got shape \[40000, 40000\]",
    ),
    "pad_of_a_constant": (
        model([node("Pad", "a,p", "c"), node("Add", "x,c")], a=f32(3), p=i64(0, 9**9)),
        r"Pad \(node 0 ''\): input 0 must depend on the picture, got a constant",
    ),
    "huge_blocks": (
        model(
            [node("DequantizeLinear", "q,s", "w", axis=0, block_size=2**40), node("Conv", "x,w")],
            opset=21,
            q=np.ones((4, 3, 1, 1), np.int8),
            s=f32(1, 3, 1, 1),
        ),
        r"block_size must be in \[0, 4\]",
    ),
    "wide_prelu": (model([node("PRelu", "x,w")], w=f32(3, 9, 9)), r"slope must be one number or 3"),
    "steps_back": (
        model([node("Slice", "x,a,e,d,t")], a=i64(8), e=i64(0), d=i64(2), t=i64(-1)),
        r"steps must be positive",
    ),
    "to_integers": (model([node("Cast", to=TensorProto.INT64)]), r"must stay a float"),
    "quantized_activations": (
        model([node("DequantizeLinear", "x,s")], s=np.float32(1)),
        r"must have constants of the file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_refused_with_words(name, tmp_path):
    made, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        load_onnx_net(saved(tmp_path, made))


def test_weights_in_another_file_are_refused(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model([node("Conv", "x,w,b")], **CONV), path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(ValueError, match=r"keeps its weights in another file"):
        load_onnx_net(path)


def test_a_corrupt_file_is_a_value_error(tmp_path):
    whole = model([node("Conv", "x,w,b")], **CONV).SerializeToString()
    path = tmp_path / "net.onnx"
    random = np.random.default_rng(1)
    refused = 0
    damaged = [b"", b"not onnx", *(whole[:end] for end in range(0, len(whole), 37))]
    for _ in range(200):
        altered = bytearray(whole)
        altered[random.integers(len(altered))] = random.integers(256)
        damaged.append(bytes(altered))
    for content in damaged:
        path.write_bytes(content)
        try:
            load_onnx_net(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - most alterations only change a weight
            refused += 1
    assert refused > len(damaged) // 5


def test_a_size_against_the_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"input_size must be 9, which the file itself says, got 112"):
        load_onnx_net(saved(tmp_path, model([node("Relu")])), 112)


def test_a_missing_onnx_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(assets.MissingExtraError, match=r"pip install 'fastcloak\[faces\]'"):
        load_onnx_net(tmp_path / "net.onnx")
