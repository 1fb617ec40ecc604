"""The ONNX importer against onnxruntime, operator by operator, and what it says about files it cannot use."""

import itertools
import logging
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fastcloak.models import load_model
from fastcloak.models.onnx.reader import load_onnx_net
from fastcloak.system import packages
from fastcloak.system.errors import MissingExtraError

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


def model(nodes, *, opset=17, size=SIZE, shape=None, output="y", kind=TensorProto.FLOAT, **arrays):
    picture = helper.make_tensor_value_info("x", kind, shape or ["n", 3, size, size])
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
POSITIVE = [node("Abs", output="a"), node("Add", "a,half", "p")]
HALF = {"half": np.float32(0.5)}
TOKENS = [node("Reshape", "x,to", "u"), node("Transpose", "u", "t", perm=[0, 2, 1])]  # [n, 81, 3]
TO = {"to": i64(0, 3, 81)}
AXES = {"a": i64(-1)}
SHAPE = [node("Shape", output="s")]


def reduction(kind, opset, **attributes):
    """Over the last axis, which is an attribute at first and an input later."""
    since = 13 if kind == "ReduceSum" else 18
    if opset < since:
        return [node(kind, axes=[-1], **attributes)], {"opset": opset}
    return [node(kind, "x,a", **attributes)], {"opset": opset, **AXES}


def shapes_of_the_picture(nodes, **options):
    """Whole numbers [4] named r, computed from the shape s, that the picture is multiplied by along its height."""
    used = [*SHAPE, *nodes, node("Cast", "r", "f", to=TensorProto.FLOAT), node("Reshape", "f,column", "k")]
    return [*used, node("Mul", "x,k")], {"column": i64(-1, 1, 1), **options}


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
    "exp": ([node("Exp")], {}),
    "cos": ([node("Cos")], {}),
    "sin": ([node("Sin")], {}),
    "erf": ([node("Erf")], {}),
    "neg": ([node("Neg")], {}),
    "tanh": ([node("Tanh")], {}),
    "elu": ([node("Elu", alpha=0.7)], {}),
    "elu_default": ([node("Elu")], {}),
    "celu": ([node("Celu", alpha=0.7)], {}),
    "selu": ([node("Selu")], {}),
    "selu_attributes": ([node("Selu", alpha=1.2, gamma=0.9)], {}),
    "mish": ([node("Mish")], {"opset": 18}),
    "gelu": ([node("Gelu")], {"opset": 20}),
    "gelu_tanh": ([node("Gelu", approximate="tanh")], {"opset": 20}),
    "softplus": ([node("Softplus")], {}),
    "softsign": ([node("Softsign")], {}),
    "hard_swish": ([node("HardSwish")], {}),
    "hard_sigmoid": ([node("HardSigmoid", alpha=1 / 6)], {}),
    "hard_sigmoid_default": ([node("HardSigmoid")], {}),
    "sqrt": ([*POSITIVE, node("Sqrt", "p")], HALF),
    "log": ([*POSITIVE, node("Log", "p")], HALF),
    "reciprocal": ([*POSITIVE, node("Reciprocal", "p")], HALF),
    "pow_square": ([node("Pow", "x,e")], {"e": np.float32(2)}),
    "pow_whole_exponent": ([node("Pow", "x,e")], {"e": np.int64(3)}),
    "pow_root": ([*POSITIVE, node("Pow", "p,e")], {**HALF, "e": np.float32(-0.5)}),
    "pow_channels": ([*POSITIVE, node("Pow", "p,e")], {**HALF, "e": f32(3, 1, 1)}),
    "pow_of_a_constant": ([node("Pow", "e,x")], {"e": np.float32(1.5)}),
    "pow_computed": ([*POSITIVE, node("Pow", "p,x")], HALF),
    **{
        f"softmax_opset_{opset}_axis_{axis}": ([node("Softmax", axis=axis)], {"opset": opset})
        for opset in (11, 12, 13, 17)
        for axis in (1, 2, -1)
    },
    "softmax_default": ([node("Softmax")], {}),
    "softmax_old_default": ([node("Softmax")], {"opset": 11}),
    "log_softmax": ([node("LogSoftmax", axis=1)], {}),
    "lp_normalization": ([node("LpNormalization")], {}),
    "lp_normalization_1": ([node("LpNormalization", p=1, axis=1)], {}),
    "instance_normalization": ([node("InstanceNormalization", "x,s,b", epsilon=1e-3)], {"s": f32(3), "b": f32(3)}),
    "instance_normalization_lists": (
        [node("Reshape", "x,to", "r"), node("InstanceNormalization", "r,s,b")],
        {**TO, "s": f32(3), "b": f32(3)},
    ),
    "group_normalization": (
        [node("Concat", "x,x", "c", axis=1), node("GroupNormalization", "c,s,b", num_groups=2)],
        {"s": f32(6), "b": f32(6), "opset": 21},
    ),
    "layer_normalization": ([node("LayerNormalization", "x,s,b")], {"s": f32(9), "b": f32(9)}),
    "layer_normalization_axis": (
        [node("LayerNormalization", "x,s", axis=1, epsilon=1e-3)],
        {"s": f32(3, 9, 9)},
    ),
    "local_response": ([node("LRN", size=3, alpha=0.5, beta=0.6, bias=0.9)], {}),
    "global_max_pool": ([node("GlobalMaxPool")], {}),
    "global_pools_of_lists": (
        [
            node("Reshape", "x,to", "r"),
            node("GlobalMaxPool", "r", "m"),
            node("GlobalAveragePool", "r", "g"),
            node("Add", "m,g"),
        ],
        TO,
    ),
    "conv_on_lists": (
        [node("Reshape", "x,to", "r"), node("Conv", "r,w,b", pads=[2, 1], strides=[3], dilations=[2])],
        {**TO, "w": f32(5, 3, 4), "b": f32(5)},
    ),
    **{
        f"{kind}_opset_{opset}_{keep}": reduction(kind, opset, keepdims=keep)
        for kind in ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare")
        for opset in (11, 13, 18)
        for keep in (0, 1)
    },
    "reduce_log_sum_exp": ([node("ReduceLogSumExp", axes=[1, 2])], {}),
    "reduce_l2_two_axes": ([node("ReduceL2", axes=[2, -1])], {}),
    "max": ([node("Neg", output="m"), node("Max", "x,m,c")], {"c": np.float32(0.3)}),
    "min": ([node("Min", "c,x")], {"c": f32(3, 1, 1)}),
    "sum": ([node("Relu", output="r"), node("Sum", "x,r,c,x")], {"c": f32(3, 1, 1)}),
    "mean": ([node("Relu", output="r"), node("Mean", "x,r,x")], {}),
    "einsum": ([node("Einsum", "x,w", equation="bchw, hk -> bkwc")], {"w": f32(9, 4)}),
    "einsum_implicit": ([node("Einsum", "x,w", equation="bchw,ck")], {"w": f32(3, 4)}),
    "einsum_attention": (
        [node("Einsum", "x,x", "s", equation="bcij,bckj->bcik"), node("Einsum", "s,x", equation="bcik,bckj->bcij")],
        {},
    ),
    "split_equal": ([node("Split", "x", "p,q,r", axis=1), node("Sub", "p,q", "d"), node("Mul", "d,r")], {}),
    "split_attribute": (
        [node("Split", "x", "p,q", axis=-1, split=[2, 7]), node("Concat", "q,p", axis=3)],
        {"opset": 11},
    ),
    "split_input": (
        [node("Split", "x,l", "p,q,r", axis=2), node("Concat", "r,p,q", axis=3 - 1)],
        {"l": i64(2, 3, 4)},
    ),
    "split_uneven": (
        [node("Split", "x", "p,q", axis=2, num_outputs=2), node("Concat", "q,p", axis=2)],
        {"opset": 18},
    ),
    "expand_to_constant": (
        [node("Gather", "x,i", "g", axis=1), node("Expand", "g,l")],
        {"i": i64(1), "l": i64(1, 5, 9, 9)},
    ),
    "expand_by_a_shape": (
        [node("ReduceL2", output="l", axes=[1]), *SHAPE, node("Expand", "l,s", "e"), node("Div", "x,e")],
        {},
    ),
    "expand_adds_axes": ([node("Expand", "x,l")], {"l": i64(1, 1, 1, 1)}),
    "tile": ([node("Tile", "x,r")], {"r": i64(1, 2, 1, 3)}),
    "where_mask": ([node("Where", "m,x,c")], {"m": f32(9, 9) > 0, "c": np.float32(-1)}),
    "where_other_way": ([node("Where", "m,c,x")], {"m": f32(3, 1, 1) > 0, "c": f32(9)}),
    "where_both": ([node("Neg", output="m"), node("Where", "c,x,m")], {"c": f32(1, 9) > 0}),
    "class_token": (
        [
            *TOKENS,
            *SHAPE,
            node("Gather", "s,zero", "n", axis=0),
            node("Unsqueeze", "n,front", "n1"),
            node("Concat", "n1,minus,minus", "target", axis=0),
            node("Shape", "target", "length"),
            node("ConstantOfShape", "length", "ones", value=numpy_helper.from_array(i64(1))),
            node("Mul", "ones,minus", "all"),
            node("Equal", "target,all", "open"),
            node("Where", "open,ones,target", "sizes"),
            node("Expand", "token,sizes", "tokens"),
            node("Concat", "tokens,t", axis=1),
        ],
        {**TO, "zero": np.int64(0), "front": i64(0), "minus": i64(-1), "token": f32(1, 1, 3)},
    ),
    "tokens_in_front": (
        [
            *TOKENS,
            node("Transpose", "t", "l", perm=[1, 0, 2]),
            node("MatMul", "l,w", "q"),
            node("Add", "q,positions", "a"),
            node("Softmax", "a", "m", axis=0),
            node("Gather", "m,two", "g", axis=0),
            node("ReduceMean", "m", "h", axes=[0], keepdims=0),
            node("Add", "g,h"),
        ],
        {**TO, "w": f32(3, 4), "positions": f32(81, 1, 4), "two": np.int64(2)},
    ),
    "heads_merged_with_pictures": (
        [
            *TOKENS,
            node("Transpose", "t", "l", perm=[1, 0, 2]),
            *SHAPE,
            node("Gather", "s,zero", "n", axis=0),
            node("Mul", "n,heads", "m"),
            node("Unsqueeze", "m,front", "m1"),
            node("Concat", "long,m1,one", "split", axis=0),
            node("Reshape", "l,split", "h"),
            node("Transpose", "h", "q", perm=[1, 0, 2]),
            node("Transpose", "h", "k", perm=[1, 2, 0]),
            node("MatMul", "q,k", "scores"),
            node("Softmax", "scores", "p"),
            node("MatMul", "p,q", "v"),
            node("Transpose", "v", "back", perm=[1, 0, 2]),
            node("Reshape", "back,rows", "flat"),
            node("MatMul", "flat,w", "out"),
            node("Unsqueeze", "n,front", "n1"),
            node("Concat", "long,n1,three", "joined", axis=0),
            node("Reshape", "out,joined", "r"),
            node("Transpose", "r", perm=[1, 0, 2]),
        ],
        {
            **TO,
            "zero": np.int64(0),
            "front": i64(0),
            "heads": np.int64(3),
            "long": i64(81),
            "one": i64(1),
            "three": i64(3),
            "rows": i64(-1, 3),
            "w": f32(3, 3),
        },
    ),
    "windows_merged_with_pictures": (
        [
            node("Reshape", "x,to6", "r"),
            node("Transpose", "r", "t", perm=[0, 2, 4, 3, 5, 1]),
            node("Reshape", "t,windows", "w"),
            node("Softmax", "w", "m", axis=1),
            node("Reshape", "m,back", "b"),
            node("ReduceMax", "b", axes=[1, 3], keepdims=0),
        ],
        {"to6": i64(0, 3, 3, 3, 3, 3), "windows": i64(-1, 9, 3), "back": i64(-1, 9, 9, 3)},
    ),
    "matmul_of_rows": (
        [*TOKENS, node("Reshape", "t,rows", "r"), node("MatMul", "r,w", "q"), node("Reshape", "q,back")],
        {**TO, "rows": i64(-1, 3), "w": f32(3, 5), "back": i64(-1, 81, 5)},
    ),
    "matmul_of_many_constants": ([node("MatMul", "x,w")], {"w": f32(1, 3, 9, 4)}),
    "flatten_two": (
        [
            *TOKENS,
            node("Transpose", "t", "l", perm=[1, 0, 2]),
            node("Flatten", "l", "f", axis=2),
            node("Reshape", "f,back", "b"),
            node("Transpose", "b", perm=[1, 0, 2]),
        ],
        {**TO, "back": i64(81, -1, 3)},
    ),
    "gather_a_table": ([node("Gather", "x,i", axis=2)], {"i": np.array([[0, -1], [4, 4], [2, 8]])}),
    "slice_backwards": (
        [node("Slice", "x,a,e,d,t")],
        {"a": i64(-1, 7), "e": i64(-(2**63), 1), "d": i64(1, 3), "t": i64(-1, -2)},
    ),
    "slice_all_of_the_batch": (
        [node("Slice", "x,a,e,d")],
        {"a": i64(0, 1), "e": i64(2**63 - 1, 2), "d": i64(0, 1)},
    ),
    "range": shapes_of_the_picture(
        [node("Gather", "s,i", "c"), node("Range", "zero,c,one", "r")], i=np.int64(1), zero=np.int64(0), one=np.int64(1)
    ),
    "comparisons": shapes_of_the_picture(
        [
            node("Slice", "s,one,four", "t"),
            node("Less", "t,five", "l"),
            node("LessOrEqual", "t,five", "le"),
            node("Greater", "t,five", "g"),
            node("GreaterOrEqual", "t,five", "ge"),
            node("And", "l,le", "both"),
            node("Or", "g,ge", "either"),
            node("Not", "either", "neither"),
            node("Equal", "both,neither", "same"),
            node("Where", "same,t,five", "r"),
        ],
        one=i64(1),
        four=i64(4),
        five=i64(5),
    ),
    "counts": shapes_of_the_picture(
        [
            node("Slice", "s,one,four", "t"),
            node("ReduceProd", "t", "area", keepdims=1),
            node("CumSum", "t,zero", "sums"),
            node("Mod", "sums,five", "rest"),
            node("Add", "rest,area", "r"),
        ],
        one=i64(1),
        four=i64(4),
        five=i64(5),
        zero=np.int64(0),
    ),
    "halves": shapes_of_the_picture(
        [
            node("Slice", "s,one,four", "t"),
            node("Cast", "t", "real", to=TensorProto.FLOAT),
            node("Mul", "real,half", "h"),
            node("Floor", "h", "low"),
            node("Ceil", "h", "high"),
            node("Add", "low,high", "r"),
        ],
        one=i64(1),
        four=i64(4),
        half=np.float32(0.5),
    ),
    "size": (
        [node("Gather", "x,i", "g", axis=0), node("Size", "g", "c"), node("Cast", "c", "f", to=1), node("Div", "x,f")],
        {"i": i64(0), "shape": [1, 3, 9, 9]},
    ),
    "conv_of_a_constant": (
        [node("Sin", "c", "s"), node("Conv", "s,w", "p"), node("Softmax", "p", "q", axis=1), node("Add", "x,q")],
        {"c": f32(1, 2, 9, 9), "w": f32(3, 2, 1, 1)},
    ),
    "norm_of_a_constant": (
        [*FLAT, node("LpNormalization", "w", "u", axis=0), node("Split", "u", "p,q", axis=1), node("MatMul", "f,q")],
        {"w": f32(243, 8)},
    ),
    **{
        f"resize_{mode}_{how}_{up}": (
            [node("Resize", "x,,z", mode=mode, coordinate_transformation_mode=how)],
            {"z": np.array([1, 1, *up], np.float32)},
        )
        for mode in ("nearest", "linear", "cubic")
        for how in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for up in ((2, 1.5), (0.5, 0.75))
    },
    "resize_to_sizes": ([node("Resize", "x,,,z", mode="linear")], {"z": i64(1, 3, 14, 5), "shape": [1, 3, 9, 9]}),
    "resize_rounding": (
        [node("Resize", "x,,,z", nearest_mode="floor", coordinate_transformation_mode="asymmetric")],
        {"z": i64(1, 3, 14, 5), "shape": [1, 3, 9, 9]},
    ),
    "resize_old": ([node("Resize", "x,z")], {"z": np.array([1, 1, 2, 3], np.float32), "opset": 10}),
    "upsample": ([node("Upsample", "x,z", mode="linear")], {"z": np.array([1, 1, 2, 3], np.float32), "opset": 9}),
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
        # The seed of a case is its own, so that it can be run alone.
        pictures = torch.from_numpy(np.random.default_rng(n).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32))
        expected = by_onnxruntime(made, pictures)
        got = net(pictures.requires_grad_())
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-4
        direction = torch.from_numpy(np.random.default_rng(9).normal(size=got.shape).astype(np.float32))
        (gradient,) = torch.autograd.grad((got * direction).sum(), pictures)
        assert gradient.isfinite().all()
        assert (gradient != 0).any()
        if "shape" in options:  # one picture at a time
            return


def test_every_supported_operator_has_a_case():
    from fastcloak.models.onnx.operators import OPERATORS

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
    made = onnx.load(packages.sface_file())
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


def test_a_batch_that_an_exporter_left_in_the_file_is_freed(tmp_path):
    made = model([node("Reshape", "x,s", "r"), node("Reshape", "r,t")], s=i64(8, 3, 81), t=i64(2, -1))
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
    "unknown_operator": (model([node("Loop")]), r"operator Loop; supported are Abs, Add, .*Where"),
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
    "moves_batch": (
        model([node("Transpose", perm=[1, 0, 2, 3])]),
        r"the output 'y' must keep pictures apart and leave the batch in front, \[n, D\], got \[3, 1, 9, 9\] for one",
    ),
    "mixes_pictures": (model([node("Reshape", "x,s")], s=i64(-1, 1)), r"must keep pictures apart"),
    "mean_of_everything": (model([node("ReduceMean")]), r"axes must be given"),
    "reduces_batch": (model([node("ReduceMean", axes=[0])]), r"axis 0 is the batch"),
    "no_such_axis": (model([node("Concat", "x,x", axis=7)]), r"axis must be in \[-4, 3\], got 7"),
    "computes_with_batch": (
        model([node("Shape", output="s"), node("Mul", "s,s", "t"), node("Reshape", "x,t")]),
        r"must keep pictures apart: \[1, 3, 9, 9\] of one picture cannot become \[1, 9, 81, 81\]",
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
        r"Pad \(node 0 ''\): pads must be 2 whole numbers within",
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
    "uncountable_parts": (
        model([node("Split", "x", "y,z", axis=1, num_outputs=2**40)], opset=18),
        r"num_outputs must be 2, got 1099511627776",
    ),
    "complex_sizes": (model([node("Reshape", "x,s")], s=np.array([1, -1j])), r"must be whole numbers, got complex128"),
    "computed_condition": (
        model([node("Equal", "x,x", "c"), node("Where", "c,x,x")]),
        r"Equal \(node 0 ''\): must have constants of the file as its inputs, got a computed value",
    ),
    "softmax_over_the_batch": (model([node("Softmax", axis=0)]), r"axis 0 is the batch and must be left alone"),
    "split_of_the_batch": (model([node("Split", "x", "y", axis=0)], opset=11), r"axis 0 is the batch"),
    "first_picture_only": (
        model([node("Slice", "x,a,e,d")], a=i64(0), e=i64(1), d=i64(0)),
        r"axis 0 is the batch and must be left alone",
    ),
    "squeezes_the_batch": (model([node("Squeeze", "x,a")], a=i64(0)), r"axis 0 is the batch and must be left alone"),
    "einsum_of_three": (
        model([node("Einsum", "x,x,x", equation="bcij,bcij,bcij->bc")]),
        r"equation must have one or two operands of letters, got 'bcij,bcij,bcij->bc'",
    ),
    "odd_resize": (
        model(
            [node("Resize", "x,,z", coordinate_transformation_mode="tf_crop_and_resize")], z=np.ones(4, np.float32) * 2
        ),
        r"must (resize height and width|be half_pixel)",
    ),
    "norm_of_another_length": (
        model([node("LayerNormalization", "x,s")], s=f32(8)),
        r"LayerNormalization \(node 0 ''\)",
    ),
    "third_norm": (model([node("LpNormalization", p=3)]), r"p must be 1 or 2, got 3"),
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


def with_weights_beside(folder, made=None, name="net.data"):
    """net.onnx, its weights in the file `name`, and a function that alters where each is said to lie."""
    path = folder / "net.onnx"
    made = made or model([node("Conv", "x,w,b")], **CONV)
    # saving alters what is saved
    onnx.save(
        onnx.load_from_string(made.SerializeToString()),
        path,
        save_as_external_data=True,
        size_threshold=0,
        location=name,
    )

    def alter(**entries):
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                entry.value = str(entries.get(entry.key, entry.value))
        path.write_bytes(proto.SerializeToString())

    return path, alter


@pytest.mark.parametrize("name", ["net.data", "net.onnx_data", "weights of the net"])
def test_weights_in_another_file_of_the_folder_are_read(tmp_path, monkeypatch, name):
    made = model([node("Conv", "x,w,b")], **CONV)
    pictures = torch.from_numpy(f32(2, 3, SIZE, SIZE))
    expected = by_onnxruntime(made, pictures)
    (tmp_path / "whole").mkdir()
    whole = saved(tmp_path / "whole", made)
    path, _ = with_weights_beside(tmp_path, made, name)
    assert torch.equal(load_onnx_net(path).net(pictures), load_onnx_net(whole).net(pictures))
    monkeypatch.chdir(tmp_path)
    assert (load_onnx_net("net.onnx").net(pictures) - expected).abs().max() <= 1e-5


def test_weights_of_a_constant_node_are_read_from_another_file(tmp_path):
    weights = numpy_helper.from_array(f32(5, 3, 3, 3))
    made = model([node("Constant", "", "w", value=weights), node("Conv", "x,w")])
    pictures = torch.from_numpy(f32(2, 3, SIZE, SIZE))
    expected = by_onnxruntime(made, pictures)
    path = tmp_path / "net.onnx"
    onnx.save(made, path, save_as_external_data=True, size_threshold=0, location="w", convert_attribute=True)
    assert (load_onnx_net(path).net(pictures) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "name", ["../net.data", "/etc/hostname", "..", "", ".", "sub/../../net.data", "C:\\net", "a\\b"]
)
def test_weights_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "inside").mkdir()
    path, alter = with_weights_beside(tmp_path / "inside")
    (tmp_path / "net.data").write_bytes((tmp_path / "inside" / "net.data").read_bytes())
    alter(location=name)
    with pytest.raises(
        ValueError, match=r"keeps 'w' in the file .*(inside the folder of the \.onnx file|no ordinary file)"
    ):
        load_onnx_net(path)


def test_a_name_of_weights_that_is_no_text_is_refused(tmp_path):
    path, _ = with_weights_beside(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"net.data", b"net\xff\xfeata"))
    with pytest.raises(ValueError, match=r"net\.onnx: "):
        load_onnx_net(path)


def test_weights_in_a_folder_within_the_folder_are_read(tmp_path):
    path, alter = with_weights_beside(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "net.data").rename(tmp_path / "weights" / "net.data")
    alter(location="weights/net.data")
    assert load_onnx_net(path).net(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 5, 7, 7)


def test_a_link_to_weights_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    path, _ = with_weights_beside(tmp_path / "inside")
    beside = tmp_path / "inside" / "net.data"
    beside.rename(tmp_path / "net.data")
    beside.symlink_to(tmp_path / "net.data")
    with pytest.raises(ValueError, match=r"a link out of its folder"):
        load_onnx_net(path)


@pytest.mark.parametrize("what", ["pipe", "folder", "missing"])
def test_weights_must_be_an_ordinary_file(tmp_path, what):
    path, _ = with_weights_beside(tmp_path)
    (tmp_path / "net.data").unlink()
    if what == "pipe":
        os.mkfifo(tmp_path / "net.data")
    elif what == "folder":
        (tmp_path / "net.data").mkdir()
    with pytest.raises(ValueError, match=r"net\.onnx: keeps 'w' in the file 'net\.data', which is no ordinary file"):
        load_onnx_net(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 10**9}, r"at 1000000000 to 1000000540, but that has \d+ bytes; it is cut off"),
        ({"length": 10**12}, r"it is cut off or of another network"),
        ({"length": 8}, r"net.onnx: the weights 'w' are damaged .*5,3,3,3"),
        ({"offset": -4}, r"offset must be a whole number, got '-4'"),
        ({"length": "1e3"}, r"length must be a whole number, got '1e3'"),
        ({"length": "9" * 5000}, r"length must be a whole number"),
    ],
)
def test_weights_that_do_not_fit_their_file_are_refused(tmp_path, entries, words):
    path, alter = with_weights_beside(tmp_path)
    alter(**entries)
    with pytest.raises(ValueError, match=words):
        load_onnx_net(path)


def test_a_small_file_cannot_ask_for_much_of_a_large_one_beside_it(tmp_path):
    path = tmp_path / "net.onnx"
    with open(tmp_path / "net.data", "wb") as sparse:
        sparse.truncate(2**33)
    proto = model([node("Conv", "x,w")])
    for dims, length in (([2**27], 2**29), ([5, 3, 3, 3], 2**30), ([2**26] * 9, 2**28)):
        del proto.graph.initializer[:]
        for i in range(9):
            tensor = proto.graph.initializer.add(name=f"w{i}", data_type=1, dims=dims)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "net.data"), ("offset", "0"), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ValueError, match=r"at most 67108864 numbers, and 2147483648 bytes in all, got shape"):
            load_onnx_net(path)


@pytest.mark.parametrize("shape", [["n", 3, 9, 9], ["n", 9, 9, 3], [1, 9, 9, 3]])
def test_pictures_of_whole_numbers_are_taken_as_floats(tmp_path, shape):
    last = shape[-1] == 3
    order = [0, 3, 1, 2] if last else [0, 1, 2, 3]
    nodes = [
        node("Transpose", output="t", perm=order),
        node("Cast", "t", "f", to=TensorProto.FLOAT),
        node("Sub", "f,mean", "d"),
        node("Div", "d,range", "s"),
        node("Conv", "s,w,b"),
    ]
    made = model(nodes, shape=shape, kind=TensorProto.UINT8, mean=np.float32(127.5), range=np.float32(128), **CONV)
    file = load_onnx_net(saved(tmp_path, made))
    pictures = torch.from_numpy(RANDOM.integers(0, 256, (1, 3, 9, 9), np.uint8))
    expected = by_onnxruntime(made, pictures.permute(0, 2, 3, 1).contiguous() if last else pictures)
    assert file.uint8
    assert (file.net(pictures.float()) - expected).abs().max() <= 1e-4


def test_a_picture_of_whole_numbers_is_not_computed_with(tmp_path):
    made = model(
        [node("Div", "x,a", "d"), node("Cast", "d", to=TensorProto.FLOAT)], kind=TensorProto.UINT8, a=np.uint8(2)
    )
    with pytest.raises(ValueError, match=r"Div \(node 0 ''\): a picture of whole numbers must be cast to float"):
        load_onnx_net(saved(tmp_path, made))


def test_a_file_made_for_several_pictures_at_a_time_is_freed_or_says_so(tmp_path):
    made = model([node("Reshape", "x,s", "r"), node("MatMul", "r,w")], shape=[4, 3, 9, 9], s=i64(4, -1), w=f32(243, 5))
    assert load_onnx_net(saved(tmp_path, made)).net(torch.zeros(3, 3, 9, 9)).shape == (3, 5)
    made = model([node("Reshape", "x,s")], shape=[4, 3, 9, 9], s=i64(12, 81))
    with pytest.raises(
        ValueError, match=r"the file takes 4 pictures at a time; export it for 1, or leave the number open"
    ):
        load_onnx_net(saved(tmp_path, made))


def test_an_embedding_without_a_batch_axis_is_one_a_picture(tmp_path):
    made = model([node("GlobalAveragePool", output="p"), node("Squeeze", "p")], shape=[1, 3, 9, 9])
    pictures = torch.from_numpy(f32(4, 3, 9, 9))
    assert torch.allclose(load_onnx_net(saved(tmp_path, made)).net(pictures), pictures.mean((2, 3)), atol=1e-6)


def constant_bombs():
    big = np.zeros(2**20, np.float32)
    yield [node("Expand", "b,s", "c")], {"b": f32(1), "s": i64(2**40)}
    yield [node("ConstantOfShape", "s", "c")], {"s": i64(2**20, 2**20)}
    yield [node("Range", "z,s,o", "c")], {"z": np.int64(0), "s": np.int64(2**50), "o": np.int64(1)}
    yield [node("Tile", "b,s", "c")], {"b": big, "s": i64(2**20)}
    yield [node("Concat", ",".join("b" * 999), "c", axis=0)], {"b": big}
    yield [node("Gather", "b,i", "c", axis=0)], {"b": big[None], "i": np.zeros(2**12, np.int64)}
    yield [node("Where", "m,b,s", "c")], {"m": np.ones((2**14, 1), bool), "b": big[: 2**14], "s": np.float32(0)}
    yield [node("MatMul", "b,s", "c")], {"b": big[: 2**14, None], "s": big[None, : 2**14]}
    yield [node("Resize", "b,,s", "c")], {"b": f32(1, 1, 2, 2), "s": np.array([1, 1, 1e6, 1e6], np.float32)}


@pytest.mark.parametrize("number", range(9))
def test_constants_cannot_be_made_to_fill_the_memory(tmp_path, number):
    nodes, arrays = list(constant_bombs())[number]
    with pytest.raises(ValueError, match=rf"{nodes[0].op_type} \(node 0 ''\): must (make|resize)"):
        load_onnx_net(saved(tmp_path, model([*nodes, node("Add", "x,c")], opset=13, **arrays)))


def test_many_constants_cannot_be_made_to_fill_the_memory(tmp_path):
    names = ["c", *(f"c{i}" for i in range(9)), "d"]
    nodes = [node("ConstantOfShape", "s", "c"), *(node("Neg", a, b) for a, b in itertools.pairwise(names))]
    made = model([*nodes, node("Add", "x,d")], s=i64(2**26))
    with pytest.raises(ValueError, match=r"must make at most 268435456 numbers of constants in all"):
        load_onnx_net(saved(tmp_path, made))


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
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcloak\[faces\]'"):
        load_onnx_net(tmp_path / "net.onnx")
