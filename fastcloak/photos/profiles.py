"""Colour profiles: kept by a list like the rest of a file, made from what else a file says of its colours, applied.

A profile is a table of tags, some of them private, any of which could hold a picture. Kept are the tags that say what
colours are and have the size that their type asks for, and texts.

Source: ICC.1:2022; ITU-T H.273, tables 2 and 3 (the numbers of cICP and nclx); PNG, third edition, 11.3.2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from fastcloak.photos.alignment import Pixels
from fastcloak.photos.metadata import is_text

__all__ = ["COLOR_CHUNKS", "HDR_TRANSFERS", "color_profile", "in_srgb", "kept_profile"]

COLOR_CHUNKS: Mapping[bytes, int] = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"mDCV": 24, b"cLLI": 8}
"""Chunks of a PNG that say what its colours are, and their sizes."""
HDR_TRANSFERS = (16, 18)
"""PQ and HLG in H.273."""

_HEADER = 128
_LARGEST_TEXT, _LARGEST_TABLE, _MOST_TAGS = 4096, 1 << 20, 100
_TEXTS = (b"desc", b"cprt", b"dmnd", b"dmdd", b"vued")
_CURVES = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
_TABLES = (b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"gamt")
# Tag -> type and size.
_FIXED: Mapping[bytes, tuple[bytes, int]] = {
    **dict.fromkeys((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"bkpt", b"lumi"), (b"XYZ ", 20)),
    b"chad": (b"sf32", 44),
    b"chrm": (b"chrm", 36),
    b"tech": (b"sig ", 12),
    b"calt": (b"dtim", 20),
    b"meas": (b"meas", 36),
    b"view": (b"view", 36),
    b"cicp": (b"cicp", 12),
}
# What a profile needs to say colours at all, for each kind of picture: all of one of these.
_NEEDED = {
    b"RGB ": ({b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"}, {b"A2B0"}),
    b"GRAY": ({b"kTRC"}, {b"A2B0"}),
}

_D65, _C, _E = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3)
_SRGB_PRIMARIES = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# Of H.273: x and y of white, red, green and blue.
_PRIMARIES: Mapping[int, tuple[float, ...]] = {
    1: _SRGB_PRIMARIES,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    10: (*_E, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
# Of H.273: (exponent, a, b, c, d) of light = (a v + b) ^ exponent from v = d on, else c v; or the exponent alone.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_TRANSFERS: Mapping[int, tuple[float, ...]] = {
    **dict.fromkeys((1, 6, 14, 15), _BT709_CURVE),
    4: (2.2,),
    5: (2.8,),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0913),
    8: (1.0,),
    13: _SRGB_CURVE,
    17: (2.6,),
}


def kept_profile(profile: bytes) -> bytes | None:
    """A colour profile without what is not known to say colours; the same bytes where that is nothing.

    Args:
        profile: an ICC profile of RGB or grey, from a stranger.

    Returns:
        None where it is none, or too little is left of it.
    """
    kept: dict[bytes, tuple[int, int]] = {}  # tag -> offset and size
    try:
        (count,) = struct.unpack_from(">L", profile, _HEADER)
        for i in range(min(count, _MOST_TAGS)):
            tag, at, size = struct.unpack_from(">4sLL", profile, _HEADER + 4 + 12 * i)
            element = profile[at : at + size]
            if len(element) == size >= 8 and _is_whole(tag, element):
                kept[tag] = at, size
    except struct.error:
        return None
    needed = _NEEDED.get(profile[16:20])
    if profile[36:40] != b"acsp" or needed is None or not any(all(tag in kept for tag in tags) for tags in needed):
        return None
    if not _is_all(profile, kept):
        profile = _profile(profile[:_HEADER], {tag: profile[at : at + size] for tag, (at, size) in kept.items()})
    try:
        ImageCms.ImageCmsProfile(BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
    return profile


def color_profile(color: Mapping[bytes, bytes], *, grey: bool) -> bytes | None:
    """A profile that says what chunks of a PNG say.

    Args:
        color: see `COLOR_CHUNKS`. cICP goes before sRGB, and that before gAMA and cHRM.
        grey: of pictures of one channel.

    Returns:
        None for sRGB, which needs none, and for what no such profile can say: HDR, narrow range, unspecified.
    """
    primaries: tuple[float, ...] = _SRGB_PRIMARIES
    curve: tuple[float, ...] = _SRGB_CURVE
    if b"cICP" in color:
        named, transfer, _, full = color[b"cICP"]
        if named not in _PRIMARIES or transfer not in _TRANSFERS or not full:
            return None
        primaries, curve = _PRIMARIES[named], _TRANSFERS[transfer]
    elif b"sRGB" not in color:
        if b"cHRM" in color:
            primaries = tuple(number / 100_000 for number in struct.unpack(">8L", color[b"cHRM"]))
        exponent = int.from_bytes(color.get(b"gAMA", b""), "big") / 100_000
        if exponent > 0:
            curve = (1 / exponent,)
    return None if (primaries, curve) == (_SRGB_PRIMARIES, _SRGB_CURVE) else _made(primaries, curve, grey)


def in_srgb(pixels: Pixels, profile: bytes, *, grey: bool) -> Pixels:
    """The same colours in sRGB; the same pixels where the profile says about sRGB.

    Args:
        pixels: [H, W, 3], uint8, in the profile's colours.
        profile: what `kept_profile` or `color_profile` returned.
        grey: of one channel, three times.
    """
    cms = ImageCms.ImageCmsProfile(BytesIO(profile))
    # littlecms' own table of grid points is up to 10 levels off in shadows: NOOPTIMIZE computes each colour.
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.NOOPTIMIZE
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(cms, srgb, "L" if grey else "RGB", "RGB", intent, flags)

    def converted(picture: Pixels) -> Pixels:
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0]) if grey else picture)
        return np.array(ImageCms.applyTransform(image, transform))

    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    sample = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    if grey:
        sample = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    # littlecms rounds: the profile of a camera says sRGB, and its colours come out up to 1 off.
    if np.abs(converted(sample).astype(int) - sample).max() <= 1:
        return pixels
    result = converted(pixels)
    return np.repeat(result[..., 1:2], 3, axis=2) if grey else result


def _is_whole(tag: bytes, element: bytes) -> bool:
    """Whether a tag is known and its content is of a type that it may have, and of that type's size."""
    kind, size = element[:4], len(element)
    if tag in _FIXED:
        return (kind, size) == _FIXED[tag]
    if tag in _CURVES and kind == b"curv" and size >= 12:
        values = np.frombuffer(element, ">u2", offset=12)
        (count,) = struct.unpack_from(">L", element, 8)
        # A picture would go up and down.
        return len(values) == count <= 4096 and bool((np.diff(values.astype(int)) >= 0).all())
    if tag in _CURVES and kind == b"para" and size >= 12:
        (function,) = struct.unpack_from(">H", element, 8)
        return bool(function <= 4 and size == 12 + 4 * (1, 3, 4, 5, 7)[function])
    if tag in _TEXTS and size <= _LARGEST_TEXT:
        return _is_text_element(kind, element)
    if tag in _TABLES and size <= _LARGEST_TABLE:
        return kind in (b"mAB ", b"mBA ") or size == _table_size(kind, element)
    return False


def _is_text_element(kind: bytes, element: bytes) -> bool:
    if kind == b"text":
        return is_text(element[8:])
    if kind == b"desc" and len(element) >= 12:  # of version 2: ASCII, then UTF-16, then Macintosh in 67 bytes
        (count,) = struct.unpack_from(">L", element, 8)
        rest = element[12 + count :].ljust(78, b"\0")
        wide = 8 + 2 * int.from_bytes(rest[4:8], "big")
        parts = is_text(element[12 : 12 + count]), is_text(rest[8:wide], "utf-16-be"), is_text(rest[wide + 3 :])
        return all(parts) and len(rest) <= wide + 70 + 3
    if kind == b"mluc" and len(element) >= 16:
        records, width = struct.unpack_from(">LL", element, 8)
        if width != 12 or 16 + 12 * records > len(element):
            return False
        covered = 16 + 12 * records
        for i in range(records):
            size, at = struct.unpack_from(">LL", element, 20 + 12 * i)
            if not is_text(element[at : at + size], "utf-16-be"):
                return False
            covered = max(covered, at + size)
        return bool(covered + 4 > len(element))
    return False


def _table_size(kind: bytes, element: bytes) -> int | None:
    """Size of a lookup table of version 2, by its own count of inputs, outputs and grid points."""
    if kind not in (b"mft1", b"mft2") or len(element) < 52:
        return None
    inputs, outputs, grid = element[8:11]
    if kind == b"mft1":
        return int(48 + 256 * inputs + grid**inputs * outputs + 256 * outputs)
    ins, outs = struct.unpack_from(">HH", element, 48)
    return int(52 + 2 * (inputs * ins + grid**inputs * outputs + outputs * outs))


def _is_all(profile: bytes, kept: Mapping[bytes, tuple[int, int]]) -> bool:
    """Whether a profile holds these tags, zeros and nothing else."""
    (size,), (count,) = struct.unpack_from(">L", profile), struct.unpack_from(">L", profile, _HEADER)
    rest = bytearray(profile)
    for at, length in [(0, 100), (_HEADER, 4 + 12 * count), *kept.values()]:
        rest[at : at + length] = bytes(len(rest[at : at + length]))
    return len(kept) == count and size == len(profile) and not any(rest)


def _profile(header: bytes, elements: Mapping[bytes, bytes]) -> bytes:
    at, body, places = _HEADER + 4 + 12 * len(elements), b"", {}
    for element in elements.values():
        if element not in places:  # tags may share one
            places[element] = at + len(body)
            body += element + bytes(-len(element) % 4)
    table = b"".join(struct.pack(">4sLL", tag, places[element], len(element)) for tag, element in elements.items())
    size = struct.pack(">L", at + len(body))
    # Without the profile's hash and the reserved bytes.
    return size + header[4:84] + bytes(44) + struct.pack(">L", len(elements)) + table + body


def _made(primaries: tuple[float, ...], curve: tuple[float, ...], grey: bool) -> bytes | None:
    white, *corners = (np.array([x, y, 1 - x - y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True))
    if not white[1] > 0:
        return None
    try:
        white = white / white[1]
        columns = np.stack(corners, 1)
        columns = columns * np.linalg.solve(columns, white)
        # Bradford's adaptation to the white of profiles; ICC.1:2022, annex E.
        cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
        d50 = np.array([0.9642, 1.0, 0.8249])
        adapted = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ white)) @ cone
        trc = b"para" + bytes(4) + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
        elements = {b"desc": _words("RGB from the file's own description"), b"cprt": _words("No copyright")}
        elements |= {b"wtpt": b"XYZ " + bytes(4) + _fixed(d50), b"chad": b"sf32" + bytes(4) + _fixed(adapted.ravel())}
        if grey:
            elements[b"kTRC"] = trc
        else:
            elements |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), trc)
            columns_of = zip((b"rXYZ", b"gXYZ", b"bXYZ"), (adapted @ columns).T, strict=True)
            elements |= {tag: b"XYZ " + bytes(4) + _fixed(xyz) for tag, xyz in columns_of}
    except (np.linalg.LinAlgError, struct.error, ZeroDivisionError, ValueError):  # corners in a line
        return None
    space = b"GRAY" if grey else b"RGB "
    header = bytes(8) + b"\x04\x30\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + _fixed(d50)
    return kept_profile(_profile(header.ljust(_HEADER, b"\0"), elements))


def _fixed(numbers: npt.ArrayLike) -> bytes:
    """Numbers as s15Fixed16."""
    values = np.rint(np.asarray(numbers, np.float64) * 65536)
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return struct.pack(f">{values.size}l", *values.astype(np.int64).tolist())


def _words(text: str) -> bytes:
    coded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">LL2s2sLL", 1, 12, b"en", b"US", len(coded), 28) + coded
