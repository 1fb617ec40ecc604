"""The hot operations of cloak fitting in plain PyTorch: the specification that `fastcloak.kernels` must equal.

Dimension letters, for the whole project: P persons, N photos of one person, b photos in a batch, C H W picture,
D feature length, K hull points. Nothing here reads a value back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastcloak.ops.augment import contrast_and_brightness, fade, grid, round_trips
from fastcloak.ops.hull import convex_weights
from fastcloak.ops.jpeg import decoded, decoded_gradient

__all__ = [
    "accumulate_step_",
    "apart_center",
    "cloak_batch_",
    "frozen_prelu",
    "hull_loss",
    "jpeg_batch_",
    "jpeg_gradient_",
    "outer_step_",
    "photo_batch_",
    "photo_gradient_",
    "view_batch_",
    "view_gradient_",
    "view_step_",
]

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


def view_batch_(
    faces: torch.Tensor,
    mask: torch.Tensor | None,
    index: torch.Tensor | None,
    draws: torch.Tensor,
    out: torch.Tensor,
    color: bool = False,
    geometry: bool = False,
    flip: bool = False,
    textures: torch.Tensor | None = None,
    place: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> None:
    """`cloak_batch_` with a random view of each cloaked picture: mix, color, geometry and flip, in this order.

        x = clip(faces[index] + bound * mask, 0, 1)
        x = x + fade                                mix: part of the way from the face to a texture
        x = (x - 1/2) contrast + 1/2 + brightness   color
        out = x(place(move(pixel))) * scale + shift geometry and flip: linear between the four pixels around, and
                                                    beyond the border as on it

    Args:
        faces: [P, N, 3, H, W] float32.
        mask: [P, 3, H, W] float32; or [P, b, 3, H, W], each picture's own, which is added without the bound and not
            clipped; or None.
        index: [P, b] int64 in [0, N). None: all faces, b = N.
        draws: [P, b, DRAWS] float32 in [0, 1); the same numbers give the same view.
        out: [P, b, 3, h, w] float32, bfloat16 or float16, contiguous or channels_last, overwritten; h, w = H, W
            without a place.
        color, geometry, flip: whether these views are on, with the strengths of `fastcloak.ops.augment`.
        textures: [TEXTURES, 3, H, W] float32 in [0, 1] that "mix" takes. None: it is off.
        place: [P, 2, 3] float32, where in the pictures of a person the aligned face lies, as `affine_grid` takes it.
            None: the pictures are aligned faces.
        scale, shift, bound: as for `cloak_batch_`.
    """
    P, b = out.shape[:2]
    if index is not None:
        faces = faces[torch.arange(P, device=faces.device)[:, None], index]
    if mask is None:
        x = faces
    elif mask.dim() == 5:
        x = faces + mask
    else:
        x = (faces + (mask if bound is None else bound * mask)[:, None]).clamp_(0, 1)
    x, drawn = x.flatten(0, 1), draws.flatten(0, 1)
    if textures is not None:
        x = x + fade(faces.flatten(0, 1), drawn, textures)
    if color:
        contrast, brightness = contrast_and_brightness(drawn)
        x = (x - 0.5).mul_(contrast).add_(0.5).add_(brightness)
    if geometry or flip or place is not None:
        at = grid(drawn, (P * b, *out.shape[2:]), geometry, flip, _of_each(place, b))
        x = F.grid_sample(x, at, mode="bilinear", padding_mode="border", align_corners=False)
    if scale is not None and shift is not None:
        x = (x * scale[:, None, None]).add_(shift[:, None, None])
    out.copy_(x.view(out.shape))


def view_gradient_(
    grads: torch.Tensor,
    draws: torch.Tensor,
    out: torch.Tensor,
    color: bool = False,
    geometry: bool = False,
    flip: bool = False,
    place: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    unit: bool = False,
) -> None:
    """The gradient with respect to each cloaked picture, from that with respect to its view.

    Views are linear in the picture, so that it needs their numbers only. Clipping lets it through.

    Args:
        grads: [P, b, 3, h, w], any float dtype, contiguous or channels_last, with respect to what `view_batch_` wrote.
        draws, color, geometry, flip, place: as there.
        out: [P, b, 3, H, W] float32, overwritten.
        scale: [3] float32, as there. None: 1.
        unit: whether those of each person are divided by their size, mean |mean_b scale grads|.
    """
    out.copy_(_gradient(grads, draws, out.shape[3:], color, geometry, flip, place, scale, unit))


def view_step_(
    grads: torch.Tensor,
    draws: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    color: bool = False,
    geometry: bool = False,
    flip: bool = False,
    place: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    unit: bool = False,
    grey: bool = False,
) -> None:
    """`accumulate_step_` with what `view_gradient_` gives.

    Args:
        grads, draws, color, geometry, flip, place, scale, unit: as there.
        acc, delta_in, alpha, eps: as for `accumulate_step_`.
        grey: whether every channel takes the mean of the three, for a mask of equal channels.
    """
    g = _gradient(grads, draws, acc.shape[2:], color, geometry, flip, place, scale, unit)
    if grey:
        g = (g.sum(2, keepdim=True) / 3).expand_as(g)
    accumulate_step_(g, acc, delta_in, alpha, eps)


def apart_center(
    features: torch.Tensor,
    earlier: torch.Tensor,
    together: torch.Tensor,
    known: torch.Tensor,
    center: torch.Tensor,
    strength: float,
    sharpness: float,
) -> torch.Tensor:
    """What each face of an album is driven away from: its center, and the mean of the others that look most alike.

        out_i = c_i + strength * sum_j w_j u_j / sum_j w_j,   w_j = there_j exp((<u_i, u_j> - 1) / sharpness)

    Args:
        features: [P, D], any float dtype, raw embeddings f of the faces, u = f / |f|.
        earlier: [E, D] float32, unit features of faces of earlier passes.
        together: [P, P] float32, 1 for two faces that are kept apart from each other, else 0.
        known: [P, E] float32, 1 for an earlier face that a face is kept apart from, else 0.
        center: [P, D] float32, c.
        strength, sharpness: numbers above 0.

    Returns:
        [P, D] float32; the centers where there are no others.
    """
    units = F.normalize(features.float(), dim=-1)
    everyone = torch.cat((units, earlier))
    there = torch.cat((together, known), 1)
    alike = torch.exp((units @ everyone.T - 1) / sharpness) * there
    return center + strength * (alike / alike.sum(1, keepdim=True).clamp_min(TINY)) @ everyone


def photo_batch_(
    faces: torch.Tensor,
    mask: torch.Tensor,
    index: torch.Tensor,
    draws: torch.Tensor,
    out: torch.Tensor,
    bound: torch.Tensor | None = None,
) -> None:
    """What is left of each picture's mask when the face was cut out of a photo again, the view "photo".

        out = R (clip(faces[index] + bound * mask, 0, 1) - faces[index]) C^T

    R and C resize to the photo's pixels and back, see `fastcloak.ops.augment.round_trips`.

    Args:
        faces, mask, index, draws, bound: as for `view_batch_`.
        out: [P, b, 3, H, W] float32, contiguous, overwritten.
    """
    clean = faces[torch.arange(len(faces), device=faces.device)[:, None], index]
    if mask.dim() == 5:
        shown = clean + mask
    else:
        shown = (clean + (mask if bound is None else bound * mask)[:, None]).clamp_(0, 1)
    x = (shown - clean).flatten(0, 1)
    rows, columns = round_trips(draws.flatten(0, 1), x.shape)
    out.copy_((rows @ x @ columns.mT).view(out.shape))


def photo_gradient_(grads: torch.Tensor, draws: torch.Tensor, out: torch.Tensor) -> None:
    """The gradient with respect to the cloaked pictures of `photo_batch_`: R^T grads C. Clipping lets it through.

    Args:
        grads: [P, b, 3, H, W] float32, with respect to what that wrote.
        draws: as there.
        out: [P, b, 3, H, W] float32, contiguous, overwritten.
    """
    g = grads.flatten(0, 1)
    rows, columns = round_trips(draws.flatten(0, 1), g.shape)
    out.copy_((rows.mT @ (g @ columns)).view(out.shape))


def jpeg_batch_(
    pictures: torch.Tensor,
    draws: torch.Tensor,
    out: torch.Tensor,
    steps: torch.Tensor,
    dct: torch.Tensor,
    colors: torch.Tensor,
) -> None:
    """Pictures as they come out of a JPEG file with 4:2:0 colour, the view "jpeg".

    Args:
        pictures: [P, b, 3, H, W] float32 in [0, 1]; the kernel takes sides of whole blocks of 16.
        draws: [P, b, DRAWS] float32 in [0, 1).
        out: [P, b, 3, H, W] float32, contiguous, overwritten.
        steps, dct, colors: of `fastcloak.ops.jpeg.Tables`.
    """
    seen = decoded(pictures.flatten(0, 1), draws.flatten(0, 1), steps, dct, colors)
    out.copy_(seen.view(out.shape))


def jpeg_gradient_(grads: torch.Tensor, out: torch.Tensor, colors: torch.Tensor) -> None:
    """The gradient with respect to the pictures of `jpeg_batch_`, in which what rounding adds is a constant.

    Args:
        grads: [P, b, 3, H, W] float32, with respect to what that wrote, H and W whole blocks of 16.
        out: [P, b, 3, H, W] float32, contiguous, overwritten.
        colors: as there.
    """
    out.copy_(decoded_gradient(grads.flatten(0, 1), colors).view(out.shape))


def _gradient(
    grads: torch.Tensor,
    draws: torch.Tensor,
    size: Sequence[int],
    color: bool,
    geometry: bool,
    flip: bool,
    place: torch.Tensor | None,
    scale: torch.Tensor | None,
    unit: bool,
) -> torch.Tensor:  # [P, b, 3, *size]
    P, b = grads.shape[:2]
    g = grads.to(draws.dtype)
    if scale is not None:
        g = g * scale[:, None, None]
    if unit:
        g = g / g.mean(1, keepdim=True).abs().mean((2, 3, 4), keepdim=True).clamp_min(TINY)
    g, drawn = g.flatten(0, 1), draws.flatten(0, 1)
    if geometry or flip or place is not None:
        at = grid(drawn, g.shape, geometry, flip, _of_each(place, b))
        pictures = g.new_zeros(()).expand(P * b, 3, *size)  # only their size is asked
        # Bilinear, beyond the border as on it; with respect to the pictures, not to the grid.
        g, _ = torch.ops.aten.grid_sampler_2d_backward(g, pictures, at, 0, 1, False, [True, False])
    if color:
        g = g * contrast_and_brightness(drawn)[0]
    return g.view(P, b, *g.shape[1:])


def _of_each(place: torch.Tensor | None, b: int) -> torch.Tensor | None:  # [P, 2, 3] -> [P b, 2, 3]
    return None if place is None else place.repeat_interleave(b, 0)


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
