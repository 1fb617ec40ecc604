"""What someone finds who compares one person's posted photos by a network's threshold, on unit features.

Photo i is posted, and two photos are *accepted* as one person's if their cosine reaches the threshold, here that of a
false accept rate of 1e-3. The original of a posted photo itself, own[i], is never compared with it: nobody else has it.

- Pairs: posted photo i with each other clean photo, and with each other posted photo.
- A gallery that grows: it holds one clean photo, takes in every posted photo that is accepted by any photo in it, and
  looks again, until it finds no more. In what order does not matter. The mean is over the clean photo it starts with.
- A template: the unit mean of up to ten clean photos, as services keep of their users.
- Strangers: posted photo i with each photo of another person. A mask must make nobody pass for somebody else.

Source: Fan et al., "DivTrackee versus DynTracker: Promoting Diversity in Anti-Facial Recognition against Dynamic FR
Strategy", arXiv 2501.06533, for the gallery that grows; with a threshold instead of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastcloak.evaluation.results import LEAST_PAIRS, Threshold, ThresholdRates
from fastcloak.protection.enrolment import FALSE_ACCEPT_RATE, verification_threshold

# Clean photos in a template, the first ones.
TEMPLATE_PHOTOS = 10


def find_threshold(name: str, strangers: Tensor | None) -> Threshold | None:
    """Find the threshold of the network of this name: the known one, else one estimated from photos of two people.

    Args:
        name: of the network.
        strangers: cosines of clean photos with photos of other people, of any shape; None: there are none.

    Returns:
        None where no threshold is known and the cosines are too few to estimate one.
    """
    known = verification_threshold(name)
    if known is not None:
        return Threshold(known, f"which 1 in {round(1 / FALSE_ACCEPT_RATE):,} pairs of different people of LFW reach")
    if strangers is None or strangers.numel() < LEAST_PAIRS:
        return None
    accepted = int(strangers.numel() * FALSE_ACCEPT_RATE)
    value = strangers.flatten().topk(accepted).values[-1].item()
    pairs = f"{accepted} of {strangers.numel()} pairs of a clean photo and a distractor reach it"
    return Threshold(value, f"estimated here: {pairs}")


def threshold_rates(
    posted: Tensor,
    clean: Tensor,
    strangers: Tensor | None,
    threshold: float | None,
    *,
    own: Tensor | None = None,
) -> ThresholdRates:
    """Rates of one person on one network at its threshold.

    Args:
        posted: [n, D], unit features of the posted photos.
        clean: [N, D], of the clean photos.
        strangers: [M, D], of photos of other people; None: there are none.
        threshold: cosine from which on the network accepts; None: not known, and so is every rate.
        own: [n], which clean photo each posted photo was; None: photo i was clean photo i.

    Returns:
        Each rate, None where there is nothing that it could be a share of.
    """
    if threshold is None:
        return ThresholdRates()
    own = torch.arange(len(posted)) if own is None else own
    other = (torch.arange(len(clean)) != own[:, None]).to(posted.device)  # [n, N], the pairs i != j
    others = ~torch.eye(len(posted), dtype=torch.bool, device=posted.device)  # [n, n]
    accepted, linked = posted @ clean.T >= threshold, posted @ posted.T >= threshold
    judged = other.any(1)
    return ThresholdRates(
        accepted=_share(accepted[other]),
        linked=_share(linked[others]),
        tracked=tracked_share(accepted.T, linked, other.T),
        template=_share(((posted * templates(clean, other)).sum(1) >= threshold)[judged]),
        impersonation=None if strangers is None else _share(posted @ strangers.T >= threshold),
    )


def tracked_share(accepted: Tensor, linked: Tensor, album: Tensor) -> float | None:
    """Share of an album that a gallery gets which grows with each photo that it recognises.

    Args:
        accepted: [N, n] bool, whether clean photo s, with which the gallery may start, accepts posted photo i.
        linked: [n, n] bool, whether posted photo i accepts posted photo j.
        album: [N, n] bool, the photos to be found from clean photo s: all but its own.

    Returns:
        Mean over the clean photos; None if none has an album.
    """
    gallery = accepted & album
    while True:
        grown = gallery | ((gallery.float() @ linked.float() > 0) & album)
        if grown.equal(gallery):
            break
        gallery = grown
    sizes = album.sum(1)
    shares = gallery.sum(1)[sizes > 0].double() / sizes[sizes > 0]
    return shares.mean().item() if len(shares) else None


def templates(clean: Tensor, other: Tensor) -> Tensor:
    """Unit mean [n, D] of the first ten of the clean photos [N, D] that `other` [n, N] allows each posted photo."""
    chosen = other & (other.cumsum(1) <= TEMPLATE_PHOTOS)
    return normalize(chosen.to(clean.dtype) @ clean, dim=1)


def _share(hits: Tensor) -> float | None:
    return hits.double().mean().item() if hits.numel() else None
