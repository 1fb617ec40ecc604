"""How hull weights are found: duality gap and time of our solvers against FISTA and quadprog.

    python -m bench.speed.hull_solvers -o bench/results/hull_solvers.csv

500 persons x 10 features, K = 10 points of D = 512 each, one thread. Sets: random; duplicate: half of the points again;
near_duplicate: the same with noise of 1e-4; rank_two: all points in a plane; inside: features within the hull. Each
solver sees the same float64 problems; the gap is the largest over all 5,000.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import quadprog
import torch
from torch.nn.functional import normalize

from bench.harness.command import command
from bench.harness.rows import Rows
from fastcloak.ops.hull import build_hull, convex_weights, duality_gap, interior_point

SETS = ("random", "duplicate", "near_duplicate", "rank_two", "inside")
Solver = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_set(kind: str, P: int = 500, b: int = 10, K: int = 10, D: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Gram matrices [P, K, K] and correlations [P, b, K] of one kind of set."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points = normalize(randn(P, 1, D), dim=-1) + randn(P, K, D) * 0.7 / D**0.5
    half = K // 2
    if kind in ("duplicate", "near_duplicate"):
        points[:, half:] = points[:, : K - half] + (1e-4 * randn(P, K - half, D) if kind == "near_duplicate" else 0)
    if kind == "rank_two":
        points = randn(P, K, 2) @ randn(P, 2, D)
    points = normalize(points, dim=-1)
    features = normalize(points[:, torch.arange(b) % K] + 0.5 * randn(P, b, D) / D**0.5, dim=-1)
    if kind == "inside":
        features = torch.softmax(randn(P, b, K), -1) @ points
    hull = build_hull(points, "convex_hull")
    return hull.gram, (features - hull.center[:, None]) @ hull.points.mT


def fista(iterations: int) -> Solver:
    """Accelerated projected gradient with adaptive restart and an exact simplex projection."""

    def project(v: torch.Tensor) -> torch.Tensor:
        above = (v[..., None, :] - v[..., :, None]).clamp_min(0).sum(-1) < 1
        shift = ((v * above).sum(-1, keepdim=True) - 1) / above.sum(-1, keepdim=True)
        return (v - shift).clamp_min(0)

    def solve(gram: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        largest = torch.linalg.matrix_norm(gram, ord=float("inf"))[:, None, None]
        w = torch.full_like(q, 1 / q.shape[-1])
        y, speed = w, torch.ones_like(q[..., :1])
        for _ in range(iterations):
            moved = project(y - (y @ gram - q) / largest)
            restart = ((y - moved) * (moved - w)).sum(-1, keepdim=True) > 0
            speed = torch.where(restart, 1.0, speed)
            faster = (1 + torch.sqrt(1 + 4 * speed**2)) / 2
            y = torch.where(restart, moved, moved + (speed - 1) / faster * (moved - w))
            w, speed = moved, faster
        return w

    return solve


def active_set(gram: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """quadprog, one problem after the other, with the ridge of 1e-12 without which it refuses singular sets."""
    P, b, K = q.shape
    constraints = np.hstack((np.ones((K, 1)), np.eye(K)))
    bounds = np.concatenate(([1.0], np.zeros(K)))
    ridge = 1e-12 * np.eye(K)
    weights = np.empty((P, b, K))
    for p in range(P):
        G = gram[p].numpy() + ridge
        for i in range(b):
            weights[p, i] = quadprog.solve_qp(G, q[p, i].numpy(), constraints, bounds, 1)[0]
    return torch.from_numpy(weights)


SOLVERS: dict[str, Solver] = {
    "convex_weights on a CPU": lambda gram, q: convex_weights(gram, q)[0],
    "interior point, 14 steps": lambda gram, q: interior_point(gram, q)[0],
    "FISTA, 64 iterations": fista(64),
    "FISTA, 256 iterations": fista(256),
    "quadprog, one by one": active_set,
}


def main() -> None:
    given = command(__doc__, "output").parse_args()
    torch.set_num_threads(1)
    rows = Rows(given.output, dict)
    for kind in SETS:
        gram, q = make_set(kind)
        for name, solve in SOLVERS.items():
            seconds = []
            for _ in range(3):
                began = time.perf_counter()
                w = solve(gram, q)
                seconds.append(time.perf_counter() - began)
            gap = duality_gap(gram[:, None], q, w, 0.0, 1.0).max().item()
            row = {"set": kind, "solver": name, "problems": q[..., 0].numel(), "largest_gap": f"{gap:.1e}"}
            rows.add({**row, "seconds_median_of_3": f"{sorted(seconds)[1]:.3f}"})


if __name__ == "__main__":
    main()
