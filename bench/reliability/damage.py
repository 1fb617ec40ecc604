"""Damaged and hostile files made from whole ones: cloaks, photos, ONNX networks. A random generator decides each.

`bench.reliability` and the tests feed them to the readers. Nothing here knows what a reader should say, but for cloaks:
with each file come the cloaks that it may load as, since a cloak file carries a hash and nothing may pass by it.
"""

from __future__ import annotations

import copy
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pillow_heif
import torch
from PIL import Image
from safetensors.torch import save

from fastcloak import Cloak
from fastcloak.cloak import FORMAT, digest

__all__ = [
    "BYTES",
    "CLOAKS",
    "NETWORKS",
    "PHOTOS",
    "Allowed",
    "cloak_case",
    "cloaks",
    "in_order",
    "network_case",
    "network_files",
    "photo_case",
    "photo_files",
]

Random = np.random.Generator


def truncated(raw: bytes, other: bytes, rng: Random) -> bytes:
    """The first bytes."""
    return raw[: int(rng.integers(len(raw)))]


def flipped(raw: bytes, other: bytes, rng: Random) -> bytes:
    """One to eight flipped bits, half of the time within the first KB, where headers are."""
    hurt = bytearray(raw)
    end = min(len(raw), 1024) if rng.random() < 0.5 else len(raw)
    for position in rng.integers(end, size=rng.integers(1, 9)):
        hurt[position] ^= 1 << int(rng.integers(8))
    return bytes(hurt)


def overwritten(raw: bytes, other: bytes, rng: Random) -> bytes:
    """A range of random bytes, zeros or ones."""
    hurt = bytearray(raw)
    start = int(rng.integers(min(len(raw), 1024) if rng.random() < 0.5 else len(raw)))
    size = min(len(raw) - start, int(2 ** rng.uniform(0, 12)))
    filler = (rng.bytes(size), bytes(size), b"\xff" * size)[rng.integers(3)]
    hurt[start : start + size] = filler
    return bytes(hurt)


def removed(raw: bytes, other: bytes, rng: Random) -> bytes:
    """A range left out, or in twice."""
    start, end = sorted(int(cut) for cut in rng.integers(len(raw), size=2))
    return raw[:start] + raw[end:] if rng.random() < 0.5 else raw[:end] + raw[start:]


def spliced(raw: bytes, other: bytes, rng: Random) -> bytes:
    """The head of one file and the tail of another, cut at the same place or anywhere."""
    at = int(rng.integers(min(len(raw), len(other))))
    return raw[:at] + other[at if rng.random() < 0.5 else int(rng.integers(len(other))) :]


BYTES: dict[str, Callable[[bytes, bytes, Random], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "overwritten": overwritten,
    "removed": removed,
    "spliced": spliced,
}
"""Damage that knows nothing of formats: (file, another one, generator) -> bytes."""


def _pick(rng: Random, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


# Cloaks ---------------------------------------------------------------------------------------------------------------

CLOAKS = (*BYTES, "header", "text", "forged mask", "forged eps", "forged info")
"""Kinds of damaged cloak files. "forged" ones carry a valid hash: whoever writes a file can compute it."""

ABSURD: tuple[Any, ...] = (
    -1, 0, 1, 2, 111, 113, 150528, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, "3", None, True, [], {}, [[3]]
)  # fmt: skip
DTYPES = ("F64", "F16", "BF16", "I8", "U8", "I32", "I64", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "f32", "", "F128")


EPS = (
    *("nan", "inf", "-1", "1.0000001", "8", "", "0x1p-5", "0,03", "1e400", "0.03\x00", "None", "0" * 10000, "0.03"),
    *("0.5", "1", "1e0", "0.0313725490196078431372549019607843137", "0.0_5", "\u0660.\u0665", " 0.5\n"),
)


@dataclass(frozen=True)
class Allowed:
    """A cloak that a damaged file may load as."""

    delta: torch.Tensor
    eps: float
    info: str

    @staticmethod
    def of(delta: torch.Tensor, eps: float, info: Mapping[str, Any]) -> Allowed:
        """Info is compared as JSON, in which NaN equals itself."""
        return Allowed(delta, eps, json.dumps(dict(info), sort_keys=True))

    def equals(self, cloak: Cloak) -> bool:
        """Bit for bit; -0.0 is not 0.0."""
        same = self.delta.shape == cloak.delta.shape and self.delta.numpy().tobytes() == cloak.delta.numpy().tobytes()
        return same and self.eps == cloak.eps and self.info == json.dumps(dict(cloak.info), sort_keys=True)


def cloaks() -> tuple[Cloak, Cloak]:
    """Two cloaks of what fits give, with info of different lengths."""
    made = []
    for seed, models in ((0, ["sface"]), (1, ["sface", "dlib"])):
        generator = torch.Generator().manual_seed(seed)
        delta = (torch.rand(3, 112, 112, generator=generator) * 2 - 1).sign() * 0.0313
        losses = torch.rand(80, generator=generator).tolist()
        info = {"method": "ga", "models": models, "losses": losses, "seed": seed, "versions": {"torch": "2"}}
        made.append(Cloak(delta, 8 / 255, info))
    return made[0], made[1]


def cloak_case(
    kind: str, raws: Sequence[bytes], originals: Sequence[Cloak], rng: Random
) -> tuple[bytes, list[Allowed]]:
    """A damaged cloak file, and what it may load as (nothing: it must be refused).

    Args:
        kind: one of `CLOAKS`.
        raws: the files of the originals.
        originals: two cloaks.
        rng: decides all the rest.
    """
    first = int(rng.integers(2))
    raw, other, cloak = raws[first], raws[1 - first], originals[first]
    whole = [Allowed.of(one.delta, one.eps, one.info) for one in originals]
    if kind in BYTES:
        return BYTES[kind](raw, other, rng), whole
    length = struct.unpack("<Q", raw[:8])[0]
    if kind == "text":
        return _odd_text(raw, length, rng), whole
    if kind == "header":
        header, values = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        return _odd_header(header, values, rng), whole
    return _forged(kind, cloak, rng)


def in_order(raw: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library orders it anew each time."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    return packed(header + b" " * (-len(header) % 8), raw[8 + length :])


def packed(header: bytes, values: bytes, length: int | None = None) -> bytes:
    """A safetensors file of these parts; `length` is a lie about the header's."""
    return struct.pack("<Q", (len(header) if length is None else length) & (2**64 - 1)) + header + values


def _odd_header(header: dict[str, Any], values: bytes, rng: Random) -> bytes:
    entry, metadata = header["delta"], header["__metadata__"]
    length = None
    for _ in range(rng.integers(1, 3)):
        what = int(rng.integers(9))
        if what == 0:
            entry["dtype"] = _pick(rng, (*DTYPES, None, 3))
        elif what == 1:
            entry["shape"] = [_pick(rng, (3, 112, *ABSURD)) for _ in range(rng.integers(6))]
        elif what == 2:
            entry["data_offsets"] = [_pick(rng, (0, len(values), *ABSURD)) for _ in range(rng.integers(1, 4))]
        elif what == 3:
            metadata[_pick(rng, list(metadata))] = _pick(rng, ("", "2", "1e309", "x" * 100_000, "\x00", *ABSURD))
        elif what == 4:
            metadata.pop(_pick(rng, list(metadata)), None)
            if not metadata:
                metadata["format"] = FORMAT
        elif what == 5:
            header[_pick(rng, ("Delta", "delta2", "", "é" * 5000))] = dict(entry)
        elif what == 6:
            header["__metadata__"] = _pick(rng, (None, [], "x", {"a": {"b": "c"}}, metadata))
            metadata = header["__metadata__"] if isinstance(header["__metadata__"], dict) else metadata
            metadata.setdefault("format", FORMAT)
        elif what == 7:
            length = _pick(rng, (0, 1, 2**20, 2**31, 2**63, 2**64 - 1, len(values)))
        else:
            values = values[: int(rng.integers(len(values) + 1))] if rng.random() < 0.5 else values + rng.bytes(64)
    return packed(json.dumps(header).encode(), values, length)


def _odd_text(raw: bytes, length: int, rng: Random) -> bytes:
    """The header's JSON altered as text: keys twice, white space, other encodings, deep nesting, wrong ends."""
    text, values = raw[8 : 8 + length].decode(), raw[8 + length :]
    what = int(rng.integers(7))
    if what == 0:  # a key twice, before or after the real one
        key = _pick(rng, ("format", "schema", "eps", "info", "sha256"))
        lie = json.dumps({key: _pick(rng, ("1", "0.5", "{}", "[]", "0" * 64))})[1:-1]
        at = text.index('"__metadata__":{') + len('"__metadata__":{')
        text = text[:at] + lie + "," + text[at:] if rng.random() < 0.5 else text.replace("},", f",{lie}}},", 1)
    elif what == 1:
        entry = '"delta":{"dtype":"F32","shape":[3,112,112],"data_offsets":[0,150528]}'
        text = text.rstrip()[:-1] + "," + entry.replace("112,112", _pick(rng, ("112,112", "112,111"))) + "}"
    elif what == 2:
        text = text.rstrip()[:-1] + ',"__metadata__":{"format":"fastcloak.cloak"}}'
    elif what == 3:
        text = text.replace(",", f",{_pick(rng, (' ', chr(10), chr(9), chr(0xA0), chr(0)))}", int(rng.integers(1, 9)))
    elif what == 4:
        return packed(text.encode(_pick(rng, ("utf-16", "utf-32", "utf-8-sig"))), values)
    elif what == 5:
        depth = int(10 ** rng.uniform(1, 5))
        text = text.rstrip()[:-1] + ',"x":' + "[" * depth + "]" * depth + "}"
    else:
        text = text.replace('"eps":"0.03', _pick(rng, ('"eps":"0.3', '"eps":0.03', '"EPS":"0.03', '"eps":"+0.03')), 1)
    return packed(text.encode(), values)


def _forged(kind: str, cloak: Cloak, rng: Random) -> tuple[bytes, list[Allowed]]:
    delta, eps, info = cloak.delta.clone(), repr(cloak.eps), json.dumps(dict(cloak.info))
    allowed: list[Allowed] = []
    if kind == "forged mask":
        what, flat = int(rng.integers(7)), delta.flatten()
        if what < 4:  # numbers that no mask may hold, in one pixel or more
            bad = (float("nan"), float("inf"), -float("inf"), 1.0, 0.04, np.nextafter(np.float32(cloak.eps), 1))[
                rng.integers(6)
            ]
            flat[torch.from_numpy(rng.integers(len(flat), size=rng.integers(1, 4)))] = float(bad)
        elif what == 4:
            delta = delta.to(_pick(rng, (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.complex64)))
        elif what == 5:
            size = _pick(rng, ((0,), (), (1, 3, 112, 112), (112, 112, 3), (3, 12544), (3, 112, 0), (37632,)))
            delta = torch.zeros(size)
        else:  # within the bounds: another whole cloak, subnormal numbers and -0.0 included
            flat[torch.from_numpy(rng.integers(len(flat), size=9))] = float(_pick(rng, (-0.0, 1e-42, -0.03, 0.031)))
            allowed = [Allowed.of(delta, cloak.eps, cloak.info)]
    elif kind == "forged eps":
        eps = _pick(rng, EPS)
        try:
            number = float(eps)
            allowed = [Allowed.of(delta, number, cloak.info)] if 0.0313 < number <= 1 else []
        except ValueError:
            pass
    else:
        # Not about the depth at which Python gives up, which depends on who calls.
        depth = int(10 ** (rng.uniform(0, 2.5) if rng.random() < 0.7 else rng.uniform(4.3, 5)))
        odd: tuple[str, ...] = ("", "{", "[]", "3", "null", '"ga"', "[" * depth, '{"a":' * depth + "1" + "}" * depth)
        odd += ('{"a":NaN}', '{"a":' + "9" * depth + "}", '{"a":1e999,"b":-Infinity}', '{"a":1,"a":2}')
        odd += ('{"losses":{},"alpha":[]}', '{"":"\\u001b]0;x\\u0007\\ud800"}', '{"models":"\\u202e"}')
        odd += (json.dumps({"a": "x" * 1_000_000}), json.dumps({str(i): [i, None, {"b": True}] for i in range(depth)}))
        info = _pick(rng, odd)
        try:
            read = json.loads(info)
            allowed = [Allowed.of(delta, cloak.eps, read)] if isinstance(read, dict) else []
        except (ValueError, RecursionError):
            pass
    metadata = {"format": FORMAT, "schema": "1", "eps": eps, "info": info}
    metadata["sha256"] = digest(delta, metadata)
    return in_order(save({"delta": delta.contiguous()}, metadata)), allowed


# Photos ---------------------------------------------------------------------------------------------------------------

PHOTOS = (*BYTES, "parts", "size", "metadata", "bomb")
"""Kinds of damaged photo files; each is made of every format in turn."""


def photo_files(pixels: np.ndarray[Any, Any]) -> dict[str, bytes]:
    """One picture as the files that fastcloak reads, name -> bytes; the name's end is the suffix.

    Args:
        pixels: [H, W, 3] uint8.
    """
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels).convert("L")
    seen_through = colour.copy()
    seen_through.putalpha(200)
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    made: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        made[name] = buffer.getvalue()

    add("colour.jpg", colour, "JPEG", quality=90, exif=exif, icc_profile=b"p" * 300)
    add("progressive.jpg", colour, "JPEG", progressive=True, subsampling=2)
    add("grey.jpg", grey, "JPEG")
    add("colour.png", colour, "PNG", exif=exif)
    add("alpha.png", seen_through, "PNG")
    add("palette.png", colour.quantize(64), "PNG", transparency=3)
    add("lossy.webp", colour, "WEBP", exif=exif)
    add("lossless.webp", seen_through, "WEBP", lossless=True)
    add("raw.tif", colour, "TIFF", exif=exif)
    for compression in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"):
        add(f"{compression}.tif", colour, "TIFF", compression=compression)
    add("colour.bmp", colour, "BMP")
    add("grey.pgm", grey, "PPM")
    pillow_heif.register_heif_opener(thumbnails=False)
    add("colour.heic", colour, "HEIF", quality=90, exif=exif)
    return made


def photo_case(kind: str, files: Mapping[str, bytes], rng: Random) -> tuple[str, bytes]:
    """The suffix and the bytes of a damaged photo.

    Args:
        kind: one of `PHOTOS`.
        files: what `photo_files` returned.
        rng: decides all the rest.
    """
    name, second = _pick(rng, list(files)), _pick(rng, list(files))
    raw, suffix = files[name], "." + name.rsplit(".", 1)[1]
    if kind == "spliced":  # two files of one kind fit together best
        alike = [other for other in files if other.endswith(suffix)]
        second = _pick(rng, alike)
    if kind in BYTES:
        return suffix, BYTES[kind](raw, files[second], rng)
    if kind == "bomb":
        return _bomb(rng)
    if kind == "metadata":
        return _odd_metadata(files[name], suffix, rng)
    if kind == "size":
        return suffix, _odd_size(raw, suffix, rng)
    return suffix, _odd_parts(raw, files[second], suffix, rng)


def png_chunks(raw: bytes) -> list[tuple[bytes, bytes]]:
    """(name, content) of each chunk."""
    chunks, at = [], 8
    while at + 12 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in chunks:
        parts.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(parts)


def _segments(raw: bytes, suffix: str) -> list[bytes]:
    """Where a format has an inner order: its pieces. Joined they are the file."""
    if suffix == ".jpg":  # up to the first scan, which goes on to the end
        pieces, at = [raw[:2]], 2
        while at + 4 <= len(raw) and raw[at] == 0xFF and raw[at + 1] != 0xDA:
            size = 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
            pieces.append(raw[at : at + size])
            at += size
        return [*pieces, raw[at:]]
    if suffix == ".webp":
        pieces, at = [raw[:12]], 12
        while at + 8 <= len(raw):
            size = 8 + int.from_bytes(raw[at + 4 : at + 8], "little")
            pieces.append(raw[at : at + size + size % 2])
            at += size + size % 2
        return pieces
    if suffix == ".heic":  # its boxes
        pieces, at = [raw[:8]], 8
        while at + 8 <= len(raw):
            size = max(8, int.from_bytes(raw[at : at + 4], "big")) if at > 8 else int.from_bytes(raw[:4], "big") - 8
            pieces.append(raw[at : at + size])
            at += size
        return [piece for piece in pieces if piece]
    if suffix == ".tif":  # the entries of its table, 12 bytes each
        start = int.from_bytes(raw[4:8], "little")
        count = int.from_bytes(raw[start : start + 2], "little")
        entries = [raw[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
        return [raw[: start + 2], *entries, raw[start + 2 + 12 * count :]]
    return [raw[i : i + 16] for i in range(0, 64, 16)] + [raw[64:]]


def _odd_parts(raw: bytes, other: bytes, suffix: str, rng: Random) -> bytes:
    """Pieces of the format left out, twice, in another order, of another file, or altered; checksums are right."""
    if suffix == ".png":
        chunks = png_chunks(raw)
        i, j = (int(index) for index in rng.integers(len(chunks), size=2))
        name, content = chunks[i]
        what = int(rng.integers(6))
        if what == 0:
            chunks.pop(i)
        elif what == 1:
            chunks.insert(j, chunks[i])
        elif what == 2:
            chunks[i], chunks[j] = chunks[j], chunks[i]
        elif what == 3 and content:
            chunks[i] = (name, flipped(content, content, rng))
        elif what == 4:
            chunks[i] = (name, content[: int(rng.integers(len(content) + 1))])
        else:
            wild = _pick(
                rng, (b"iCCP", b"zTXt", b"tRNS", b"PLTE", b"pHYs", b"eXIf", b"gAMA", b"acTL", b"fcTL", b"IDAT")
            )
            chunks.insert(1 + j % 2, (wild, rng.bytes(int(rng.integers(200)))))
        return png(chunks)
    pieces = _segments(raw, suffix)
    i, j = (int(index) for index in rng.integers(1, len(pieces), size=2))
    what = int(rng.integers(5))
    if what == 0:
        pieces.pop(i)
    elif what == 1:
        pieces.insert(j, pieces[i])
    elif what == 2:
        pieces[i], pieces[j] = pieces[j], pieces[i]
    elif what == 3:
        pieces[i] = flipped(pieces[i], pieces[i], rng) if pieces[i] else b""
    else:
        foreign = _segments(other, suffix) if other[:4] == raw[:4] else [other]
        pieces[i] = _pick(rng, foreign)
    return b"".join(pieces)


def _odd_size(raw: bytes, suffix: str, rng: Random) -> bytes:
    """Another width and height in the header."""
    sides = [int(_pick(rng, (0, 1, 2, 111, 4096, 9000, 16383, 65535, 2**20, 2**31 - 1, 2**32 - 1))) for _ in range(2)]
    hurt = bytearray(raw)
    if suffix == ".png":
        chunks = png_chunks(raw)
        depth = bytes(_pick(rng, ((8, 2), (16, 2), (1, 0), (8, 3), (16, 6), (3, 9)))) if rng.random() < 0.3 else None
        old = chunks[0][1]
        chunks[0] = (b"IHDR", struct.pack(">II", *sides) + (old[8:] if depth is None else depth + old[10:]))
        return png(chunks)
    if suffix == ".jpg":
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            at = raw.find(marker)
            if at > 0:
                hurt[at + 5 : at + 9] = struct.pack(">HH", *(side & 0xFFFF for side in sides))
                break
    elif suffix == ".bmp":
        hurt[18:26] = struct.pack("<II", *sides)
        if rng.random() < 0.3:
            hurt[28:34] = struct.pack("<HI", _pick(rng, (1, 4, 8, 16, 32, 255)), _pick(rng, (0, 1, 2, 3, 4, 5)))
    elif suffix == ".pgm":
        largest = _pick(rng, (0, 1, 255, 256, 65535, 10**9, -1))
        return f"P{_pick(rng, '2356')} {sides[0]} {sides[1]} {largest}\n".encode() + raw[15:]
    elif suffix == ".heic":  # ispe: version and flags, then width and height
        at = raw.find(b"ispe") + 8
        hurt[at : at + 8] = struct.pack(">II", *sides)
    elif suffix == ".tif":
        pieces = _segments(raw, suffix)
        for i, piece in enumerate(pieces[1:-1], 1):
            if int.from_bytes(piece[:2], "little") in (256, 257, 278, 279, 273, 277, 258) and rng.random() < 0.5:
                pieces[i] = piece[:8] + struct.pack("<I", _pick(rng, sides))
        return b"".join(pieces)
    else:  # WebP: the canvas of VP8X, or the frame's own header
        at = raw.find(b"VP8X")
        if at > 0:
            hurt[at + 12 : at + 18] = b"".join(struct.pack("<I", side & 0xFFFFFF)[:3] for side in sides)
        else:
            at = max(raw.find(b"VP8 ") + 14, raw.find(b"VP8L") + 9)
            hurt[at : at + 4] = rng.bytes(4)
    return bytes(hurt)


def _odd_metadata(raw: bytes, suffix: str, rng: Random) -> tuple[str, bytes]:
    """A whole picture with EXIF, colour profile or DPI of garbage."""
    with Image.open(BytesIO(raw)) as image:
        image.load()
        picture = image.convert("RGB")
    table = bytearray(b"Exif\0\0" + _pick(rng, (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")))
    order = "<" if table[6:8] == b"II" else ">"
    count = int(rng.integers(1, 12))
    table += struct.pack(order + "H", _pick(rng, (count, count, 0, 65535)))
    for _ in range(count):
        tag = _pick(rng, (274, 271, 34665, 34853, 40965, 513, 514, 700, 282, 37500, int(rng.integers(65536))))
        kind = int(rng.integers(16))
        number = _pick(rng, (1, 2, 4, 8, 1000, 2**31, 2**32 - 1))
        value = _pick(rng, (0, 1, 6, 8, 9, 26, 2**31, 2**32 - 1))
        table += struct.pack(order + "HHII", tag, kind, number, value)
    table += rng.bytes(int(rng.integers(64)))
    options: dict[str, Any] = {"exif": bytes(table)}
    if rng.random() < 0.5:
        options["icc_profile"] = rng.bytes(int(2 ** rng.uniform(0, 16)))
    kind = _pick(rng, ("JPEG", "PNG", "WEBP"))
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[kind], buffer.getvalue()


def _bomb(rng: Random) -> tuple[str, bytes]:
    """A small file that unpacks to much: pixels, text or a colour profile; some are just large photos."""
    width, height = (int(2 ** rng.uniform(11.5, 14)) for _ in range(2))
    header = struct.pack(">IIBBBBB", width, height, *_pick(rng, ((8, 0), (8, 2), (1, 0), (8, 6), (8, 3))), 0, 0, 0)
    what = int(rng.integers(4))
    if what == 0:  # promised and held
        channels = {0: 1, 2: 3, 6: 4, 3: 1}[header[9]]
        line = bytes(1 + (width * channels * header[8] + 7) // 8)
        packer = zlib.compressobj(1)
        stream = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    else:  # promised only
        stream = zlib.compress(bytes(1000))
    chunks = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", stream), (b"IEND", b"")]
    packed_zeros = zlib.compress(bytes(int(2 ** rng.uniform(20, 27))), 9)
    if what == 1:
        chunks.insert(1, (b"iCCP", b"x\0\0" + packed_zeros))
    elif what == 2:
        chunks.insert(1, (b"zTXt", b"x\0\0" + packed_zeros))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        chunks[3] = (b"IDAT", zlib.compress(bytes(2)))
    return ".png", png(chunks)


# Networks -------------------------------------------------------------------------------------------------------------

NETWORKS = (*BYTES, "fields", "hostile")
"""Kinds of damaged ONNX files. "hostile" ones are made to exhaust memory or time."""
SIDE = 24


def _i64(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def network_files() -> list[bytes]:
    """Small networks as ONNX files: an ordinary one, one with quantised weights, one with attention.

    The last two compute shapes.
    """
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)

    def f32(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape).astype(np.float32)

    norm = {"s": f32(8), "b": f32(8), "m": f32(8), "v": np.abs(f32(8)) + 0.5}
    first = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("PRelu", ["n", "slope"], ["p"]),
        helper.make_node("MaxPool", ["p"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["q"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], transB=1),
    ]
    second = [
        helper.make_node("Sub", ["x", "half"], ["d"]),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"], axis=0),
        helper.make_node("Pad", ["d", "pads"], ["e"]),
        helper.make_node("Conv", ["e", "w"], ["c"], group=1),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["a"]),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["a", "to"], ["f"]),
        helper.make_node("MatMul", ["f", "g"], ["y"]),
    ]
    third = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[6, 6]),
        helper.make_node("Reshape", ["c", "tokens"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["t"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        helper.make_node("Expand", ["token", "to"], ["first"]),
        helper.make_node("Concat", ["first", "t"], ["a"], axis=1),
        helper.make_node("LayerNormalization", ["a", "s", "b"], ["l"]),
        helper.make_node("MatMul", ["l", "g"], ["m"]),
        helper.make_node("Split", ["m"], ["q", "k", "v"], axis=2, num_outputs=3),
        helper.make_node("Einsum", ["q", "k"], ["scores"], equation="nic,njc->nij"),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "v"], ["h"]),
        helper.make_node("Gelu", ["h"], ["u"]),
        helper.make_node("Slice", ["u", "zero", "one", "one"], ["front"]),
        helper.make_node("Squeeze", ["front", "one"], ["e"]),
        helper.make_node("ReduceL2", ["e", "one"], ["length"]),
        helper.make_node("Div", ["e", "length"], ["y"]),
    ]
    constants = [
        {"w": f32(8, 3, 3, 3), **norm, "slope": f32(8, 1, 1), "g": f32(6, 288), "h": f32(6)},
        {
            "w8": rng.integers(-128, 128, (8, 3, 3, 3)).astype(np.int8),
            "scale": np.abs(f32(8)) / 64,
            "half": np.float32(0.5),
            "pads": _i64(0, 0, 1, 1, 0, 0, 1, 1),
            "zero": np.int64(0),
            "axes": _i64(0),
            "rest": _i64(-1),
            "g": f32(8, 6),
        },
        {
            "w": f32(8, 3, 6, 6),
            "tokens": _i64(0, 8, -1),
            "zero": _i64(0),
            "one": _i64(1),
            "rest": _i64(1, 8),
            "token": f32(1, 1, 8),
            "s": f32(8),
            "b": f32(8),
            "g": f32(8, 24),
        },
    ]
    return [
        onnx_file(nodes, {name: numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()})
        for nodes, arrays in zip((first, second, third), constants, strict=True)
    ]


def onnx_file(nodes: Sequence[Any], constants: Mapping[str, Any]) -> bytes:
    """An ONNX file of these nodes and tensors: input x [n, 3, SIDE, SIDE], output y."""
    from onnx import TensorProto, helper

    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    embedding = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [picture], [embedding], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    raw: bytes = model.SerializeToString()
    return raw


def network_case(kind: str, raws: Sequence[bytes], rng: Random) -> bytes:
    """A damaged ONNX file.

    Args:
        kind: one of `NETWORKS`.
        raws: what `network_files` returned.
        rng: decides all the rest.
    """
    first = int(rng.integers(len(raws)))
    if kind in BYTES:
        return BYTES[kind](raws[first], raws[first - 1], rng)
    return _odd_fields(raws[first], rng) if kind == "fields" else _hostile(rng)


NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 64, 513, 2**16, 2**31 - 1, 2**40, 2**63 - 1)


def _odd_fields(raw: bytes, rng: Random) -> bytes:
    """One to three fields of the parsed file altered: operators, attributes, names, sizes, types."""
    from onnx import ModelProto

    from fastcloak.models.onnx.operators import OPERATORS

    model = ModelProto()
    model.ParseFromString(raw)
    graph = model.graph
    for _ in range(rng.integers(1, 4)):
        node, tensor = _pick(rng, list(graph.node)), _pick(rng, list(graph.initializer))
        names = [name for one in graph.node for name in (*one.input, *one.output)]
        what = int(rng.integers(9))
        if what == 0:
            node.op_type = _pick(rng, (*OPERATORS, "Loop", "If", ""))
        elif what == 1 and node.attribute:
            attribute = _pick(rng, list(node.attribute))
            if attribute.ints:
                attribute.ints[int(rng.integers(len(attribute.ints)))] = _pick(rng, NUMBERS)
            else:
                attribute.i = _pick(rng, NUMBERS)
        elif what == 2 and node.attribute:
            attribute = _pick(rng, list(node.attribute))
            attribute.name, attribute.type = (
                _pick(rng, ("axis", "group", "ints", attribute.name)),
                int(rng.integers(15)),
            )
        elif what == 3 and node.input:
            node.input[int(rng.integers(len(node.input)))] = _pick(rng, (*names, "", "ghost"))
        elif what == 4 and node.output:
            node.output[0] = _pick(rng, names)
        elif what == 5 and tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(rng, NUMBERS)
        elif what == 6:
            tensor.data_type = int(rng.integers(25))
        elif what == 7 and tensor.data_type == 7:
            tensor.raw_data = np.int64(rng.choice(NUMBERS, len(tensor.raw_data) // 8)).tobytes()
        elif what == 8:
            model.opset_import[0].version = _pick(rng, (-1, 0, 7, 10, 13, 18, 22, 2**31))
    altered: bytes = copy.copy(model).SerializeToString()
    return altered


def _hostile(rng: Random) -> bytes:
    """Small files whose values would be enormous."""
    from onnx import helper, numpy_helper

    size = int(2 ** rng.uniform(10, 20))
    what = int(rng.integers(13))
    node = helper.make_node
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    nodes = [node("GlobalAveragePool", ["big"], ["a"]), node("Flatten", ["a"], ["y"])]
    if what == 0:  # channels
        nodes.insert(0, node("Conv", ["x", "w"], ["big"]))
        arrays["w"] = np.zeros((size, 3, 1, 1), np.float32)
    elif what == 1:  # an outer product of each picture with itself
        nodes[:0] = [node("Reshape", ["x", "s"], ["r"]), node("Reshape", ["x", "t"], ["u"])]
        nodes.insert(
            2, node("Conv", ["r", "w"], ["wide"]) if size % 2 else node("Concat", ["r"] * 64, ["wide"], axis=2)
        )
        nodes.insert(3, node("MatMul", ["wide", "u"], ["big"]))
        arrays |= {
            "s": _i64(-1, 1, 1728, 1),
            "t": _i64(-1, 1, 1, 1728),
            "w": np.zeros((size, 1, 1, 1), np.float32),
        }
    elif what == 2:  # padding of padding
        names = ["x", *(f"p{i}" for i in range(6)), "big"]
        nodes[:0] = [node("Pad", [a, "pads"], [b]) for a, b in itertools.pairwise(names)]
        arrays["pads"] = _i64(0, 0, 500, 500, 0, 0, 500, 500)
    elif what == 3:  # doubling
        names = ["x", *(f"c{i}" for i in range(40)), "big"]
        nodes[:0] = [node("Concat", [a, a], [b], axis=1 + i % 3) for i, (a, b) in enumerate(itertools.pairwise(names))]
    elif what == 4:  # broadcasting
        nodes.insert(0, node("Add", ["x", "wide"], ["big"]))
        arrays["wide"] = np.zeros((1, 3, SIDE, SIDE), np.float32)
        if size % 2:
            nodes[:1] = [node("Gather", ["x", "one"], ["thin"], axis=1), node("Add", ["thin", "wide"], ["big"])]
            arrays |= {"one": _i64(0), "wide": np.zeros((1, size, 1, 1), np.float32)}
    elif what == 5:  # an index list
        nodes.insert(0, node("Gather", ["x", "index"], ["big"], axis=int(rng.integers(1, 4))))
        arrays["index"] = np.zeros(size, np.int64)
    elif what == 6:  # constants by their sizes
        kinds = (("Expand", ["one", "sizes"]), ("ConstantOfShape", ["sizes"]), ("Tile", ["one", "sizes"]))
        kind, inputs = kinds[size % 3]
        nodes[:0] = [node(kind, inputs, ["c"]), node("Add", ["x", "c"], ["big"])]
        arrays |= {"one": np.zeros((1, 1, 1), np.float32), "sizes": _i64(3, size, size)}
    elif what == 7:  # a list of all whole numbers, added up
        nodes[:0] = [
            node("Range", ["zero", "many", "step"], ["r"]),
            node("Cast", ["r"], ["c"], to=1),
            node("Add", ["x", "c"], ["big"]),
        ]
        arrays |= {"zero": np.int64(0), "many": np.int64(2 ** int(rng.integers(16, 63))), "step": np.int64(1)}
    elif what == 8:  # copies of a picture
        nodes.insert(0, node("Tile", ["x", "sizes"], ["big"]))
        arrays["sizes"] = _i64(1, 1, size, size)
    elif what == 9:  # resizing
        nodes.insert(0, node("Resize", ["x", "", "scales"], ["big"], mode="linear"))
        arrays["scales"] = np.array([1, 1, size, size], np.float32)
    elif what == 10:  # an outer product
        nodes[:0] = [node("Reshape", ["x", "s"], ["r"]), node("Einsum", ["r", "r"], ["e"], equation="ni,nj->nij")]
        nodes[2:2] = [node("Reshape", ["e", "t"], ["wide"]), node("MatMul", ["wide", "w"], ["big"])]
        arrays |= {"s": _i64(-1, 1728), "t": _i64(-1, 1, 1728 * 1728, 1), "w": np.zeros((1, size), np.float32)}
    elif what == 11:  # many copies of a constant
        names = ["c0", *(f"c{i}" for i in range(1, 40)), "c"]
        nodes[:0] = [node("Neg", [a], [b]) for a, b in itertools.pairwise(names)]
        nodes[:0] = [node("ConstantOfShape", ["sizes"], ["c0"])]
        nodes.insert(-2, node("Add", ["x", "c"], ["big"]))
        arrays["sizes"] = _i64(2 ** int(rng.integers(20, 26)))
    else:  # a constant of constants
        nodes[:0] = [node("Add", ["a1", "b1"], ["c1"]), node("Add", ["x", "c1"], ["big"])]
        arrays |= {"a1": np.zeros((size, 1), np.float32), "b1": np.zeros((1, size), np.float32)}
    return onnx_file(nodes, {name: numpy_helper.from_array(array, name) for name, array in arrays.items()})
