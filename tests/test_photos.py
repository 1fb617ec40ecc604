"""Photo files: read upright or refused, and written back as the kind of file they were."""

import struct
import sys
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image

from fastcloak.photos.files import Photo, decode_photo, encode_photo, read_photo, without_gps, write_photo
from fastcloak.system.errors import PhotoError
from tests.pictures import SRGB, chunk, ramps, stored

Orientation, Model, ExifImageWidth = ExifTags.Base.Orientation, ExifTags.Base.Model, ExifTags.Base.ExifImageWidth


def save(path, pixels=None, mode=None, **options):
    image = Image.fromarray(ramps() if pixels is None else pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def camera_exif(orientation):
    exif = Image.Exif()
    exif[Orientation] = orientation
    exif[Model] = "Camera"
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifImageWidth: 53, ExifTags.Base.ExifImageHeight: 37})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N"})
    return exif


def again(photo, suffix, **options):
    """What is read of the file that is written of a photo."""
    return decode_photo(encode_photo(photo, f"out{suffix}", **options), name=f"out{suffix}")


@pytest.mark.promise("P2")
@pytest.mark.promise("P12")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright_and_written_without_orientation(tmp_path, orientation, suffix):
    upright = ramps()
    # What each orientation stores: https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf, 4.6.4
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    options = (
        {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    )
    path = save(
        tmp_path / f"photo{suffix}", np.ascontiguousarray(stored), exif=camera_exif(orientation).tobytes(), **options
    )

    photo = read_photo(path)
    assert photo.pixels.shape == upright.shape
    assert np.abs(photo.pixels.astype(int) - upright).max() <= (6 if suffix == ".jpg" else 0)

    write_photo(photo, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        image.load()
        assert image.size == (53, 37)
        exif = image.getexif()
        assert exif.get(Orientation, 1) == 1
        assert exif[Model] == "Camera"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifImageWidth] == 53
    assert np.array_equal(read_photo(tmp_path / f"out{suffix}").pixels, photo.pixels) or suffix == ".jpg"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_profile_and_resolution_are_kept(tmp_path, suffix):
    path = save(tmp_path / f"photo{suffix}", icc_profile=SRGB, dpi=(300, 150))
    write_photo(read_photo(path), tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.info["icc_profile"] == SRGB
        if suffix != ".webp":  # WebP has no place for it
            assert image.info["dpi"] == pytest.approx((300, 150), abs=0.1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".pgm"])
def test_a_grey_photo_stays_grey(tmp_path, suffix):
    photo = read_photo(save(tmp_path / f"photo{suffix}", ramps(channels=1)[..., 0]))
    assert photo.grey
    assert (photo.pixels == photo.pixels[..., :1]).all()
    write_photo(photo, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.mode == "L"
        assert np.abs(np.asarray(image).astype(int) - photo.pixels[..., 0]).max() <= (12 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_put_back(tmp_path, mode, suffix):
    path = save(tmp_path / "photo.png", ramps(channels=4), mode)
    with Image.open(path) as before:
        write_photo(read_photo(path), tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as after:
            assert after.mode == mode or suffix == ".webp"
            assert np.array_equal(np.asarray(after), np.asarray(before.convert(after.mode)))


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_never_dropped_in_silence(tmp_path, suffix):
    photo = read_photo(save(tmp_path / "photo.png", ramps(channels=4)))
    with pytest.raises(PhotoError, match=rf"out{suffix} must be of a format that can hold transparency.*\.png"):
        write_photo(photo, tmp_path / f"out{suffix}")


def test_a_palette_photo_becomes_a_colour_photo_and_keeps_its_transparency():
    palette = Image.fromarray(ramps()).quantize(64)
    photo = decode_photo(stored(palette, "PNG"), name="photo.png")
    assert np.array_equal(photo.pixels, np.asarray(palette.convert("RGB")))
    assert np.array_equal(again(photo, ".png").pixels, photo.pixels)
    grey = ramps(channels=1)[..., 0]
    for payload in (stored(palette, "PNG", transparency=3), stored(grey, "PNG", transparency=int(grey.min()))):
        alpha = decode_photo(payload, name="photo.png").alpha
        assert alpha.min() == 0
        assert alpha.max() == 255


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [
        ("CMYK", ".jpg", "CMYK, print colours"),
        ("CMYK", ".tif", "CMYK, print colours"),
        ("1", ".png", "black and white, 1 bit"),
        ("I;16", ".png", "8 bits per channel, got 16"),
        ("I;16", ".tif", "8 bits per channel, got 16"),
        ("F", ".tif", "floating point"),
        ("LAB", ".tif", r"L\*a\*b\*"),
    ],
)
def test_other_modes_are_refused_with_a_clear_message(tmp_path, mode, suffix, message):
    path = tmp_path / f"photo{suffix}"
    grey, colour = Image.fromarray(ramps(channels=1)[..., 0]), Image.fromarray(ramps())
    image = Image.new("LAB", (8, 8)) if mode == "LAB" else (grey if mode in ("I;16", "F") else colour).convert(mode)
    image.save(path)
    with pytest.raises(PhotoError, match=rf"photo{suffix} must .*{message}.*first"):
        read_photo(path)


def test_sixteen_bit_colour_is_refused_and_not_cut_in_silence(tmp_path):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((5, 6, 3), np.uint16))
    with pytest.raises(PhotoError, match="8 bits per channel, got 16"):
        read_photo(tmp_path / "photo.png")


@pytest.mark.promise("P12")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_photo_is_refused_with_a_clear_message(tmp_path, suffix, share):
    payload = save(tmp_path / f"photo{suffix}", ramps(300, 400)).read_bytes()
    with pytest.raises(PhotoError, match=rf"photo{suffix} must be a JPEG.*cut off.*copy it again"):
        decode_photo(payload[: int(len(payload) * share)], name=f"photo{suffix}")


@pytest.mark.promise("P12")
@pytest.mark.parametrize("size", [(9600, 9600), (50000, 50000)])
def test_a_decompression_bomb_is_refused_before_it_unpacks(size):
    # A PNG whose header promises the size and which ends there: reading any pixel would raise another error.
    head = b"IHDR" + struct.pack(">LL", *size) + bytes([8, 0, 0, 0, 0])
    bomb = stored(np.zeros((1, 1), np.uint8), "PNG")
    bomb = bomb[:8] + chunk(head[:4], head[4:]) + bomb[33:]
    with pytest.raises(PhotoError, match=r"bomb\.png must have at most \d+ pixels.*scale it down"):
        decode_photo(bomb, name="bomb.png")


def test_what_is_no_photo_is_refused_with_a_clear_message():
    for payload in (b"dear diary", b"", stored(ramps(), "GIF")):
        with pytest.raises(PhotoError, match="file must be a JPEG, PNG, WebP, TIFF, BMP, PGM or HEIC photo"):
            decode_photo(payload, name="file")


def test_of_several_pictures_in_a_file_a_phones_first_is_read_and_others_are_refused():
    both = {"save_all": True, "append_images": [Image.fromarray(ramps(seed=1))]}
    with pytest.raises(PhotoError, match=r"pages\.tif must hold one picture, got 2; save the one"):
        decode_photo(stored(ramps(), "TIFF", **both), name="pages.tif")
    photo = decode_photo(stored(ramps(), "MPO", quality=100, **both), name="phone.jpg")
    assert not photo.lossless
    to_first, to_second = (np.abs(photo.pixels.astype(float) - ramps(seed=seed)).mean() for seed in (0, 1))
    assert to_first < to_second


def test_a_wrong_suffix_is_read_by_content_and_written_by_name(tmp_path):
    save(tmp_path / "really.png").rename(tmp_path / "photo.jpg")
    photo = read_photo(tmp_path / "photo.jpg")
    assert np.array_equal(photo.pixels, ramps())
    write_photo(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.format == "JPEG"


def test_a_new_jpeg_keeps_colour_at_full_resolution_and_quality(tmp_path):
    photo = read_photo(save(tmp_path / "photo.png"))
    write_photo(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert [sampling[1:3] for sampling in image.layer] == [(1, 1)] * 3
        assert max(image.quantization[0]) <= 12  # the tables of quality 95


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(("quality", "kept"), [(99, True), (97, True), (95, True), (94, False), (10, False)])
def test_a_jpeg_keeps_its_quality_from_95_and_its_subsampling(tmp_path, subsampling, quality, kept):
    path = save(tmp_path / "photo.jpg", quality=quality, subsampling=subsampling, progressive=quality == 97)
    write_photo(read_photo(path), tmp_path / "out.jpg")
    save(tmp_path / "usual.jpg", quality=95, subsampling=subsampling)
    with (
        Image.open(path) as before,
        Image.open(tmp_path / "out.jpg") as after,
        Image.open(tmp_path / "usual.jpg") as usual,
    ):
        assert after.layer == before.layer
        assert after.quantization == (before if kept else usual).quantization
        assert bool(after.info.get("progressive")) == (quality == 97)
    write_photo(read_photo(path), tmp_path / "asked.jpg", quality=60)
    save(tmp_path / "sixty.jpg", quality=60)
    with Image.open(tmp_path / "asked.jpg") as asked, Image.open(tmp_path / "sixty.jpg") as sixty:
        assert asked.quantization == sixty.quantization


def test_a_grey_jpeg_keeps_its_quality(tmp_path):
    path = save(tmp_path / "photo.jpg", mode="L", quality=98)
    write_photo(read_photo(path), tmp_path / "out.jpg")
    with Image.open(path) as before, Image.open(tmp_path / "out.jpg") as after:
        assert (after.mode, after.quantization) == ("L", before.quantization)


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp", ".tif", ".heic"])
def test_gps_is_left_out_when_asked_and_nothing_else(tmp_path, kind):
    photo = read_photo(save(tmp_path / "photo.jpg", exif=camera_exif(1)))
    for stripped in (False, True):
        exif = Image.Exif()
        exif.load(again(without_gps(photo) if stripped else photo, kind).exif)
        assert exif[Model] == "Camera"
        assert (ExifTags.IFD.GPSInfo in exif) != stripped
    assert without_gps(Photo(ramps())).exif is None
    only_gps = Image.Exif()
    only_gps.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N"})
    assert without_gps(replace(photo, exif=only_gps.tobytes())).exif is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_heic_photo_stays_what_it_was(tmp_path, mode):
    pillow_heif.register_heif_opener()
    path = tmp_path / "photo.heic"
    pixels = ramps(38, 54, 4) if mode == "RGBA" else ramps(38, 54)
    save(path, pixels, mode, exif=camera_exif(6), icc_profile=SRGB, quality=95, chroma=422)
    before = read_photo(path)
    after = again(before, ".heic")
    # Of HEIC the orientation in the EXIF block is to be ignored: ISO/IEC 23008-12, annex A.
    assert before.pixels.shape == after.pixels.shape == (38, 54, 3)
    assert np.abs(before.pixels.astype(int) - after.pixels).mean() < 3
    assert (after.alpha is None) == (before.alpha is None) == (mode != "RGBA")
    assert (after.icc_profile, after.heif_chroma) == (SRGB, before.heif_chroma)
    assert not after.lossless
    exif = Image.Exif()
    exif.load(after.exif)
    assert exif[Model] == "Camera"
    assert exif.get(Orientation, 1) == 1


def test_heic_without_the_extra_names_it(tmp_path, monkeypatch):
    pillow_heif.register_heif_opener()
    save(tmp_path / "photo.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PhotoError, match=r"photo\.heic must be .*got a HEIC photo.*pip install 'fastcloak\[heic\]'"):
        read_photo(tmp_path / "photo.heic")
    with pytest.raises(PhotoError, match=r"out\.heic must be .*pip install 'fastcloak\[heic\]'"):
        write_photo(Photo(ramps()), tmp_path / "out.heic")
    (tmp_path / "broken.heic").write_bytes((tmp_path / "photo.heic").read_bytes()[:200])
    monkeypatch.undo()
    with pytest.raises(PhotoError, match=r"broken\.heic must be"):
        read_photo(tmp_path / "broken.heic")


def test_lossy_and_lossless_webp_stay_what_they_are():
    assert not decode_photo(stored(ramps(), "WEBP", quality=80), name="lossy.webp").lossless
    photo = decode_photo(stored(ramps(), "WEBP", lossless=True, exif=camera_exif(1)), name="lossless.webp")
    assert photo.lossless
    assert np.array_equal(again(photo, ".webp").pixels, ramps())


def test_writing_refuses_what_the_file_cannot_hold(tmp_path):
    photo = Photo(ramps())
    with pytest.raises(PhotoError, match=r"out\.gif must have a name that ends in \.jpg.*got '\.gif'; rename it"):
        write_photo(photo, tmp_path / "out.gif")
    with pytest.raises(PhotoError, match=r"out\.pgm must be \.png or \.jpg for a photo in colour"):
        write_photo(photo, tmp_path / "out.pgm")
    with pytest.raises(ValueError, match=r"quality must be 1\.\.100, got 0"):
        write_photo(photo, tmp_path / "out.jpg", quality=0)
    with pytest.raises(ValueError, match=r"photo\.pixels must be uint8 \[H, W, 3\], got float64 \[37, 53, 3\]"):
        write_photo(replace(photo, pixels=ramps() / 255), tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"photo\.alpha must be uint8 \[37, 53\]"):
        write_photo(replace(photo, alpha=np.zeros((2, 2), np.uint8)), tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"three equal channels where photo\.grey is set"):
        write_photo(replace(photo, grey=True), tmp_path / "out.png")
    with pytest.raises(PhotoError, match=r"out\.webp: this photo cannot be written as WEBP.*another format"):
        write_photo(Photo(np.zeros((1, 17000, 3), np.uint8)), tmp_path / "out.webp")
    assert not list(tmp_path.iterdir())
