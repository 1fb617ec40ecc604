"""What of a photo's metadata goes into the protected file: what people need, and no trace of the unprotected face."""

import base64
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastcloak.photos.files import decode_photo, encode_photo, without_gps, without_metadata
from fastcloak.photos.metadata import EXIF, GPS, INTEROPERABILITY, MAIN, read_exif
from fastcloak.photos.profiles import kept_profile
from tests.pictures import SRGB, chunk, profile_with, ramps, stored

PICTURE = Image.fromarray(ramps(64, 80))
SUFFIXES = (".jpg", ".png", ".webp", ".tif", ".heic", ".bmp")


# The unprotected face: a small JPEG, and its pixels.
SMALL = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3), np.uint8))
FACE = stored(SMALL, "JPEG", quality=80)
RAW = np.asarray(SMALL).tobytes()[:1000]
BASE64 = base64.b64encode(FACE)
# Header and tables of JPEGs are alike: only what is coded behind them tells one picture from another.
SCAN = FACE[FACE.index(b"\xff\xda") + 14 : -2]


TRACES = {"JPEG": SCAN, "pixels": RAW, "base64": base64.b64encode(FACE)[60:], "hexadecimal": SCAN.hex().encode()}


def traces(payload):
    """In what ways the face is in a file, by runs of 24 bytes."""
    return {what for what, run in TRACES.items() if any(run[i : i + 24] in payload for i in range(0, len(run) - 24, 8))}


def assert_no_trace(payload, where):
    assert not traces(payload), where
    at = payload.find(b"\xff\xd8\xff", 1)
    while at > 0:
        with pytest.raises(Exception):  # noqa: B017, PT011 (no picture, whatever Pillow says of it)
            Image.open(io.BytesIO(payload[at:])).load()
        at = payload.find(b"\xff\xd8\xff", at + 1)


def table(entries, at, order="<", link=0):
    """An IFD that stands `at` bytes behind the start: [(tag, type, count, value)], with the values behind it."""
    head, values = struct.pack(order + "H", len(entries)), b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in sorted(entries):
        head += struct.pack(order + "HHL", tag, kind, count)
        if len(value) <= 4:
            head += value.ljust(4, b"\0")
        else:
            head += struct.pack(order + "L", behind + len(values))
            values += value + bytes(len(value) % 2)
    return head + struct.pack(order + "L", link) + values


def exif_with(main=(), details=(), gps=(), interoperability=(), thumbnail=(), order="<"):
    """A TIFF stream with these tables; each is laid behind the one before."""
    long = lambda number: struct.pack(order + "L", number)  # noqa: E731
    tables = {"main": list(main), "details": list(details), "gps": list(gps), "inter": list(interoperability)}
    for _ in range(3):  # without pointers, with pointers, with the right ones
        body, places = b"", {}
        for name, entries in (*tables.items(), ("thumbnail", list(thumbnail))):
            places[name] = 8 + len(body)
            body += table(entries, places[name], order)
        pointers = {"main": [(0x8769, "details"), (0x8825, "gps")], "details": [(0xA005, "inter")]}
        for name, to in pointers.items():
            tables[name] = [entry for entry in tables[name] if entry[0] not in dict(to)]
            tables[name] += [(tag, 4, 1, long(places[target])) for tag, target in to]
    link = 8 + 2 + 12 * len(tables["main"])
    stream = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 8) + body
    return stream[:link] + long(places["thumbnail"]) + stream[link + 4 :]


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def riff(name, content):
    return name + struct.pack("<L", len(content)) + content + bytes(len(content) % 2)


# Tags whose values people need and cameras fill, tags that hold previews, and tags that nobody knows.
MAIN_TAGS = [0x0002, 0x002E, 0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013E, 0x013F, 0x014A, 0x015B]
MAIN_TAGS += [0x0201, 0x02BC, 0x4746, 0x501B, 0x5041, 0x8298, 0x83BB, 0x8649, 0x8773, 0x935C, 0x9C9B, 0x9C9C, 0xC634]
MAIN_TAGS += [0xC6FD, 0xFDE8]
DETAIL_TAGS = [0x829A, 0x8827, 0x9000, 0x9003, 0x9101, 0x9204, 0x927C, 0x9286, 0x9290, 0xA001, 0xA002, 0xA300, 0xA301]
DETAIL_TAGS += [0xA302, 0xA40B, 0xA420, 0xA430, 0xA432, 0xA434, 0xA436, 0xA460, 0xA500, 0xEA1C, 0xFDE9]
GPS_TAGS = [0, 1, 2, 4, 5, 7, 18, 27, 28, 29, 99]
INTEROPERABILITY_TAGS = [1, 2, 0x1000, 99]
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 129: 1}


def planted(tags, kind, content):
    size = SIZES[kind]
    return [(tag, kind, len(content) // size, content[: len(content) // size * size]) for tag in tags]


def planted_exif(kind, content, order="<"):
    # In one segment of a JPEG there is room for 64 KB.
    return [
        exif_with(main=planted(MAIN_TAGS, kind, content), order=order),
        exif_with(details=planted(DETAIL_TAGS, kind, content), order=order),
        exif_with(
            gps=planted(GPS_TAGS, kind, content),
            interoperability=planted(INTEROPERABILITY_TAGS, kind, content),
            thumbnail=[(0x0103, 3, 1, b"\6\0"), *planted([0x0201, 0x0111, 0x010E], kind, content)],
            order=order,
        ),
    ]


def blocks():
    for kind in SIZES:
        for order in "<>":
            yield from ((f"EXIF type {kind} {order}", block) for block in planted_exif(kind, FACE, order))
    for prefix in (b"ASCII\0\0\0", b"UNICODE\0", b"JIS\0\0\0\0\0", bytes(8)):
        for content in (FACE, BASE64, RAW):
            yield f"EXIF {prefix!r}", planted_exif(7, prefix + content)[1]
    for content in (BASE64, FACE.hex().encode(), RAW):
        yield from (("EXIF text", block) for block in planted_exif(2, content))


def jpegs():
    plain = stored(PICTURE, "JPEG", quality=90)
    yield from ((name, plain[:2] + segment(0xE1, b"Exif\0\0" + block) + plain[2:]) for name, block in blocks())
    heads = [b"", b"JFXX\0\x10", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>", b"MPF\0", b"FPXR\0"]
    heads += [
        b"http://ns.adobe.com/xmp/extension/\0" + 40 * b"a",
        b"Photoshop 3.0\x008BIM\x04\x0c\0\0\0\0\1\0",
        b"JP\0\1",
    ]
    heads += [b"ICC_PROFILE\0\1\1", b"Ducky\0", b"Adobe\0d\0\0\0\0\0"]
    for marker in (*range(0xE0, 0xF0), 0xFE):
        for head in heads:
            for content in (FACE, BASE64, RAW):
                if marker == 0xEE and head.startswith(b"Adobe"):
                    content = b"\1" + content  # YCbCr, unchanged
                yield f"JPEG {marker:x} {head[:12]!r}", plain[:2] + segment(marker, head + content) + plain[2:]
    yield "JPEG private profile tag", stored(PICTURE, "JPEG", icc_profile=profile_with(b"thmb", FACE))
    yield "JPEG trailer", plain + FACE
    yield "JPEG second picture", stored(PICTURE, "MPO", save_all=True, append_images=[SMALL])


def pngs():
    plain = stored(PICTURE, "PNG")
    for name in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"sPLT", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tIME"):
        for head in (
            b"",
            b"Comment\0",
            b"Comment\0\0",
            b"XML:com.adobe.xmp\0\0\0\0\0",
            b"Raw profile type exif\0\nexif\n9\n",
        ):
            for content in (FACE, BASE64, FACE.hex().encode()):
                if name != b"tIME" or not head:
                    yield f"PNG {name} {head[:8]!r}", plain[:33] + chunk(name, head + content) + plain[33:]
    for name in (b"prVt", b"npTc", b"mDCV", b"cLLI", b"caBX", b"iDOT"):
        for at in (33, len(plain) - 12):
            yield f"PNG {name}", plain[:at] + chunk(name, FACE) + plain[at:]
    for name, block in blocks():
        yield "PNG " + name, plain[:33] + chunk(b"eXIf", block) + plain[33:]
    yield "PNG private profile tag", stored(PICTURE, "PNG", icc_profile=profile_with(b"thmb", FACE))
    yield "PNG profile", plain[:33] + chunk(b"iCCP", b"icc\0\0" + zlib.compress(FACE)) + plain[33:]
    yield "PNG trailer", plain + FACE


def webps():
    plain = stored(PICTURE, "WEBP", lossless=True)
    extended = stored(PICTURE, "WEBP", lossless=True, exif=b"Exif\0\0" + exif_with(), xmp=b"<x/>", icc_profile=SRGB)
    size = lambda chunks: b"RIFF" + struct.pack("<L", len(chunks) + 4) + b"WEBP" + chunks  # noqa: E731
    for name in (b"EXIF", b"XMP ", b"JUNK", b"ICCP"):
        yield f"WebP {name}", size(extended[12:] + riff(name, FACE))
        yield f"WebP {name} coded", size(extended[12:] + riff(name, BASE64))
    for name, block in blocks():
        yield "WebP " + name, stored(PICTURE, "WEBP", lossless=True, exif=block)
    yield "WebP private profile tag", stored(PICTURE, "WEBP", icc_profile=profile_with(b"thmb", FACE))
    yield "WebP trailer", plain + FACE


def tiffs():
    pixels = np.asarray(PICTURE)
    height, width, _ = pixels.shape
    strip = pixels.tobytes()
    for kind in SIZES:
        for order, content in (("<", FACE), (">", FACE), ("<", BASE64), ("<", RAW)):
            short, long = (lambda n, o=order: struct.pack(o + "H", n)), (lambda n, o=order: struct.pack(o + "L", n))
            main = [
                (256, 4, 1, long(width)),
                (257, 4, 1, long(height)),
                (258, 3, 3, 3 * short(8)),
                (259, 3, 1, short(1)),
                (262, 3, 1, short(2)),
                (273, 4, 1, long(0)),
                (277, 3, 1, short(3)),
                (278, 4, 1, long(height)),
                (279, 4, 1, long(len(strip))),
                *planted([tag for tag in MAIN_TAGS if tag != 0x014A], kind, content),
            ]
            block = exif_with(main=main, details=planted(DETAIL_TAGS, kind, content), order=order)
            main[5] = (273, 4, 1, long(len(block)))
            block = exif_with(main=main, details=planted(DETAIL_TAGS, kind, content), order=order)
            link = 8 + 2 + 12 * (len(main) + 2)
            yield f"TIFF type {kind} {order}", block[:link] + bytes(4) + block[link + 4 :] + strip
    yield "TIFF private profile tag", stored(PICTURE, "TIFF", icc_profile=profile_with(b"thmb", FACE))
    yield "TIFF profile", stored(PICTURE, "TIFF", icc_profile=FACE)
    yield "TIFF trailer", stored(PICTURE, "TIFF") + FACE


def heics():
    pillow_heif.register_heif_opener()
    for name, block in list(blocks())[::5]:
        yield "HEIC " + name, stored(PICTURE, "HEIF", exif=b"Exif\0\0" + block)
    for options in ({"xmp": FACE}, {"xmp": BASE64}, {"icc_profile": profile_with(b"thmb", FACE)}, {"thumbnails": [32]}):
        yield f"HEIC {list(options)}", stored(PICTURE, "HEIF", **options)
    plain = stored(PICTURE, "HEIF")
    for name in (b"uuid", b"free", b"mdat", b"skip"):
        yield f"HEIC {name}", plain + struct.pack(">L", len(FACE) + 8) + name + FACE


def others():
    plain = stored(PICTURE, "BMP")
    yield "BMP trailer", plain + FACE
    grey = PICTURE.convert("L")
    yield "PGM comment", b"P5\n#" + BASE64 + b"\n80 64\n255\n" + grey.tobytes()
    yield "PGM trailer", stored(grey, "PPM") + FACE


@pytest.mark.parametrize("inputs", [jpegs, pngs, webps, tiffs, heics, others])
def test_no_trace_of_a_planted_face_is_left_wherever_it_was(inputs):
    """The face as a JPEG, as pixels and coded, in every place that a file format has, to every format."""
    shown = read = 0
    for i, (name, payload) in enumerate(inputs()):
        shown += bool(traces(payload))
        try:
            photo = decode_photo(payload, name=name)
        except ValueError:  # a file that cannot be read writes nothing
            continue
        read += 1
        own = {"j": ".jpg", "p": ".png", "w": ".webp", "t": ".tif", "h": ".heic", "o": ".bmp"}[inputs.__name__[0]]
        for suffix in {own, SUFFIXES[i % len(SUFFIXES)]}:
            posted = without_gps(photo) if i % 2 else photo
            assert_no_trace(encode_photo(posted, f"out{suffix}"), f"{name} -> {suffix}")
    assert read >= 0.9 * (i + 1)
    # What is searched for would be found: but for values too long for their type, and coded chunks, it was there.
    assert shown >= 0.7 * (i + 1)


def needed(order):
    """What people need, as a camera writes it: [(table, tag, type, count, value)]."""
    pack = lambda code, *numbers: struct.pack(order + code, *numbers)  # noqa: E731
    text = lambda message: message.encode() + b"\0"  # noqa: E731
    rows = [
        (MAIN, 0x010E, "The party, für alle"),
        (MAIN, 0x010F, "Canon"),
        (MAIN, 0x0110, "EOS 5"),
        (MAIN, 0x0132, "2024:05:06 07:08:09"),
        (MAIN, 0x013B, "Žofie Ödön"),
        (MAIN, 0x8298, "© me"),
        (EXIF, 0x9003, "2024:05:06 07:08:09"),
        (EXIF, 0x9011, "+02:00"),
        (EXIF, 0xA434, "EF 50 mm"),
    ]
    for where, tag, message in rows:
        yield where, tag, 2, len(text(message)), text(message)
    yield EXIF, 0x829A, 5, 1, pack("LL", 1, 250)
    yield EXIF, 0x829D, 5, 1, pack("LL", 28, 10)
    yield EXIF, 0x8827, 3, 1, pack("H", 400)
    yield EXIF, 0x9204, 10, 1, pack("ll", -1, 3)
    yield EXIF, 0x9000, 7, 4, b"0232"
    yield EXIF, 0x9286, 7, 8 + 5, b"ASCII\0\0\0hello"
    yield EXIF, 0xA001, 3, 1, pack("H", 0xFFFF)
    yield INTEROPERABILITY, 1, 2, 4, b"R03\0"
    yield GPS, 1, 2, 2, b"N\0"
    yield GPS, 2, 5, 3, pack("6L", 52, 1, 31, 1, 123, 100)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".heic"])
def test_what_people_need_is_kept_to_the_byte(order, suffix):
    tables = {MAIN: [], EXIF: [], GPS: [], INTEROPERABILITY: []}
    for where, *entry in needed(order):
        tables[where].append(tuple(entry))
    block = exif_with(*tables.values(), order=order)
    photo = decode_photo(stored(PICTURE, "PNG", exif=block), name="photo.png")
    assert photo.warnings == ()
    again = decode_photo(encode_photo(photo, "out" + suffix), name="out")
    kept = read_exif(again.exif)
    for where, tag, kind, count, value in needed(order):
        held = kept.tables[where][tag]
        if suffix == ".tif" and order == ">":  # the file has one order, that of the machine
            unit = {3: 2, 5: 4, 10: 4}.get(kind, 1)
            value = b"".join(value[i : i + unit][::-1] for i in range(0, len(value), unit))
        assert (held.type, held.count, held.payload) == (kind, count, value), hex(tag)
    # Another reader sees the same.
    exif = Image.Exif()
    exif.load(again.exif)
    assert exif[0x010F] == "Canon"
    assert exif.get_ifd(0x8769)[0x829A] == pytest.approx(1 / 250)
    assert exif.get_ifd(0x8769)[0x9204] == pytest.approx(-1 / 3)
    assert exif.get_ifd(0x8825)[2] == (52.0, 31.0, 1.23)

    placeless = encode_photo(without_gps(photo), "out" + suffix)
    assert not read_exif(decode_photo(placeless, name="out").exif).tables[GPS]
    bare = decode_photo(encode_photo(without_metadata(replace(photo, dpi=(300, 300))), "out" + suffix), name="out")
    assert bare.exif is None
    assert bare.dpi is None


@pytest.mark.parametrize("place", ["52.5200N 13.4050E", "52° 31' N", "at 52,520 / 13,405"])
def test_free_texts_with_coordinates_go_with_the_place(place):
    coded = place.encode() + b"\0"
    wide = b"UNICODE\0" + place.encode("utf-16-le")
    block = exif_with(
        main=[(0x010E, 2, len(coded), coded), (0x0131, 2, 6, b"1.234\0")], details=[(0x9286, 7, len(wide), wide)]
    )
    photo = decode_photo(stored(PICTURE, "PNG", exif=block), name="photo.png")
    assert {0x010E, 0x0131} <= set(read_exif(photo.exif).tables[MAIN])
    assert 0x9286 in read_exif(photo.exif).tables[EXIF]
    left = read_exif(without_gps(photo).exif)
    assert (set(left.tables[MAIN]), left.tables[EXIF]) == ({0x0131}, {})


def test_a_latin_1_author_of_an_older_camera_is_kept():
    entry = (0x013B, 2, 5, "Zoë".encode("latin-1") + b"\0\0")
    assert read_exif(exif_with(main=[entry])).tables[MAIN][0x013B].payload == entry[3]


def test_longer_values_and_other_types_than_a_tag_has_are_left_out():
    text = b"word " * 500
    block = read_exif(
        exif_with(
            main=[(0x010E, 2, len(text), text), (0x010F, 1, 4, b"abcd")],
            details=[(0x8827, 3, 5, struct.pack("<5H", *range(5))), (0x829A, 4, 1, bytes(4))],
        )
    )
    assert block.payload() is None
    assert not block.damaged


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".heic"])
def test_resolution_turns_with_the_photo_and_is_kept_in_every_format(suffix):
    for kind in ("JPEG", "PNG", "TIFF"):
        exif = Image.Exif()
        exif[274] = 6
        options = {"tiffinfo": {274: 6}} if kind == "TIFF" else {"exif": exif}
        photo = decode_photo(stored(PICTURE, kind, dpi=(300, 150), **options), name=kind)
        assert photo.pixels.shape[:2] == (80, 64)
        assert photo.dpi == pytest.approx((150, 300), abs=0.1), kind
        again = decode_photo(encode_photo(photo, "out" + suffix), name="out")
        assert again.dpi == pytest.approx((150, 300), abs=0.1), kind


def test_the_resolution_of_an_exif_block_is_read_across_and_down():
    block = exif_with(main=[(0x011A, 5, 1, struct.pack("<LL", 300, 1)), (0x011B, 5, 1, struct.pack("<LL", 150, 1))])
    photo = decode_photo(stored(PICTURE, "JPEG", exif=b"Exif\0\0" + block), name="photo.jpg")
    assert photo.dpi == (300, 150)


DAMAGED = {
    "junk": b"junkjunkjunk",
    "no table": b"II*\0",
    "table beyond the end": b"II*\0\xff\xff\xff\x7f",
    "empty": b"",
    "a table that is its own": exif_with()[:8] + table([(0x8769, 4, 1, b"\x08\0\0\0")], 8),
    "cut off": exif_with(main=[(0x010F, 2, 9, b"Olympus \0")])[:20],
    "value beyond the end": b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLL", 0x010F, 2, 50, 9999) + bytes(4),
    "later table beyond the end": exif_with()[:8] + table([(0x8825, 4, 1, b"\xff\xff\xff\x7f")], 8),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_a_photo_with_a_damaged_exif_block_is_read_without_it_and_a_warning(name, kind):
    pillow_heif.register_heif_opener()
    plain = stored(PICTURE, kind, **({"lossless": True} if kind == "WEBP" else {}))
    block = DAMAGED[name]
    if kind == "JPEG":
        payload = plain[:2] + segment(0xE1, b"Exif\0\0" + block) + plain[2:]
    elif kind == "PNG":
        payload = plain[:33] + chunk(b"eXIf", block) + plain[33:]
    else:
        payload = stored(PICTURE, kind, exif=b"Exif\0\0" + block)
    photo = decode_photo(payload, name="photo")
    assert photo.pixels.shape == (64, 80, 3)
    if kind in ("JPEG", "PNG") or (kind == "WEBP" and block):  # the others write no such block
        assert len(photo.warnings) == 1
    assert all("EXIF block is damaged" in warning for warning in photo.warnings)
    encode_photo(photo, "out.jpg")


def test_a_damaged_table_leaves_the_orientation_and_the_other_tables():
    block = exif_with(main=[(0x0112, 3, 1, b"\6\0"), (0x010F, 2, 6, b"Maker\0")], gps=[(1, 2, 2, b"N\0")])
    place = block.index(struct.pack("<HHL", 0x8825, 4, 1)) + 8
    hurt = block[:place] + b"\xff\xff\xff\x7f" + block[place + 4 :]
    photo = decode_photo(stored(PICTURE, "PNG", exif=hurt), name="photo")
    assert photo.pixels.shape == (80, 64, 3)
    assert read_exif(photo.exif).tables[MAIN][0x010F].payload == b"Maker\0"
    assert len(photo.warnings) == 1


def test_a_big_tiff_keeps_its_metadata_without_a_warning():
    payload = stored(PICTURE, "TIFF", big_tiff=True, tiffinfo={271: "Maker", 274: 6, 282: 300.0, 283: 150.0, 296: 2})
    assert payload[2] == 43
    photo = decode_photo(payload, name="big.tif")
    assert photo.warnings == ()
    assert photo.pixels.shape == (80, 64, 3)
    assert photo.dpi == pytest.approx((150, 300), abs=0.1)
    assert read_exif(photo.exif).tables[MAIN][0x010F].payload == b"Maker\0"
    with Image.open(io.BytesIO(encode_photo(photo, "out.tif"))) as image:
        assert image.getexif()[271] == "Maker"


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_exif_blocks(content):
    for head in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"):
        again = read_exif(head + content).payload(size=(3, 4), resolution=(72, 72))
        assert not read_exif(again).damaged


@given(st.integers(0, len(SRGB) - 1), st.binary(min_size=1, max_size=40))
def test_no_bytes_break_the_reader_of_profiles(at, content):
    hurt = SRGB[:at] + content + SRGB[at + len(content) :]
    for profile in (hurt, hurt[: at + 1], content):
        kept = kept_profile(profile)
        assert kept is None or kept_profile(kept) == kept
