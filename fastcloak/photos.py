"""Photo file <-> pixels: upright, RGB, 8 bits; written back as the kind of file it was."""

import contextlib
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from fastcloak.assets import MissingExtraError, require
from fastcloak.atomic import atomic_write

__all__ = [
    "LEAST_QUALITY",
    "SUFFIXES",
    "Photo",
    "PhotoError",
    "decode_photo",
    "encode_photo",
    "photo_files",
    "photo_from_pil",
    "read_photo",
    "without_gps",
    "write_photo",
]

Pixels = npt.NDArray[np.uint8]

logger = logging.getLogger("fastcloak")

# What each suffix holds besides pixels.
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".pgm": "PPM",
    ".heic": "HEIF",
    ".heif": "HEIF",
}
SUFFIXES = tuple(_FORMATS)
_WITH_ALPHA = {"PNG", "WEBP", "TIFF", "HEIF"}
_WITH_METADATA = {"JPEG", "PNG", "WEBP", "TIFF", "HEIF"}
_WITH_DPI = {"JPEG", "PNG", "TIFF", "BMP"}

# What a lossy photo is written with at least: it keeps nearly all of a cloak (docs/method.md).
LEAST_QUALITY = 95

# Only these decoders see a file from outside; Pillow knows them once they are imported. JPEG covers MPO, the files of
# phones that append a second picture. HEIC needs the extra `heic`, which adds its decoder.
_READ = tuple(
    plugin.format
    for plugin in (
        BmpImagePlugin.BmpImageFile,
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        PpmImagePlugin.PpmImageFile,
        TiffImagePlugin.TiffImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)

_REFUSED = {
    "1": "black and white, 1 bit",
    "CMYK": "CMYK, print colours",
    "YCbCr": "YCbCr",
    "LAB": "L*a*b*",
    "F": "floating point",
}

# EXIF says how the picture was taken. These tags say how its bytes were stored (a TIFF has both in one table) or hold a
# small copy of it (XMP 700, IPTC 33723, Photoshop 34377): the first would be wrong in the new file, the second would
# show the unprotected face.
_NOT_KEPT = {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 282, 283, 284, 296, 301, 317, 320, 322, 323}
_NOT_KEPT |= {324, 325, 330, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675}


class PhotoError(ValueError):
    """A photo cannot be read, or not written in the wanted format; the message says which one, why and the cure."""


@dataclass(frozen=True, eq=False)
class Photo:
    """The pixels of a photo, and what is needed to write the same kind of file back.

    Attributes:
        pixels: [H, W, 3], uint8, RGB, upright: the EXIF orientation is applied. A grey photo has three equal channels.
        grey: the file holds one grey channel, and will again.
        alpha: [H, W], uint8, or None.
        lossless: the file keeps every pixel exactly (PNG, TIFF, BMP, PGM, lossless WebP).
        icc_profile: the colour profile; the pixels are in its colours.
        exif: the EXIF block without orientation, thumbnail and storage tags.
        dpi: (horizontal, vertical), of the upright photo.
        jpeg: of a JPEG how it was coded, as Pillow's options: `qtables` (quantisation), `subsampling`, `progressive`.
        heif_chroma: of a HEIC its colour resolution, 420, 422 or 444.
    """

    pixels: Pixels
    grey: bool = False
    alpha: Pixels | None = None
    lossless: bool = True
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    jpeg: Mapping[str, Any] | None = None
    heif_chroma: int | None = None


def photo_files(paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, recursive: bool = False) -> list[Path]:
    """Photo files, in the given order; a folder stands for the photos in it, sorted by name.

    Args:
        paths: files and folders. Of a folder only names with a suffix in `SUFFIXES` count, hidden files do not.
        recursive: take the photos of subfolders too, but not of hidden ones and not through links.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no photo in a folder, or no path at all.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, (str, PathLike)) else paths):
        if path.is_dir():
            inside = sorted(_photos_in(path, recursive))
            if not inside:
                raise ValueError(
                    f"{path} must be a folder with photos ({', '.join(SUFFIXES)}), got none in it; name another"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} must be a photo or a folder of photos, got no such path; check its name")
    if not found:
        raise ValueError("paths must hold at least one photo or folder, got none; name some")
    return found


def read_photo(path: str | PathLike[str]) -> Photo:
    """Read a photo: JPEG, PNG, WebP, TIFF, BMP, PGM or HEIC, told by its content and not by its name.

    Grey, RGB and palette photos of 8 bits, with or without alpha, are read. Of a phone's double picture (MPO) the first
    is read. A palette photo is written back in full colour: a palette cannot hold the small changes of a cloak. HEIC
    needs the extra `heic`; one of 10 bits is cut to 8.

    Raises:
        PhotoError: not a photo, truncated or damaged, too many pixels (a decompression bomb), several pictures in one
            file, 16 bits per channel, CMYK and other colours, or a HEIC without the extra.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    return decode_photo(path.read_bytes(), name=str(path))


def decode_photo(payload: bytes, *, name: str) -> Photo:
    """Read a photo from the bytes of its file: see `read_photo`.

    Args:
        payload: the file's content.
        name: what errors call it, such as its path.

    Raises:
        PhotoError: as in `read_photo`.
    """
    formats: tuple[str, ...] = _READ
    if _is_heif(payload):
        try:
            require("pillow_heif", extra="heic").register_heif_opener(thumbnails=False)
        except MissingExtraError as error:
            raise PhotoError(f"{name} must be readable without an extra, got a HEIC photo; {error}") from error
        formats = ("HEIF",)
    with warnings.catch_warnings():
        # Pillow tells of odd metadata by warnings, which concern nobody here, and of bombs too, which is an error here.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(payload), formats=formats) as image:
                # The depth in the file: Pillow would cut 16-bit colours to 8 in silence.
                deep = ";16" in str([tile[3] for tile in image.tile])
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                if not deep and frames == 1:
                    image.load()
                    return replace(
                        photo_from_pil(image, name=name, lossless=_is_lossless(image, payload)),
                        jpeg=_jpeg_coding(image),
                        heif_chroma=image.info.get("chroma") if image.format == "HEIF" else None,
                    )
        except PhotoError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise PhotoError(
                f"{name} must have at most {Image.MAX_IMAGE_PIXELS} pixels, got a file that unpacks to more ({error}); "
                "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            ) from error
        # Decoders meet hostile bytes here and raise nearly every type there is.
        except Exception as error:
            # Pillow's own words would show the address of a buffer.
            why = "no known kind" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
            raise PhotoError(
                f"{name} must be a JPEG, PNG, WebP, TIFF, BMP, PGM or HEIC photo, got {len(payload)} bytes that "
                f"cannot be read ({why}); it may be cut off, damaged or of another kind "
                "(GIF, AVIF, raw): copy it anew, or save it as JPEG or PNG first"
            ) from error
    if deep:
        raise PhotoError(f"{name} must have 8 bits per channel, got 16; save an 8-bit copy first")
    raise PhotoError(f"{name} must hold one picture, got {frames}; save the one you want as PNG or JPEG first")


def photo_from_pil(image: Image.Image, *, name: str, lossless: bool = True) -> Photo:
    """Turn an open PIL image into a photo, upright.

    Args:
        image: mode L, LA, RGB, RGBA, P or PA; not changed.
        name: what errors call it, such as its path.
        lossless: see `Photo`.

    Raises:
        PhotoError: another mode.
    """
    mode = _pixel_mode(image, name)
    upright = ImageOps.exif_transpose(image)
    dpi = _dpi(image)
    if dpi and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
        dpi = dpi[::-1]
    pixels = np.array(upright if upright.mode == mode else upright.convert(mode))
    alpha = None
    if mode.endswith("A"):
        pixels, alpha = pixels[..., :-1], np.ascontiguousarray(pixels[..., -1])
    elif mode == "L":
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return Photo(
        pixels=np.ascontiguousarray(pixels),
        grey=mode in ("L", "LA"),
        alpha=alpha,
        lossless=lossless,
        icc_profile=image.info.get("icc_profile"),
        exif=_exif(image, upright.size, name),
        dpi=dpi,
    )


def without_gps(photo: Photo) -> Photo:
    """The same photo without the place where it was taken: the GPS table of its EXIF block is left out."""
    if photo.exif is None:
        return photo
    exif = Image.Exif()
    exif.load(photo.exif)
    if ExifTags.IFD.GPSInfo in exif:
        del exif[ExifTags.IFD.GPSInfo]
    return replace(photo, exif=exif.tobytes() if len(exif) else None)


def write_photo(photo: Photo, path: str | PathLike[str], *, quality: int | None = None) -> None:
    """Write a photo in the format that the suffix of `path` names, whole or not at all.

    Args:
        photo: see `encode_photo`.
        path: its suffix is one of `SUFFIXES`.
        quality: see `encode_photo`.

    Raises:
        PhotoError: as in `encode_photo`.
        ValueError: as in `encode_photo`.
        OSError: the file cannot be written; the old one is then as it was.
    """
    path = Path(path)
    atomic_write(path, encode_photo(photo, path, quality=quality))


def encode_photo(photo: Photo, path: str | PathLike[str], *, quality: int | None = None) -> bytes:
    """Turn a photo into the bytes of a file of the format that the suffix of `path` names; nothing is written.

    Alpha, colour profile, EXIF and DPI are kept as far as the format can hold them (BMP and PGM hold no profile and no
    EXIF). A lossless photo becomes a WebP without loss.

    Args:
        photo: what `read_photo` returned, possibly with other pixels (`dataclasses.replace(photo, pixels=...)`).
        path: its suffix is one of `SUFFIXES`.
        quality: of JPEG, HEIC and lossy WebP, 1..100. None: 95, or the quantisation tables that the photo's own JPEG
            had where they are finer. A photo that was a JPEG keeps its colour resolution and progressive coding, and a
            HEIC its colour resolution; others get colour at full resolution (4:4:4).

    Raises:
        PhotoError: an unknown suffix, alpha or colour that the format cannot hold, a size that it cannot hold, HEIC
            without the extra `heic`.
        ValueError: wrong pixels or quality.
    """
    path = Path(path)
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1..100, got {quality}; 95 keeps nearly all of a cloak")
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise PhotoError(f"{path} must have a name that ends in {', '.join(SUFFIXES)}, got {path.suffix!r}; rename it")
    if photo.alpha is not None and kind not in _WITH_ALPHA:
        raise PhotoError(f"{path} must be of a format that can hold transparency, got {kind}; write it as .png")
    if kind == "PPM" and not photo.grey:
        raise PhotoError(
            f"{path} must be .png or .jpg for a photo in colour, got .pgm, which holds grey only; rename it"
        )
    options: dict[str, Any] = {}
    if kind in _WITH_METADATA:
        options |= {"icc_profile": photo.icc_profile, "exif": photo.exif}
    if kind in _WITH_DPI:
        options["dpi"] = photo.dpi
    if kind == "JPEG":
        options |= {"quality": LEAST_QUALITY if quality is None else quality, "subsampling": "4:4:4"}
        options |= {name: value for name, value in (photo.jpeg or {}).items() if name != "qtables"}
        if quality is None and photo.jpeg is not None and _is_finer(photo.jpeg["qtables"]):
            del options["quality"]  # it would scale the tables
            options["qtables"] = photo.jpeg["qtables"]
    elif kind == "PNG":
        options["compress_level"] = 1  # a fifth of the usual level's time, for files 11 to 19 % larger (measured)
    elif kind == "WEBP":
        lossless = {"lossless": True, "exact": True}
        options |= lossless if photo.lossless else {"quality": LEAST_QUALITY if quality is None else quality}
    elif kind == "TIFF":
        # Pillow compresses by libtiff, which takes no EXIF.
        options["compression"] = "raw" if photo.exif else "tiff_adobe_deflate"
    elif kind == "HEIF":
        try:
            require("pillow_heif", extra="heic").register_heif_opener(thumbnails=False)
        except MissingExtraError as error:
            raise PhotoError(f"{path} must be of a format that needs no extra, got HEIC; {error}") from error
        options |= {"quality": LEAST_QUALITY if quality is None else quality, "chroma": photo.heif_chroma or 444}
    image = _to_pil(photo)
    buffer = BytesIO()
    try:
        image.save(buffer, format=kind, **{key: value for key, value in options.items() if value is not None})
    except (OSError, ValueError, RuntimeError) as error:
        raise PhotoError(f"{path}: this photo cannot be written as {kind} ({error}); choose another format") from error
    return buffer.getvalue()


def _to_pil(photo: Photo) -> Image.Image:
    pixels = photo.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"photo.pixels must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}; convert them")
    if not photo.grey:
        image = Image.fromarray(pixels)
    elif (pixels == pixels[..., :1]).all():
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    else:
        raise ValueError(
            "photo.pixels must have three equal channels where photo.grey is set, got colours; set grey=False"
        )
    if photo.alpha is not None:
        if photo.alpha.dtype != np.uint8 or photo.alpha.shape != pixels.shape[:2]:
            raise ValueError(
                f"photo.alpha must be uint8 {list(pixels.shape[:2])} like the pixels, got {photo.alpha.dtype} "
                f"{list(photo.alpha.shape)}; resize it too"
            )
        image.putalpha(Image.fromarray(photo.alpha))
    return image


def _pixel_mode(image: Image.Image, name: str) -> str:
    mode, see_through = image.mode, image.has_transparency_data
    if mode in ("L", "LA"):
        return "LA" if see_through else "L"
    if mode in ("RGB", "RGBA", "P", "PA"):
        return "RGBA" if see_through else "RGB"
    got = "16 or more bits per channel" if mode.startswith("I") else _REFUSED.get(mode, mode)
    raise PhotoError(
        f"{name} must be a grey or RGB photo of 8 bits per channel, got {got} (mode {mode}); save it as an "
        "8-bit sRGB copy first"
    )


def _photos_in(folder: Path, recursive: bool) -> Iterable[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if recursive and not entry.name.startswith(".") and not entry.is_symlink():
                yield from _photos_in(entry, recursive)
        elif _is_photo_name(entry) and entry.is_file():
            yield entry


def _is_heif(payload: bytes) -> bool:
    # ISO/IEC 23008-12: a file type box whose brands name still pictures coded by HEVC.
    return payload[4:8] == b"ftyp" and payload[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1")


def _jpeg_coding(image: Image.Image) -> dict[str, Any] | None:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    tables = image.quantization
    coding: dict[str, Any] = {"qtables": tables, "progressive": bool(image.info.get("progressive"))}
    # Pillow numbers the usual three; what else there is becomes full resolution.
    sampling = JpegImagePlugin.get_sampling(image) if len(image.getbands()) == 3 else -1
    if sampling in (0, 1, 2):
        coding["subsampling"] = sampling
    return coding


def _is_finer(tables: Mapping[int, Sequence[int]]) -> bool:
    """Whether quantisation tables lose no more than those of `LEAST_QUALITY`, on average over brightness and colour."""
    with contextlib.suppress(ValueError, TypeError, ZeroDivisionError):
        return (
            all(len(table) == 64 and min(table) >= 1 and max(table) <= 255 for table in tables.values())
            and 0 < len(tables) <= 4
            and all(sum(table) <= sum(usual) for table, usual in zip(tables.values(), _usual_tables(), strict=False))
        )
    return False


@lru_cache(maxsize=1)
def _usual_tables() -> list[list[int]]:
    """Brightness and colour tables of `LEAST_QUALITY`, as libjpeg scales them."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=LEAST_QUALITY)
    with Image.open(buffer) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        return [list(image.quantization[i]) for i in (0, 1)]


def _is_photo_name(path: Path) -> bool:
    return path.suffix.lower() in _FORMATS and not path.name.startswith(".")


def _is_lossless(image: Image.Image, payload: bytes) -> bool:
    if image.format == "WEBP":
        # The lossy bitstream's chunk; https://developers.google.com/speed/webp/docs/riff_container
        return b"VP8 " not in _riff_chunks(payload)
    if image.format == "TIFF":
        return image.info.get("compression") not in ("jpeg", "tiff_jpeg", "webp")
    return image.format not in ("JPEG", "MPO", "HEIF")


def _riff_chunks(payload: bytes) -> list[bytes]:
    names, at = [], 12
    while at + 8 <= len(payload):
        size = int.from_bytes(payload[at + 4 : at + 8], "little")
        names.append(payload[at : at + 4])
        at += 8 + size + size % 2
    return names


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi: Sequence[float] | None = image.info.get("dpi")
    if dpi is None or len(dpi) != 2:
        return None
    across, down = float(dpi[0]), float(dpi[1])
    # Pillow reports 1 where a TIFF tells none.
    return (across, down) if 1 < across < 65536 and 1 < down < 65536 else None


def _exif(image: Image.Image, upright_size: tuple[int, int], name: str) -> bytes | None:
    # Written anew, not copied: that leaves the thumbnail out, which shows the unprotected face.
    try:
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())
        for tag in _NOT_KEPT | {ExifTags.Base.Orientation.value}:
            if tag in exif:
                del exif[tag]
        # Asking for a table that is not there would write an empty one.
        details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
        for key, size in zip((ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), upright_size, strict=True):
            if key in details:
                details[key] = size
        return exif.tobytes() if len(exif) else None
    # Cameras and editors write EXIF that Pillow reads and cannot write; a photo without it is better than none.
    except Exception as error:
        logger.warning("%s: its EXIF block is damaged and is left out (%s: %s)", name, type(error).__name__, error)
        return None
