"""Other people's attacks and solvers on the same network, photos and number of image-gradients.

Every adapter runs the peer's own loop; ours is only what turns embeddings into the loss that it ascends, fi_uap:
|z' - z|^2 of unit embeddings, z the clean photo's. Networks map faces [n, 3, 112, 112] in [0, 1] to [n, D], in eval
mode. Whether their weights require a gradient is the caller's choice: it decides the speed of a peer that calls
`backward()` (foolbox, ART), not of one that asks for the picture's gradient alone (torchattacks).

torchattacks and foolbox return pictures that each have their own mask, which is not universal. Peers are compared by
the cost of an image-gradient, counted at the network. `clean` is what `clean_units` gives, so that embedding the clean
photos is not charged to them. Each peer is imported where it is used: one that is missing does not stop the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.speed import hull_solvers, published

Solve = Callable[[Tensor, Tensor], Tensor]
EPS = 8 / 255
ALPHA = 1 / 255


@dataclass
class Passes:
    """Photos that went through a network forward, and forward and backward: image-gradients."""

    forwards: int = 0
    gradients: int = 0


@dataclass(frozen=True)
class Attacked:
    """What a peer made, [n, 3, 112, 112] in [0, 1], and what went through the network."""

    pictures: Tensor
    passes: Passes


@contextmanager
def count_passes(net: nn.Module) -> Iterator[Passes]:
    """Counts the photos that go through `net` while it is open."""
    passes = Passes()

    def forwards(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes.forwards += len(output)
        if output.requires_grad:
            output.register_hook(gradients)  # type: ignore[no-untyped-call]

    def gradients(slope: Tensor) -> None:
        passes.gradients += len(slope)

    hook = net.register_forward_hook(forwards)
    try:
        yield passes
    finally:
        hook.remove()


def clean_units(net: nn.Module, faces: Tensor) -> Tensor:
    """[n, D] unit embeddings without a graph."""
    with torch.no_grad():
        return normalize(net(faces))


def own_feature_distance(net: nn.Module, faces: Tensor, pictures: Tensor) -> float:
    """Mean |z' - z|^2 of pictures [n, 3, 112, 112] against the clean faces they were made from: fi_uap."""
    return (clean_units(net, pictures) - clean_units(net, faces)).square().sum(1).mean().item()


class _TwoLogits(nn.Module):
    """Logits (-|z' - z|^2, 0): the cross entropy of label 0 grows with the distance, by a positive factor per photo."""

    def __init__(self, net: nn.Module, clean: Tensor) -> None:
        super().__init__()
        self.net, self.clean = net, clean
        self.eval()  # torchattacks gives back the mode it finds, to the network too

    def forward(self, pictures: Tensor) -> Tensor:
        near = -(normalize(self.net(pictures)) - self.clean).square().sum(1)
        return torch.stack((near, torch.zeros_like(near)), 1)


def torchattacks_pgd(net: nn.Module, faces: Tensor, clean: Tensor, steps: int) -> Attacked:
    """torchattacks.PGD: a mask per photo, `steps` image-gradients per photo. Its loss is fixed, hence `_TwoLogits`."""
    import torchattacks

    attack = torchattacks.PGD(_TwoLogits(net, clean), EPS, ALPHA, steps, random_start=True)
    with count_passes(net) as passes:
        pictures: Tensor = attack(faces, torch.zeros(len(faces), dtype=torch.int64, device=faces.device))
    return Attacked(pictures, passes)


def foolbox_pgd(net: nn.Module, faces: Tensor, clean: Tensor, steps: int) -> Attacked:
    """foolbox.attacks.LinfPGD: a mask per photo, `steps` image-gradients per photo.

    `run` is the loop alone: calling the attack embeds all pictures once more.
    """
    from eagerpy.astensor import astensor
    from foolbox.attacks import LinfPGD
    from foolbox.criteria import Misclassification
    from foolbox.models.pytorch import PyTorchModel

    class FiUap(LinfPGD):
        def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
            def loss(pictures: Any) -> Any:
                return astensor((normalize(model(pictures).raw) - clean).square().sum())

            return loss

    model = PyTorchModel(net, bounds=(0, 1), device=faces.device)
    labels = torch.zeros(len(faces), dtype=torch.int64, device=faces.device)
    with count_passes(net) as passes:
        pictures = FiUap(abs_stepsize=ALPHA, steps=steps).run(model, faces, Misclassification(labels), epsilon=EPS)
    return Attacked(pictures, passes)


class _NearestPhoto(nn.Module):
    """Scores -|z' - z_j|^2 for every clean photo j: ART sees a classifier whose classes are the person's photos."""

    def __init__(self, net: nn.Module, clean: Tensor) -> None:
        super().__init__()
        self.net, self.clean = net, clean
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        # |z' - z_j|^2 = 2 - 2 <z', z_j>
        return 2 * normalize(self.net(pictures)) @ self.clean.T - 2


class _OwnDistance(nn.Module):
    """Sum of |z' - z|^2 from the scores of `_NearestPhoto` and one-hot labels."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -(scores * labels).sum()


def art_universal(net: nn.Module, faces: Tensor, clean: Tensor, steps: int) -> Attacked:
    """art.attacks.evasion.UniversalPerturbation with PGD inside: one mask for all photos, at most `steps` per photo.

    A photo that the mask so far moves away from its class is skipped, so the number of image-gradients depends on the
    data; ART also embeds pictures again and again without a gradient, to see their class.
    """
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier

    N = len(faces)
    classifier = PyTorchClassifier(
        _NearestPhoto(net, clean),
        loss=_OwnDistance(),
        input_shape=tuple(faces.shape[1:]),
        nb_classes=N,
        clip_values=(0.0, 1.0),
        device_type="gpu" if faces.is_cuda else "cpu",
    )
    # One random start: at the clean photo the gradient of fi_uap is zero.
    inner = {"eps": EPS, "eps_step": ALPHA, "max_iter": steps, "num_random_init": 1, "batch_size": 1, "verbose": False}
    attack = UniversalPerturbation(
        classifier, attacker="pgd", attacker_params=inner, delta=0.0, max_iter=1, eps=EPS, batch_size=N, verbose=False
    )
    before = random.getstate()
    random.seed(0)
    try:
        with count_passes(net) as passes:
            pictures = attack.generate(faces.cpu().numpy(), y=np.eye(N, dtype=np.float32))
    finally:
        random.setstate(before)
    return Attacked(torch.from_numpy(np.asarray(pictures, dtype=np.float32)).to(faces.device), passes)


ATTACKS: dict[str, Callable[..., Attacked]] = {
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "art": art_universal,
}
"""Adapters by the name of the module that each needs."""


def cvxpy_weights(features: Tensor, points: Tensor) -> Tensor:
    """Convex-hull weights [b, K] of unit features [b, D], points [K, D]: one cvxpy problem each, as published."""
    return published.hull_weights(features, points, 0.0, 1.0)


def quadprog_weights(features: Tensor, points: Tensor) -> Tensor:
    """The same by quadprog's active-set method, one problem each, on the Gram matrix of centred points."""
    center = points.double().mean(0)
    rows = points.double() - center
    gram, correlation = rows @ rows.T, (features.double() - center) @ rows.T
    return hull_solvers.active_set(gram[None], correlation[None])[0]
