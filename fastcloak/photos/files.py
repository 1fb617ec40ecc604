"""Photo file <-> pixels: upright, RGB, 8 bits; written back as the kind of file it was."""

import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from fastcloak.photos.alignment import Pixels
from fastcloak.photos.metadata import Block, pixels_only, read_exif
from fastcloak.photos.profiles import COLOR_CHUNKS, HDR_TRANSFERS, color_profile, in_srgb, kept_profile
from fastcloak.system.errors import MissingExtraError, PhotoError
from fastcloak.system.files import atomic_write
from fastcloak.system.packages import require

__all__ = [
    "LEAST_QUALITY",
    "SUFFIXES",
    "Photo",
    "decode_photo",
    "encode_photo",
    "fit_format",
    "read_photo",
    "upright",
    "without_gps",
    "without_metadata",
    "write_photo",
]

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
_READ = (
    *(BmpImagePlugin.BmpImageFile.format, JpegImagePlugin.JpegImageFile.format, PngImagePlugin.PngImageFile.format),
    *(PpmImagePlugin.PpmImageFile.format, TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format),
)

_REFUSED = {
    "1": "black and white, 1 bit",
    "CMYK": "CMYK, print colours",
    "YCbCr": "YCbCr",
    "LAB": "L*a*b*",
    "F": "floating point",
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What files with a second picture say that holds only the brightness of an HDR screen: Adobe and Android, Apple, ISO.
_GAIN_MAPS = (b"hdrgm:", b"HDRGainMap", b"hdrgainmap", b"urn:iso:std:iso:ts:21496")


@dataclass(frozen=True, eq=False)
class Photo:
    """The pixels of a photo, and what is needed to write the same kind of file back.

    Attributes:
        pixels: [H, W, 3], uint8, RGB, upright: the EXIF orientation is applied. A grey photo has three equal channels.
        grey: the file holds one grey channel, and will again.
        alpha: [H, W], uint8, or None.
        lossless: the file keeps every pixel exactly (PNG, TIFF, BMP, PGM, lossless WebP).
        icc_profile: the colour profile; the pixels are in its colours. Only tags that say colours, and texts.
        color: what the file says of its colours besides, as chunks of a PNG: see `profiles.COLOR_CHUNKS`.
        exif: what is kept of the EXIF block: see `metadata`. Without orientation and resolution.
        dpi: (horizontal, vertical), of the upright photo.
        jpeg: of a JPEG how it was coded, as Pillow's options: `qtables` (quantisation), `subsampling`, `progressive`.
        heif_chroma: of a HEIC its colour resolution, 420, 422 or 444.
        warnings: what could not be kept and a person would miss, such as HDR.
    """

    pixels: Pixels
    grey: bool = False
    alpha: Pixels | None = None
    lossless: bool = True
    icc_profile: bytes | None = None
    color: Mapping[bytes, bytes] = field(default_factory=dict)
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    jpeg: Mapping[str, Any] | None = None
    heif_chroma: int | None = None
    warnings: tuple[str, ...] = ()


def read_photo(path: str | PathLike[str]) -> Photo:
    """Read a photo: JPEG, PNG, WebP, TIFF, BMP, PGM or HEIC, by its content whatever its name is.

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
    """Read a photo from the bytes of its file, which errors call `name`: see `read_photo`."""
    formats: tuple[str, ...] = _READ
    # ISO/IEC 23008-12: a file type box whose brands name still pictures coded by HEVC.
    if payload[4:8] == b"ftyp" and payload[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1"):
        _open_heif(f"{name} must be readable without an extra, got a HEIC photo")
        formats = ("HEIF",)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which does not matter here, and of decompression bombs, which are an error here.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = pixels_only(payload) if payload[:2] in (b"II", b"MM") else payload
            with Image.open(BytesIO(opened), formats=formats) as image:
                # The depth in the file: Pillow would cut 16-bit colours to 8 in silence.
                deep = ";16" in str([tile[3] for tile in image.tile])
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                if not deep and frames == 1:
                    return _decoded(image, payload, name)
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
                "(GIF, AVIF, raw): copy it again, or save it as JPEG or PNG first"
            ) from error
    if deep:
        raise PhotoError(f"{name} must have 8 bits per channel, got 16; save an 8-bit copy first")
    raise PhotoError(f"{name} must hold one picture, got {frames}; save the one you want as PNG or JPEG first")


def upright(image: Image.Image, *, name: str) -> Image.Image:
    """A picture turned as its EXIF block says, in mode L, LA, RGB or RGBA; `image` is not changed.

    Raises:
        PhotoError: colours or depths that have no such mode; `name` is what it calls the picture.
    """
    mode, see_through = image.mode, image.has_transparency_data
    if mode in ("L", "LA"):
        mode = "LA" if see_through else "L"
    elif mode in ("RGB", "RGBA", "P", "PA"):
        mode = "RGBA" if see_through else "RGB"
    else:
        got = "16 or more bits per channel" if mode.startswith("I") else _REFUSED.get(mode, mode)
        raise PhotoError(
            f"{name} must be a grey or RGB photo of 8 bits per channel, got {got} (mode {mode}); save it as an "
            "8-bit sRGB copy first"
        )
    image.load()
    orientation = _orientation(image)  # a TIFF has turned itself while it was loaded
    turned = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    return turned if turned.mode == mode else turned.convert(mode)


def without_gps(photo: Photo) -> Photo:
    """The same photo without the place where it was taken: the GPS table of its EXIF block is left out."""
    return photo if photo.exif is None else replace(photo, exif=read_exif(photo.exif).payload(gps=False))


def without_metadata(photo: Photo) -> Photo:
    """The same photo without EXIF block and resolution; what says its colours stays, but for EXIF's Adobe RGB."""
    return replace(photo, exif=None, dpi=None)


def fit_format(photo: Photo, path: str | PathLike[str]) -> Photo:
    """The photo as a file of the format that the suffix of `path` names can hold it, looking the same.

    What a PNG or HEIC says of its colours outside a profile becomes a profile where there is no other place for it. For
    BMP and PGM, which hold none, the pixels are converted to sRGB. What no format can hold becomes a warning.

    Args:
        photo: as read; `encode_photo` does this too, but then after a cloak was added, whose size a conversion changes.
        path: its suffix is one of `SUFFIXES`.
    """
    kind = _FORMATS.get(Path(path).suffix.lower())
    primaries, transfer, _, full = photo.color.get(b"cICP", (1, 13, 0, 1))  # without it: as good as sRGB here
    says_color = kind == "PNG" or (kind == "HEIF" and b"cICP" in photo.color and full)
    if kind is None or says_color or not (photo.color or photo.icc_profile):
        return photo
    profile, warnings = photo.icc_profile or color_profile(photo.color, grey=photo.grey), photo.warnings
    if profile is None and (primaries, transfer, full) != (1, 13, 1):
        what, how = ("HDR colours", "pale") if transfer in HDR_TRANSFERS else ("colours", "different")
        warnings += (f"its {what} cannot be said in a {kind} file and will look {how}; write it as .png",)
    photo = replace(photo, icc_profile=profile, color={}, warnings=warnings)
    if profile is None or kind not in ("BMP", "PPM"):
        return photo
    return replace(photo, pixels=in_srgb(photo.pixels, profile, grey=photo.grey), icc_profile=None)


def write_photo(photo: Photo, path: str | PathLike[str], *, quality: int | None = None) -> None:
    """Write a photo, whole or not at all: see `encode_photo`.

    Raises:
        OSError: the file cannot be written; the old one is unchanged.
    """
    path = Path(path)
    atomic_write(path, encode_photo(photo, path, quality=quality))


def encode_photo(photo: Photo, path: str | PathLike[str], *, quality: int | None = None) -> bytes:
    """Turn a photo into the bytes of a file of the format that the suffix of `path` names; nothing is written.

    Alpha, colours (see `fit_format`), EXIF and DPI are kept as far as the format can hold them. A lossless photo
    becomes a WebP without loss.

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
    photo = fit_format(photo, path)
    options: dict[str, Any] = {}
    if kind in _WITH_METADATA:
        options |= {"icc_profile": photo.icc_profile, "exif": photo.exif}
        if kind not in _WITH_DPI and photo.dpi:
            block = read_exif(photo.exif) if photo.exif else Block()
            options["exif"] = block.payload(resolution=photo.dpi)
    if kind in _WITH_DPI:
        options["dpi"] = photo.dpi
    chosen = LEAST_QUALITY if quality is None else quality
    if kind == "JPEG":
        options |= {"quality": chosen, "subsampling": "4:4:4"}
        options |= {name: value for name, value in (photo.jpeg or {}).items() if name != "qtables"}
        if quality is None and photo.jpeg is not None and _is_finer(photo.jpeg["qtables"]):
            del options["quality"]  # it would scale the tables
            options["qtables"] = photo.jpeg["qtables"]
    elif kind == "PNG":
        options["compress_level"] = 1  # a fifth of the usual level's time, for files 11 to 19 % larger (measured)
    elif kind == "WEBP":
        options |= {"lossless": True, "exact": True} if photo.lossless else {"quality": chosen}
    elif kind == "TIFF":
        # Pillow compresses by libtiff, which takes no EXIF.
        options |= {"compression": "tiff_adobe_deflate", "exif": None}
    elif kind == "HEIF":
        _open_heif(f"{path} must be of a format that needs no extra, got HEIC")
        options |= {"quality": chosen, "chroma": photo.heif_chroma or 444}
        if b"cICP" in photo.color:
            primaries, transfer, _, _ = photo.color[b"cICP"]
            options |= {"color_primaries": primaries, "transfer_characteristics": transfer}
            options |= {"matrix_coefficients": 6, "full_range_flag": 1}  # of the YCbCr that is written
    image = _to_pil(photo)
    buffer = BytesIO()
    try:
        image.save(buffer, format=kind, **{key: value for key, value in options.items() if value is not None})
    except (OSError, ValueError, RuntimeError) as error:
        raise PhotoError(f"{path}: this photo cannot be written as {kind} ({error}); choose another format") from error
    written = buffer.getvalue()
    if kind == "PNG":  # Pillow writes only some of these chunks; they go behind the header
        chunks = b""
        for name, content in photo.color.items():
            check = struct.pack(">L", zlib.crc32(name + content))
            chunks += struct.pack(">L", len(content)) + name + content + check
        return written[:33] + chunks + written[33:]
    if kind == "TIFF" and photo.exif:
        return read_exif(photo.exif).added_to(written, size=image.size)
    return written


def _open_heif(what: str) -> None:
    try:
        require("pillow_heif", extra="heic").register_heif_opener(thumbnails=False)
    except MissingExtraError as error:
        raise PhotoError(f"{what}; {error}") from error


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


def _jpeg_coding(image: Image.Image) -> dict[str, Any] | None:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    coding: dict[str, Any] = {"qtables": image.quantization, "progressive": bool(image.info.get("progressive"))}
    # Pillow numbers the usual three; what else there is becomes full resolution.
    sampling = JpegImagePlugin.get_sampling(image) if len(image.getbands()) == 3 else -1
    if sampling in (0, 1, 2):
        coding["subsampling"] = sampling
    return coding


def _is_finer(tables: Mapping[int, Sequence[int]]) -> bool:
    """Whether quantisation tables lose no more than those of `LEAST_QUALITY`, on average over brightness and colour."""
    return (
        0 < len(tables) <= 4
        and all(len(table) == 64 and min(table) >= 1 and max(table) <= 255 for table in tables.values())
        and all(sum(table) <= sum(usual) for table, usual in zip(tables.values(), _usual_tables(), strict=False))
    )


@lru_cache(maxsize=1)
def _usual_tables() -> list[list[int]]:
    """Brightness and colour tables of `LEAST_QUALITY`, as libjpeg scales them."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=LEAST_QUALITY)
    with Image.open(buffer) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        return [list(image.quantization[i]) for i in (0, 1)]


def _is_lossless(image: Image.Image, payload: bytes) -> bool:
    if image.format == "WEBP":
        # The lossy bitstream's chunk; https://developers.google.com/speed/webp/docs/riff_container
        at = 12
        while at + 8 <= len(payload):
            if payload[at : at + 4] == b"VP8 ":
                return False
            size = int.from_bytes(payload[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
    if image.format == "TIFF":
        return image.info.get("compression") not in ("jpeg", "tiff_jpeg", "webp")
    return image.format not in ("JPEG", "MPO", "HEIF")


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        return None  # Pillow would take that of EXIF, across, for both
    dpi: Sequence[float] | None = image.info.get("dpi")
    if dpi is None or len(dpi) != 2:
        return None
    across, down = float(dpi[0]), float(dpi[1])
    # Pillow reports 1 where a TIFF names none.
    return (across, down) if 1 < across < 65536 and 1 < down < 65536 else None


def _decoded(image: Image.Image, payload: bytes, name: str) -> Photo:
    orientation, kind = _orientation(image), image.format
    picture = upright(image, name=name)
    grey, see_through = picture.mode in ("L", "LA"), picture.mode.endswith("A")
    channels = np.array(picture).reshape(picture.height, picture.width, -1)
    colors = channels[..., :-1] if see_through else channels
    warnings: list[str] = []
    exif = payload if kind == "TIFF" else _exif_block(image)
    block = Block() if exif is None else read_exif(exif)
    if block.damaged:
        warnings.append("its EXIF block is damaged, and what cannot be read of it is left out")
    dpi = _dpi(image) or block.resolution
    profile = _bmp_profile(payload) if kind == "BMP" else image.info.get("icc_profile")
    kept = kept_profile(profile) if isinstance(profile, bytes) else None
    if profile and kept is None and kind != "BMP":
        warnings.append("its colour profile is damaged or of another kind, and is left out")
    if kind in ("MPO", "HEIF", "JPEG") and any(mark in payload for mark in _GAIN_MAPS):
        warnings.append("its HDR gain map is left out: it looks as on a screen without HDR")
    depth = image.info.get("bit_depth", 8)
    if depth > 8:
        warnings.append(f"its {depth} bits per channel become 8")
    return Photo(
        pixels=np.repeat(colors, 3, axis=2) if grey else np.ascontiguousarray(colors),
        grey=grey,
        alpha=np.ascontiguousarray(channels[..., -1]) if see_through else None,
        lossless=_is_lossless(image, payload),
        icc_profile=kept,
        color=_color(image, payload),
        exif=block.payload(size=picture.size),
        dpi=dpi[::-1] if dpi and orientation in (5, 6, 7, 8) else dpi,
        jpeg=_jpeg_coding(image),
        heif_chroma=image.info.get("chroma") if kind == "HEIF" else None,
        warnings=tuple(warnings),
    )


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":  # turned by the decoder; what EXIF says does not count: ISO/IEC 23008-12, annex A
        return 1
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation
    except Exception:  # Pillow's reader meets a damaged block
        return read_exif(_exif_block(image) or b"").orientation


def _exif_block(image: Image.Image) -> bytes | None:
    """The EXIF block of an image, unchanged where Pillow has it; empty if that cannot be known."""
    block, text = image.info.get("exif"), image.info.get("Raw profile type exif")
    if isinstance(block, bytes):
        return block
    try:
        if text is not None:  # of a PNG, as ImageMagick writes it: name, length, hexadecimal digits
            return bytes.fromhex("".join(text.split("\n")[3:]))
        exif = image.getexif()
        return exif.tobytes() if len(exif) else None
    except Exception:
        return b""


def _color(image: Image.Image, payload: bytes) -> dict[bytes, bytes]:
    """What a file says of its colours outside a profile, as chunks of a PNG."""
    if image.format == "PNG":
        chunks = dict(_png_chunks(payload))
        return {name: chunks[name] for name, size in COLOR_CHUNKS.items() if len(chunks.get(name, b"")) == size}
    # BITMAPV4HEADER: corners as XYZ of 2.30 bits and the exponents of light, for files that have colours of their own.
    if image.format == "BMP" and payload[14] in (108, 124) and payload[70:74] == bytes(4):
        corners = np.frombuffer(payload, "<i4", 9, 74).reshape(3, 3) / 2.0**30
        exponents = np.frombuffer(payload, "<u4", 3, 110) / 2.0**16
        xyz = np.vstack([corners.sum(0), corners])
        sums = xyz.sum(1, keepdims=True)
        if (corners[:, 1] > 0).all() and (sums > 0).all() and (exponents > 0).all():
            chromaticities = (xyz / sums)[:, :2].ravel()
            numbers = [round(100_000 * number) for number in chromaticities.clip(0, 2).tolist()]
            gamma = round(100_000 / exponents.mean().item())
            return {b"gAMA": struct.pack(">L", gamma), b"cHRM": struct.pack(">8L", *numbers)}
    nclx = image.info.get("nclx_profile")
    if image.format == "HEIF" and nclx:
        primaries, transfer = nclx["color_primaries"], nclx["transfer_characteristics"]
        # 2: not said. sRGB is what files mean that say nothing.
        if 2 not in (primaries, transfer) and (primaries, transfer) != (1, 13):
            return {b"cICP": bytes([primaries, transfer, 0, 1])}
    return {}


def _bmp_profile(payload: bytes) -> bytes | None:
    """The profile in a BMP with a header of version 5, or None."""
    header = payload[14:138]
    if len(header) < 124 or header[:4] != struct.pack("<L", 124) or header[56:60] != b"DEBM":
        return None
    at, size = struct.unpack_from("<LL", header, 112)
    return payload[14 + at : 14 + at + size]


def _png_chunks(payload: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks before the picture."""
    at = 8
    while at + 8 <= len(payload):
        size, name = int.from_bytes(payload[at : at + 4], "big"), payload[at + 4 : at + 8]
        if name == b"IDAT":
            return
        yield name, payload[at + 8 : at + 8 + size]
        at += 12 + size
