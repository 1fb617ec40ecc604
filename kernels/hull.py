"""Loss per photo, its gradient with respect to the raw features and the duality gap, one launch for P b photos.

With z = f/|f|, the hull {c + w r}, and w = 0, the row of `index`, r (z - c) or the nearest convex weights:

    residual = z - c - w r      loss = |residual|^2      slope = 2 residual      (fi_uap_plus: -<z, c> and -c)
    grad = (slope - z <z, slope>) / |f|

One program per photo. For affine_hull the K x D tile of points stays in registers between the correlation r (z - c)
and the point w r, up to K D = 16,384 (both padded to powers of two); above, and for convex_hull, whose Newton steps
need the registers in between, rows are taken in blocks and read twice, the second time from the cache. The rows are
contiguous in D: threads next to each other read 16 bytes next to each other.

Bytes per launch, e bytes per element of features: reads P b (D e + 4 D) for features and center; for the points P b 4 D
(fi_uap), P b 4 K D (affine_hull) or P b 8 K D (convex_hull, with P b 8 K^2 for the Gram matrix); writes P b (D e + 8).
The b photos of a person read the same points: all but the first find them in the L2 cache. Unfused PyTorch takes 15 to
18 launches, about 1,000 for convex_hull: to save those is the point. The limit is latency: of the launch, and for
convex_hull of up to 13 K pivots one after the other. Hence one warp, which waits for no other, and no step that does
not count.

Convex weights: `fastcloak.ops.hull.interior_point`, in float64 and in registers. The Newton matrix is inverted by
Goodnight's sweep, one pivot after the other on the whole [K, K] tile: a substitution would go row by row twice per
right-hand side. On sets without full rank an inverse loses some digits against the reference's Cholesky factor: gaps
up to 2e-9 instead of 5e-12 (30 points in a plane), far below the 1e-6 that a fit accepts.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import FLOATS, check

OBJECTIVES = ("fi_uap", "fi_uap_plus", "class_center", "affine_hull", "convex_hull")

LARGEST_K = 64
"""The [K, K] tiles of the Newton step must fit the registers in float64."""

LARGEST_D = 8192
"""z, c and the residual must fit the registers."""

INTERIOR_POINT_STEPS = 14
"""As `fastcloak.ops.hull.INTERIOR_POINT_STEPS`."""

FINISHED = tl.constexpr(1e-15)
"""As `fastcloak.ops.hull.FINISHED`: mean complementarity product of a problem that is solved."""


@triton.jit
def _times(matrix, vector):
    # [KP, KP] symmetric, [KP] -> [KP]. Summed over rows, so that vectors lie along the lanes of each warp: sums and
    # maxima of vectors then need no barrier, and at K = 64 a vector is 2 numbers per thread instead of 8.
    return tl.sum(matrix * vector[:, None], axis=0)


@triton.jit
def _inverse(matrix, k, K):
    """[KP, KP] symmetric positive definite in the first K rows, the rest unit rows -> inverse in the first K rows."""
    # Sweep: after pivot n, rows and columns up to n hold minus the inverse of that block. It stays symmetric.
    n = 0
    while n < K:
        at = k == n
        row = tl.sum(tl.where(at[:, None], matrix, 0.0), axis=0)
        column = tl.sum(tl.where(at[None, :], matrix, 0.0), axis=1)
        pivot = tl.sum(tl.where(at, row, 0.0), axis=0)
        # Not definite: NaN, as from a Cholesky factor; the step is then not taken.
        reciprocal = 1.0 / tl.where(pivot > 0.0, pivot, float("nan"))
        row = row * reciprocal
        swept = matrix - column[:, None] * row[None, :]
        swept = tl.where(at[:, None], row[None, :], tl.where(at[None, :], (column * reciprocal)[:, None], swept))
        matrix = tl.where(at[:, None] & at[None, :], -reciprocal, swept)
        n += 1
    return -matrix


@triton.jit
def _larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def _longest(step, step_below, step_above, below, above, dual_below, dual_above):
    # Longest step before the first slack or multiplier reaches zero. NaN counts as 0: the step's own NaN stops it.
    rate = _larger(_larger(-step / below, step / above), _larger(-step_below / dual_below, -step_above / dual_above))
    return 1.0 / tl.maximum(tl.max(tl.where(rate > 0.0, rate, 0.0), axis=0), 1e-12)


@triton.jit
def _duality_gap(gram, q, w, k, K, LOWER: tl.constexpr, UPPER: tl.constexpr):
    """Max over the feasible v of <gradient, w - v>: the best v fills the smallest gradients up to UPPER."""
    gradient = _times(gram, w) - q
    # Ranks by comparing all pairs: Triton's sort knows no payload. Equal gradients are ranked by position.
    mine, theirs = gradient[None, :], gradient[:, None]
    before = (theirs < mine) | ((theirs == mine) & (k[:, None] < k[None, :]))
    rank = tl.sum((before & (k[:, None] < K)).to(tl.int32), axis=0)
    left = 1 - K.to(tl.float64) * LOWER - (UPPER - LOWER) * rank.to(tl.float64)
    best = LOWER + tl.minimum(tl.maximum(left, 0.0), UPPER - LOWER)
    return tl.sum(tl.where(k < K, gradient * (w - best), 0.0), axis=0)


@triton.jit
def _how_far(gram, q, w, below, above, dual_below, dual_above, shift, real, K):
    """What is left of a problem: stationarity [KP], 1 - sum w, mean complementarity product, bound of the gap."""
    stationarity = tl.where(real, _times(gram, w) - q - shift - dual_below + dual_above, 0.0)
    missing = 1.0 - tl.sum(w, axis=0)
    mean_product = tl.sum(tl.where(real, below * dual_below + above * dual_above, 0.0), axis=0) / (2 * K)
    wrong = tl.max(tl.where(tl.abs(stationarity) > 0.0, tl.abs(stationarity), 0.0), axis=0)
    return stationarity, missing, mean_product, 2 * K * mean_product + 2 * wrong + tl.abs(missing)


@triton.jit
def _convex_weights(gram, q, k, K, LOWER: tl.constexpr, UPPER: tl.constexpr, STEPS: tl.constexpr):
    """argmin_w w G w / 2 - q w, sum w = 1, LOWER <= w <= UPPER: see `fastcloak.ops.hull.interior_point`.

    Entries k >= K are padding: slacks and duals 1, steps 0. The weight of a single point is 1.
    """
    real = k < K
    eye = (k[:, None] == k[None, :]) & real[None, :]
    padding = ((k[:, None] == k[None, :]) & (k[:, None] >= K)).to(tl.float64)
    ones = real.to(tl.float64)
    w = ones / K
    below, above = tl.where(real, w - LOWER, 1.0), tl.where(real, UPPER - w, 1.0)
    residual = _times(gram, w) - q
    shift = tl.sum(residual, axis=0) / K
    residual = tl.where(real, residual - shift, 0.0)
    largest = tl.max(tl.where(tl.abs(residual) > 1e-3, tl.abs(residual), 1e-3), axis=0)
    dual_below = tl.where(real, _larger(residual, 0.0) + largest, 1.0)
    dual_above = tl.where(real, _larger(-residual, 0.0) + largest, 1.0)
    stationarity, missing, mean_product, least = _how_far(
        gram, q, w, below, above, dual_below, dual_above, shift, real, K
    )
    best = w

    # A finished problem stays where it is: the next Newton matrix may not be positive definite. So does one whose step
    # is not finite: the next would be the same. The reference's last step is taken and not looked at; here it is not.
    taken = 1
    running = (K > 1) & (mean_product > FINISHED)
    while running:
        ratio_below, ratio_above = dual_below / below, dual_above / above
        inverse = _inverse(gram + padding + tl.where(eye, (ratio_below + ratio_above)[None, :], 0.0), k, K)

        rhs = tl.where(real, -stationarity - dual_below + dual_above, 0.0)
        along_ones = _times(inverse, ones)
        total_ones = tl.sum(along_ones, axis=0)
        solved = _times(inverse, rhs)
        step = solved + (missing - tl.sum(solved, axis=0)) / total_ones * along_ones
        step_below, step_above = -dual_below - ratio_below * step, -dual_above + ratio_above * step
        longest = _longest(step, step_below, step_above, below, above, dual_below, dual_above)
        length = tl.minimum(longest, 1.0)
        product = (below + length * step) * (dual_below + length * step_below)
        product += (above - length * step) * (dual_above + length * step_above)
        part = tl.sum(ones * product, axis=0) / (2 * K) / mean_product
        part = tl.minimum(tl.maximum(part, 0.0), 1.0)
        target = part * part * part * mean_product
        target_below, target_above = (target - step * step_below) / below, (target + step * step_above) / above

        solved = _times(inverse, tl.where(real, rhs + target_below - target_above, 0.0))
        step_shift = (missing - tl.sum(solved, axis=0)) / total_ones
        step = tl.where(real, solved + step_shift * along_ones, 0.0)
        step_below = tl.where(real, target_below - dual_below - ratio_below * step, 0.0)
        step_above = tl.where(real, target_above - dual_above + ratio_above * step, 0.0)
        longest = _longest(step, step_below, step_above, below, above, dual_below, dual_above)
        length = tl.minimum(0.995 * longest, 1.0)

        finite = tl.sum(tl.abs(step) + tl.abs(step_below) + tl.abs(step_above), axis=0) < float("inf")
        step = tl.where(finite, length * step, 0.0)
        w, below, above = w + step, below + step, above - step
        dual_below += tl.where(finite, length * step_below, 0.0)
        dual_above += tl.where(finite, length * step_above, 0.0)
        shift += tl.where(finite, length * step_shift, 0.0)
        stationarity, missing, mean_product, bound = _how_far(
            gram, q, w, below, above, dual_below, dual_above, shift, real, K
        )
        # The last point can be worse than an earlier one where the Newton matrix is singular: the best counts.
        best = tl.where(bound < least, w, best)
        least = tl.where(bound < least, bound, least)
        taken += 1
        running = finite & (mean_product > FINISHED) & (taken < STEPS)

    return tl.where(real, tl.minimum(tl.maximum(best, LOWER), UPPER), 0.0)


@triton.jit
def _point_rows(points_ptr, first, k, d, inside, K, D):
    # [KB, DP] rows first .. of one person's points
    row = first + k
    return tl.load(points_ptr + row[:, None] * D + d[None, :], mask=(row < K)[:, None] & inside[None, :], other=0.0)


# K is an argument, and with all that it multiplies not specialised: a kernel is compiled per KP, not per photo count.
@triton.jit(do_not_specialize=["b", "K", "index_stride_p", "index_stride_b"])
def _hull_loss_kernel(
    features_ptr,  # [P, b, D], raw embeddings f
    points_ptr,  # [P, K, D] float32, rows r
    gram_ptr,  # [P, K, K] float64, read by convex_hull
    center_ptr,  # [P, D] float32, c
    index_ptr,  # [P, b] int64, with strides, read by fi_uap
    loss_ptr,  # [P, b] float32, out
    grad_ptr,  # [P, b, D] like features, out
    gap_ptr,  # [P, b] float32, out
    b,
    K,
    D,
    index_stride_p,
    index_stride_b,
    OBJECTIVE: tl.constexpr,
    LOWER: tl.constexpr,  # of the weights; compile-time, since a float argument would be rounded to float32
    UPPER: tl.constexpr,
    STEPS: tl.constexpr,
    DP: tl.constexpr,  # D padded
    KP: tl.constexpr,  # K padded
    KB: tl.constexpr,  # rows of points in registers at once
):
    photo = tl.program_id(0).to(tl.int64)
    p = photo // b
    d = tl.arange(0, DP)
    inside = d < D
    f = tl.load(features_ptr + photo * D + d, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(center_ptr + p * D + d, mask=inside, other=0.0)
    points_ptr += p * K * D
    norm = tl.sqrt_rn(tl.sum(f * f, axis=0))
    z = tl.div_rn(f, norm)
    gap = 0.0

    if OBJECTIVE == "fi_uap_plus":
        loss = -tl.sum(z * c, axis=0)
        slope = -c
    else:
        residual = z - c
        if OBJECTIVE == "fi_uap":
            own = tl.load(index_ptr + p * index_stride_p + (photo % b) * index_stride_b)
            # A photo that does not exist is NaN and never foreign memory.
            exists = (own >= 0) & (own < K)
            residual -= tl.load(points_ptr + own * D + d, mask=inside & exists, other=float("nan"))
            residual = tl.where(inside, residual, 0.0)
        elif OBJECTIVE != "class_center":
            k = tl.arange(0, KP)
            kb = tl.arange(0, KB)
            if KB == KP:
                rows = _point_rows(points_ptr, 0, k, d, inside, K, D)
                weights = tl.sum(rows * residual[None, :], axis=1)
            else:
                weights = tl.zeros([KP], tl.float32)
                first = 0
                while first < K:
                    rows = _point_rows(points_ptr, first, kb, d, inside, K, D)
                    some = tl.sum(rows * residual[None, :], axis=1)
                    here = k[:, None] == (first + kb)[None, :]
                    weights += tl.sum(tl.where(here, some[None, :], 0.0), axis=1)
                    first += KB
            if OBJECTIVE == "convex_hull":
                q = weights.to(tl.float64)
                both = (k[:, None] < K) & (k[None, :] < K)
                gram = tl.load(gram_ptr + p * K * K + k[:, None] * K + k[None, :], mask=both, other=0.0)
                w = _convex_weights(gram, q, k, K, LOWER, UPPER, STEPS)
                gap = _duality_gap(gram, q, w, k, K, LOWER, UPPER).to(tl.float32)
                weights = w.to(tl.float32)
            if KB == KP:
                residual -= tl.sum(rows * weights[:, None], axis=0)
            else:
                first = 0
                while first < K:
                    rows = _point_rows(points_ptr, first, kb, d, inside, K, D)
                    here = k[:, None] == (first + kb)[None, :]
                    some = tl.sum(tl.where(here, weights[:, None], 0.0), axis=0)
                    residual -= tl.sum(rows * some[:, None], axis=0)
                    first += KB
        loss = tl.sum(residual * residual, axis=0)
        slope = 2.0 * residual

    grad = tl.div_rn(slope - z * tl.sum(slope * z, axis=0), norm)
    tl.store(grad_ptr + photo * D + d, grad.to(grad_ptr.dtype.element_ty), mask=inside)
    tl.store(loss_ptr + photo, loss)
    tl.store(gap_ptr + photo, gap)


def _tiling(K: int, D: int, objective: str) -> tuple[int, int, int, int]:
    """K and D padded, rows of points in registers at once, warps."""
    # Without weights K is only a number; else these two are all that depends on it.
    KP = max(2, triton.next_power_of_2(K)) if objective.endswith("_hull") else 2
    DP = max(2, triton.next_power_of_2(D))
    convex = objective == "convex_hull"
    per_thread = 32 if DP > 4096 else 64  # numbers of the tile, which leaves room for z, c and the residual
    if DP > 4096:
        warps = 16
    elif convex:
        # A lone warp waits for no other, where each of up to 13 K pivots would have barriers.
        warps = (1 if KP <= 16 else 4 if KP == 32 else 8) if DP <= 1024 else 8
    else:
        warps = min(8, max(1, DP // 512, KP * DP // (32 * per_thread)))
    KB = min(KP, per_thread * 32 * warps // DP)
    if convex:
        # Half at most: the compiler would merge two equal loads and keep the tile through the Newton steps, which
        # spills. Two at most next to long vectors, found by compiling for both architectures (Triton 3.6, 3.8).
        KB = min(KB, KP // 2, 2 if DP > 1024 else KB)
    return KP, DP, KB, warps


@torch.library.custom_op("fastcloak::hull_loss", mutates_args=())
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
    """`fastcloak.ops.reference.hull_loss` in one launch. An index outside [0, K) makes its loss NaN.

    Args as in the reference, but K up to `LARGEST_K`, D up to `LARGEST_D`, no float64 features, and points and center
    in float32.

    Raises:
        ValueError: an objective, shape, dtype or device that the kernel cannot take.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    device = features.device
    check("features", features, ("P", "b", "D"), FLOATS, device)
    P, b, D = features.shape
    check("points", points, (P, "K", D), (torch.float32,), device)
    K = points.shape[1]
    check("gram", gram, (P, K, K), (torch.float64,), device)
    check("center", center, (P, D), (torch.float32,), device)
    check("index", index, (P, b), (torch.int64,), device)
    for letter, size, largest in (("K", K, LARGEST_K), ("D", D, LARGEST_D)):
        if size > largest:
            raise ValueError(f"{letter} must be at most {largest}, got {size}; use backend 'reference'")
    KP, DP, KB, warps = _tiling(K, D, objective)
    loss, grad, gap = _empty_results(features)
    with torch.cuda.device_of(features):
        _hull_loss_kernel[(P * b,)](
            features.contiguous(),
            points.contiguous(),
            gram.contiguous(),
            center.contiguous(),
            index,
            loss,
            grad,
            gap,
            b,
            K,
            D,
            *index.stride(),
            OBJECTIVE=objective,
            LOWER=lower,
            UPPER=upper,
            STEPS=INTERIOR_POINT_STEPS,
            DP=DP,
            KP=KP,
            KB=KB,
            num_warps=warps,
        )
    return loss, grad, gap


@hull_loss.register_fake
def _empty_results(features: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss = features.new_empty(features.shape[:2], dtype=torch.float32)
    return loss, features.new_empty(features.shape), torch.empty_like(loss)
