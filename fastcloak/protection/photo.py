"""A cloak and any photo -> the protected photo, at full resolution, changed only where the face is.

Only the mask is warped; the photo's own pixels stay where they are:

    protected = round(clip(photo + 255 * clip(STRENGTH * spread(delta), -largest, largest) * window, 0, 255))

`spread` is the adjoint of the alignment, on average over where its samples fall. `largest` is the largest |delta|,
which nearly all pixels of a cloak have. Of all masks within that bound the signs of the adjoint return most of the
cloak when the face is aligned again; a mask that is made much larger before it is cut is nearly these signs.
`window` is 1 inside the square that face networks see and falls to 0 at its border.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np

from fastcloak.cloak import Cloak
from fastcloak.photos.alignment import ALIGNED_FACE, SIZE, Face, Pixels, align, check_pixels
from fastcloak.photos.detection import UNCERTAIN, check_who, find_faces
from fastcloak.photos.files import Photo, decode_photo, encode_photo, fit_format, without_gps, without_metadata
from fastcloak.protection.enrolment import Enrolment
from fastcloak.protection.overlay import added, channels_last, face_mask, is_grey
from fastcloak.protection.presence import carries
from fastcloak.system.errors import AlreadyProtectedError
from fastcloak.system.files import atomic_write

__all__ = [
    "ProtectedPhoto",
    "decoded",
    "encoded",
    "face_warnings",
    "meant_faces",
    "protect",
    "protect_payload",
    "protect_photo",
]

logger = logging.getLogger("fastcloak")

ALREADY_PROTECTED = (
    "must be a photo without this cloak, got one that carries it already; nothing was written: protect the original, "
    "or insist with again=True (--again)"
)

# Pixels: smaller faces get a warning.
SMALL_FACE = 60
# Side of the aligned square -> share of the protection at 224 pixels, JPEG 95, three networks; below 40 a guess.
_KEPT = ((0, 0.0), (40, 0.5), (60, 0.69), (80, 0.83), (112, 0.95), (224, 1.0))


@dataclass(frozen=True)
class ProtectedPhoto:
    """What `protect_photo` did.

    Attributes:
        source: the photo that was read.
        path: the protected photo that was written.
        faces: how many faces were cloaked.
        face_sizes: per face the side of its aligned square in pixels of the photo; 112 is the size that networks see,
            and a mask on a much smaller face loses detail.
        warnings: what a person should know: a face that is too small to keep much of the cloak, and what of the file
            could not be kept, such as HDR.
        uncertain: how many of the faces may be cloaked the wrong way up, since that cannot be told.
    """

    source: Path
    path: Path
    faces: int
    face_sizes: tuple[float, ...]
    warnings: tuple[str, ...] = ()
    uncertain: int = 0


def protect(
    pixels: Pixels,
    cloak: Cloak,
    *,
    who: str | Enrolment = "largest",
    faces: Sequence[Face] | None = None,
    again: bool = False,
) -> Pixels:
    """Add a cloak to the faces of a photo.

    A photo of 112x112 pixels counts as aligned: the mask is added as `cloak.apply` does. A grey photo (three equal
    channels) stays grey: it gets the mean of the mask's channels, made as large on average as the mask and cut at eps.
    One channel holds less of a cloak than three, so grey photos are protected less on the network that the cloak was
    learnt on.

    A face that carries this cloak already (`fastcloak.protection.presence`) is unchanged; that, and a photo that the
    cloak does not change, is logged as a warning.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        cloak: the person's.
        who: "largest" cloaks the largest face, "all" cloaks all of them, an `Enrolment` that of the enrolled person.
        faces: instead of `who`: the faces to cloak, from `detect(pixels)`.
        again: cloak faces that carry this cloak too.

    Returns:
        A new array like `pixels`. No value differs by more than ceil(255 * eps); pixels outside the squares of the
        faces are the same.

    Raises:
        ValueError: pixels of another shape or dtype, another word for `who`, no face in `faces`.
        FaceNotFoundError: no face was found, or none of the enrolled person (`PersonNotFoundError`).
        MissingExtraError: the `faces` extra is not installed.
    """
    protected, _, _, warnings = _protect(pixels, cloak, who, faces, again, "photo")
    for warning in warnings:
        logger.warning("%s", warning)
    return protected


def protect_photo(
    source: str | PathLike[str],
    destination: str | PathLike[str],
    cloak: Cloak,
    *,
    who: str | Enrolment = "largest",
    overwrite: bool = False,
    quality: int | None = None,
    strip_gps: bool = False,
    strip_metadata: bool = False,
    again: bool = False,
) -> ProtectedPhoto:
    """Read a photo, add a cloak to its faces and write it, as the kind of photo that it was.

    Orientation, size, grey or colour, alpha, colours, DPI and a JPEG's quality from 95 up are kept: see `read_photo`
    and `encode_photo`. Of the metadata only tags of EXIF that people need are kept (`fastcloak.photos.metadata` lists
    them): anything else could show the unprotected face.

    Args:
        source: the photo.
        destination: the file to write; its suffix names the format. A file of that name is replaced.
        cloak: the person's.
        who: see `protect`.
        overwrite: allow `destination` to be the source itself.
        quality: of JPEG, HEIC and lossy WebP; None: the photo's own, but at least 95.
        strip_gps: leave out where the photo was taken.
        strip_metadata: leave out all metadata but for the colours.
        again: see `protect`.

    Raises:
        AlreadyProtectedError: all these faces carry this cloak already; nothing is written.
        FileExistsError: the destination is the source, by whatever name, and `overwrite` is not set.
        PhotoError: the photo cannot be read, or cannot be written in that format.
        FaceNotFoundError: no face was found; nothing is written.
        OSError: a file cannot be opened or written.
    """
    source, destination = Path(source), Path(destination)
    if not overwrite and destination.exists() and destination.samefile(source):
        raise FileExistsError(
            f"destination must be another file than the source, got {destination} for both; name another, or pass "
            "overwrite=True to lose the original"
        )
    payload, done = protect_payload(
        source.read_bytes(),
        source,
        destination,
        cloak,
        who=who,
        quality=quality,
        strip_gps=strip_gps,
        strip_metadata=strip_metadata,
        again=again,
    )
    atomic_write(destination, payload)
    return done


def protect_payload(
    payload: bytes,
    source: Path,
    destination: Path,
    cloak: Cloak,
    *,
    who: str | Enrolment,
    quality: int | None,
    strip_gps: bool,
    strip_metadata: bool,
    again: bool,
) -> tuple[bytes, ProtectedPhoto]:
    """What `protect_photo` does between reading and writing: the bytes of `source` -> those of `destination`."""
    photo = decoded(payload, source, destination)
    pixels, face_sizes, uncertain, warnings = _protect(photo.pixels, cloak, who, None, again, str(source))
    if not face_sizes:
        raise AlreadyProtectedError(f"{source} {ALREADY_PROTECTED}")
    done = ProtectedPhoto(source, destination, len(face_sizes), face_sizes, (*photo.warnings, *warnings), uncertain)
    saving = {"strip_gps": strip_gps, "strip_metadata": strip_metadata}
    return encoded(replace(photo, pixels=pixels), destination, quality=quality, **saving), done


def decoded(payload: bytes, source: Path, destination: Path) -> Photo:
    """The photo in the bytes of `source`, looking as a file of the format of `destination` can hold it."""
    return fit_format(decode_photo(payload, name=str(source)), destination)


def encoded(photo: Photo, destination: Path, *, quality: int | None, strip_gps: bool, strip_metadata: bool) -> bytes:
    """The bytes of a protected photo: see `protect_photo`."""
    if strip_gps:
        photo = without_gps(photo)
    if strip_metadata:
        photo = without_metadata(photo)
    return encode_photo(photo, destination, quality=quality)


def meant_faces(pixels: Pixels, who: str | Enrolment, *, name: str) -> list[Face]:
    """The faces that are meant, at least one; a photo of 112x112 pixels is an aligned face.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        who: see `protect`.
        name: what errors call the photo.

    Raises:
        ValueError: another word for `who`.
        FaceNotFoundError: there is no face, or none of the enrolled person (`PersonNotFoundError`).
    """
    if pixels.shape[:2] != (SIZE, SIZE):
        return [who.find(pixels, name=name)] if isinstance(who, Enrolment) else find_faces(pixels, who=who, name=name)
    if isinstance(who, Enrolment):
        who.check_aligned(pixels, name=name)
    else:
        check_who(who)
    return [ALIGNED_FACE]


def face_warnings(sides: Sequence[float], uncertain: int) -> list[str]:
    """What a person should know of faces of these sizes, of which some may be the wrong way up."""
    sizes, shares = zip(*_KEPT, strict=True)
    return [UNCERTAIN] * bool(uncertain) + [
        f"a face of {side:.0f} pixels is small: it keeps about {np.interp(side, sizes, shares):.0%} of the protection "
        "of a large one; post the photo as large as you have it"
        for side in sides
        if side < SMALL_FACE
    ]


def _protect(
    pixels: Pixels, cloak: Cloak, who: str | Enrolment, faces: Sequence[Face] | None, again: bool, name: str
) -> tuple[Pixels, tuple[float, ...], int, tuple[str, ...]]:
    """The protected photo; of the faces cloaked the sizes, and how many may be the wrong way up; and warnings."""
    check_pixels(pixels)
    if faces is None and not isinstance(who, Enrolment):
        check_who(who)
    if faces is not None and not faces:
        raise ValueError("faces must hold at least one face, got none; leave it out to have them detected")
    height, width = pixels.shape[:2]
    grey = is_grey(pixels)
    delta = channels_last(cloak, grey)
    protected, sides = pixels.copy(), []
    uncertain = skipped = 0
    aligned = faces is None and (height, width) == (SIZE, SIZE)
    for face in meant_faces(pixels, who, name=name) if faces is None else faces:
        if not again and carries(pixels if aligned else align(pixels, face)[0], delta):
            skipped += 1
            continue
        if aligned:
            protected = added(pixels, pixels, delta, cloak.eps) if grey else cloak.apply(pixels)
            sides.append(float(SIZE))
        else:
            region, mask, side = face_mask(delta, face, cloak.eps, width, height)
            protected[region] = added(protected[region], pixels[region], mask, cloak.eps)
            sides.append(side)
        uncertain += face.uncertain
    warnings = face_warnings(sides, uncertain)
    if skipped:
        warnings.append(f"{skipped} of the faces carry this cloak already and are unchanged; again=True adds it again")
    elif np.array_equal(pixels, protected):
        warnings.append("the cloak changes no grey level of this photo, which is not protected")
    return protected, tuple(sides), uncertain, tuple(warnings)
