"""PReLU of a frozen slope, y = max(0, z) + slope min(0, z) with z = x + bias: one launch, and one for its gradient.

    dL/dx = dL/dy where z > 0, slope dL/dy elsewhere

Bytes, N numbers of e bytes: forward reads N e and writes N (e + 1/8), backward reads N (e + 1/8) and writes N e. What
is kept for the gradient are N bits. PyTorch passes 2 N e for a bias and 2 N e forward, keeps N e, and passes 5 N e
backward: it writes the slope's gradient in the size of x and sums it, though nobody reads it.

The limit is memory. A program takes a block of one photo in memory order, eight numbers a thread, so that 16 bytes of
bfloat16 are one access and a thread's eight signs are one byte.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

from typing import Any

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import FLOATS, check

BLOCK = 1024
"""Numbers a program: those of four warps."""


@triton.jit
def _frozen_prelu_kernel(
    x_ptr,  # [N, n] in memory order
    bias_ptr,  # [C] or [n], read if BIASED
    slope_ptr,  # [1] or [C]
    y_ptr,  # [N, n], out
    signs_ptr,  # [N, width] uint8, out: bit i of byte j is number 8 j + i
    n,  # numbers of a photo
    width,  # cdiv(n, 8)
    inner,  # how many numbers of one channel lie side by side
    C,
    BIASED: tl.constexpr,
    PICTURE: tl.constexpr,  # the bias is one a number, not one a channel
    SHARED: tl.constexpr,  # all channels have the same slope
    BLOCK: tl.constexpr,
):
    photo = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n
    channel = (o // inner) % C
    z = tl.load(x_ptr + photo * n + o, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        z += tl.load(bias_ptr + (o if PICTURE else channel), mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(slope_ptr) if SHARED else tl.load(slope_ptr + channel, mask=inside, other=0.0)
    above = z > 0
    y = tl.where(above, z, z * slope.to(tl.float32))
    tl.store(y_ptr + photo * n + o, y.to(y_ptr.dtype.element_ty), mask=inside)
    bits = tl.reshape(above.to(tl.int32), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :]
    byte = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(signs_ptr + photo * width + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=byte < width)


@triton.jit
def _frozen_prelu_grad_kernel(
    grad_ptr,  # [N, n] in memory order
    slope_ptr,  # [1] or [C]
    signs_ptr,  # [N, width] uint8
    out_ptr,  # [N, n], out
    n,
    width,
    inner,
    C,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    photo = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n
    grad = tl.load(grad_ptr + photo * n + o, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(slope_ptr) if SHARED else tl.load(slope_ptr + (o // inner) % C, mask=inside, other=0.0)
    byte = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    signs = tl.load(signs_ptr + photo * width + byte, mask=byte < width, other=0).to(tl.int32)
    above = tl.reshape((signs[:, None] >> tl.arange(0, 8)[None, :]) & 1, (BLOCK,)) != 0
    grad = tl.where(above, grad, grad * slope.to(tl.float32))
    tl.store(out_ptr + photo * n + o, grad.to(out_ptr.dtype.element_ty), mask=inside)


def frozen_prelu(x: torch.Tensor, slope: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`fastcloak.ops.reference.frozen_prelu` in one launch, differentiable with respect to x in another.

    Args:
        x: [N, C, ...] float32, bfloat16 or float16, contiguous or channels_last (otherwise copied).
        slope, bias: as in the reference, in the dtype of x.

    Raises:
        ValueError: a shape, dtype or device that the kernel cannot take.
    """
    y, _ = _forward(x, slope, bias)
    return y  # type: ignore[no-any-return]


def _dense(x: torch.Tensor, last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _is_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _sizes(x: torch.Tensor, last: bool) -> tuple[int, int, int, int]:  # as the kernels' n, width, inner, C
    n, C = x[0].numel(), x.shape[1]
    return n, triton.cdiv(n, 8), 1 if last else n // C, C


def _check_slope(x: torch.Tensor, slope: torch.Tensor) -> None:
    check("slope", slope, (1 if slope.numel() == 1 else x.shape[1],), (x.dtype,), x.device)


@torch.library.custom_op("fastcloak::frozen_prelu", mutates_args=())
def _forward(
    x: torch.Tensor, slope: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    check("x", x, ("N", "C", *"HW"[: x.dim() - 2]), FLOATS, x.device)
    _check_slope(x, slope)
    last, picture = _is_last(x), bias is not None and bias.dim() > 1
    if bias is not None:
        check("bias", bias, (1, *x.shape[1:]) if picture else (x.shape[1],), (x.dtype,), x.device)
    y, signs = _empty_results(x)
    n, width, inner, C = _sizes(x, last)
    with torch.cuda.device_of(x):
        _frozen_prelu_kernel[(len(x), triton.cdiv(n, BLOCK))](
            _dense(x, last),
            # A pointer that is not read still needs a tensor.
            slope if bias is None else _dense(bias, last) if picture else bias.contiguous(),
            slope.contiguous(),
            y,
            signs,
            n,
            width,
            inner,
            C,
            BIASED=bias is not None,
            PICTURE=picture,
            SHARED=slope.numel() == 1,
            BLOCK=BLOCK,
            num_warps=BLOCK // (8 * 32),
        )
    return y, signs


@_forward.register_fake
def _empty_results(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    layout = torch.channels_last if _is_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=layout), x.new_empty(len(x), -(-x[0].numel() // 8), dtype=torch.uint8)


@torch.library.custom_op("fastcloak::frozen_prelu_grad", mutates_args=())
def _backward(grad: torch.Tensor, signs: torch.Tensor, slope: torch.Tensor, last: bool) -> torch.Tensor:
    _check_slope(grad, slope)
    out = _empty_grad(grad, signs, slope, last)
    n, width, inner, C = _sizes(grad, last)
    with torch.cuda.device_of(grad):
        _frozen_prelu_grad_kernel[(len(grad), triton.cdiv(n, BLOCK))](
            _dense(grad, last),
            slope.contiguous(),
            signs,
            out,
            n,
            width,
            inner,
            C,
            SHARED=slope.numel() == 1,
            BLOCK=BLOCK,
            num_warps=BLOCK // (8 * 32),
        )
    return out  # type: ignore[no-any-return]


@_backward.register_fake
def _empty_grad(grad: torch.Tensor, signs: torch.Tensor, slope: torch.Tensor, last: bool) -> torch.Tensor:
    return torch.empty_like(grad, memory_format=torch.channels_last if last else torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, slope, _ = inputs
    ctx.save_for_backward(output[1], slope)
    ctx.last = _is_last(x)


def _gradient(ctx: Any, grad: torch.Tensor, _: object) -> tuple[torch.Tensor, None, None]:
    return _backward(grad, *ctx.saved_tensors, ctx.last), None, None


_forward.register_autograd(_gradient, setup_context=_keep)
