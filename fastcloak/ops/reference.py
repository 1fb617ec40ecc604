"""The hot operations of cloak fitting in plain PyTorch: the specification that `fastcloak.kernels` must equal.

Dimension letters, for the whole project: P persons, N photos of one person, b photos in a batch, C H W picture,
D feature length, K hull points. Nothing here reads a value back to the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from fastcloak.ops.hull import convex_weights

__all__ = ["accumulate_step_", "cloak_batch_", "frozen_prelu", "hull_loss", "outer_step_"]

TINY = 1e-30
"""Smallest mean |g| that a gradient is divided by: an all-zero gradient stays zero."""


def hull_loss(
    features: torch.Tensor,
    points: torch.Tensor,
    gram: torch.Tensor,
    center: torch.Tensor,
    index: torch.Tensor,
    objective: str,
    lower: float = 0.0,
    upper: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss per photo, its gradient with respect to the raw features, and the duality gap of the hull weights.

    With z = f/|f| and the hull {c + sum_k w_k r_k} (see `fastcloak.ops.hull.Hull`):

        fi_uap         |z - c - r_index|^2              its own clean feature
        fi_uap_plus    -<z, c>                          mean similarity to the clean features
        class_center   |z - c|^2
        affine_hull    min_w |z - c - w r|^2            w = r (z - c), r orthonormal
        convex_hull    the same, sum w = 1, lower <= w <= upper

    w is held fixed in the gradient, which is exact (envelope theorem); the slope by z passes through f/|f| as
    (I - z z^T)/|f|.

    Args:
        features: [P, b, D] float32, bfloat16, float16 or float64, raw embeddings f. Half precision computes in float32.
        points: [P, K, D] float, rows r of the hull.
        gram: [P, K, K] float64, r r^T; read by convex_hull only.
        center: [P, D] float, c.
        index: [P, b] int64, which photo each feature shows; read by fi_uap only.
        objective: one of `fastcloak.fitting.options.OBJECTIVES`.
        lower, upper: bounds of the weights; read by convex_hull only.

    Returns:
        loss [P, b] (float32, float64 for float64 features), grad [P, b, D] in the dtype of `features`, and gap [P, b]
        like loss: 0 except for convex_hull.

    Source: OPOM section 4 (equations of the three hulls); zhongyy/OPOM code/generation/attack/privacy.py.
    """
    f = features.double() if features.dtype == torch.float64 else features.float()
    norm = f.square().sum(-1, keepdim=True).sqrt()
    z = f / norm
    offset = z - center[:, None]  # [P, b, D]
    gap = torch.zeros_like(norm[..., 0])

    if objective == "fi_uap_plus":
        loss = -(z * center[:, None]).sum(-1)
        slope = -center[:, None].expand_as(z)
    else:
        if objective == "class_center":
            residual = offset
        elif objective == "fi_uap":
            residual = offset - points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))
        else:
            weights = offset @ points.mT  # [P, b, K]
            if objective == "convex_hull":
                weights, gap = (t.to(f.dtype) for t in convex_weights(gram, weights, lower, upper))
            residual = offset - weights @ points
        loss = residual.square().sum(-1)
        slope = 2 * residual

    grad = (slope - z * (slope * z).sum(-1, keepdim=True)) / norm
    return loss, grad.to(features.dtype), gap


def accumulate_step_(
    grads: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    scale: torch.Tensor | None = None,
) -> None:
    """One inner step, in place: g = scale mean_b grads; acc += g; delta_in = clip(delta_in + alpha sign(g), +-eps).

    A NaN or Inf in g makes the pixel's delta_in NaN instead of passing as sign 0, so that the next loss shows it.

    Args:
        grads: [P, b, 3, H, W] float, any float dtype, contiguous or channels_last.
        acc: [P, 3, H, W] float32, changed in place.
        delta_in: [P, 3, H, W] float32 within +-eps, the look-ahead, changed in place.
        alpha, eps: inner step and largest |delta_in|, on the [0, 1] scale.
        scale: [3] float32, one per channel, where `grads` is with respect to faces * scale + shift. None: 1.

    Source: GA-OPOM (arXiv 2401.01575), inner loop; SGA (ICCV 2023), same scheme for classifiers.
    """
    g = grads.to(acc.dtype).mean(1)
    if scale is not None:
        g = g * scale[:, None, None]
    delta_in.add_(_sign(g), alpha=alpha).clamp_(-eps, eps)
    acc.add_(g)


def outer_step_(
    acc: torch.Tensor,
    velocity: torch.Tensor,
    delta: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    decay: float = 0.0,
) -> None:
    """One outer step, in place: delta = clip(delta + alpha sign(g), +-eps), then delta_in = delta and acc = 0.

    g = acc; with momentum (decay > 0) velocity = decay velocity + g / mean|g| and g = velocity.

    Args:
        acc: [P, 3, H, W] float32, accumulated gradient, reset to 0.
        velocity: [P, 3, H, W] float32, changed in place when decay > 0, otherwise not touched.
        delta: [P, 3, H, W] float32 within +-eps, changed in place.
        delta_in: [P, 3, H, W] float32, set to delta.
        alpha, eps: outer step and largest |delta|, on the [0, 1] scale.
        decay: momentum, 0 for none, 1 as in MI-FGSM.

    Source: GA-OPOM (arXiv 2401.01575), outer loop; momentum: Dong et al., CVPR 2018.
    """
    g = acc
    if decay:
        mean = acc.abs().mean((1, 2, 3), keepdim=True)
        g = velocity.mul_(decay).add_(acc / mean.clamp_min(TINY))
    delta.add_(_sign(g), alpha=alpha).clamp_(-eps, eps)
    delta_in.copy_(delta)
    acc.zero_()


def cloak_batch_(
    faces: torch.Tensor,
    delta_in: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> None:
    """Writes clip(faces[index] + bound * delta_in, 0, 1) * scale + shift into a static buffer: what the network takes.

    Args:
        faces: [P, N, 3, H, W] float32 in [0, 1].
        delta_in: [P, 3, H, W] float32.
        index: [P, b] int64 in [0, N).
        out: [P, b, 3, H, W] float32, bfloat16 or float16, contiguous or channels_last, overwritten. Computed in
            float32 and rounded once.
        scale, shift: [3] float32, one per channel, both or neither. None: 1 and 0.
        bound: [P, 3, H, W] float32, at least 0: each value's own largest change, where delta_in lies in [-1, 1] and
            the other operations take eps = 1. None: 1.
    """
    mask = delta_in if bound is None else bound * delta_in
    rows = torch.arange(faces.shape[0], device=faces.device)[:, None]
    pictures = (faces[rows, index] + mask[:, None]).clamp_(0, 1)
    if scale is not None and shift is not None:
        pictures.mul_(scale[:, None, None]).add_(shift[:, None, None])
    out.copy_(pictures)


def _sign(g: torch.Tensor) -> torch.Tensor:
    # 0 * g is 0 for every finite g and NaN otherwise; torch.sign alone turns NaN into 0.
    return torch.sign(g) + 0 * g


def frozen_prelu(x: torch.Tensor, slope: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """PReLU without a gradient of its slope: y = max(0, z) + slope min(0, z), z = x + bias.

    The gradient with respect to x is that of y where z > 0, and slope times it elsewhere.

    Args:
        x: [N, C, ...] float.
        slope: [1] or [C].
        bias: [C], or [1, C, ...] for one a number; None is 0.

    Returns:
        y, like x.
    """
    if bias is not None:
        x = x + (_along_channels(bias, x) if bias.ndim == 1 else bias)
    output: torch.Tensor = _FrozenPReLU.apply(x, slope)
    return output


class _FrozenPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, slope)
        return torch.prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, slope = ctx.saved_tensors
        # slope * grad + (1 - slope) * relu'(x) grad in two vectorised passes.
        through = torch.ops.aten.threshold_backward(grad, x, 0)
        return torch.lerp(through, grad, _along_channels(slope, x).to(grad.dtype), out=through), None


def _along_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2)) if x.ndim > 1 else values
