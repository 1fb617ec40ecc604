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
from fastcloak.models.onnx.operators import OPERATORS
from fastcloak.models.onnx.reader import load_onnx_net
from fastcloak.system import packages
from fastcloak.system.errors import MissingExtraError

RANDOM = np.random.default_rng(0)
SIZE = 9  # odd on purpose


def f32(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def i64(*numbers):
    return np.array(numbers, np.int64)


def nodes_of(text):
    """Nodes in the format of onnx.parser, with semicolons between them."""
    return [onnx.parser.parse_node(node) for node in text.split(";")]


def model(text, *, opset=17, shape=("n", 3, SIZE, SIZE), output="y", kind=TensorProto.FLOAT, **arrays):
    """A file that takes the picture x; `arrays` are its constants."""
    picture = helper.make_tensor_value_info("x", kind, shape)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in output.split(",")]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes_of(text), "g", [picture], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


@pytest.fixture
def load(tmp_path):
    """Writes a model to a file and reads that."""

    def write_and_read(made, *size):
        path = tmp_path / "net.onnx"
        path.write_bytes(made.SerializeToString())
        return load_onnx_net(path, *size)

    return write_and_read


def by_onnxruntime(made, pictures):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pictures.numpy()})[0])


def pictures_of(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32))


CONV = {"w": f32(5, 3, 3, 3), "b": f32(5)}
NORM = {"s": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3)) + 0.5}
HALF = {"half": np.float32(0.5)}
TO = {"to": i64(0, 3, 81)}

# Whole numbers [4] named r, computed from the shape s of the picture, which is multiplied by them along its height.
# fmt: off
OF_SHAPES = {
    "range": ("c = Gather(s, i); r = Range(zero, c, one)", {"i": np.int64(1), "zero": np.int64(0), "one": np.int64(1)}),
    "comparisons": (
        "t = Slice(s, one, four); l = Less(t, five); le = LessOrEqual(t, five); g = Greater(t, five); "
        "ge = GreaterOrEqual(t, five); both = And(l, le); either = Or(g, ge); neither = Not(either); "
        "same = Equal(both, neither); r = Where(same, t, five)",
        {"one": i64(1), "four": i64(4), "five": i64(5)}),
    "counts": (
        "t = Slice(s, one, four); area = ReduceProd<keepdims=1>(t); sums = CumSum(t, zero); rest = Mod(sums, five); "
        "r = Add(rest, area)",
        {"one": i64(1), "four": i64(4), "five": i64(5), "zero": np.int64(0)}),
    "halves": (
        "t = Slice(s, one, four); real = Cast<to=1>(t); h = Mul(real, half); low = Floor(h); high = Ceil(h); "
        "r = Add(low, high)",
        {"one": i64(1), "four": i64(4), "half": np.float32(0.5)}),
}
# operators of the picture alone
PLAIN = [
    "Abs(x)", "Relu(x)", "LeakyRelu<alpha=0.3>(x)", "LeakyRelu(x)", "Sigmoid(x)", "Clip(x)", "Flatten(x)",
    "Flatten<axis=-3>(x)", "Transpose<perm=[0, 2, 3, 1]>(x)",
    "MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]>(x)",
    "MaxPool<ceil_mode=1, kernel_shape=[2, 2], strides=[2, 2]>(x)",
    "MaxPool<kernel_shape=[3, 2], pads=[0, 0, 2, 1], strides=[2, 2]>(x)",
    'MaxPool<auto_pad="SAME_UPPER", kernel_shape=[3, 2], strides=[2, 2]>(x)',
    "MaxPool<dilations=[3, 2], kernel_shape=[2, 2]>(x)",
    "AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]>(x)",
    "AveragePool<count_include_pad=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
    "AveragePool<kernel_shape=[3, 2], pads=[0, 0, 1, 1], strides=[2, 2]>(x)",
    "AveragePool<count_include_pad=1, kernel_shape=[3, 2], pads=[0, 0, 1, 1], strides=[2, 2]>(x)",
    'AveragePool<auto_pad="SAME_LOWER", kernel_shape=[3, 2], strides=[2, 2]>(x)', "GlobalAveragePool(x)",
    "ReduceMean<axes=[2, 3]>(x)", "Identity(x)", "Cast<to=1>(x)", "Exp(x)", "Cos(x)", "Sin(x)", "Erf(x)",
    "Neg(x)", "Tanh(x)", "Elu<alpha=0.7>(x)", "Elu(x)", "Celu<alpha=0.7>(x)", "Selu(x)",
    "Selu<alpha=1.2, gamma=0.9>(x)", "Softplus(x)", "Softsign(x)", "HardSwish(x)",
    "HardSigmoid<alpha=0.1666667>(x)", "HardSigmoid(x)", "Softmax(x)", "LogSoftmax<axis=1>(x)",
    "LpNormalization(x)", "LpNormalization<axis=1, p=1>(x)", "LRN<alpha=0.5, beta=0.6, bias=0.9, size=3>(x)",
    "GlobalMaxPool(x)", "ReduceLogSumExp<axes=[1, 2]>(x)", "ReduceL2<axes=[2, -1]>(x)",
]
# name -> nodes, or nodes and options of `model`
CASES = {
    **{node: f"y = {node}" for node in PLAIN},
    "clip_attributes": ("y = Clip<max=0.7, min=-0.5>(x)", {"opset": 10}),
    "clip_inputs": ("y = Clip(x, a, c)", {"a": np.float32(-0.5), "c": np.float32(0.7)}),
    "clip_low_only": ("y = Clip(x, a)", {"a": np.float32(-0.2)}),
    "clip_high_only": ("y = Clip(x, , a)", {"a": np.float32(0.2)}),
    "prelu_channels": ("y = PRelu(x, w)", {"w": f32(3, 1, 1)}),
    "prelu_one": ("y = PRelu(x, w)", {"w": f32(1)}),
    "prelu_flat": ("f = Flatten(x); y = PRelu(f, w)", {"w": f32(243)}),
    "add_scalar": ("y = Add(x, a)", {"a": np.float32(0.4)}),
    "add_channels": ("y = Add(x, a)", {"a": f32(3, 1, 1)}),
    "add_computed": "r = Relu(x); y = Add(x, r)",
    "sub_constant_first": ("y = Sub(a, x)", {"a": f32(1, 3, 1, 1)}),
    "mul": ("y = Mul(x, a)", {"a": f32(1, 1, 9, 9)}),
    "div": ("y = Div(x, a)", {"a": f32(3, 1, 1) + 5}),
    "conv": ("y = Conv<pads=[1, 1, 1, 1]>(x, w, b)", CONV),
    "conv_no_bias_strided": ("y = Conv<strides=[2, 3]>(x, w)", {"w": CONV["w"]}),
    "conv_groups": ("y = Conv<group=3, kernel_shape=[3, 3]>(x, w)", {"w": f32(6, 1, 3, 3)}),
    "conv_asymmetric": ("y = Conv<pads=[0, 1, 2, 0], strides=[2, 2]>(x, w, b)", CONV),
    "conv_dilated": ("y = Conv<dilations=[2, 2], pads=[2, 2, 2, 2]>(x, w, b)", CONV),
    "conv_same_upper": ('y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)', {"w": f32(4, 3, 2, 3)}),
    "conv_same_lower": ('y = Conv<auto_pad="SAME_LOWER", strides=[2, 2]>(x, w)', {"w": f32(4, 3, 2, 3)}),
    "conv_valid": ('y = Conv<auto_pad="VALID", strides=[2, 2]>(x, w, b)', CONV),
    "norm": ("y = BatchNormalization<epsilon=0.002>(x, s, b, m, v)", NORM),
    "norm_old_attributes": ("y = BatchNormalization<spatial=1>(x, s, b, m, v)", {**NORM, "opset": 8}),
    "norm_flat": (
        "f = Flatten(x); g = Gemm<transB=1>(f, w); y = BatchNormalization(g, s, b, m, v)",
        {"w": f32(3, 243), **NORM}),
    "reshape_zero": ("y = Reshape(x, s)", {"s": i64(0, -1)}),
    "reshape_minus_one": ("y = Reshape(x, s)", {"s": i64(-1, 27, 9)}),
    "reshape_keeps_channels": ("y = Reshape(x, s)", {"s": i64(-1, 3, 81)}),
    "flatten_as_pytorch_writes_it": (
        "s = Shape(x); n = Gather<axis=0>(s, zero); u = Unsqueeze(n, axes); t = Concat<axis=0>(u, rest); "
        "y = Reshape(x, t)", {"zero": np.int64(0), "axes": i64(0), "rest": i64(-1)}),
    "flatten_by_slice_of_shape": (
        "s = Shape(x); n = Slice(s, zero, one); c = Cast<to=7>(n); rest = Constant<value=int64[1] {-1}>(); "
        "t = Concat<axis=0>(c, rest); y = Reshape(x, t)", {"zero": i64(0), "one": i64(1)}),
    "shape_start": (
        "s = Shape<end=2, start=0>(x); t = Concat<axis=0>(s, rest); y = Reshape(x, t)", {"rest": i64(-1)}),
    "squeeze_attribute": ("p = GlobalAveragePool(x); y = Squeeze<axes=[2, -1]>(p)", {"opset": 11}),
    "squeeze_input": ("p = GlobalAveragePool(x); y = Squeeze(p, a)", {"a": i64(3, 2)}),
    "unsqueeze_attribute": ("y = Unsqueeze<axes=[1, -1]>(x)", {"opset": 11}),
    "unsqueeze_input": ("y = Unsqueeze(x, a)", {"a": i64(2)}),
    "concat": "r = Relu(x); y = Concat<axis=-3>(x, r, x)",
    "gemm": ("f = Flatten(x); y = Gemm<alpha=0.5, beta=2.0>(f, w, b)", {"w": f32(243, 7), "b": f32(1, 7)}),
    "gemm_transposed": ("f = Flatten(x); y = Gemm<transB=1>(f, w, b)", {"w": f32(7, 243), "b": f32(7)}),
    "gemm_no_bias": ("f = Flatten(x); y = Gemm(f, w)", {"w": f32(243, 1)}),
    "gemm_scalar_bias": ("f = Flatten(x); y = Gemm(f, w, b)", {"w": f32(243, 7), "b": f32(1)}),
    "matmul": ("f = Flatten(x); y = MatMul(f, w)", {"w": f32(243, 7)}),
    "matmul_on_pictures": ("y = MatMul(x, w)", {"w": f32(9, 4)}),
    "matmul_constant_first": ("y = MatMul(w, x)", {"w": f32(4, 9)}),
    "matmul_computed": "t = Transpose<perm=[0, 1, 3, 2]>(x); y = MatMul(x, t)",
    "average_pool_ceil": ("y = AveragePool<ceil_mode=1, kernel_shape=[2, 2], strides=[2, 2]>(x)", {"opset": 19}),
    "reduce_mean_input": ("y = ReduceMean<keepdims=0>(x, a)", {"a": i64(-1, 2), "opset": 18}),
    "pad_attribute": ("y = Pad<pads=[0, 0, 1, 2, 0, 0, 0, 3]>(x)", {"opset": 10}),
    "pad_symmetric": ("y = Pad(x, p)", {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "pad_value_and_channels": ("y = Pad(x, p, c)", {"p": i64(0, 1, 1, 2, 0, 2, 0, 3), "c": np.float32(1.5)}),
    "pad_crops": ("y = Pad(x, p)", {"p": i64(0, 0, -1, 2, 0, 0, 0, -3)}),
    "pad_axes": ("y = Pad(x, p, , a)", {"p": i64(2, 1), "a": i64(-1), "opset": 18}),
    "pad_reflect": ('y = Pad<mode="reflect">(x, p)', {"p": i64(0, 0, 1, 2, 0, 0, 0, 3)}),
    "pad_edge": ('y = Pad<mode="edge">(x, p)', {"p": i64(0, 0, 1, 2, 0, 0, 0, 3)}),
    "dropout_attribute": ("y = Dropout<ratio=0.4>(x)", {"opset": 10}),
    "dropout_input": ("y, mask = Dropout(x, r)", {"r": np.float32(0.4)}),
    "dequantize_without_zero": (
        "w = DequantizeLinear(q, s); y = Conv(x, w)",
        {"q": RANDOM.integers(-9, 9, (4, 3, 3, 3), np.int8), "s": np.float32(0.1), "opset": 10}),
    "flatten_as_old_pytorch_writes_it": (
        "s = Shape(x); n = Gather<axis=0>(s, zero); u = Unsqueeze<axes=[0]>(n); t = Concat<axis=0>(u, rest); "
        "y = Reshape(x, t)", {"zero": np.int64(0), "rest": i64(-1), "opset": 9}),
    "constant": (
        "c = Constant<value_floats=[0.1, 0.2, 0.3]>(); k = Reshape(c, s); y = Add(x, k)", {"s": i64(3, 1, 1)}),
    "slice_attributes": ("y = Slice<axes=[1, 3], ends=[3, -2], starts=[1, 0]>(x)", {"opset": 9}),
    "slice_inputs": (
        "y = Slice(x, a, e, d, t)", {"a": i64(1, 0), "e": i64(2**62, 8), "d": i64(2, -1), "t": i64(1, 3)}),
    "gather_one": ("y = Gather<axis=1>(x, i)", {"i": np.int64(-1)}),
    "gather_some": ("y = Gather<axis=1>(x, i)", {"i": i64(2, 0, 2)}),
    "dequantize_tensor": (
        "w = DequantizeLinear(q, s, z); y = Conv(x, w)",
        {"q": RANDOM.integers(-9, 9, (4, 3, 3, 3), np.int8), "s": np.float32(0.1), "z": np.int8(2), "opset": 13}),
    "dequantize_channels": (
        "w = DequantizeLinear<axis=0>(q, s, z); y = Conv(x, w)",
        {"q": RANDOM.integers(0, 99, (4, 3, 3, 3), np.uint8), "s": np.abs(f32(4)) / 50, "z": RANDOM.integers(0,
         99, 4, np.uint8), "opset": 13}),
    "dequantize_blocks": (
        "d = DequantizeLinear<axis=1, block_size=32>(q, s, z); w = Reshape(d, r); y = Conv(x, w)",
        {"q": RANDOM.integers(-99, 99, (4, 96), np.int8), "s": np.abs(f32(4, 3)) / 50, "z": RANDOM.integers(-9,
         9, (4, 3), np.int8), "r": i64(32, 3, 2, 2), "opset": 21}),
    "mish": ("y = Mish(x)", {"opset": 18}),
    "gelu": ("y = Gelu(x)", {"opset": 20}),
    "gelu_tanh": ('y = Gelu<approximate="tanh">(x)', {"opset": 20}),
    "sqrt": ("a = Abs(x); p = Add(a, half); y = Sqrt(p)", HALF),
    "log": ("a = Abs(x); p = Add(a, half); y = Log(p)", HALF),
    "reciprocal": ("a = Abs(x); p = Add(a, half); y = Reciprocal(p)", HALF),
    "pow_square": ("y = Pow(x, e)", {"e": np.float32(2)}),
    "pow_whole_exponent": ("y = Pow(x, e)", {"e": np.int64(3)}),
    "pow_root": ("a = Abs(x); p = Add(a, half); y = Pow(p, e)", {**HALF, "e": np.float32(-0.5)}),
    "pow_channels": ("a = Abs(x); p = Add(a, half); y = Pow(p, e)", {**HALF, "e": f32(3, 1, 1)}),
    "pow_of_a_constant": ("y = Pow(e, x)", {"e": np.float32(1.5)}),
    "pow_computed": ("a = Abs(x); p = Add(a, half); y = Pow(p, x)", HALF),
    **{
        f"softmax_opset_{opset}_axis_{axis}": (f"y = Softmax<axis={axis}>(x)", {"opset": opset})
        for opset in (11, 12, 13, 17)
        for axis in (1, 2, -1)
    },
    "softmax_old_default": ("y = Softmax(x)", {"opset": 11}),
    "instance_normalization": ("y = InstanceNormalization<epsilon=0.001>(x, s, b)", {"s": f32(3), "b": f32(3)}),
    "instance_normalization_lists": (
        "r = Reshape(x, to); y = InstanceNormalization(r, s, b)", {**TO, "s": f32(3), "b": f32(3)}),
    "group_normalization": (
        "c = Concat<axis=1>(x, x); y = GroupNormalization<num_groups=2>(c, s, b)",
        {"s": f32(6), "b": f32(6), "opset": 21}),
    "layer_normalization": ("y = LayerNormalization(x, s, b)", {"s": f32(9), "b": f32(9)}),
    "layer_normalization_axis": ("y = LayerNormalization<axis=1, epsilon=0.001>(x, s)", {"s": f32(3, 9, 9)}),
    "global_pools_of_lists": (
        "r = Reshape(x, to); m = GlobalMaxPool(r); g = GlobalAveragePool(r); y = Add(m, g)", TO),
    "conv_on_lists": (
        "r = Reshape(x, to); y = Conv<dilations=[2], pads=[2, 1], strides=[3]>(r, w, b)",
        {**TO, "w": f32(5, 3, 4), "b": f32(5)}),
    **{
        f"{kind}_opset_{opset}_{keep}": (
            (f"y = {kind}<axes=[-1], keepdims={keep}>(x)", {"opset": opset})
            if opset < (13 if kind == "ReduceSum" else 18)
            else (f"y = {kind}<keepdims={keep}>(x, a)", {"opset": opset, "a": i64(-1)})
        )
        for kind in ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare")
        for opset in (11, 13, 18)
        for keep in (0, 1)
    },
    "max": ("m = Neg(x); y = Max(x, m, c)", {"c": np.float32(0.3)}),
    "min": ("y = Min(c, x)", {"c": f32(3, 1, 1)}),
    "sum": ("r = Relu(x); y = Sum(x, r, c, x)", {"c": f32(3, 1, 1)}),
    "mean": "r = Relu(x); y = Mean(x, r, x)",
    "einsum": ('y = Einsum<equation="bchw, hk -> bkwc">(x, w)', {"w": f32(9, 4)}),
    "einsum_implicit": ('y = Einsum<equation="bchw,ck">(x, w)', {"w": f32(3, 4)}),
    "einsum_attention": 's = Einsum<equation="bcij,bckj->bcik">(x, x); y = Einsum<equation="bcik,bckj->bcij">(s, x)',
    "split_equal": "p, q, r = Split<axis=1>(x); d = Sub(p, q); y = Mul(d, r)",
    "split_attribute": ("p, q = Split<axis=-1, split=[2, 7]>(x); y = Concat<axis=3>(q, p)", {"opset": 11}),
    "split_input": ("p, q, r = Split<axis=2>(x, l); y = Concat<axis=2>(r, p, q)", {"l": i64(2, 3, 4)}),
    "split_uneven": ("p, q = Split<axis=2, num_outputs=2>(x); y = Concat<axis=2>(q, p)", {"opset": 18}),
    "expand_to_constant": ("g = Gather<axis=1>(x, i); y = Expand(g, l)", {"i": i64(1), "l": i64(1, 5, 9, 9)}),
    "expand_by_a_shape": "l = ReduceL2<axes=[1]>(x); s = Shape(x); e = Expand(l, s); y = Div(x, e)",
    "expand_adds_axes": ("y = Expand(x, l)", {"l": i64(1, 1, 1, 1)}),
    "tile": ("y = Tile(x, r)", {"r": i64(1, 2, 1, 3)}),
    "where_mask": ("y = Where(m, x, c)", {"m": f32(9, 9) > 0, "c": np.float32(-1)}),
    "where_other_way": ("y = Where(m, c, x)", {"m": f32(3, 1, 1) > 0, "c": f32(9)}),
    "where_both": ("m = Neg(x); y = Where(c, x, m)", {"c": f32(1, 9) > 0}),
    "class_token": (
        "u = Reshape(x, to); t = Transpose<perm=[0, 2, 1]>(u); s = Shape(x); n = Gather<axis=0>(s, zero); "
        "n1 = Unsqueeze(n, front); target = Concat<axis=0>(n1, minus, minus); length = Shape(target); "
        "ones = ConstantOfShape<value=int64[1] {1}>(length); all = Mul(ones, minus); open = Equal(target, all); "
        "sizes = Where(open, ones, target); tokens = Expand(token, sizes); y = Concat<axis=1>(tokens, t)",
        {**TO, "zero": np.int64(0), "front": i64(0), "minus": i64(-1), "token": f32(1, 1, 3)}),
    "tokens_in_front": (
        "u = Reshape(x, to); t = Transpose<perm=[0, 2, 1]>(u); l = Transpose<perm=[1, 0, 2]>(t); "
        "q = MatMul(l, w); a = Add(q, positions); m = Softmax<axis=0>(a); g = Gather<axis=0>(m, two); "
        "h = ReduceMean<axes=[0], keepdims=0>(m); y = Add(g, h)",
        {**TO, "w": f32(3, 4), "positions": f32(81, 1, 4), "two": np.int64(2)}),
    "heads_merged_with_pictures": (
        "u = Reshape(x, to); t = Transpose<perm=[0, 2, 1]>(u); l = Transpose<perm=[1, 0, 2]>(t); s = Shape(x); "
        "n = Gather<axis=0>(s, zero); m = Mul(n, heads); m1 = Unsqueeze(m, front); "
        "split = Concat<axis=0>(long, m1, one); h = Reshape(l, split); q = Transpose<perm=[1, 0, 2]>(h); "
        "k = Transpose<perm=[1, 2, 0]>(h); scores = MatMul(q, k); p = Softmax(scores); v = MatMul(p, q); "
        "back = Transpose<perm=[1, 0, 2]>(v); flat = Reshape(back, rows); out = MatMul(flat, w); "
        "n1 = Unsqueeze(n, front); joined = Concat<axis=0>(long, n1, three); r = Reshape(out, joined); "
        "y = Transpose<perm=[1, 0, 2]>(r)",
        {**TO, "zero": np.int64(0), "front": i64(0), "heads": np.int64(3), "long": i64(81), "one": i64(1),
         "three": i64(3), "rows": i64(-1, 3), "w": f32(3, 3)}),
    "windows_merged_with_pictures": (
        "r = Reshape(x, to6); t = Transpose<perm=[0, 2, 4, 3, 5, 1]>(r); w = Reshape(t, windows); "
        "m = Softmax<axis=1>(w); b = Reshape(m, back); y = ReduceMax<axes=[1, 3], keepdims=0>(b)",
        {"to6": i64(0, 3, 3, 3, 3, 3), "windows": i64(-1, 9, 3), "back": i64(-1, 9, 9, 3)}),
    "matmul_of_rows": (
        "u = Reshape(x, to); t = Transpose<perm=[0, 2, 1]>(u); r = Reshape(t, rows); q = MatMul(r, w); "
        "y = Reshape(q, back)", {**TO, "rows": i64(-1, 3), "w": f32(3, 5), "back": i64(-1, 81, 5)}),
    "matmul_of_many_constants": ("y = MatMul(x, w)", {"w": f32(1, 3, 9, 4)}),
    "flatten_two": (
        "u = Reshape(x, to); t = Transpose<perm=[0, 2, 1]>(u); l = Transpose<perm=[1, 0, 2]>(t); "
        "f = Flatten<axis=2>(l); b = Reshape(f, back); y = Transpose<perm=[1, 0, 2]>(b)",
        {**TO, "back": i64(81, -1, 3)}),
    "gather_a_table": ("y = Gather<axis=2>(x, i)", {"i": np.array([[0, -1], [4, 4], [2, 8]])}),
    "slice_backwards": (
        "y = Slice(x, a, e, d, t)", {"a": i64(-1, 7), "e": i64(-(2**63), 1), "d": i64(1, 3), "t": i64(-1, -2)}),
    "slice_all_of_the_batch": ("y = Slice(x, a, e, d)", {"a": i64(0, 1), "e": i64(2**63 - 1, 2), "d": i64(0, 1)}),
    "size": (
        "g = Gather<axis=0>(x, i); c = Size(g); f = Cast<to=1>(c); y = Div(x, f)",
        {"i": i64(0), "shape": [1, 3, 9, 9]}),
    "conv_of_a_constant": (
        "s = Sin(c); p = Conv(s, w); q = Softmax<axis=1>(p); y = Add(x, q)",
        {"c": f32(1, 2, 9, 9), "w": f32(3, 2, 1, 1)}),
    "norm_of_a_constant": (
        "f = Flatten(x); u = LpNormalization<axis=0>(w); p, q = Split<axis=1>(u); y = MatMul(f, q)",
        {"w": f32(243, 8)}),
    **{
        f"resize_{mode}_{how}_{up}": (
            f'y = Resize<mode="{mode}", coordinate_transformation_mode="{how}">(x, , z)',
            {"z": np.array([1, 1, *up], np.float32)},
        )
        for mode in ("nearest", "linear", "cubic")
        for how in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for up in ((2, 1.5), (0.5, 0.75))
    },
    "resize_to_sizes": ('y = Resize<mode="linear">(x, , , z)', {"z": i64(1, 3, 14, 5), "shape": [1, 3, 9, 9]}),
    "resize_rounding": (
        'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , , z)',
        {"z": i64(1, 3, 14, 5), "shape": [1, 3, 9, 9]}),
    "resize_old": ("y = Resize(x, z)", {"z": np.array([1, 1, 2, 3], np.float32), "opset": 10}),
    "upsample": ('y = Upsample<mode="linear">(x, z)', {"z": np.array([1, 1, 2, 3], np.float32), "opset": 9}),
    "prelu_written_out": (
        "r = Relu(x); a = Abs(x); d = Sub(x, a); m = Mul(c, d); y = Add(r, m)", {"c": f32(1, 3, 1, 1)}),
    **{
        name: (
            f"s = Shape(x); {nodes}; f = Cast<to=1>(r); k = Reshape(f, column); y = Mul(x, k)",
            {"column": i64(-1, 1, 1), **options},
        )
        for name, (nodes, options) in OF_SHAPES.items()
    },
}
# fmt: on
CASES = {name: case if isinstance(case, tuple) else (case, {}) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_operator_agrees_with_onnxruntime(name, load):
    nodes, options = CASES[name]
    made = model(nodes, **options)
    net = load(made).net
    # Some files take one picture at a time.
    for n in (1,) if "shape" in options else (1, 3):
        pictures = pictures_of(n, seed=n).requires_grad_()
        expected = by_onnxruntime(made, pictures.detach())
        got = net(pictures)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-4
        direction = torch.from_numpy(np.random.default_rng(9).normal(size=got.shape).astype(np.float32))
        (gradient,) = torch.autograd.grad((got * direction).sum(), pictures)
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


def test_every_supported_operator_has_a_case():
    assert {node.op_type for text, _ in CASES.values() for node in nodes_of(text)} == set(OPERATORS)


def test_operators_become_torch_modules(load):
    text = "c = Conv(x, w, b); n = BatchNormalization(c, s, t, m, v); r = PRelu(n, p); f = Flatten(r); y = Gemm(f, g)"
    norm = {"s": f32(5), "t": f32(5), "m": f32(5), "v": np.abs(f32(5))}
    net = load(model(text, **CONV, **norm, p=f32(5, 1, 1), g=f32(245, 4))).net
    kinds = [type(module) for module in net.children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.PReLU, nn.Flatten, nn.Linear]
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_prelu_written_out_becomes_one_module(load):
    nodes, options = CASES["prelu_written_out"]
    (prelu,) = load(model(nodes, **options)).net.children()
    assert type(prelu) is nn.PReLU
    assert torch.equal(prelu.weight, torch.from_numpy(options["c"]).flatten() * 2)


def test_prelu_of_two_different_inputs_is_left_alone(load):
    nodes, options = CASES["prelu_written_out"]
    made = model("s = Sigmoid(x); " + nodes.replace("Relu(x)", "Relu(s)"), **options)
    assert (load(made).net(pictures_of(2)) - by_onnxruntime(made, pictures_of(2))).abs().max() <= 1e-6


def test_sface_agrees_with_onnxruntime():
    made = onnx.load(packages.sface_file())
    # onnxruntime wants a value for every input, also those that nothing reads
    picture = [entry for entry in made.graph.input if entry.name == "data"]
    del made.graph.input[:]
    made.graph.input.extend(picture)
    faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([by_onnxruntime(made, face[None] * 255) for face in faces])
    assert (load_model("sface")(faces) - expected).abs().max() <= 1e-4


def test_channels_last_pictures_are_permuted(load):
    made = model("t = Transpose<perm=[0, 3, 1, 2]>(x); y = Conv(t, w, b)", shape=["n", 9, 9, 3], **CONV)
    expected = by_onnxruntime(made, pictures_of(2).permute(0, 2, 3, 1).contiguous())
    assert (load(made).net(pictures_of(2)) - expected).abs().max() <= 1e-4


FREED = {
    "a_batch_of_one": model("y = Reshape(x, s)", shape=[1, 3, 9, 9], s=i64(1, -1)),
    "left_by_an_exporter": model("r = Reshape(x, s); y = Reshape(r, t)", s=i64(8, 3, 81), t=i64(2, -1)),
    "a_batch_of_four": model("y = Reshape(x, s)", shape=[4, 3, 9, 9], s=i64(4, -1)),
    "no_batch_axis_at_the_end": model("f = Flatten(x); y = Squeeze(f)", shape=[1, 3, 9, 9]),
}


@pytest.mark.parametrize("name", FREED)
def test_a_fixed_batch_in_the_file_is_freed(name, load):
    assert torch.equal(load(FREED[name]).net(pictures_of(5)), pictures_of(5).flatten(1))


def test_a_file_made_for_several_pictures_at_a_time_says_so(load):
    words = r"the file takes 4 pictures at a time; export it for 1, or leave the number open"
    with pytest.raises(ValueError, match=words):
        load(model("y = Reshape(x, s)", shape=[4, 3, 9, 9], s=i64(12, 81)))


def test_an_open_size_is_112_unless_said(load):
    made = model("y = GlobalAveragePool(x)", shape=["n", 3, "h", "w"])
    assert load(made).input_size == 112
    assert load(made, 64).input_size == 64


def test_a_size_against_the_file_is_refused(load):
    with pytest.raises(ValueError, match=r"input_size must be 9, which the file itself says, got 112"):
        load(model("y = Relu(x)"), 112)


def test_initialisers_may_be_listed_as_inputs(load):
    made = model("y = Conv(x, w, b)", **CONV)
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5, 3, 3, 3]))
    assert load(made).net(pictures_of(1)).shape == (1, 5, 7, 7)


def test_half_precision_weights_become_float32(load):
    made = model("w = Cast<to=1>(h); y = Conv(x, w)", h=f32(4, 3, 3, 3).astype(np.float16))
    assert (load(made).net(pictures_of(2)) - by_onnxruntime(made, pictures_of(2))).abs().max() <= 1e-4


def test_the_first_of_several_outputs_is_used_and_said(load, caplog):
    with caplog.at_level(logging.WARNING, "fastcloak"):
        net = load(model("y = Flatten(x); z = Unknown(x)", output="y,z")).net
    assert net(pictures_of(2)).shape == (2, 243)
    assert "net.onnx: has 2 outputs; the first, 'y', is used" in caplog.text


@pytest.mark.parametrize("shape", [["n", 3, 9, 9], ["n", 9, 9, 3], [1, 9, 9, 3]])
def test_pictures_of_whole_numbers_are_taken_as_floats(load, shape):
    last = shape[-1] == 3
    order = [0, 3, 1, 2] if last else [0, 1, 2, 3]
    text = f"t = Transpose<perm={order}>(x); f = Cast<to=1>(t); d = Sub(f, a); s = Div(d, c); y = Conv(s, w, b)"
    made = model(text, shape=shape, kind=TensorProto.UINT8, a=np.float32(127.5), c=np.float32(128), **CONV)
    pictures = torch.from_numpy(RANDOM.integers(0, 256, (1, 3, 9, 9), np.uint8))
    expected = by_onnxruntime(made, pictures.permute(0, 2, 3, 1).contiguous() if last else pictures)
    file = load(made)
    assert file.uint8
    assert (file.net(pictures.float()) - expected).abs().max() <= 1e-4


BOMB = "; ".join(
    f"{b} = Concat<axis=2>({a}, {a})" for a, b in itertools.pairwise(["x", *(f"t{i}" for i in range(40)), "y"])
)
# fmt: off
BAD = {
    "unknown_operator": (model("y = Loop(x)"), r"operator Loop; supported are Abs, Add, .*Where"),
    "foreign_domain": (model("y = com.acme.Conv(x)"), r"unsupported operator com\.acme\.Conv"),
    "old_opset": (model("y = Relu(x)", opset=6), r"opset must be 7 or later, got 6"),
    "grey": (model("y = Relu(x)", shape=["n", 1, 9, 9]), r"must take square RGB pictures .* \[0, 1, 9, 9\]"),
    "oblong": (model("y = Relu(x)", shape=["n", 3, 9, 8]), r"must take square RGB pictures"),
    "flat_input": (model("y = Relu(x)", shape=["n", 27]), r"must take float pictures \[n, 3, H, W\]"),
    "no_input": (model("y = Relu(a)", a=f32(2)), r"must take one picture, got 0 inputs"),
    "missing_value": (model("y = Add(x, ghost)"), r"Add \(node 0 ''\): no value named 'ghost'"),
    "missing_output": (model("z = Relu(x)"), r"must take one picture|does not depend"),
    "computed_weight": (model("c = Conv(x, w); y = Conv(x, c)", w=f32(3, 3, 1, 1)),
        r"Conv \(node 1 ''\): input 1 must be a constant of the file, got a computed value"),
    "wrong_weight": (model("y = Conv(x, w)", w=f32(5, 4, 3, 3)), r"Conv \(node 0 ''\)"),
    "wrong_bias": (model("y = Conv(x, w, b)", w=f32(5, 3, 3, 3), b=f32(4)), r"bias must be \[5\], got \[4\]"),
    "moves_batch": (model("y = Transpose<perm=[1, 0, 2, 3]>(x)"),
        r"the output 'y' must keep pictures apart and leave the batch in front, \[n, D\], got \[3, 1, 9, 9\] for one"),
    "mixes_pictures": (model("y = Reshape(x, s)", s=i64(-1, 1)), r"must keep pictures apart"),
    "mean_of_everything": (model("y = ReduceMean(x)"), r"axes must be given"),
    "reduces_batch": (model("y = ReduceMean<axes=[0]>(x)"), r"axis 0 is the batch"),
    "no_such_axis": (model("y = Concat<axis=7>(x, x)"), r"axis must be in \[-4, 3\], got 7"),
    "computes_with_batch": (model("s = Shape(x); t = Mul(s, s); y = Reshape(x, t)"),
        r"must keep pictures apart: \[1, 3, 9, 9\] of one picture cannot become \[1, 9, 81, 81\]"),
    "training_norm": (model("y = BatchNormalization<training_mode=1>(x, s, b, m, v)", **NORM),
        r"must be in inference mode"),
    "huge_pad": (model("y = Pad(x, p)", p=i64(0, 0, 9**6, 0, 0, 0, 0, 0)), r"pads must be 8 whole numbers within"),
    "bomb": (model(BOMB), r"must make at most 16777216 numbers a picture"),
    "bomb_of_32_gb_at_once": (
        model("t = Reshape(x, tall); u = Reshape(x, wide); c = Conv(t, w); y = MatMul(c, u)",
              tall=i64(-1, 1, 243, 1), wide=i64(-1, 1, 1, 243), w=np.zeros((65536, 1, 1, 1), np.float32)),
        r"MatMul \(node 3 ''\): must make at most 16777216 numbers a picture, got shape \[65536, 243, 243\]"),
    "index_beyond": (model("y = Gather<axis=1>(x, i)", i=i64(0, 3)), r"indices must be in \[-3, 2\], got 0 to 3"),
    "norm_of_another_size": (model("y = BatchNormalization(x, s, b, m, v)", **{**NORM, "m": f32(4)}),
        r"running_mean must be \[3\], got \[4\]"),
    "bomb_of_constants": (model("c = Add(a, b); y = Add(x, c)", a=f32(40000, 1), b=f32(1, 40000)),
        r"must make a constant of at most 67108864 numbers, got shape \[40000, 40000\]"),
    "pad_of_a_constant": (model("c = Pad(a, p); y = Add(x, c)", a=f32(3), p=i64(0, 9**9)),
        r"Pad \(node 0 ''\): pads must be 2 whole numbers within"),
    "huge_blocks": (
        model("w = DequantizeLinear<axis=0, block_size=1099511627776>(q, s); y = Conv(x, w)",
              opset=21, q=np.ones((4, 3, 1, 1), np.int8), s=f32(1, 3, 1, 1)),
        r"block_size must be in \[0, 4\]"),
    "wide_prelu": (model("y = PRelu(x, w)", w=f32(3, 9, 9)), r"slope must be one number or 3"),
    "uncountable_parts": (model("y, z = Split<axis=1, num_outputs=1099511627776>(x)", opset=18),
        r"num_outputs must be 2, got 1099511627776"),
    "complex_sizes": (model("y = Reshape(x, s)", s=np.array([1, -1j])), r"must be whole numbers, got complex128"),
    "computed_condition": (model("c = Equal(x, x); y = Where(c, x, x)"),
        r"Equal \(node 0 ''\): must have constants of the file as its inputs, got a computed value"),
    "softmax_over_the_batch": (model("y = Softmax<axis=0>(x)"), r"axis 0 is the batch and must be left alone"),
    "split_of_the_batch": (model("y = Split<axis=0>(x)", opset=11), r"axis 0 is the batch"),
    "first_picture_only": (model("y = Slice(x, a, e, d)", a=i64(0), e=i64(1), d=i64(0)),
        r"axis 0 is the batch and must be left alone"),
    "squeezes_the_batch": (model("y = Squeeze(x, a)", a=i64(0)), r"axis 0 is the batch and must be left alone"),
    "einsum_of_three": (model('y = Einsum<equation="bcij,bcij,bcij->bc">(x, x, x)'),
        r"equation must have one or two operands of letters, got 'bcij,bcij,bcij->bc'"),
    "odd_resize": (
        model('y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, , z)',
              z=np.ones(4, np.float32) * 2),
        r"must (resize height and width|be one of half_pixel)"),
    "norm_of_another_length": (model("y = LayerNormalization(x, s)", s=f32(8)), r"LayerNormalization \(node 0 ''\)"),
    "missing_attribute": (model("y = MaxPool(x)"), r"MaxPool \(node 0 ''\): kernel_shape must be given"),
    "third_norm": (model("y = LpNormalization<p=3>(x)"), r"p must be 1 or 2, got 3"),
    "to_integers": (model("y = Cast<to=7>(x)"), r"must stay a float"),
    "quantized_activations": (model("y = DequantizeLinear(x, s)", s=np.float32(1)),
        r"must have constants of the file"),
    "computes_with_whole_numbers": (model("d = Div(x, a); y = Cast<to=1>(d)", kind=TensorProto.UINT8, a=np.uint8(2)),
        r"Div \(node 0 ''\): a picture of whole numbers must be cast to float"),
}
# fmt: on


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_refused_with_a_clear_message(name, load):
    made, words = BAD[name]
    with pytest.raises(ValueError, match=rf"net\.onnx: .*{words}"):
        load(made)


BIG = np.zeros(2**20, np.float32)
CONSTANT_BOMBS = {
    "c = Expand(b, s)": {"b": f32(1), "s": i64(2**40)},
    "c = ConstantOfShape(s)": {"s": i64(2**20, 2**20)},
    "c = Range(z, s, o)": {"z": np.int64(0), "s": np.int64(2**50), "o": np.int64(1)},
    "c = Tile(b, s)": {"b": BIG, "s": i64(2**20)},
    f"c = Concat<axis=0>({', '.join('b' * 999)})": {"b": BIG},
    "c = Gather<axis=0>(b, i)": {"b": BIG[None], "i": np.zeros(2**12, np.int64)},
    "c = Where(m, b, s)": {"m": np.ones((2**14, 1), bool), "b": BIG[: 2**14], "s": np.float32(0)},
    "c = MatMul(b, s)": {"b": BIG[: 2**14, None], "s": BIG[None, : 2**14]},
    "c = Resize(b, , s)": {"b": f32(1, 1, 2, 2), "s": np.array([1, 1, 1e6, 1e6], np.float32)},
}


@pytest.mark.parametrize("node", CONSTANT_BOMBS, ids=lambda node: nodes_of(node)[0].op_type)
def test_constants_cannot_be_made_to_fill_the_memory(load, node):
    with pytest.raises(ValueError, match=rf"{nodes_of(node)[0].op_type} \(node 0 ''\): must (make|resize)"):
        load(model(f"{node}; y = Add(x, c)", opset=13, **CONSTANT_BOMBS[node]))


def test_many_constants_cannot_be_made_to_fill_the_memory(load, monkeypatch):
    monkeypatch.setattr("fastcloak.models.onnx.reader.MAX_MADE", 1 << 20)
    nodes = "; ".join(f"c{i + 1} = Neg(c{i})" for i in range(9))
    with pytest.raises(ValueError, match=r"must make at most 1048576 numbers of constants in all"):
        load(model(f"c0 = ConstantOfShape(s); {nodes}; y = Add(x, c9)", s=i64(2**18)))


def test_a_corrupt_file_is_a_value_error(tmp_path):
    whole = model("y = Conv(x, w, b)", **CONV).SerializeToString()
    path = tmp_path / "net.onnx"
    random = np.random.default_rng(1)
    refused = 0
    damaged = [b"", b"not onnx", *(whole[:end] for end in range(0, len(whole), 74))]
    for _ in range(100):
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


def test_a_missing_onnx_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcloak\[faces\]'"):
        load_onnx_net(tmp_path / "net.onnx")


def with_external_weights(folder, made=None, name="net.data"):
    """net.onnx, its weights in the file `name`, and a function that alters where each is said to lie."""
    path = folder / "net.onnx"
    # saving alters what is saved
    copied = onnx.load_from_string((made or model("y = Conv(x, w, b)", **CONV)).SerializeToString())
    options = {"save_as_external_data": True, "size_threshold": 0, "convert_attribute": True}
    onnx.save(copied, path, location=name, **options)

    def alter(**entries):
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                entry.value = str(entries.get(entry.key, entry.value))
        path.write_bytes(proto.SerializeToString())

    return path, alter


CONSTANT = model("y = Conv(x, w)")
CONSTANT.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(CONV["w"])))


@pytest.mark.parametrize("name", ["net.data", "net.onnx_data", "weights of the net", "weights/net.data"])
@pytest.mark.parametrize("made", [model("y = Conv(x, w, b)", **CONV), CONSTANT], ids=["initialisers", "constant_node"])
def test_weights_in_another_file_of_the_folder_are_read(tmp_path, monkeypatch, name, made):
    (tmp_path / "weights").mkdir()
    with_external_weights(tmp_path, made, name)
    monkeypatch.chdir(tmp_path)
    got = load_onnx_net("net.onnx").net(pictures_of(2))
    assert (got - by_onnxruntime(made, pictures_of(2))).abs().max() <= 1e-5


def test_a_name_of_weights_that_is_no_text_is_refused(tmp_path):
    path, _ = with_external_weights(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"net.data", b"net\xff\xfeata"))
    with pytest.raises(ValueError, match=r"net\.onnx: "):
        load_onnx_net(path)


@pytest.mark.parametrize("what", ["pipe", "folder", "missing", "link"])
def test_weights_must_be_an_ordinary_file_of_the_folder(tmp_path, what):
    (tmp_path / "inside").mkdir()
    path, _ = with_external_weights(tmp_path / "inside")
    data = path.with_name("net.data")
    data.rename(tmp_path / "net.data")
    words = "a link out of its folder" if what == "link" else "which is no ordinary file"
    if what == "pipe":
        os.mkfifo(data)
    elif what == "folder":
        data.mkdir()
    elif what == "link":
        data.symlink_to(tmp_path / "net.data")
    with pytest.raises(ValueError, match=rf"net\.onnx: keeps 'w' in the file 'net\.data', {words}"):
        load_onnx_net(path)


OUTSIDE = ["../net.data", "/etc/hostname", "..", "", ".", "sub/../../net.data", "C:\\net", "a\\b"]
BAD_WEIGHTS = [
    *(({"location": name}, r"inside the folder of the \.onnx file|no ordinary file") for name in OUTSIDE),
    ({"offset": 10**9}, r"keeps 'w' .* at 1000000000 to 1000000540, but that has \d+ bytes; it is cut off"),
    ({"length": 10**12}, r"it is cut off or of another network"),
    ({"length": 8}, r"the weights 'w' are damaged .*5,3,3,3"),
    ({"offset": -4}, r"offset must be a whole number, got '-4'"),
    ({"length": "1e3"}, r"length must be a whole number, got '1e3'"),
    ({"length": "9" * 5000}, r"length must be a whole number"),
]


@pytest.mark.parametrize(("entries", "words"), BAD_WEIGHTS, ids=range(len(BAD_WEIGHTS)))
def test_weights_outside_the_folder_or_that_do_not_fit_their_file_are_refused(tmp_path, entries, words):
    (tmp_path / "inside").mkdir()
    path, alter = with_external_weights(tmp_path / "inside")
    (tmp_path / "net.data").write_bytes((tmp_path / "inside" / "net.data").read_bytes())
    alter(**entries)
    with pytest.raises(ValueError, match=rf"net\.onnx: .*({words})"):
        load_onnx_net(path)


@pytest.mark.parametrize(
    ("dims", "length"), [([2**27], 2**29), ([5, 3, 3, 3], 2**30), ([2**26] * 9, 2**28)], ids=["one", "more", "shape"]
)
def test_a_small_file_cannot_ask_for_much_of_a_large_one_next_to_it(tmp_path, load, dims, length):
    with open(tmp_path / "net.data", "wb") as sparse:
        sparse.truncate(2**33)
    made = model("y = Conv(x, w)")
    for i in range(9):
        tensor = made.graph.initializer.add(name=f"w{i}", data_type=1, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "net.data"), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    with pytest.raises(ValueError, match=r"at most 67108864 numbers, and 2147483648 bytes in all, got shape"):
        load(made)
