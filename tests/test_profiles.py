"""What a photo's colours mean is the same in the file that is written, whatever says it."""

import io
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from fastcloak.photos.files import Photo, decode_photo, encode_photo, fit_format
from fastcloak.photos.profiles import color_profile, in_srgb, kept_profile
from tests.pictures import SRGB, profile_with, stored, with_chunks

P3 = {b"cICP": bytes([12, 13, 0, 1])}
LINEAR = {
    b"gAMA": struct.pack(">L", 100_000),
    b"cHRM": struct.pack(">8L", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
ADOBE = {
    b"gAMA": struct.pack(">L", 45470),
    b"cHRM": struct.pack(">8L", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000),
}
PQ = {b"cICP": bytes([9, 16, 0, 1])}


def ramps(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    return np.stack([80 + x, 70 + 2 * y, 160 - x], -1).astype(np.uint8)


def png(pixels, color=(), **options):
    return with_chunks(stored(pixels, "PNG", **options), dict(color))


def bmp(pixels, color):
    """With a header of version 4: https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapv4header"""
    height, width, _ = pixels.shape
    xy = np.array(struct.unpack(">8L", color[b"cHRM"])).reshape(4, 2) / 1e5
    columns = np.column_stack([xy, 1 - xy.sum(1)]).T
    white, corners = columns[:, 0] / columns[1, 0], columns[:, 1:]
    corners = corners * np.linalg.solve(corners, white)
    exponent = 1e5 / struct.unpack(">L", color[b"gAMA"])[0]
    header = struct.pack("<LLLHHLLLLLL", 108, width, height, 1, 24, 0, 3 * width * height, 0, 0, 0, 0)
    header += bytes(16 + 4) + np.rint(corners.T * 2**30).astype("<i4").tobytes()
    header += 3 * struct.pack("<L", round(exponent * 65536))
    return b"BM" + struct.pack("<LLL", 122 + pixels.size, 0, 122) + header + pixels[::-1, :, ::-1].tobytes()


def srgb_by_hand(pixels, primaries, decode):
    """Colours in sRGB, float [.., 3] in 0..1: through light and CIE XYZ, both white points being D65."""

    def to_xyz(corners):
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
        white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    light = (
        decode(pixels / 255) @ (np.linalg.inv(to_xyz([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])) @ to_xyz(primaries)).T
    )
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_light(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


SPACES = {
    "P3": (P3, [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)], srgb_light),
    "linear": (LINEAR, [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], lambda v: v),
    "Adobe": (ADOBE, [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], lambda v: v ** (1 / 0.4547)),
    "BT.709": (
        {b"cICP": bytes([1, 1, 0, 1])},
        [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)],
        lambda v: np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45)),
    ),
    "BT.2020": (
        {b"cICP": bytes([9, 8, 0, 1])},
        [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)],
        lambda v: v,
    ),
}


@pytest.mark.parametrize("space", SPACES)
def test_a_made_profile_means_what_the_chunks_mean(space):
    color, primaries, decode = SPACES[space]
    pixels = ramps()
    expected = 255 * srgb_by_hand(pixels, primaries, decode)
    profile = color_profile(color, grey=False)
    assert kept_profile(profile) == profile
    assert np.abs(in_srgb(pixels, profile, grey=False) - expected).max() < 2.0


def test_a_made_grey_profile_means_what_the_chunks_mean():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    profile = color_profile(LINEAR, grey=True)
    expected = 255 * srgb_by_hand(grey, *SPACES["linear"][1:])
    assert np.abs(in_srgb(grey, profile, grey=True) - expected).max() < 2.0


def test_srgb_needs_no_profile_and_what_cannot_be_said_has_none():
    assert color_profile({b"sRGB": b"\0"}, grey=False) is None
    assert color_profile({b"cICP": bytes([1, 13, 0, 1]), b"gAMA": bytes(4)}, grey=False) is None
    assert color_profile(PQ, grey=False) is None
    assert color_profile({b"gAMA": bytes(4), b"cHRM": bytes(32)}, grey=False) is None
    pixels = ramps()
    assert in_srgb(pixels, SRGB, grey=False) is pixels


def seen(payload, suffix):
    """What a colour-managed viewer shows, [H, W, 3] float: by what the written file says, read by other programs."""
    color = {}
    if suffix == ".png":
        color = decode_photo(payload, name="out.png").color
    elif suffix == ".heic":
        nclx = pillow_heif.read_heif(io.BytesIO(payload)).info.get("nclx_profile")
        if nclx is not None:
            color = {b"cICP": bytes([nclx["color_primaries"], nclx["transfer_characteristics"], 0, 1])}
    for known, primaries, decode in SPACES.values():
        if color and color == known:
            return 255 * srgb_by_hand(decode_photo(payload, name=suffix).pixels, primaries, decode)
    with Image.open(io.BytesIO(payload)) as image:
        profile = image.info.get("icc_profile")
        image = image.convert("RGB")
        if profile:
            cms = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, cms, ImageCms.createProfile("sRGB"), renderingIntent=1)
        return np.asarray(image, float)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".heic", ".bmp"])
@pytest.mark.parametrize(
    ("space", "kind"),
    # A HEIC has numbers for its colours and no curves, an old BMP curves and no numbers.
    [(space, kind) for space in SPACES for kind in ("PNG", "JPEG")]
    + [(space, "HEIC") for space in ("P3", "BT.709", "BT.2020")]
    + [(space, "BMP") for space in ("linear", "Adobe")],
)
def test_a_photo_looks_the_same_in_every_format(space, kind, suffix):
    color, primaries, decode = SPACES[space]
    pixels = ramps()
    if kind == "PNG":
        payload = png(pixels, color)
    elif kind == "HEIC":
        pillow_heif.register_heif_opener()
        numbers = {"color_primaries": color[b"cICP"][0], "transfer_characteristics": color[b"cICP"][1]}
        numbers |= {"matrix_coefficients": 6, "full_range_flag": 1}
        payload = stored(pixels, "HEIF", quality=100, chroma=444, **numbers)
    elif kind == "BMP":
        payload = bmp(pixels, color)
    else:
        profile = color_profile(color, grey=False)
        payload = stored(pixels, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    photo = decode_photo(payload, name="photo")
    expected = 255 * srgb_by_hand(photo.pixels, primaries, decode)
    shown = seen(encode_photo(photo, "out" + suffix, quality=100), suffix)
    # Coding costs some levels, and more where little light is spread over many.
    assert np.abs(shown - expected).mean() < 1.5
    assert np.abs(np.asarray(pixels, float) - expected).mean() > 2.5  # it would be seen


def test_a_png_keeps_its_colour_chunks_byte_for_byte():
    for color in (P3, LINEAR, PQ | {b"mDCV": bytes(24), b"cLLI": bytes(8)}, {b"sRGB": b"\1"}):
        for options in ({}, {"icc_profile": SRGB}):
            photo = decode_photo(png(ramps(), color, **options), name="photo.png")
            assert photo.color == color
            written = encode_photo(photo, "out.png")
            assert decode_photo(written, name="out.png").color == color
            assert np.array_equal(decode_photo(written, name="out.png").pixels, ramps())
            assert b"".join(color) in written.replace(b"\0", b"") or all(name in written for name in color)


def test_the_cloak_comes_after_the_conversion():
    photo = decode_photo(png(ramps(), LINEAR), name="photo.png")
    converted = fit_format(photo, "out.bmp")
    assert converted.icc_profile is None
    assert not converted.color
    assert np.array_equal(decode_photo(encode_photo(converted, "out.bmp"), name="out").pixels, converted.pixels)


def test_hdr_that_a_format_cannot_say_is_a_warning():
    photo = decode_photo(png(ramps(), PQ), name="photo.png")
    for suffix in (".jpg", ".webp", ".tif", ".bmp"):
        assert any("HDR colours cannot be said" in warning for warning in fit_format(photo, "out" + suffix).warnings)
    for suffix in (".png", ".heic"):
        assert fit_format(photo, "out" + suffix).warnings == ()
    pillow_heif.register_heif_opener()
    heic = encode_photo(photo, "out.heic")
    assert decode_photo(heic, name="out.heic").color == PQ
    assert decode_photo(stored(ramps(), "HEIF", quality=90), name="plain.heic").warnings == ()


@pytest.mark.parametrize(
    "mark", [b"http://ns.adobe.com/hdr-gain-map/1.0/ hdrgm:Version", b"urn:iso:std:iso:ts:21496:-1"]
)
def test_a_gain_map_that_is_left_out_is_a_warning(mark):
    (warning,) = decode_photo(stored(ramps(), "JPEG", xmp=mark), name="photo.jpg").warnings
    assert "HDR gain map is left out" in warning


def test_ten_bits_that_become_eight_are_a_warning():
    buffer = io.BytesIO()
    deep = np.repeat(ramps().astype(np.uint16) << 8, 1, axis=0)
    pillow_heif.from_bytes("RGB;16", (64, 48), deep.tobytes()).save(buffer, quality=90)
    (warning,) = decode_photo(buffer.getvalue(), name="deep.heic").warnings
    assert "bits per channel become 8" in warning


def test_a_profile_loses_private_tags_and_nothing_else():
    assert kept_profile(SRGB) == SRGB
    kept = kept_profile(profile_with(b"thmb", bytes(range(100)) * 4))
    assert bytes(range(100)) not in kept
    assert np.abs(in_srgb(ramps(), kept, grey=False).astype(int) - ramps()).max() <= 1


@pytest.mark.parametrize("profile", [b"profile", b"", SRGB[:200], SRGB[:128] + bytes(400), b"\xff\xd8" * 500])
def test_what_is_no_profile_is_left_out_and_said(profile):
    photo = decode_photo(stored(ramps(), "PNG", icc_profile=profile), name="photo.png")
    assert photo.icc_profile is None
    assert bool(photo.warnings) == bool(profile)


def test_the_profile_of_a_bmp_is_kept():
    header = bmp(ramps(), LINEAR)
    profile = color_profile(P3, grey=False)
    info = bytearray(header[14:122] + bytes(16))
    info[:4], info[56:60] = struct.pack("<L", 124), b"DEBM"
    pixels = header[122:]
    info[112:120] = struct.pack("<LL", 124 + len(pixels), len(profile))
    payload = b"BM" + struct.pack("<LLL", 0, 0, 138) + bytes(info) + pixels + profile
    photo = decode_photo(payload, name="photo.bmp")
    assert photo.icc_profile == profile
    assert np.array_equal(photo.pixels, ramps())


def test_a_photo_without_colours_said_stays_so():
    photo = Photo(ramps())
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp"):
        assert fit_format(photo, "out" + suffix) is photo
        with Image.open(io.BytesIO(encode_photo(photo, "out" + suffix))) as image:
            assert "icc_profile" not in image.info
