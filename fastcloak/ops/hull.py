"""From a person's clean features to the hull they span, and the nearest hull point of a cloaked feature.

Everything is centred on the class centre c first. Hull weights sum to one, so z - w A = (z - c) - w (A - c), and the
small differences between photos of one person do not drown in their large common part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

INTERIOR_POINT_STEPS = 14
"""Newton steps of `interior_point`: on random, duplicate, near-duplicate and collinear sets of 2 to 30 points the
duality gap no longer falls after 12 (tests/test_hull.py)."""

FINISHED = 1e-15
"""Mean complementarity product at which a problem is solved: the gap is then below 1e-10."""

CERTIFIED = 1e-10
"""Duality gap up to which the active set's answer counts."""

EXCHANGES, RIDGE, ROUNDING = 12, 1e-12, 1e-12
"""Of the active set: rounds before it gives up, what makes the Gram matrix of duplicates regular, and how far a weight
or multiplier of order one may be off."""


@dataclass(frozen=True)
class Hull:
    """The clean features of P persons, in the form that one objective needs.

    Attributes:
        points: [P, K, D]. Rows r_k with hull = {center + sum_k w_k r_k}: the centred clean features, or for
            `affine_hull` an orthonormal basis of their span (rows beyond the rank are zero), so that w is one product.
        gram: [P, K, K] float64, points points^T.
        center: [P, D], mean of the clean unit features, not normalised again.
    """

    points: torch.Tensor
    gram: torch.Tensor
    center: torch.Tensor


def build_hull(features: torch.Tensor, objective: str) -> Hull:
    """Hull of each person's clean unit features for one objective, computed in float64.

    Args:
        features: [P, K, D] float, the unit features of the K clean photos.
        objective: one of `OBJECTIVES`.

    Returns:
        `Hull` whose `points` and `center` have the dtype of `features`.
    """
    exact, dtype = features.double(), features.dtype
    center = exact.mean(1)
    points = exact - center[:, None]
    if objective == "affine_hull":
        _, singular, rows = torch.linalg.svd(points, full_matrices=False)  # [P, r], [P, r, D], r = min(K, D)
        # Zero beyond the rank that `dtype` can tell from rounding.
        smallest = max(points.shape[1:]) * torch.finfo(dtype).eps * singular[:, :1]
        rows = torch.where((singular > smallest)[..., None], rows, 0.0)
        points = torch.nn.functional.pad(rows, (0, 0, 0, points.shape[1] - rows.shape[1]))
    return Hull(points.to(dtype), points @ points.mT, center.to(dtype))


def convex_weights(
    gram: torch.Tensor, correlation: torch.Tensor, lower: float = 0.0, upper: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the nearest point of the (reduced) convex hull, with a certificate.

    Minimises f(w) = w G w / 2 - q w over lower <= w <= upper, sum w = 1, where G = A A^T and q = z A^T, in float64.
    On a CPU an active-set method answers first: a few linear systems, but it may go round in circles. What its gap does
    not certify goes to `interior_point`, and so does everything on a GPU, where to look at the gap would cost a wait.

    Args:
        gram: [P, K, K] float, symmetric positive semi-definite, rank-deficient allowed.
        correlation: [P, b, K] float.
        lower, upper: bounds of the weights, lower < 1/K < upper.

    Returns:
        weights [P, b, K] float64 within [lower, upper], and the duality gap [P, b] float64: f(w) is at most `gap`
        above the minimum, and the hull point at most sqrt(2 gap) from the nearest.

    Source: gap: Jaggi 2013 (Frank-Wolfe). The published code calls cvxpy once per photo per step.
    """
    if gram.is_cuda:
        return interior_point(gram, correlation, lower, upper)
    gram, q = gram.double(), correlation.double()
    w = _active_set(gram, q, lower, upper)
    gap = duality_gap(gram[:, None], q, w, lower, upper)
    # The gap says nothing of weights that do not sum to one. Negated, so that NaN counts as left.
    left = ~((gap <= CERTIFIED) & ((w.sum(-1) - 1).abs() <= w.shape[-1] * ROUNDING))
    if left.any():
        persons, photos = left.nonzero(as_tuple=True)
        again, gaps = interior_point(gram[persons], q[persons, photos][:, None], lower, upper)
        w[left], gap[left] = again[:, 0], gaps[:, 0]
    return w, gap


def _active_set(gram: torch.Tensor, q: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """Weights [P, b, K] float64 that are optimal if no bound is left to exchange; feasible up to rounding if finite.

    Every round solves the optimality conditions with the weights in `side` held at a bound, then exchanges all that are
    wrong: free ones beyond a bound, and held ones that would rather leave it.

    Source: block principal pivoting, Portugal, Judice and Vicente 1994.
    """
    K = q.shape[-1]
    eye = torch.eye(K + 1, dtype=q.dtype)
    system = torch.nn.functional.pad(gram + RIDGE * eye[:K, :K], (0, 1, 0, 1), value=1.0)  # the last row: sum w = 1
    system[:, :K, K] = -1  # its multiplier
    system[:, K, K] = 0
    target = torch.nn.functional.pad(q, (0, 1), value=1.0)
    side = torch.zeros_like(target)  # -1 held at lower, 1 held at upper, 0 free; the multiplier always is
    w = q
    for _ in range(EXCHANGES):
        free = side == 0
        held = (upper + lower) / 2 + (upper - lower) / 2 * side
        rows = torch.where(free.unsqueeze(-1), system[:, None], eye)
        solved, _ = torch.linalg.solve_ex(rows, torch.where(free, target, held))
        w, multiplier = solved[..., :K], solved[..., K:]
        slope = _gradient(gram[:, None], q, w) - multiplier
        beyond = (w > upper + ROUNDING).to(q.dtype) - (w < lower - ROUNDING).to(q.dtype)
        stays = side[..., :K] * (side[..., :K] * slope <= ROUNDING)
        exchanged = torch.where(free[..., :K], beyond, stays)
        if torch.equal(exchanged, side[..., :K]):
            break
        side[..., :K] = exchanged
    return w.clamp(lower, upper)


def interior_point(
    gram: torch.Tensor,
    correlation: torch.Tensor,
    lower: float = 0.0,
    upper: float = 1.0,
    steps: int = INTERIOR_POINT_STEPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`convex_weights` by Mehrotra's predictor-corrector method: up to `steps` Newton steps, the same for all.

    First-order methods stall on near-duplicate photos (gap 6e-5 after 64 FISTA iterations); the interior point does not
    depend on the condition of the Gram matrix.

    Source: Mehrotra 1992.
    """
    gram, q = gram.double()[:, None], correlation.double()
    K = q.shape[-1]
    w = torch.full_like(q, 1 / K)
    residual = _gradient(gram, q, w)
    shift = residual.mean(-1, keepdim=True)  # multiplier of sum w = 1
    residual = residual - shift
    margin = residual.abs().amax(-1, keepdim=True).clamp_min(1e-3)  # a tenth of it stalls on duplicates
    # Both bounds of every weight together, [P, b, 2, K]: slacks (w - lower, upper - w) and their multipliers, all > 0.
    # The loop is written for few operations: for one photo their number is what it costs.
    sides = 1 - 2 * torch.arange(2, dtype=q.dtype, device=q.device).unsqueeze(-1)
    slack = torch.stack((w - lower, upper - w), -2)
    dual = (residual[..., None, :] * sides).clamp_min(0) + margin[..., None]
    pairs = torch.stack((slack, dual), -3)  # [P, b, 2, 2, K]
    eye = torch.eye(K, dtype=q.dtype, device=q.device)
    columns = torch.ones(*q.shape, 2, dtype=q.dtype, device=q.device)  # right-hand sides of the predictor
    best, least = w, torch.full_like(shift, torch.inf)

    for _ in range(steps):
        slack, dual = pairs.unbind(-3)
        w = slack[..., 0, :] + lower
        residual = _gradient(gram, q, w) - shift
        missing = 1 - w.sum(-1, keepdim=True)
        product = (slack * dual).sum((-2, -1)).unsqueeze(-1)
        # Near the solution of a rank-deficient set the Newton matrix is singular and a step can make things worse:
        # the best point counts, not the last. The bound is that of the duality gap.
        stationarity = residual - dual[..., 0, :] + dual[..., 1, :]
        bound = product + 2 * stationarity.abs().amax(-1, keepdim=True) + missing.abs()
        best, least = torch.where(bound < least, w, best), torch.minimum(bound, least)
        going = product > 2 * K * FINISHED
        if not going.is_cuda and not going.any():  # on a GPU to ask would cost a wait
            break

        ratio = dual / slack
        factor, _ = torch.linalg.cholesky_ex(torch.addcmul(gram, eye, ratio.sum(-2).unsqueeze(-1)))

        # Predictor: aim at zero complementarity. Corrector: aim at what the predictor could reach, to second order.
        columns[..., 0] = residual
        toward, along_ones = _solve(factor, columns).unbind(-1)
        total = along_ones.sum(-1, keepdim=True)
        step = along_ones * ((missing + toward.sum(-1, keepdim=True)) / total) - toward
        slack_step = step[..., None, :] * sides
        dual_step = -torch.addcmul(dual, ratio, slack_step)
        moves = torch.stack((slack_step, dual_step), -3)
        reached = torch.addcmul(pairs, moves, _longest(moves / pairs))
        reached = reached.prod(-3).sum((-2, -1)).unsqueeze(-1)
        share = (reached / product).clamp(0, 1)
        target = share * share * share * product / (2 * K)
        aim = (target[..., None] - slack_step * dual_step) / slack

        rhs = aim[..., 0, :] - aim[..., 1, :] - residual
        solved = _solve(factor, rhs.unsqueeze(-1)).squeeze(-1)
        shift_step = (missing - solved.sum(-1, keepdim=True)) / total
        slack_step = torch.addcmul(solved, along_ones, shift_step)[..., None, :] * sides
        moves = torch.stack((slack_step, aim - torch.addcmul(dual, ratio, slack_step)), -3)
        length = _longest(moves / pairs, 0.995)  # stay strictly inside the bounds

        # A finished problem stays where it is: the next Newton matrix may not be positive definite.
        going = going & moves.sum((-3, -2, -1)).mul(0).eq(0).unsqueeze(-1)  # and finite
        shift = torch.where(going, torch.addcmul(shift, shift_step, length[..., 0, 0]), shift)
        pairs = torch.where(going[..., None, None], torch.addcmul(pairs, moves, length), pairs)

    w = best.clamp(lower, upper)
    return w, duality_gap(gram, q, w, lower, upper)


def _gradient(gram: torch.Tensor, q: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (gram * w.unsqueeze(-2)).sum(-1) - q


def _solve(factor: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    # Not cholesky_solve, whose batched form waits for the device in some versions of PyTorch.
    half = torch.linalg.solve_triangular(factor, rhs, upper=False)
    solved: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solved


# Relative moves [P, b, 2, 2, K] of slacks and multipliers -> step [P, b, 1, 1, 1] that keeps them positive.
# One step for both: in a quadratic problem the multipliers depend on the weights.
def _longest(growth: torch.Tensor, share: float = 1.0) -> torch.Tensor:
    return (growth.amin((-3, -2, -1), keepdim=True) / -share).clamp_min(1).reciprocal()


def duality_gap(gram: torch.Tensor, q: torch.Tensor, w: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """How far feasible w [P, b, K] can be from optimal, [P, b]: max over the feasible v of <gradient, w - v>."""
    # The best v fills the weights of the smallest gradients up to `upper`.
    gradient = _gradient(gram, q, w)
    K = w.shape[-1]
    filled = (upper - lower) * torch.arange(K, dtype=w.dtype, device=w.device)
    best = lower + (1 - K * lower - filled).clamp(0, upper - lower)
    return (gradient * w).sum(-1) - (gradient.sort(-1).values * best).sum(-1)
