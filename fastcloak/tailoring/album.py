"""Many photos at once, each with a mask of its own: read, learn and write side by side, pass by pass.

Threads read photos and find faces. Once the faces of a pass are together, the calling thread learns their masks; then
threads lay the masks and write the photos, while the next pass is read. A photo is decoded a second time for that, so
that no more than `jobs` decoded photos are in memory. Which photos share a pass depends on their order alone.

`.fastcloak.jsonl` says where the faces of written photos are, so that a later run need not look for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastcloak.fitting.objective import EARLIER
from fastcloak.photos.alignment import SIZE, Face, Pixels, align
from fastcloak.photos.files import decode_photo
from fastcloak.protection.album import AlbumRun, Opened, Outcome, Plan, who_in_lines
from fastcloak.protection.enrolment import Enrolment
from fastcloak.protection.overlay import added, is_grey
from fastcloak.protection.photo import ProtectedPhoto, decoded, encoded, face_warnings, meant_faces
from fastcloak.system.checks import whole
from fastcloak.system.threads import in_order
from fastcloak.tailoring.canvas import Canvas, canvas_of, lay
from fastcloak.tailoring.look import bounds
from fastcloak.tailoring.tailor import WITHOUT_PERSON, Tailor, tailored_faces

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastcloak.photos.alignment import Floats
    from fastcloak.tailoring.options import TailorOptions

__all__ = ["tailor_photos"]

logger = logging.getLogger("fastcloak")

ALREADY_TAILORED = (
    "must be an original, got a photo that an earlier run protected; nothing was written: tailor the original, or "
    "insist with again=True (--again)"
)
Masks = Sequence[tuple["Floats", "Floats"]]
"""Of each face of a photo the mask and its bound, as `Tailor.masks` gives them; none in a dry run."""


def tailor_photos(
    plan: Plan,
    me: Enrolment | None,
    models: Any = ("sface", "dlib"),
    *,
    who: str | None = None,
    quality: int | None = None,
    strip_gps: bool = False,
    strip_metadata: bool = False,
    overwrite: bool = False,
    again: bool = False,
    dry_run: bool = False,
    jobs: int = 1,
    progress: Callable[[Outcome], None] | None = None,
    learning: Callable[[float], None] | None = None,
    device: str | torch.device = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    **options: Unpack[TailorOptions],
) -> list[Outcome]:
    """Give every photo of a plan a mask of its own; one that fails never stops the others.

        me = fastcloak.enrol("photos/of/me")
        plan = fastcloak.plan_photos(["album"], "safe")
        outcomes = fastcloak.tailor_photos(plan, me)

    No original is ever written over, and what is done before is skipped, as by `protect_photos`. New photos are also
    kept apart from those that earlier runs tailored into the same folder, which are looked at for that.

    Args:
        plan: from `plan_photos`.
        me: the person, from about ten photos. None: each face is driven away from its own features only, which
            protects less.
        models: the networks to learn on, one or more; whatever `load_model` takes. Or a `Tailor`, which then goes on
            with its networks, device and options: for many people, one after the other.
        who: "me", the person's face; "largest", the largest face of each photo; "all", each face away from its own
            features, without `me`. None: "me" where that is given, else "largest".
        quality, strip_gps, strip_metadata: see `protect_photo`.
        overwrite: see `protect_photos`.
        again: tailor photos that an earlier run protected too.
        dry_run: do everything but learn and write.
        jobs: photos at a time that are read and written, in threads. Each takes about 20 bytes a pixel of memory.
        progress: called with each outcome as it is known, in this thread.
        learning: called after each step with how much was learnt since, in photos, in this thread.
        device, backend, engine, dtype: as for `fit`.
        options: as for `tailor`.

    Returns:
        An outcome per photo, in the order of the plan. `seconds` are those from reading to writing.

    Raises:
        ValueError, TypeError: a bad argument; the message names it, what was expected and a hint.
        MissingExtraError: faces must be found and the extra for that is not installed.
        OSError: the output folder cannot be made.
    """
    who = _checked_who(who, me)
    jobs = whole("jobs", jobs, 1)
    if isinstance(models, Tailor):
        if options:
            raise TypeError(f"options must be those of the Tailor, got {', '.join(options)} too; leave them out")
        tailor = models
        tailor.begin(me)
    else:
        tailor = Tailor(me, models, device=device, backend=backend, engine=engine, dtype=dtype, **options)
    if me is None:
        logger.warning(WITHOUT_PERSON)
    saving = {"quality": quality, "strip_gps": strip_gps, "strip_metadata": strip_metadata}
    made_by = {
        **who_in_lines("all" if me is None else me),
        "who": who,
        **saving,
        "cloak": None,
        "tailored": asdict(tailor.config),
        "models": [member.name for member in tailor.surrogate.members],
    }

    def needs_none(line: Mapping[str, Any]) -> bool:  # all but photos of another person
        return None in (line.get("person"), made_by["person"]) or line.get("person") == made_by["person"]

    run = AlbumRun(plan, made_by, needs_none, ALREADY_TAILORED, again=again, overwrite=overwrite, dry_run=dry_run)
    album = _Album(plan, run, tailor, me if me is not None and who == "me" else who, saving, made_by)
    outcomes: dict[Path, Outcome] = {}
    writing: list[Future[Outcome]] = []

    def report(outcome: Outcome) -> None:
        outcomes[outcome.source] = outcome
        if progress:
            progress(outcome)

    def report_written(most: int) -> None:
        """Reports what is written, until at most this many photos are on the way."""
        while True:
            done, left = wait(writing, None if len(writing) > most else 0, FIRST_COMPLETED)
            for future in done:
                writing.remove(future)
                report(future.result())
            if len(left) <= most:
                return

    with ThreadPoolExecutor(jobs, "fastcloak") as executor:
        try:
            for photos in plan.rounds():
                looked = in_order(executor, album.look, photos, lambda: tailor.faces_per_pass)
                for group in _passes(looked, tailor.faces_per_pass, report):
                    learnt: list[Masks] = [[] for _ in group]
                    try:
                        if not dry_run:
                            album.remember_earlier(executor)
                            learnt = album.learn(group, learning or (lambda photos: None))
                    except Exception as error:  # not the fault of the photos that follow
                        for seen in group:
                            report(run.fail(seen.opened, error))
                        continue
                    for seen, masks in zip(group, learnt, strict=True):
                        writing.append(executor.submit(album.write, seen, masks))
                    report_written(tailor.faces_per_pass)
                report_written(0)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            # Photos that were on the way are done now.
            for future in writing:
                if not future.cancelled() and future.exception() is None:
                    report(future.result())
            raise
    return [outcomes[source] for source, _ in plan.photos]


def _checked_who(who: str | None, me: Enrolment | None) -> str:
    if me is not None and not isinstance(me, Enrolment):
        raise TypeError(f"me must be an Enrolment or None, got {type(me).__name__}; fastcloak.enrol(photos) makes one")
    if who is None:
        return "largest" if me is None else "me"
    if who not in ("me", "largest", "all"):
        raise ValueError(f"who must be 'me', 'largest' or 'all', got {who!r:.60}")
    if who == "me" and me is None:
        raise ValueError("who='me' must come with photos of the person, got none; pass me=fastcloak.enrol(photos)")
    if who == "all" and me is not None:
        raise ValueError(
            "who='all' drives each face away from its own features, got photos of one person too; leave them out"
        )
    return who


@dataclass(frozen=True)
class _Seen:
    """A photo whose faces are found, and what is needed to learn their masks."""

    opened: Opened
    faces: list[Face]
    canvases: list[Canvas]
    bounds: list[Floats]
    grey: bool


def _passes(looked: Iterable[_Seen | Outcome], faces: int, report: Callable[[Outcome], None]) -> Iterator[list[_Seen]]:
    """Photos together as they come, until they have enough faces; grey ones apart, since their masks are grey."""
    groups: dict[bool, list[_Seen]] = {False: [], True: []}
    for one in looked:
        if isinstance(one, Outcome):
            report(one)
            continue
        group = groups[one.grey]
        group.append(one)
        if sum(len(seen.faces) for seen in group) >= faces:
            groups[one.grey] = []
            yield group
    yield from filter(None, groups.values())


class _Album:
    """What is done to the photos of a call of `tailor_photos`."""

    def __init__(
        self,
        plan: Plan,
        run: AlbumRun,
        tailor: Tailor,
        find: str | Enrolment,
        saving: dict[str, Any],
        made_by: Mapping[str, Any],
    ) -> None:
        self._run, self._tailor, self._find, self._saving, self._made_by = run, tailor, find, saving, made_by
        self._sources = {destination: source for source, destination in plan.photos}
        self._of_several = made_by["person"] is None
        self._knows_earlier = False

    def look(self, photo: tuple[Path, Path]) -> _Seen | Outcome:
        """Read a photo and find the faces that are meant; used by threads."""
        source, destination = photo

        def seen(opened: Opened) -> _Seen:
            pixels = decoded(opened.payload, source, destination).pixels
            faces = meant_faces(pixels, self._find, name=str(source))
            canvases = [canvas_of(pixels, face) for face in faces]
            limits = [bounds(canvas, self._tailor.config) for canvas in canvases]
            return _Seen(opened, faces, canvases, limits, is_grey(pixels))

        return self._run.attempt(self._run.open(source, destination), seen)

    def remember_earlier(self, executor: Executor) -> None:
        """Look once at the photos that earlier runs wrote, evenly spread over those that there are."""
        if self._knows_earlier:
            return
        self._knows_earlier = True
        files = [file for file in self._run.earlier() if file.is_file()]
        some = np.linspace(0, len(files) - 1, min(len(files), EARLIER)).round().astype(int)
        found = list(executor.map(self._faces_of, [files[i] for i in some]))
        for known in (False, True):
            faces = [face for written, originals in found if bool(originals) == known for face in written]
            clean = [face for _, originals in found for face in originals] if known else []
            if faces:
                self._tailor.remember(_stacked(faces), _stacked(clean) if known else None)

    def _faces_of(self, file: Path) -> tuple[list[Pixels], list[Pixels]]:
        """The faces of a photo that an earlier run wrote, unless it was changed since, or is to be written again.

        Where several people may be in the album, the faces of its original too, if that is among the photos.
        """
        try:
            payload = file.read_bytes()
            line = self._run.line_of(file, payload) or {}
            source = self._sources.get(file)
            if source and any(line.get(name) != value for name, value in self._made_by.items()):
                return [], []
            landmarks = np.array(line.get("faces", []), np.float32).reshape(-1, 5, 2)
            written, originals = _cut_out(payload, file, landmarks), []
            with suppress(Exception):  # without the original it cannot be told whose faces they are
                if source and self._of_several and self._run.is_source(payload := source.read_bytes(), line):
                    originals = _cut_out(payload, source, landmarks)
            return written, originals
        except Exception:  # a line that is not ours, or a photo that cannot be read
            return [], []

    def learn(self, group: list[_Seen], learning: Callable[[float], None]) -> list[Masks]:
        """Learn the masks of the photos of a pass."""
        canvases = [canvas for seen in group for canvas in seen.canvases]
        limits = [bound for seen in group for bound in seen.bounds]
        learnt: list[tuple[Floats, Floats]] = []
        # A photo of many people may have more faces than a pass.
        for first in range(0, len(canvases), self._tailor.faces_per_pass):
            faces = slice(first, first + self._tailor.faces_per_pass)
            part = canvases[faces]
            step = len(group) * len(part) / (len(canvases) * max(1, self._tailor.config.gradients))
            masks = self._tailor.masks(
                part, limits[faces], grey=group[0].grey, of_several=self._of_several, tick=partial(learning, step)
            )
            self._tailor.remember(tailored_faces(part, masks), tailored_faces(part) if self._of_several else None)
            learnt += masks
        ends = np.cumsum([len(seen.faces) for seen in group])
        return [learnt[end - len(seen.faces) : end] for seen, end in zip(group, ends, strict=True)]

    def write(self, seen: _Seen, masks: Masks) -> Outcome:
        """Lay the masks of a photo and write it; used by threads."""

        def written(opened: Opened) -> Outcome:
            photo = decoded(opened.payload, opened.source, opened.destination)
            pixels = photo.pixels.copy()
            for canvas, (mask, bound) in zip(seen.canvases, masks, strict=False):
                region, change = lay(mask, bound, canvas, *pixels.shape[:2])
                if seen.grey:
                    change = change[..., :1]
                pixels[region] = added(pixels[region], photo.pixels[region], change, self._tailor.config.largest)
            sides, uncertain = (
                [canvas.face_size for canvas in seen.canvases],
                sum(face.uncertain for face in seen.faces),
            )
            warnings = [*photo.warnings, *face_warnings(sides, uncertain)]
            if masks and np.array_equal(pixels, photo.pixels):
                warnings.append("the mask changes no grey level of this photo, which is not protected")
            done = ProtectedPhoto(
                opened.source, opened.destination, len(sides), tuple(sides), tuple(warnings), uncertain
            )
            payload = encoded(replace(photo, pixels=pixels), opened.destination, **self._saving)
            faces = [face.landmarks.astype(float).round(2).tolist() for face in seen.faces]
            return self._run.write(opened, payload, done, faces=faces)

        return self._run.attempt(seen.opened, written)


def _cut_out(payload: bytes, file: Path, landmarks: Floats) -> list[Pixels]:
    """The aligned faces of a photo with these landmarks, [n, 5, 2]."""
    pixels = decode_photo(payload, name=str(file)).pixels
    # A face that is larger than its photo is no face of ours, and would take any amount of memory.
    if not np.ptp(landmarks, axis=1).max(initial=0) <= max(pixels.shape):
        return []
    if pixels.shape[:2] == (SIZE, SIZE):
        return [pixels] * len(landmarks)
    return [align(pixels, Face((0, 0, 0, 0), points, 1.0))[0] for points in landmarks]


def _stacked(faces: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 255
