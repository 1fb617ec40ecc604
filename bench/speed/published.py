"""The published OPOM loop as it is released: the baseline of every speed figure.

Written by us after reading zhongyy/OPOM (commit 6a81c65), code/generation/attack/privacy.py, class FIM; no line of it
is copied. One step costs what the release pays for it:

    one forward of the cloaked photos           FIM.process, privacy.py:136
    their backward, into pictures and weights   the backbone is never frozen: gen_privacy_torch.py:63-66; privacy.py:152
    another backward, through the clean photos  their graph is kept (privacy.py:124 with gradients on, retain_graph=True
                                                in :152), and every loss goes through their features too (:95, :64, :25)
    features on the host, distances printed     privacy.py:137-138: a wait for the device in every step
    hull: one cvxpy problem per photo           privacy.py:52-62 (affine), :82-93 (convex), each built again
    class centre: the same problem              privacy.py:147: lower = upper = 1/N, whose answer is 1/N
    batch normalisation, float32, NCHW          backbone/model_irse.py as trained

In units of a forward pass: 1 + 2 + 2 = 5, of which two are needed. The clean features are computed once per person; the
boosted loop (DFANet_MFIM, privacy.py:210), which is not here, computes them in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EPS, ALPHA = 8 / 255, 1 / 255
OBJECTIVES = ("fi_uap", "fi_uap_plus", "class_center", "affine_hull", "convex_hull")


def published_fit(
    net: nn.Module,
    faces: Tensor,
    objective: str = "fi_uap",
    steps: int = 16,
    *,
    warmup: int = 5,
    clean: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One person's mask [3, 112, 112] within +-8/255, fitted as the release does, by default as in its scripts.

    Args:
        net: faces [n, 3, 112, 112] in [0, 1] -> raw embeddings [n, D]; in eval mode, weights as they come.
        faces: [N, 3, 112, 112] float32 in [0, 1].
        objective: one of `OBJECTIVES`.
        steps: with convex_hull the first `warmup` of them take weights 1/N.
        warmup: see there.
        clean: what `clean_features` gave for these faces, so as not to compute it here.
        progress: as that of `fastcloak.fit`.

    Source: zhongyy/OPOM code/generation/attack/privacy.py:99-161 (FIM), scripts gen_privacy_common_softmax.sh.
    """
    clean = clean_features(net, faces) if clean is None else clean
    cloaked = faces + start_noise(len(faces)).to(faces.device)
    delta = torch.zeros_like(faces[:1])
    for t in range(steps):
        now = "class_center" if objective == "convex_hull" and t < warmup else objective
        cloaked, delta, _ = published_step(net, faces, clean, cloaked, now)
        if progress is not None:
            progress(t + 1, steps)
    return delta[0]


def start_noise(photos: int) -> Tensor:
    """[photos, 3, 112, 112] uniform in +-eps: the numbers that the release draws on a CPU, and that `fit` draws."""
    generator = torch.Generator().manual_seed(0)
    return torch.empty(photos, 3, 112, 112).uniform_(-1, 1, generator=generator) * EPS


def clean_features(net: nn.Module, faces: Tensor) -> Tensor:
    """[N, D], raw embeddings of the clean photos, with the graph into the weights that the release keeps."""
    features: Tensor = net(faces.detach().clone())
    return features


def published_step(
    net: nn.Module, faces: Tensor, clean: Tensor, cloaked: Tensor, objective: str
) -> tuple[Tensor, Tensor, list[float]]:
    """One step of `published_fit`; here convex_hull means the hull, without warm-up.

    Returns:
        The cloaked photos [N, 3, 112, 112] and mask [1, 3, 112, 112] after the step, and each photo's distance
        |z' - z| before it, which the release prints.
    """
    cloaked = cloaked.detach().requires_grad_()
    features = net(cloaked)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (_numpy(features), _numpy(clean))]
    distances = [float(np.sqrt(np.sum((a - b) * (a - b)))) for a, b in zip(*units, strict=True)]
    loss = _loss(_unit(features), _unit(clean), objective)
    net.zero_grad()
    torch.autograd.backward(loss, retain_graph=True)

    assert cloaked.grad is not None
    moved = cloaked.detach() + ALPHA * cloaked.grad.mean(0, keepdim=True).sign()
    delta = (moved - faces).mean(0, keepdim=True).clamp(-EPS, EPS)
    return (faces + delta).clamp(0, 1).detach(), delta, distances


def _unit(features: Tensor) -> Tensor:
    units: Tensor = features / torch.linalg.norm(features, dim=1, keepdim=True)
    return units


def _numpy(features: Tensor) -> np.ndarray:
    return features.detach().cpu().numpy()


def _loss(z: Tensor, clean: Tensor, objective: str) -> Tensor:
    """What the release ascends; z and clean are [N, D], and the gradient goes through both."""
    if objective == "fi_uap_plus":
        return -(z @ clean.T).mean()
    N = len(clean)
    bounds = {"affine_hull": (None, None), "convex_hull": (0.0, 1.0), "class_center": (1 / N, 1 / N)}.get(objective)
    nearest = clean if bounds is None else hull_weights(z, clean, *bounds) @ clean
    return nn.functional.mse_loss(nearest, z)


def hull_weights(z: Tensor, clean: Tensor, lower: float | None = None, upper: float | None = None) -> Tensor:
    """Weights [b, N] of the nearest hull point of each z [b, D], by one cvxpy problem each; no bounds: affine hull.

    Source: zhongyy/OPOM code/generation/attack/privacy.py:52-62 and :82-93, with the solver that cvxpy chooses.
    """
    import cvxpy  # the other objectives do without it

    cp: Any = cvxpy  # its types say nothing of sum(x) == 1

    points = clean.detach().cpu().numpy()  # [N, D]
    weights = torch.zeros(len(z), len(clean), device=z.device)
    for i in range(len(z)):
        feature = z[i].detach().cpu().numpy()
        x = cp.Variable(len(clean))
        # Python's sum, as published: a tree of N additions.
        constraints = [sum(x) == 1]
        if lower is not None and upper is not None:
            constraints += [lower <= x, x <= upper]
        cp.Problem(cp.Minimize(cp.sum_squares(x @ points - feature)), constraints).solve()
        weights[i] = torch.tensor(x.value, dtype=torch.float32)
    return weights
