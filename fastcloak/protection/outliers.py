"""Are the photos of a person different ones, and all of that person? Asked before a fit.

A copy that was saved, sized or cut again would count twice, and a photo of someone else bends the cloak towards them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fastcloak.models import Surrogate
from fastcloak.protection.enrolment import LENIENT_THRESHOLDS

__all__ = ["copies", "listed", "stranger_bound", "strangers"]

COPY = 0.01
"""Share of a face that another, moved onto it, does not explain, below which they are one photo.

Of 1,800 pairs of photos of one person of LFW none counts as a copy, of 1,800 of ORL, taken in a row, four. Copies as
JPEG 90 or 50, of half or twice the size, brighter or cut at the border are below in 85 to 100 of 100 cases (measured on
40 photos)."""
COPY_SIDE, ALIKE, MOVES = 56, 0.85, 6
"""Side of the pictures compared, correlation below which a look is enough, and steps of the motion (Gauss-Newton)."""
FAR = 0.6
"""Of a network without a known threshold: share of the cosine that a quarter of the pairs reach, below which a pair is
not of one person. With one of ten photos of LFW planted, 99.0 to 100 % of the planted ones are named on SFace, dlib and
a MobileFaceNet, and 1 to 3 of 395 others (measured)."""
MOST_LISTED = 5


def copies(faces: torch.Tensor) -> dict[int, int]:
    """Which faces are copies of earlier ones: index -> that of the first.

    One explains another if a small affine motion, gain and offset of it leave little over: b ~ gain * a(T x) + offset.

    Args:
        faces: [N, 3, 112, 112], float in [0, 1], on the CPU.
    """
    small = F.adaptive_avg_pool2d(faces.double().mean(1), COPY_SIDE)
    flat = F.normalize((small - small.mean((1, 2), keepdim=True)).flatten(1), dim=1)
    near = (flat @ flat.T > ALIKE).tolist()
    first: dict[int, int] = {}
    for j in range(len(faces)):
        for i in range(j):
            alike = near[i][j] and _left_over(small[i], small[j]) < COPY and _left_over(small[j], small[i]) < COPY
            if i not in first and (alike or torch.equal(faces[i], faces[j])):
                first[j] = i
                break
    return first


def _left_over(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the variance of b [56, 56] that a, moved onto it, does not explain."""
    side = len(a)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side, dtype=a.dtype)] * 2, indexing="ij")
    inside = slice(4, -4)  # there is another background at the border
    wanted = b[inside, inside].reshape(-1)
    variance = float(((wanted - wanted.mean()) ** 2).sum())
    least, motion = math.inf, torch.eye(3, dtype=a.dtype)
    for _ in range(MOVES):
        grid = F.affine_grid(motion[None, :2], [1, 1, side, side], align_corners=True)
        moved = F.grid_sample(a[None, None], grid, padding_mode="border", align_corners=True)[0, 0]
        down, right = (slope * (side - 1) / 2 for slope in torch.gradient(moved))
        terms = [x * right, y * right, right, x * down, y * down, down, moved, torch.ones_like(moved)]
        columns = torch.stack([term[inside, inside].reshape(-1) for term in terms], 1)
        found = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
        rest = wanted - columns @ found
        least = min(least, float(rest @ rest) / max(variance, 1e-12))
        step = torch.eye(3, dtype=a.dtype)
        step[:2] += (found[:6] / found[6]).reshape(2, 3)
        motion = motion @ step
        if least < COPY or not (motion - torch.eye(3, dtype=a.dtype)).abs().max() < 0.3:  # also NaN
            break
    return least


def stranger_bound(surrogate: Surrogate) -> float | None:
    """Cosine that few pairs of different people reach, or None for a network of which that is not known."""
    known = [LENIENT_THRESHOLDS.get(member.name) for member in surrogate.members]
    bounds = [bound for bound in known if bound is not None]
    # The cosine of an ensemble is the mean of its members'.
    return sum(bounds) / len(bounds) if len(bounds) == len(known) else None


def strangers(features: torch.Tensor, bound: float | None) -> list[int]:
    """Which photos look like less than half of the others: of someone else, or of no face.

    Of two people with as many photos each all are named. On LFW, ten photos a person, 0 of 395 photos are named on
    SFace and 4 on dlib's network (profiles, sunglasses), and of strangers among nine, 100 and 99 % (measured).

    Args:
        features: [N, D], unit features.
        bound: see `stranger_bound`. None: found in the photos, if there are three or more.
    """
    cosines = (features.double() @ features.double().T).cpu()
    N = len(cosines)
    if bound is None:
        if N < 3:
            return []
        pairs = cosines[torch.ones(N, N, dtype=torch.bool).triu(1)].sort().values
        # With two people half of the photos each, less than half of the pairs are of one of them.
        bound = FAR * max(float(pairs[math.ceil(0.75 * (len(pairs) - 1))]), 0.0)
    far = (cosines < bound).sum(1)  # no photo is far from itself, if not all are NaN
    return [i for i in range(N) if 2 * int(far[i]) > N - 1]


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
