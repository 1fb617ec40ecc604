"""What a photo says about itself in its EXIF block: read without trust, kept by a list, written again.

Cameras and editors put copies of the picture into maker notes, private tags, second tables and free text. Nobody can
list all of these places, so nothing is kept for want of being known as bad. A value is kept only if its tag is in one
of the tables below, has the type and at most the length that the table says, and, where it is text, reads as text.

Source of tags and types: CIPA DC-008-2023 (Exif 3.0), 4.6; TIFF 6.0, section 2; BigTIFF, libtiff's bigtiff page.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Block", "is_text", "pixels_only", "read_exif"]

HEADER = b"Exif\0\0"

# Bytes of a value of each type: BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, UNDEFINED, SSHORT, SLONG, SRATIONAL, FLOAT,
# DOUBLE, IFD; of BigTIFF LONG8, SLONG8, IFD8; UTF-8.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8, 129: 1}
_POINTERS = (4, 13, 16, 18)
# No table of a camera is longer; a hostile one would only take time.
_MOST_ENTRIES = 1000

_LONGEST_TEXT, _LONGEST_FOREIGN = 2000, 100
# Base64 or hexadecimal digits, which could be a picture: no word is as long.
_CODED = re.compile(r"[A-Za-z0-9+/=_-]{64}")
# Of UserComment and its kin: how the text is coded, eight bytes (CIPA DC-008, 4.6.6, table 9).
_CODINGS = {b"ASCII\0\0\0": ("utf-8",), b"UNICODE\0": ("utf-16-le", "utf-16-be"), bytes(8): ("utf-8",)}


class _Rule(NamedTuple):
    types: tuple[int, ...]
    most: int  # values, or bytes of text


_TEXT, _COMMENT = _Rule((2, 129), _LONGEST_TEXT), _Rule((7,), 8 + _LONGEST_TEXT)
_SHORT, _NUMBER, _BYTE = _Rule((3,), 1), _Rule((3, 4), 1), _Rule((1,), 1)
_SHORT_TEXT, _FOUR = _Rule((2,), 32), _Rule((1, 7), 4)
_RATIONAL = _Rule((5, 10), 1)

MAIN, EXIF, GPS, INTEROPERABILITY = 0, 0x8769, 0x8825, 0xA005
"""Tables of a block: the first one, and others by the tag that points to them."""
_HOLDERS = {EXIF: MAIN, GPS: MAIN, INTEROPERABILITY: EXIF}
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
WIDTH, HEIGHT = 0xA002, 0xA003

_RULES: Mapping[int, Mapping[int, _Rule]] = {
    MAIN: {
        # Names, camera, author, rights; date and time; white point; primaries; rating.
        **dict.fromkeys((0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298), _TEXT),
        0x0132: _SHORT_TEXT,
        0x013E: _Rule((5, 10), 2),
        0x013F: _Rule((5, 10), 6),
        0x4746: _SHORT,
        0x4749: _SHORT,
    },
    EXIF: {
        # Dates and times; owner, lens, title, photographer; comment; exposure and lens; ISO.
        **dict.fromkeys((0x9003, 0x9004, 0x9010, 0x9011, 0x9012, 0x9290, 0x9291, 0x9292), _SHORT_TEXT),
        **dict.fromkeys((0xA430, 0xA433, 0xA434, 0xA436, 0xA437), _TEXT),
        0x9286: _COMMENT,
        **dict.fromkeys((0x829A, 0x829D, 0x9102, *range(0x9201, 0x9207), 0x920A), _RATIONAL),
        **dict.fromkeys((0xA20B, 0xA20E, 0xA20F, 0xA215, 0xA404, 0xA500), _RATIONAL),
        0xA432: _Rule((5, 10), 4),
        0x8827: _Rule((3,), 3),
        **dict.fromkeys((0x8822, 0x8830, 0x9207, 0x9208, 0x9209, 0xA001, 0xA210, 0xA217), _SHORT),
        **dict.fromkeys((*range(0xA401, 0xA404), *range(0xA405, 0xA40B), 0xA40C), _SHORT),
        **dict.fromkeys((0x8831, 0x8832, 0x8833, 0x8834, 0x8835, WIDTH, HEIGHT), _NUMBER),
        **dict.fromkeys((0x9000, 0x9101, 0xA000), _FOUR),
        **dict.fromkeys((0xA300, 0xA301), _Rule((7,), 1)),
    },
    GPS: {
        **dict.fromkeys((1, 3, 8, 9, 10, 12, 14, 16, 18, 19, 21, 23, 25, 29), _SHORT_TEXT),
        **dict.fromkeys((2, 4, 7, 20, 22), _Rule((5, 10), 3)),
        **dict.fromkeys((6, 11, 13, 15, 17, 24, 26, 31), _RATIONAL),
        0: _Rule((1,), 4),
        5: _BYTE,
        27: _COMMENT,
        28: _COMMENT,
        30: _SHORT,
    },
    INTEROPERABILITY: {1: _SHORT_TEXT, 2: _FOUR},
}
# Names, description, author, rights, comment, owner, title, photographer: people may have written a place there.
_FREE_TEXTS = (0x010D, 0x010E, 0x013B, 0x8298, 0x9286, 0xA430, 0xA436, 0xA437)
_COORDINATES = re.compile(rb"\d[.,]\d{3}|\xb0")  # a fraction of a degree, or its sign

# Of a TIFF: how its pixels are stored, which way up, and their profile.
_STORAGE = {*range(254, 260), 262, 266, ORIENTATION, 273, *range(277, 280), 284, 292, 293, 317, *range(320, 326)}
_STORAGE |= {332, 338, 339, 340, 341, 347, *range(512, 522), *range(529, 533), 34675, 50674}


@dataclass(frozen=True)
class _Value:
    type: int
    count: int
    payload: bytes


_Table = dict[int, _Value]


@dataclass(frozen=True)
class Block:
    """What is kept of an EXIF block.

    Attributes:
        order: "<" or ">", of the bytes.
        tables: `MAIN`, `EXIF`, `GPS` and `INTEROPERABILITY` -> tag -> value; empty ones may be missing.
        orientation: 1..8; 1 where there is none or another.
        resolution: pixels per inch, across and down, or None.
        damaged: something could not be read.
    """

    order: str = "<"
    tables: Mapping[int, _Table] = field(default_factory=dict)
    orientation: int = 1
    resolution: tuple[float, float] | None = None
    damaged: bool = False

    def payload(
        self, *, size: tuple[int, int] | None = None, resolution: tuple[float, float] | None = None, gps: bool = True
    ) -> bytes | None:
        """Write the block: `Exif`, two zeros, a TIFF header and the tables; None if there is nothing to say.

        Args:
            size: (width, height) of the picture, for blocks that name one.
            resolution: pixels per inch, for files that have no other place for it.
            gps: with the place: its table, and free texts that hold coordinates.
        """
        tables = _laid(self._edited(size, resolution, gps), self.order, 8)
        if not tables:
            return None
        return HEADER + {"<": b"II", ">": b"MM"}[self.order] + struct.pack(self.order + "HL", 42, 8) + tables

    def added_to(self, tiff: bytes, *, size: tuple[int, int]) -> bytes:
        """The same TIFF file, of one picture, with what the block says behind it; Pillow would write other types.

        Args:
            tiff: not a BigTIFF; its own tags go before those of the block.
            size: (width, height) of the picture.
        """
        reader = _Reader(tiff)
        order = reader.order
        tables = self._edited(size)
        if order != self.order:
            tables = {name: {tag: _swapped(value) for tag, value in table.items()} for name, table in tables.items()}
        for tag, entry in reader.entries(reader.first)[0]:
            _, kind, count = struct.unpack_from(order + "HHL", entry)
            tables[MAIN][tag] = _Value(kind, count, entry[8:])  # the value, or where it is
        at = len(tiff) + len(tiff) % 2
        return tiff[:4] + struct.pack(order + "L", at) + tiff[8:] + bytes(len(tiff) % 2) + _laid(tables, order, at)

    def _edited(
        self, size: tuple[int, int] | None, resolution: tuple[float, float] | None = None, gps: bool = True
    ) -> dict[int, _Table]:
        tables = {name: dict(self.tables.get(name, {})) for name in _RULES}
        if not gps:
            tables[GPS] = {}
            for table in (tables[MAIN], tables[EXIF]):
                for tag in set(_FREE_TEXTS).intersection(table):
                    if _COORDINATES.search(table[tag].payload.replace(b"\0", b"")):
                        del table[tag]
        if size is not None:
            sides = zip((WIDTH, HEIGHT), size, strict=True)
            tables[EXIF] |= {tag: _long(self.order, side) for tag, side in sides if tag in tables[EXIF]}
        if resolution is not None:
            for tag, dpi in zip((X_RESOLUTION, Y_RESOLUTION), resolution, strict=True):
                tables[MAIN][tag] = _Value(5, 1, struct.pack(self.order + "LL", round(100 * dpi), 100))
            tables[MAIN][RESOLUTION_UNIT] = _Value(3, 1, struct.pack(self.order + "H", 2))
        return tables


def read_exif(block: bytes) -> Block:
    """Read what is kept of an EXIF block; whatever is wrong with the rest does not matter.

    Args:
        block: as in JPEG (with `Exif` and two zeros before), as in PNG (without), or a whole TIFF or BigTIFF file.

    Returns:
        An empty one with `damaged` where nothing can be read.
    """
    try:
        reader = _Reader(block.removeprefix(HEADER))
    except (struct.error, ValueError):
        return Block(damaged=True)
    tables: dict[int, _Table] = {}
    places: dict[int, int | None] = {MAIN: reader.first}
    for name, rules in _RULES.items():
        pointers = {tag for tag, holder in _HOLDERS.items() if holder == name}
        read_here = {ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT} if name == MAIN else set()
        try:
            at = places[name]
            tables[name] = {} if at is None else reader.table(at, rules, pointers | read_here)
        except (struct.error, ValueError, OverflowError):
            if name == MAIN:
                return Block(damaged=True)
            reader.damaged = True
            tables[name] = {}
        places |= {tag: reader.number(tables[name].pop(tag, None)) for tag in pointers}
    main = tables[MAIN]
    orientation = reader.number(main.pop(ORIENTATION, None)) or 1
    across, down, unit = (main.pop(tag, None) for tag in (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT))
    resolution = None
    if across is not None and down is not None and (across.type, down.type) == (5, 5):
        (x, x_below), (y, y_below) = (struct.unpack(reader.order + "LL", value.payload) for value in (across, down))
        inches = 2.54 if unit is not None and unit.payload == struct.pack(reader.order + "H", 3) else 1.0
        if x_below and y_below:
            resolution = inches * x / x_below, inches * y / y_below
    return Block(reader.order, tables, orientation if orientation in range(1, 9) else 1, resolution, reader.damaged)


def pixels_only(tiff: bytes) -> bytes:
    """A TIFF or BigTIFF file whose first table names nothing but pixels: decoders stumble over the rest.

    The file is as long as before, and what the table named is still in it.
    """
    try:
        reader = _Reader(tiff)
        entries, at = reader.entries(reader.first)
    except (struct.error, ValueError, OverflowError):
        return tiff  # the decoder says why it cannot be read
    kept = [entry for tag, entry in entries if tag in _STORAGE]
    start, end = at - struct.calcsize("=" + reader.count), at + sum(len(entry) for _, entry in entries)
    link = tiff[end : end + reader.inline]
    table = struct.pack(reader.order + reader.count, len(kept)) + b"".join(kept) + link
    return tiff[:start] + table + tiff[start + len(table) :]


class _Reader:
    """Tables of a TIFF stream.

    Attributes:
        order: "<" or ">".
        first: where the first table is.
        count, entry: how the number of entries, and of one its tag, type and count, are stored, as for `struct`.
        inline: bytes of an entry's value, or of the place where it is.
        damaged: something was left out because it could not be read.
    """

    def __init__(self, stream: bytes) -> None:
        orders = {b"II": "<", b"MM": ">"}
        if stream[:2] not in orders:
            raise ValueError("no TIFF header")
        self.order, self.damaged, self._stream = orders[stream[:2]], False, stream
        (magic,) = struct.unpack_from(self.order + "H", stream, 2)
        if magic not in (42, 43):
            raise ValueError("no TIFF header")
        big = magic == 43
        self.count, self.entry, self.inline = ("Q", "HHQ", 8) if big else ("H", "HHL", 4)
        (self.first,) = struct.unpack_from(self.order + self.count.replace("H", "L"), stream, 8 if big else 4)
        self._seen: set[int] = set()

    def number(self, value: _Value | None) -> int | None:
        """The whole number of a value that has one."""
        codes = {3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
        if value is None or value.count != 1 or value.type not in codes:
            return None
        number: int = struct.unpack(self.order + codes[value.type], value.payload)[0]
        return number

    def table(self, at: int, rules: Mapping[int, _Rule], pointers: Collection[int]) -> _Table:
        """The values of a table that the rules keep, and numbers that are read here and not kept."""
        if at in self._seen:
            raise ValueError("a table is its own")
        self._seen.add(at)
        table: _Table = {}
        head = struct.calcsize("=" + self.entry)
        entries, start = self.entries(at)
        for i, (tag, entry) in enumerate(entries):
            _, kind, number = struct.unpack_from(self.order + self.entry, entry)
            rule = _Rule((3, 5, *_POINTERS), 1) if tag in pointers else rules.get(tag)
            if rule is None or kind not in rule.types or not 1 <= number <= rule.most:
                continue
            length, place = number * _SIZES[kind], start + i * len(entry) + head
            if length > self.inline:
                (place,) = struct.unpack_from(self.order + "LQ"[self.inline == 8], entry, head)
            payload = self._stream[place : place + length]
            if len(payload) < length:
                self.damaged = True
            elif _reads(kind, payload):
                table[tag] = _Value(kind, number, payload)
        return table

    def entries(self, at: int) -> tuple[list[tuple[int, bytes]], int]:
        """Tag and bytes of each entry of a table, as far as they go, and where the first is."""
        (count,) = struct.unpack_from(self.order + self.count, self._stream, at)
        start, size = at + struct.calcsize("=" + self.count), struct.calcsize("=" + self.entry) + self.inline
        entries = []
        for place in range(start, start + min(count, _MOST_ENTRIES) * size, size):
            entry = self._stream[place : place + size]
            if len(entry) < size:
                self.damaged = True
                break
            entries.append((struct.unpack_from(self.order + "H", entry)[0], entry))
        return entries, start


def _reads(kind: int, payload: bytes) -> bool:
    """Whether a value of a type for text is text; others are numbers, and too short for anything else."""
    if kind in (2, 129):
        return all(map(is_text, payload.rstrip(b"\0").split(b"\0")))  # Copyright has two parts
    if kind == 7 and len(payload) > 4:
        return any(is_text(payload[8:], coding) for coding in _CODINGS.get(payload[:8], ()))
    return True


def is_text(payload: bytes, coding: str = "utf-8") -> bool:
    """Whether bytes are text that people read: of printable characters, and no picture in disguise."""
    plain = payload.decode("latin-1")
    try:
        text = payload.decode(coding)
    except UnicodeDecodeError:
        text = plain  # as older cameras and programs write names
    text = text.rstrip("\0")
    # Nearly every pair of bytes is a character of UTF-16, and half of all bytes are one of Latin-1.
    disguise = coding != "utf-8" or text == plain
    if disguise and len(text) > _LONGEST_FOREIGN and 2 * sum(map(str.isascii, text)) < len(text):
        return False
    return all(c.isprintable() or c in "\t\r\n" for c in text) and not _CODED.search(text) and not _CODED.search(plain)


def _long(order: str, number: int) -> _Value:
    return _Value(4, 1, struct.pack(order + "L", number))


def _swapped(value: _Value) -> _Value:
    """A value with its bytes in the other order."""
    # Of each number; a rational is two.
    unit = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8}.get(value.type, 1)
    payload = b"".join(value.payload[i : i + unit][::-1] for i in range(0, len(value.payload), unit))
    return _Value(value.type, value.count, payload)


def _laid(tables: dict[int, _Table], order: str, at: int) -> bytes:
    """The tables, of which the first stands `at` bytes behind the start of the stream; none if all are empty."""
    # A pointer is as long whatever it points to: each table's place is known before any pointer is.
    for tag in (INTEROPERABILITY, EXIF, GPS):
        if tables[tag]:
            tables[_HOLDERS[tag]][tag] = _long(order, 0)
    places = {}
    end = at
    for name, table in tables.items():
        places[name] = end
        end += len(_written(table, order, end))
    for tag, holder in _HOLDERS.items():
        if tables[tag]:
            tables[holder][tag] = _long(order, places[tag])
    return b"".join(_written(table, order, places[name]) for name, table in tables.items())


def _written(table: _Table, order: str, at: int) -> bytes:
    """A table, placed `at` bytes behind the start of the stream, with its values behind it; none if it is empty."""
    if not table:
        return b""
    head, values = struct.pack(order + "H", len(table)), b""
    behind = at + 2 + 12 * len(table) + 4
    for tag, value in sorted(table.items()):
        head += struct.pack(order + "HHL", tag, value.type, value.count)
        if len(value.payload) <= 4:
            head += value.payload.ljust(4, b"\0")
        else:
            head += struct.pack(order + "L", behind + len(values))
            values += value.payload + bytes(len(value.payload) % 2)
    return head + bytes(4) + values
