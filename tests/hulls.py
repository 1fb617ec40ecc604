"""Sets of clean features that are hard on a solver of hull weights."""

import torch
from torch.nn.functional import normalize

SETS = ("random", "duplicate", "near_duplicate", "collinear", "rank_two", "inside")


def make_set(kind, P=3, b=4, K=10, D=64, seed=0):
    """Points [P, K, D] and features [P, b, D], unit rows in float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = normalize(randn(P, 1, D), dim=-1)
    points = common + randn(P, K, D) * 0.7 / D**0.5
    half = K // 2
    if kind == "duplicate":
        points[:, half:] = points[:, : K - half]
    if kind == "near_duplicate":
        points[:, half:] = points[:, : K - half] + 1e-4 * randn(P, K - half, D)
    if kind == "collinear":
        points = common + torch.rand(P, K, 1, generator=generator, dtype=torch.float64) * randn(P, 1, D) / D**0.5
    if kind == "rank_two":
        points = randn(P, K, 2) @ randn(P, 2, D) / D**0.5
    points = normalize(points, dim=-1)
    if kind == "inside":
        return points, torch.softmax(randn(P, b, K), -1) @ points
    chosen = torch.randint(0, K, (b,), generator=generator)
    return points, normalize(points[:, chosen] + 0.5 * randn(P, b, D) / D**0.5, dim=-1)
