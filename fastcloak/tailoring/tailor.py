"""Masks for the faces of an album, each its own: `tailor` for aligned faces, `Tailor` for canvases, pass by pass.

The loop is that of `fastcloak.fitting.loop` with a person for each face:

    w <- own noise in [-1, 1]
    for t = 1 .. T:                            one network a step, in turns
        x <- a view of clip(canvas + E w, 0, 1), aligned
        loss <- -<z, c> + ...                  z: unit feature of x, c: mean of the person's clean unit features
        ... - apart <z, o>                     o: mean of the others' features, the most similar ones first
        velocity <- 0.9 velocity + g / mean|g|          g: the blurred gradient
        w <- clip(w + sign(velocity) / 4, -1, 1)
    mask <- E sign(mean of w over the last half of the steps)

E is the bound of each pixel, see `look.py`. What is new against OPOM: a mask a photo, and photos that repel each other.
The features are not kept anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcloak.fitting.learner import Learner, on_device
from fastcloak.fitting.objective import EARLIER
from fastcloak.fitting.options import warn_of_idle
from fastcloak.fitting.run import own_modes
from fastcloak.fitting.state import Album, Learnt, Tailoring
from fastcloak.models import unit_features
from fastcloak.photos.alignment import ALIGNED_FACE, SIZE, Floats
from fastcloak.photos.inputs import load_faces
from fastcloak.protection.enrolment import Enrolment
from fastcloak.protection.outliers import stranger_bound
from fastcloak.tailoring.canvas import SIDE, Canvas, canvas_of
from fastcloak.tailoring.look import bounds
from fastcloak.tailoring.options import configure_tailor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastcloak.tailoring.options import TailorOptions

log = logging.getLogger("fastcloak")

WITHOUT_PERSON = (
    "without photos of the person each face is driven away from its own features only, which protects less; name "
    "about ten: me=fastcloak.enrol(photos) (--me)"
)
FACES_PER_PASS, ON_CPU = 128, 16
"""Faces that share a pass and are kept apart from each other; on a CPU as many as fit its caches."""


def tailor(
    images: Any,
    me: Enrolment | None,
    models: Any = ("sface", "dlib"),
    *,
    device: str | torch.device = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    **options: Unpack[TailorOptions],
) -> Tensor:
    """Learns a mask for each of many aligned faces of one person, who is not recognised in them, nor are they linked.

        me = fastcloak.enrol("photos/of/me")
        masks = fastcloak.tailor(faces, me)
        posted = (faces + masks).clamp(0, 1)

    `fastcloak.tailor_photos` does it for photos.

    Args:
        images: n faces; whatever `load_faces` takes.
        me: the person, from about ten photos. None: each face is driven away from its own features only, which
            protects less.
        models: the networks to learn on, one or more; whatever `load_model` takes.
        device, backend, engine, dtype: as for `fit`.
        options: `fastcloak.tailoring.options.TailorOptions`; docs/use.md and `fastcloak tailor --help` list them.

    Returns:
        [n, 3, 112, 112] float32 on the CPU, within the largest bound of the options.

    Raises:
        ValueError: bad input; the message names it, what was expected and a hint.
        FloatingPointError: NaN or Inf in a network's embeddings or gradients.
        TypeError: images or models of a type that cannot be taken, or an unknown option.

    Source: ours; the loop is that of GA-OPOM, the views those of DI (Xie et al., CVPR 2019).
    """
    if me is None:
        log.warning(WITHOUT_PERSON)
    faces = load_faces(images)
    worker = Tailor(me, models, device=device, backend=backend, engine=engine, dtype=dtype, **options)
    masks = torch.zeros_like(faces)
    pixels = (255 * faces).permute(0, 2, 3, 1).numpy()
    grey = (faces == faces[:, :1]).all(3).all(2).all(1)
    for kind in sorted(set(grey.tolist())):
        for part in torch.split((grey == kind).nonzero().flatten(), worker.faces_per_pass):
            canvases = [canvas_of(pixels[i], ALIGNED_FACE) for i in part.tolist()]
            learnt = np.stack([mask * bound for mask, bound in worker.masks(canvases, grey=kind)])
            masks[part] = torch.from_numpy(learnt)[:, :SIZE, :SIZE].permute(0, 3, 1, 2)
            worker.remember((faces[part] + masks[part]).clamp(0, 1))
    return masks


class Tailor(Learner):
    """Networks made ready, and the loop captured, for many passes of one person's album, then of others'.

    Attributes:
        config: the options.
        faces_per_pass: how many faces share a pass.
    """

    def __init__(
        self,
        me: Enrolment | None,
        models: Any = ("sface", "dlib"),
        *,
        device: str | torch.device = "auto",
        backend: str = "auto",
        engine: str = "auto",
        dtype: str | torch.dtype = "auto",
        **options: Unpack[TailorOptions],
    ) -> None:
        """Loads and prepares; arguments and errors are those of `tailor`."""
        self.config = configure_tailor(options)
        warn_of_idle(self.config)
        super().__init__(models, device, backend, engine, dtype)
        assert self.config.apart is not None
        self.faces_per_pass = ON_CPU if self.device.type == "cpu" else FACES_PER_PASS
        self._tailoring = Tailoring(SIDE, self.config.apart)
        self.begin(me)

    def begin(self, me: Enrolment | None) -> None:
        """Go over to another person's album, and forget the faces of the one before."""
        # Unit features of faces as they were written, and as they were before; NaN where that is not known.
        self._earlier = torch.empty(0, self.surrogate.embedding_size, device=self.device)
        self._originals = self._earlier
        self._center: Tensor | None = None
        if me is not None:
            with own_modes(self.device):
                self._center = unit_features(self.surrogate, me.faces).mean(0)

    def remember(self, faces: Tensor, originals: Tensor | None = None) -> None:
        """Keep later passes apart from faces that are protected already.

        Args:
            faces: [n, 3, 112, 112] float32 in [0, 1].
            originals: the same without their masks, by which is told whose they are. None: they may be anyone's.
        """
        with own_modes(self.device):
            written = unit_features(self.surrogate, faces)
            clean = torch.full_like(written, torch.nan)
            if originals is not None:
                clean = unit_features(self.surrogate, originals)
        seen, originals = torch.cat((self._earlier, written)), torch.cat((self._originals, clean))
        # Of many, those that are evenly spread over time.
        spread = torch.linspace(0, len(seen) - 1, min(len(seen), EARLIER)).round().long().to(seen.device)
        self._earlier, self._originals = seen[spread], originals[spread]

    def masks(
        self,
        canvases: Sequence[Canvas],
        bound: Sequence[Floats] = (),
        *,
        grey: bool = False,
        of_several: bool = False,
        tick: Callable[[], None] = lambda: None,
    ) -> list[tuple[Floats, Floats]]:
        """Learn a mask for each face of one pass.

        Args:
            canvases: one or more.
            bound: what `bounds` gives for each, where it was computed before, as threads do.
            grey: masks of three equal channels, for grey photos.
            of_several: the faces are of several people: only those that look alike are kept apart.
            tick: called after each step.

        Returns:
            For each face its mask w and its bound E, [160, 160, 3] float32: E w is what the face changes by, w is -1,
            0 or 1, E on the [0, 1] scale.

        Raises:
            FloatingPointError: a network's embeddings or gradients became NaN or Inf.
            ValueError: a network without a gradient.
        """
        with own_modes(self.device):
            pictures = self._stacked([canvas.picture for canvas in canvases]) / 255
            bound = bound or [bounds(canvas, self.config) for canvas in canvases]
            place = torch.from_numpy(np.stack([canvas.place for canvas in canvases])).to(self.device)
            clean = unit_features(self.surrogate, _aligned(pictures, place))
            center = clean if self._center is None else self._center.expand_as(clean)
            learnt = self.run(
                self.config.loop(grey),
                len(canvases),
                1,
                self._tailoring,
                most=self.faces_per_pass,
                faces=pictures[:, None],
                features=center[:, None],
                tick=tick,
                album=Album(self._stacked(bound), place, self._alike(clean, clean, of_several).fill_diagonal_(0)),
                earlier=self._earlier,
                alike=self._alike(clean, self._originals, of_several),
            )
        _check(learnt, self.config.gradients)
        masks = learnt.delta.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return list(zip(masks, bound, strict=True))

    def _alike(self, clean: Tensor, others: Tensor, of_several: bool) -> Tensor:
        """Whom to keep apart from whom, [P, n] of 0 and 1: all, or of several people those that may be one."""
        least = stranger_bound(self.surrogate) if of_several else None
        if least is None:
            return torch.ones(len(clean), len(others), device=clean.device)
        return (~(clean @ others.T < least)).float()  # true for NaN: whose face that is cannot be told

    def _stacked(self, pictures: Sequence[Floats]) -> Tensor:
        return on_device(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), self.device)


def tailored_faces(canvases: Sequence[Canvas], masks: Sequence[tuple[Floats, Floats]] = ()) -> Tensor:
    """The aligned faces with their masks, [P, 3, 112, 112] float32 in [0, 1], of what `Tailor.masks` took and gave.

    Without masks they are the originals.
    """
    shown = [canvas.picture / 255 for canvas in canvases]
    if masks:
        shown = [picture + mask * bound for picture, (mask, bound) in zip(shown, masks, strict=True)]
    pictures = torch.from_numpy(np.stack(shown)).clamp(0, 1).permute(0, 3, 1, 2)
    return _aligned(pictures, torch.from_numpy(np.stack([canvas.place for canvas in canvases])))


def _aligned(pictures: Tensor, place: Tensor) -> Tensor:
    size = [len(pictures), 3, SIZE, SIZE]
    grid = F.affine_grid(place, size, align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _check(learnt: Learnt, steps: int) -> None:
    bad = ~(learnt.losses[:steps].isfinite().all(1))
    if bad.any() or not learnt.delta.isfinite().all():
        step = int(bad.nonzero()[0]) if bad.any() else steps - 1
        raise FloatingPointError(
            f"a network's embeddings or gradients became NaN or Inf at step {step + 1} of {steps}; check the networks "
            "(and their scale and shift), or use dtype='float32'"
        )
    if steps and not learnt.moved.all():
        raise ValueError(
            "the gradient was zero at every step, so that nothing was learnt: the networks must be differentiable and "
            "give different embeddings for different photos"
        )
