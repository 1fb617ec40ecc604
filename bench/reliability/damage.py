"""Damaged and hostile files made from whole ones: cloaks, photos, ONNX networks. A random generator decides each.

`bench.reliability` and the tests feed them to the readers. Nothing here knows what a reader should say, but for cloaks:
with each file come the cloaks that it may load as, since a cloak file carries a hash and nothing may pass by it.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
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

Random = np.random.Generator

BYTES = ("truncated", "flipped", "overwritten", "removed", "spliced")
"""Damage that knows nothing of formats."""


def damaged(kind: str, raw: bytes, other: bytes, rng: Random) -> bytes:
    """A file with a damage of `BYTES`; `other` is one that it may be spliced with."""
    end = min(len(raw), 1024) if rng.random() < 0.5 else len(raw)  # headers are within the first KB
    if kind == "truncated":
        return raw[: int(rng.integers(len(raw)))]
    if kind == "flipped":  # one to eight bits
        hurt = bytearray(raw)
        for position in rng.integers(end, size=rng.integers(1, 9)):
            hurt[position] ^= 1 << int(rng.integers(8))
        return bytes(hurt)
    if kind == "overwritten":
        start = int(rng.integers(end))
        size = min(len(raw) - start, int(2 ** rng.uniform(0, 12)))
        filler: bytes = _pick(rng, (rng.bytes(size), bytes(size), b"\xff" * size))
        return raw[:start] + filler + raw[start + size :]
    if kind == "removed":  # a range left out, or in twice
        start, stop = sorted(int(cut) for cut in rng.integers(len(raw), size=2))
        return raw[:start] + raw[stop:] if rng.random() < 0.5 else raw[:stop] + raw[start:]
    at = int(rng.integers(min(len(raw), len(other))))
    return raw[:at] + other[at if rng.random() < 0.5 else int(rng.integers(len(other))) :]


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
    """A cloak that a damaged file may load as; info is compared as JSON, in which NaN equals itself."""

    delta: torch.Tensor
    eps: float
    info: str

    @staticmethod
    def of(delta: torch.Tensor, eps: float, info: Mapping[str, Any]) -> Allowed:
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
    """A damaged cloak file of a kind of `CLOAKS`, and what it may load as (nothing: it must be refused).

    `raws` are the files of the two originals.
    """
    first = int(rng.integers(2))
    raw, cloak = raws[first], originals[first]
    whole = [Allowed.of(one.delta, one.eps, one.info) for one in originals]
    if kind in BYTES:
        return damaged(kind, raw, raws[1 - first], rng), whole
    if kind.startswith("forged"):
        return _forged(kind, cloak, rng)
    length = struct.unpack("<Q", raw[:8])[0]
    change = _odd_text if kind == "text" else _odd_header
    return change(raw[8 : 8 + length].decode(), raw[8 + length :], rng), whole


def in_order(raw: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library gives it another order each time."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    return _packed(header + b" " * (-len(header) % 8), raw[8 + length :])


def _packed(header: bytes, values: bytes, length: int | None = None) -> bytes:
    """A safetensors file of these parts; `length` is a lie about the header's."""
    return struct.pack("<Q", (len(header) if length is None else length) & (2**64 - 1)) + header + values


def _odd_header(text: str, values: bytes, rng: Random) -> bytes:
    header = json.loads(text)
    entry, metadata, length = header["delta"], header["__metadata__"], None
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
            metadata.pop(_pick(rng, list(metadata)))
        elif what == 5:
            header[_pick(rng, ("Delta", "delta2", "", "é" * 5000))] = dict(entry)
        elif what == 6:
            header["__metadata__"] = _pick(rng, (None, [], "x", {"a": {"b": "c"}}, metadata))
            metadata = header["__metadata__"] if isinstance(header["__metadata__"], dict) else metadata
        elif what == 7:
            length = _pick(rng, (0, 1, 2**20, 2**31, 2**63, 2**64 - 1, len(values)))
        else:
            values = values[: int(rng.integers(len(values) + 1))] if rng.random() < 0.5 else values + rng.bytes(64)
        if not metadata:
            metadata["format"] = FORMAT
    return _packed(json.dumps(header).encode(), values, length)


def _odd_text(text: str, values: bytes, rng: Random) -> bytes:
    """The header's JSON altered as text: keys twice, white space, other encodings, deep nesting, wrong ends."""
    what = int(rng.integers(7))
    encoding, inner = "utf-8", text.rstrip()[:-1]
    if what == 0:  # a key twice, before or after the real one
        key = _pick(rng, ("format", "schema", "eps", "info", "sha256"))
        lie = json.dumps({key: _pick(rng, ("1", "0.5", "{}", "[]", "0" * 64))})[1:-1]
        at = text.index('"__metadata__":{') + len('"__metadata__":{')
        text = text[:at] + lie + "," + text[at:] if rng.random() < 0.5 else text.replace("},", f",{lie}}},", 1)
    elif what == 1:
        shape = _pick(rng, ("[3,112,112]", "[3,112,111]"))
        text = f'{inner},"delta":{{"dtype":"F32","shape":{shape},"data_offsets":[0,150528]}}}}'
    elif what == 2:
        text = inner + ',"__metadata__":{"format":"fastcloak.cloak"}}'
    elif what == 3:
        text = text.replace(",", "," + _pick(rng, " \n\t\xa0\0"), int(rng.integers(1, 9)))
    elif what == 4:
        encoding = _pick(rng, ("utf-16", "utf-32", "utf-8-sig"))
    elif what == 5:
        depth = int(10 ** rng.uniform(1, 5))
        text = inner + ',"x":' + "[" * depth + "]" * depth + "}"
    else:
        text = text.replace('"eps":"0.03', _pick(rng, ('"eps":"0.3', '"eps":0.03', '"EPS":"0.03', '"eps":"+0.03')), 1)
    return _packed(text.encode(encoding), values)


def _forged(kind: str, cloak: Cloak, rng: Random) -> tuple[bytes, list[Allowed]]:
    delta, eps, info = cloak.delta.clone(), repr(cloak.eps), json.dumps(dict(cloak.info))
    allowed: list[Allowed] = []
    if kind == "forged mask":
        what, flat = int(rng.integers(7)), delta.flatten()
        if what < 4:  # numbers that no mask may hold, in one pixel or more
            above = float(np.nextafter(np.float32(cloak.eps), 1))
            where = torch.from_numpy(rng.integers(len(flat), size=rng.integers(1, 4)))
            flat[where] = _pick(rng, (float("nan"), float("inf"), -float("inf"), 1.0, 0.04, above))
        elif what == 4:
            delta = delta.to(_pick(rng, (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.complex64)))
        elif what == 5:
            shapes = ((0,), (), (1, 3, 112, 112), (112, 112, 3), (3, 12544), (3, 112, 0), (37632,))
            delta = torch.zeros(_pick(rng, shapes))
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
        odd = ["", "{", "[]", "3", "null", '"ga"', "[" * depth, '{"a":' * depth + "1" + "}" * depth]
        odd += ['{"a":NaN}', '{"a":' + "9" * depth + "}", '{"a":1e999,"b":-Infinity}', '{"a":1,"a":2}']
        odd += ['{"losses":{},"alpha":[]}', '{"":"\\u001b]0;x\\u0007\\ud800"}', '{"models":"\\u202e"}']
        odd += [json.dumps({"a": "x" * 1_000_000}), json.dumps({str(i): [i, None, {"b": True}] for i in range(depth)})]
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
    """A picture [H, W, 3] uint8 as the files that fastcloak reads, name -> bytes; the name's end is the suffix."""
    colour = Image.fromarray(pixels)
    grey, seen_through = colour.convert("L"), colour.copy()
    seen_through.putalpha(200)
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    pillow_heif.register_heif_opener(thumbnails=False)
    images: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "colour.jpg": (colour, "JPEG", {"quality": 90, "exif": exif, "icc_profile": b"p" * 300}),
        "progressive.jpg": (colour, "JPEG", {"progressive": True, "subsampling": 2}),
        "grey.jpg": (grey, "JPEG", {}),
        "colour.png": (colour, "PNG", {"exif": exif}),
        "alpha.png": (seen_through, "PNG", {}),
        "palette.png": (colour.quantize(64), "PNG", {"transparency": 3}),
        "lossy.webp": (colour, "WEBP", {"exif": exif}),
        "lossless.webp": (seen_through, "WEBP", {"lossless": True}),
        "raw.tif": (colour, "TIFF", {"exif": exif}),
        "colour.bmp": (colour, "BMP", {}),
        "grey.pgm": (grey, "PPM", {}),
        "colour.heic": (colour, "HEIF", {"quality": 90, "exif": exif}),
    }
    for compression in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"):
        images[f"{compression}.tif"] = (colour, "TIFF", {"compression": compression})
    made: dict[str, bytes] = {}
    for name, (image, kind, options) in images.items():
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        made[name] = buffer.getvalue()
    return made


def photo_case(kind: str, files: Mapping[str, bytes], rng: Random) -> tuple[str, bytes]:
    name = _pick(rng, list(files))
    raw, suffix = files[name], "." + name.rsplit(".", 1)[1]
    # Two files of one kind fit together best.
    alike = [other for other in files if kind != "spliced" or other.endswith(suffix)]
    other = files[_pick(rng, alike)]
    if kind in BYTES:
        return suffix, damaged(kind, raw, other, rng)
    if kind == "bomb":
        return ".png", _bomb(rng)
    if kind == "metadata":
        return _odd_metadata(raw, rng)
    return suffix, _odd_size(raw, suffix, rng) if kind == "size" else _odd_parts(raw, other, suffix, rng)


def png_chunks(raw: bytes) -> list[tuple[bytes, bytes]]:
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


def segments(raw: bytes, suffix: str) -> list[bytes]:
    """The pieces of a format's inner order. Joined they are the file."""
    if suffix == ".tif":  # the entries of its table, 12 bytes each
        start = int.from_bytes(raw[4:8], "little")
        count = int.from_bytes(raw[start : start + 2], "little")
        cuts = [start + 2 + 12 * i for i in range(count + 1)]
    elif suffix == ".jpg":  # up to the first scan, which goes on to the end
        cuts = [2]
        while raw[cuts[-1] + 1] != 0xDA:
            cuts.append(cuts[-1] + 2 + int.from_bytes(raw[cuts[-1] + 2 : cuts[-1] + 4], "big"))
    elif suffix == ".webp":  # chunks of even length
        cuts = [12]
        while cuts[-1] + 8 <= len(raw):
            size = int.from_bytes(raw[cuts[-1] + 4 : cuts[-1] + 8], "little")
            cuts.append(cuts[-1] + 8 + size + size % 2)
    elif suffix == ".heic":  # boxes
        cuts = [8, int.from_bytes(raw[:4], "big")]
        while cuts[-1] + 8 <= len(raw):
            cuts.append(cuts[-1] + max(8, int.from_bytes(raw[cuts[-1] : cuts[-1] + 4], "big")))
    else:
        cuts = [16, 32, 48, 64]
    pieces = [raw[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(raw)])]
    return [piece for piece in pieces if piece]


def _odd_parts(raw: bytes, other: bytes, suffix: str, rng: Random) -> bytes:
    """Pieces of the format left out, twice, in another order, of another file, or altered; checksums are right."""
    chunks = png_chunks(raw) if suffix == ".png" else []
    pieces: list[Any] = list(chunks) or segments(raw, suffix)
    i, j = (int(index) for index in rng.integers(0 if chunks else 1, len(pieces), size=2))
    what = int(rng.integers(6))
    if what == 0:
        pieces.pop(i)
    elif what == 1:
        pieces.insert(j, pieces[i])
    elif what == 2:
        pieces[i], pieces[j] = pieces[j], pieces[i]
    elif chunks:
        name, content = chunks[i]
        if what == 3 and content:
            pieces[i] = name, damaged("flipped", content, content, rng)
        elif what == 4:
            pieces[i] = name, content[: int(rng.integers(len(content) + 1))]
        else:
            wild = b"iCCP", b"zTXt", b"tRNS", b"PLTE", b"pHYs", b"eXIf", b"gAMA", b"acTL", b"fcTL", b"IDAT"
            pieces.insert(1 + j % 2, (_pick(rng, wild), rng.bytes(int(rng.integers(200)))))
    elif what == 3:
        pieces[i] = damaged("flipped", pieces[i], pieces[i], rng)
    else:
        pieces[i] = _pick(rng, segments(other, suffix) if other[:4] == raw[:4] else [other])
    return png(pieces) if chunks else b"".join(pieces)


SIDES = (0, 1, 2, 111, 4096, 9000, 16383, 65535, 2**20, 2**31 - 1, 2**32 - 1)


def _odd_size(raw: bytes, suffix: str, rng: Random) -> bytes:
    sides = [int(_pick(rng, SIDES)) for _ in range(2)]
    hurt = bytearray(raw)
    if suffix == ".png":
        chunks = png_chunks(raw)
        depth = bytes(_pick(rng, ((8, 2), (16, 2), (1, 0), (8, 3), (16, 6), (3, 9)))) if rng.random() < 0.3 else b""
        chunks[0] = (b"IHDR", struct.pack(">II", *sides) + depth + chunks[0][1][8 + len(depth) :])
        return png(chunks)
    if suffix == ".pgm":
        largest = _pick(rng, (0, 1, 255, 256, 65535, 10**9, -1))
        return f"P{_pick(rng, '2356')} {sides[0]} {sides[1]} {largest}\n".encode() + raw[15:]
    if suffix == ".tif":
        pieces = segments(raw, suffix)
        for i, piece in enumerate(pieces[1:-1], 1):
            if int.from_bytes(piece[:2], "little") in (256, 257, 278, 279, 273, 277, 258) and rng.random() < 0.5:
                pieces[i] = piece[:8] + struct.pack("<I", _pick(rng, sides))
        return b"".join(pieces)
    if suffix == ".jpg":
        at = max(raw.find(b"\xff\xc0"), raw.find(b"\xff\xc2")) + 5
        hurt[at : at + 4] = struct.pack(">HH", *(side & 0xFFFF for side in sides))
    elif suffix == ".bmp":
        hurt[18:26] = struct.pack("<II", *sides)
        if rng.random() < 0.3:
            hurt[28:34] = struct.pack("<HI", _pick(rng, (1, 4, 8, 16, 32, 255)), _pick(rng, (0, 1, 2, 3, 4, 5)))
    elif suffix == ".heic":  # ispe: version and flags, then width and height
        at = raw.find(b"ispe") + 8
        hurt[at : at + 8] = struct.pack(">II", *sides)
    elif b"VP8X" in raw:  # WebP: the canvas
        at = raw.find(b"VP8X") + 12
        hurt[at : at + 6] = b"".join(struct.pack("<I", side & 0xFFFFFF)[:3] for side in sides)
    else:  # the frame's own header
        at = max(raw.find(b"VP8 ") + 14, raw.find(b"VP8L") + 9)
        hurt[at : at + 4] = rng.bytes(4)
    return bytes(hurt)


def _odd_metadata(raw: bytes, rng: Random) -> tuple[str, bytes]:
    order, start = _pick(rng, (("<", b"II*\0\x08\0\0\0"), (">", b"MM\0*\0\0\0\x08")))
    count = int(rng.integers(1, 12))
    table = b"Exif\0\0" + start + struct.pack(order + "H", _pick(rng, (count, count, 0, 65535)))
    for _ in range(count):
        tag = _pick(rng, (274, 271, 34665, 34853, 40965, 513, 514, 700, 282, 37500, int(rng.integers(65536))))
        number = _pick(rng, (1, 2, 4, 8, 1000, 2**31, 2**32 - 1))
        value = _pick(rng, (0, 1, 6, 8, 9, 26, 2**31, 2**32 - 1))
        table += struct.pack(order + "HHII", tag, int(rng.integers(16)), number, value)
    options: dict[str, Any] = {"exif": table + rng.bytes(int(rng.integers(64)))}
    if rng.random() < 0.5:
        options["icc_profile"] = rng.bytes(int(2 ** rng.uniform(0, 16)))
    kind, suffix = _pick(rng, (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp")))
    buffer = BytesIO()
    with Image.open(BytesIO(raw)) as image:
        image.convert("RGB").save(buffer, kind, **options)
    return suffix, buffer.getvalue()


def _bomb(rng: Random) -> bytes:
    """A small PNG that unpacks to much: pixels, text or a colour profile; some are just large photos."""
    width, height = (int(2 ** rng.uniform(11.5, 14)) for _ in range(2))
    depth, kind, channels = _pick(rng, ((8, 0, 1), (8, 2, 3), (1, 0, 1), (8, 6, 4), (8, 3, 1)))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    what = int(rng.integers(4))
    stream = zlib.compress(bytes(1000))  # promised only
    if what == 0:  # promised and held
        line, packer = bytes(1 + (width * channels * depth + 7) // 8), zlib.compressobj(1)
        stream = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    chunks = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", stream), (b"IEND", b"")]
    packed_zeros = b"x\0\0" + zlib.compress(bytes(int(2 ** rng.uniform(20, 27))), 9)
    if what == 1:
        chunks.insert(1, (b"iCCP", packed_zeros))
    elif what == 2:
        one = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(bytes(2))
        chunks = [(b"IHDR", one[0]), (b"zTXt", packed_zeros), (b"IDAT", one[1]), (b"IEND", b"")]
    return png(chunks)


# Networks -------------------------------------------------------------------------------------------------------------

NETWORKS = (*BYTES, "fields", "hostile")
"""Kinds of damaged ONNX files. "hostile" ones are made to exhaust memory or time."""
SIDE = 24

# An ordinary network, one with quantised weights and one with attention; the last two compute shapes.
ORDINARY = """
    c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
    n = BatchNormalization (c, s, b, m, v)
    p = PRelu (n, slope)
    q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p)
    f = Flatten (q)
    y = Gemm <transB = 1> (f, g, h)
"""
QUANTISED = """
    d = Sub (x, half)
    w = DequantizeLinear <axis = 0> (w8, scale)
    e = Pad (d, pads)
    c = Conv <group = 1> (e, w)
    r = Relu (c)
    a = GlobalAveragePool (r)
    shape = Shape (a)
    n = Gather <axis = 0> (shape, zero)
    n1 = Unsqueeze (n, axes)
    to = Concat <axis = 0> (n1, rest)
    f = Reshape (a, to)
    y = MatMul (f, g)
"""
ATTENTION = """
    c = Conv <strides = [6, 6]> (x, w)
    r = Reshape (c, tokens)
    t = Transpose <perm = [0, 2, 1]> (r)
    shape = Shape (t)
    n = Gather <axis = 0> (shape, zero)
    to = Concat <axis = 0> (n, rest)
    first = Expand (token, to)
    a = Concat <axis = 1> (first, t)
    l = LayerNormalization (a, s, b)
    m = MatMul (l, g)
    q, k, v = Split <axis = 2, num_outputs = 3> (m)
    scores = Einsum <equation = "nic,njc->nij"> (q, k)
    weights = Softmax (scores)
    h = MatMul (weights, v)
    u = Gelu (h)
    front = Slice (u, zero, one, one)
    e = Squeeze (front, one)
    length = ReduceL2 (e, one)
    y = Div (e, length)
"""


def _i64(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def network_files() -> list[bytes]:
    rng = np.random.default_rng(0)

    def f32(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape).astype(np.float32)

    norm = {"s": f32(8), "b": f32(8), "m": f32(8), "v": np.abs(f32(8)) + 0.5}
    shapes = {"zero": np.int64(0), "axes": _i64(0), "rest": _i64(-1), "pads": _i64(0, 0, 1, 1, 0, 0, 1, 1)}
    weights = {"w8": rng.integers(-128, 128, (8, 3, 3, 3)).astype(np.int8), "scale": np.abs(f32(8)) / 64}
    tokens = {"tokens": _i64(0, 8, -1), "zero": _i64(0), "one": _i64(1), "rest": _i64(1, 8), "token": f32(1, 1, 8)}
    return [
        onnx_file(ORDINARY, {"w": f32(8, 3, 3, 3), **norm, "slope": f32(8, 1, 1), "g": f32(6, 288), "h": f32(6)}),
        onnx_file(QUANTISED, {**weights, "half": np.float32(0.5), **shapes, "g": f32(8, 6)}),
        onnx_file(ATTENTION, {"w": f32(8, 3, 6, 6), **tokens, "s": f32(8), "b": f32(8), "g": f32(8, 24)}),
    ]


def onnx_file(nodes: str, arrays: Mapping[str, Any]) -> bytes:
    """An ONNX file of these nodes and tensors: input x [n, 3, SIDE, SIDE], output y."""
    from onnx import helper, numpy_helper, parser

    graph = parser.parse_graph(f"g (float[n, 3, {SIDE}, {SIDE}] x) => (float[] y) {{ {nodes} }}")
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    raw: bytes = model.SerializeToString()
    return raw


def network_case(kind: str, raws: Sequence[bytes], rng: Random) -> bytes:
    first = int(rng.integers(len(raws)))
    if kind in BYTES:
        return damaged(kind, raws[first], raws[first - 1], rng)
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
        attribute = _pick(rng, list(node.attribute)) if node.attribute else None
        what = int(rng.integers(9))
        if what == 0:
            node.op_type = _pick(rng, (*OPERATORS, "Loop", "If", ""))
        elif what == 1 and attribute is not None:
            if attribute.ints:
                attribute.ints[int(rng.integers(len(attribute.ints)))] = _pick(rng, NUMBERS)
            else:
                attribute.i = _pick(rng, NUMBERS)
        elif what == 2 and attribute is not None:
            attribute.name = _pick(rng, ("axis", "group", "ints", attribute.name))
            attribute.type = int(rng.integers(15))
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
    altered: bytes = model.SerializeToString()
    return altered


def _hostile(rng: Random) -> bytes:
    """A small file whose values would be enormous."""
    size = int(2 ** rng.uniform(10, 20))
    axis = int(rng.integers(1, 4))

    def chain(names: Sequence[str], node: str) -> str:
        return "\n".join(
            f"{b} = {node.format(a=a, axis=1 + i % 3)}" for i, (a, b) in enumerate(itertools.pairwise(names))
        )

    def zeros(*shape: int) -> np.ndarray[Any, Any]:
        return np.zeros(shape, np.float32)  # not held in memory until they are read

    outer = {"s": _i64(-1, 1, 1728, 1), "t": _i64(-1, 1, 1, 1728)}
    copies = ", ".join(["r"] * 64)
    constant = ("Expand (one, sizes)", "ConstantOfShape (sizes)", "Tile (one, sizes)")[size % 3]
    negated = chain(["c0", *(f"c{i}" for i in range(1, 40)), "c"], "Neg ({a})")
    nodes, arrays = _pick(
        rng,
        (
            ("big = Conv (x, w)", {"w": zeros(size, 3, 1, 1)}),
            # An outer product of each picture with itself, wider than the picture.
            ("r = Reshape (x, s) u = Reshape (x, t) wide = Conv (r, w) big = MatMul (wide, u)",
             {**outer, "w": zeros(size, 1, 1, 1)}),
            (f"r = Reshape (x, s) u = Reshape (x, t) wide = Concat <axis = 2> ({copies}) big = MatMul (wide, u)",
             outer),
            (chain(["x", *(f"p{i}" for i in range(6)), "big"], "Pad ({a}, pads)"),
             {"pads": _i64(0, 0, 500, 500, 0, 0, 500, 500)}),
            (chain(["x", *(f"c{i}" for i in range(40)), "big"], "Concat <axis = {axis}> ({a}, {a})"), {}),
            # Broadcasting.
            ("big = Add (x, wide)", {"wide": zeros(1, 3, SIDE, SIDE)}),
            ("one = Gather <axis = 1> (x, zero) big = Add (one, wide)",
             {"zero": _i64(0), "wide": zeros(1, size, 1, 1)}),
            (f"big = Gather <axis = {axis}> (x, index)", {"index": np.zeros(size, np.int64)}),
            # Constants by their sizes.
            (f"c = {constant} big = Add (x, c)", {"one": zeros(1, 1, 1), "sizes": _i64(3, size, size)}),
            ("r = Range (zero, many, step) c = Cast <to = 1> (r) big = Add (x, c)",
             {"zero": np.int64(0), "many": np.int64(2 ** int(rng.integers(16, 63))), "step": np.int64(1)}),
            ("big = Tile (x, sizes)", {"sizes": _i64(1, 1, size, size)}),
            ('big = Resize <mode = "linear"> (x, , scales)', {"scales": np.array([1, 1, size, size], np.float32)}),
            ('r = Reshape (x, s) e = Einsum <equation = "ni,nj->nij"> (r, r) wide = Reshape (e, t) '
             "big = MatMul (wide, w)",
             {"s": _i64(-1, 1728), "t": _i64(-1, 1, 1728 * 1728, 1), "w": zeros(1, size)}),
            (f"c0 = ConstantOfShape (many) {negated} big = Add (x, c)", {"many": _i64(2 ** int(rng.integers(20, 26)))}),
            ("c1 = Add (a1, b1) big = Add (x, c1)", {"a1": zeros(size, 1), "b1": zeros(1, size)}),
        ),
    )  # fmt: skip
    return onnx_file(f"{nodes} a = GlobalAveragePool (big) y = Flatten (a)", arrays)
