import contextlib
import errno
import io
import os
import resource
import sys
import zlib
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms

from fastcloak.photos import files as photos
from fastcloak.photos.files import photo_files, photo_from_pil, read_photo, without_gps, write_photo
from fastcloak.system.errors import PhotoError
from fastcloak.system.files import atomic_write

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
Orientation, Model, ExifImageWidth = ExifTags.Base.Orientation, ExifTags.Base.Model, ExifTags.Base.ExifImageWidth


def picture(height=37, width=53, channels=3, seed=0):
    """Smooth colours and some noise, so that JPEG has something to keep."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 4, y * 5, 3 * (x + y), 255 - 2 * x][:channels], -1)
    return (ramps + np.random.default_rng(seed).integers(0, 30, ramps.shape)).clip(0, 255).astype(np.uint8)


def save(path, pixels=None, mode=None, **options):
    image = Image.fromarray(picture() if pixels is None else pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def camera_exif(orientation):
    exif = Image.Exif()
    exif[Orientation] = orientation
    exif[Model] = "Camera"
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifImageWidth: 53, ExifTags.Base.ExifImageHeight: 37})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N"})
    return exif


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright_and_written_without_orientation(tmp_path, orientation, suffix):
    upright = picture()
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
    path = save(tmp_path / f"photo{suffix}", icc_profile=ICC, dpi=(300, 150))
    write_photo(read_photo(path), tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.info["icc_profile"] == ICC
        if suffix != ".webp":  # WebP has no place for it
            assert image.info["dpi"] == pytest.approx((300, 150), abs=0.1)


def test_resolution_turns_with_the_photo(tmp_path):
    path = save(tmp_path / "photo.png", dpi=(300, 150), exif=camera_exif(6))
    assert read_photo(path).dpi == pytest.approx((150, 300), abs=0.1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".pgm"])
def test_a_grey_photo_stays_grey(tmp_path, suffix):
    grey = picture(channels=1)[..., 0]
    photo = read_photo(save(tmp_path / f"photo{suffix}", grey))
    assert photo.grey
    assert (photo.pixels == photo.pixels[..., :1]).all()
    write_photo(photo, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.mode == "L"
        assert np.abs(np.asarray(image).astype(int) - photo.pixels[..., 0]).max() <= (12 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_put_back(tmp_path, mode, suffix):
    path = save(tmp_path / "photo.png", picture(channels=4), mode)
    with Image.open(path) as before:
        write_photo(read_photo(path), tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as after:
            assert after.mode == mode or suffix == ".webp"
            assert np.array_equal(np.asarray(after), np.asarray(before.convert(after.mode)))


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_never_dropped_in_silence(tmp_path, suffix):
    photo = read_photo(save(tmp_path / "photo.png", picture(channels=4)))
    with pytest.raises(PhotoError, match=rf"out{suffix} must be of a format that can hold transparency.*\.png"):
        write_photo(photo, tmp_path / f"out{suffix}")


def test_a_palette_photo_becomes_a_colour_photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture()).quantize(64).save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
        expected = np.asarray(image.convert("RGB"))
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, expected)
    write_photo(photo, tmp_path / "out.png")
    assert np.array_equal(read_photo(tmp_path / "out.png").pixels, expected)


def test_transparency_of_a_palette_and_of_one_colour_is_kept(tmp_path):
    palette = Image.fromarray(picture()).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=3)
    save(tmp_path / "key.png", picture(channels=1)[..., 0], transparency=0)
    for name in ("palette.png", "key.png"):
        photo = read_photo(tmp_path / name)
        assert photo.alpha is not None
        assert photo.grey == (name == "key.png")


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
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
def test_other_modes_are_refused_with_words(tmp_path, mode, suffix, words):
    path = tmp_path / f"photo{suffix}"
    grey, colour = Image.fromarray(picture(channels=1)[..., 0]), Image.fromarray(picture())
    image = Image.new("LAB", (8, 8)) if mode == "LAB" else (grey if mode in ("I;16", "F") else colour).convert(mode)
    image.save(path)
    with pytest.raises(PhotoError, match=rf"photo{suffix} must .*{words}.*first"):
        read_photo(path)


def test_sixteen_bit_colour_is_refused_and_not_cut_in_silence(tmp_path):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((5, 6, 3), np.uint16))
    with pytest.raises(PhotoError, match="8 bits per channel, got 16"):
        read_photo(tmp_path / "photo.png")


@pytest.mark.parametrize("suffix", [suffix for suffix in photos.SUFFIXES if not suffix.startswith(".hei")])
def test_a_photo_of_one_pixel_passes(tmp_path, suffix):
    save(tmp_path / f"photo{suffix}", np.full((1, 1), 7, np.uint8))
    photo = read_photo(tmp_path / f"photo{suffix}")
    assert photo.pixels.tolist() == [[[7, 7, 7]]]
    write_photo(photo, tmp_path / f"out{suffix}")
    assert read_photo(tmp_path / f"out{suffix}").pixels.tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_photo_is_refused_with_words(tmp_path, suffix, share):
    path = save(tmp_path / f"photo{suffix}", picture(300, 400))
    payload = path.read_bytes()
    path.write_bytes(payload[: int(len(payload) * share)])
    with pytest.raises(PhotoError, match=rf"photo{suffix} must be a JPEG.*cut off.*copy it anew"):
        read_photo(path)


@pytest.mark.parametrize("size", [(9600, 9600), (50000, 50000)])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path, size):
    # A PNG whose header promises the size and which ends there: reading any pixel would raise another error.
    header = Image.new("L", (1, 1))
    buffer = io.BytesIO()
    header.save(buffer, "PNG")
    payload = bytearray(buffer.getvalue())
    payload[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    payload[29:33] = zlib.crc32(payload[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(payload)
    with pytest.raises(PhotoError, match=r"bomb\.png must have at most \d+ pixels.*scale it down"):
        read_photo(tmp_path / "bomb.png")


def test_what_is_no_photo_is_refused_with_words(tmp_path):
    for name, payload in (("notes.jpg", b"dear diary"), ("empty.png", b""), ("film.gif", None)):
        if payload is None:
            save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(payload)
        with pytest.raises(PhotoError, match=rf"{name} must be a JPEG, PNG, WebP, TIFF, BMP, PGM or HEIC photo"):
            read_photo(tmp_path / name)


def test_random_bytes_and_flipped_bits_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp", ".pgm"):
        grey = suffix == ".pgm"
        path = save(tmp_path / f"photo{suffix}", picture(channels=1)[..., 0] if grey else picture())
        payload = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            hurt = payload.copy()
            hurt[rng.integers(0, min(len(hurt), 200), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(hurt.tobytes())
            with contextlib.suppress(PhotoError):
                photo = read_photo(path)
                assert photo.pixels.dtype == np.uint8
                assert photo.pixels.shape[2] == 3


def test_several_pictures_in_one_file_are_refused(tmp_path):
    first, second = Image.fromarray(picture()), Image.fromarray(picture(seed=1))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    with pytest.raises(PhotoError, match=r"pages\.tif must hold one picture, got 2; save the one"):
        read_photo(tmp_path / "pages.tif")


def test_the_first_picture_of_a_phones_double_file_is_read(tmp_path):
    first, second = Image.fromarray(picture()), Image.fromarray(picture(seed=1))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    with Image.open(tmp_path / "phone.jpg") as image:
        assert image.format == "MPO"
    photo = read_photo(tmp_path / "phone.jpg")
    assert not photo.lossless
    to_first, to_second = (np.abs(photo.pixels.astype(float) - picture(seed=seed)).mean() for seed in (0, 1))
    assert to_first < to_second


def test_a_wrong_suffix_is_read_by_content_and_written_by_name(tmp_path):
    save(tmp_path / "really.png").rename(tmp_path / "photo.jpg")
    photo = read_photo(tmp_path / "photo.jpg")
    assert np.array_equal(photo.pixels, picture())
    write_photo(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.format == "JPEG"


def test_jpeg_keeps_colour_at_full_resolution_and_quality(tmp_path):
    photo = read_photo(save(tmp_path / "photo.png"))
    write_photo(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert [sampling[1:3] for sampling in image.layer] == [(1, 1)] * 3
        assert max(image.quantization[0]) <= 12  # the tables of quality 95


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    ("quality", "kept"), [(99, True), (97, True), (95, True), (94, False), (80, False), (10, False)]
)
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
        write_photo(without_gps(photo) if stripped else photo, tmp_path / f"out{kind}")
        exif = Image.Exif()
        exif.load(read_photo(tmp_path / f"out{kind}").exif)
        assert exif[Model] == "Camera"
        assert (ExifTags.IFD.GPSInfo in exif) != stripped
    assert without_gps(photos.Photo(picture())).exif is None
    only_gps = Image.Exif()
    only_gps.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N"})
    assert without_gps(replace(photo, exif=only_gps.tobytes())).exif is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_heic_photo_stays_what_it_was(tmp_path, mode):
    pillow_heif.register_heif_opener()
    path = tmp_path / "photo.heic"
    pixels = picture(38, 54, 4) if mode == "RGBA" else picture(38, 54)
    save(path, pixels, mode, exif=camera_exif(6), icc_profile=ICC, quality=95, chroma=422)
    before = read_photo(path)
    write_photo(before, tmp_path / "out.heic")
    after = read_photo(tmp_path / "out.heic")
    # Of HEIC the orientation in the EXIF block is to be ignored: ISO/IEC 23008-12, annex A.
    assert before.pixels.shape == after.pixels.shape == (38, 54, 3)
    assert np.abs(before.pixels.astype(int) - after.pixels).mean() < 3
    assert (after.alpha is None) == (before.alpha is None) == (mode != "RGBA")
    assert (after.icc_profile, after.heif_chroma) == (ICC, before.heif_chroma)
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
        write_photo(photos.Photo(picture()), tmp_path / "out.heic")
    (tmp_path / "broken.heic").write_bytes((tmp_path / "photo.heic").read_bytes()[:200])
    monkeypatch.undo()
    with pytest.raises(PhotoError, match=r"broken\.heic must be"):
        read_photo(tmp_path / "broken.heic")


def test_lossy_and_lossless_webp_stay_what_they_are(tmp_path):
    save(tmp_path / "lossy.webp", quality=80)
    save(tmp_path / "lossless.webp", lossless=True, exif=camera_exif(1))
    assert not read_photo(tmp_path / "lossy.webp").lossless
    photo = read_photo(tmp_path / "lossless.webp")
    assert photo.lossless
    write_photo(photo, tmp_path / "out.webp")
    assert np.array_equal(read_photo(tmp_path / "out.webp").pixels, picture())


def test_the_thumbnail_of_the_unprotected_face_is_left_out(tmp_path):
    thumbnail = io.BytesIO()
    Image.fromarray(picture(16, 16)).save(thumbnail, "JPEG")
    exif = camera_exif(1)
    exif[700] = b"<x:xmpmeta thumbnail/>"
    first = exif.tobytes()
    # A second table, linked from the first one's end, that holds the thumbnail: EXIF 2.32, 4.5.5
    tiff = bytearray(first[6:])
    order = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    link = start + 2 + 12 * int.from_bytes(tiff[start : start + 2], order)
    tiff[link : link + 4] = len(tiff).to_bytes(4, order)
    picture_at = len(tiff) + 2 + 2 * 12 + 4
    tiff += (2).to_bytes(2, order)
    for tag, value in ((513, picture_at), (514, len(thumbnail.getvalue()))):
        tiff += b"".join(number.to_bytes(size, order) for number, size in ((tag, 2), (4, 2), (1, 4), (value, 4)))
    tiff += bytes(4) + thumbnail.getvalue()
    path = save(tmp_path / "photo.jpg", exif=b"Exif\0\0" + bytes(tiff))
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[514] == len(thumbnail.getvalue())

    photo = read_photo(path)
    write_photo(photo, tmp_path / "out.jpg")
    payload = (tmp_path / "out.jpg").read_bytes()
    assert b"Camera" in payload
    assert thumbnail.getvalue()[:40] not in payload[10:]
    assert b"xmpmeta" not in payload


def test_a_damaged_exif_block_is_left_out_and_said(tmp_path, caplog):
    path = save(tmp_path / "photo.jpg", exif=camera_exif(1).tobytes()[:60])
    photo = read_photo(path)
    assert photo.exif is None or caplog.text == ""
    write_photo(photo, tmp_path / "out.jpg")


def test_the_callers_image_is_not_changed():
    image = Image.fromarray(picture())
    image.getexif()[Orientation] = 6
    assert photo_from_pil(image, name="image").pixels.shape == (53, 37, 3)
    assert image.size == (53, 37)
    assert image.getexif()[Orientation] == 6


def test_writing_refuses_what_the_file_cannot_hold(tmp_path):
    photo = photos.Photo(picture())
    with pytest.raises(PhotoError, match=r"out\.gif must have a name that ends in \.jpg.*got '\.gif'; rename it"):
        write_photo(photo, tmp_path / "out.gif")
    with pytest.raises(PhotoError, match=r"out\.pgm must be \.png or \.jpg for a photo in colour"):
        write_photo(photo, tmp_path / "out.pgm")
    with pytest.raises(ValueError, match=r"quality must be 1\.\.100, got 0"):
        write_photo(photo, tmp_path / "out.jpg", quality=0)
    with pytest.raises(ValueError, match=r"photo\.pixels must be uint8 \[H, W, 3\], got float64 \[37, 53, 3\]"):
        write_photo(replace(photo, pixels=picture() / 255), tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"photo\.alpha must be uint8 \[37, 53\]"):
        write_photo(replace(photo, alpha=np.zeros((2, 2), np.uint8)), tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"three equal channels where photo\.grey is set"):
        write_photo(replace(photo, grey=True), tmp_path / "out.png")
    with pytest.raises(PhotoError, match=r"out\.webp: this photo cannot be written as WEBP.*another format"):
        write_photo(photos.Photo(np.zeros((1, 17000, 3), np.uint8)), tmp_path / "out.webp")
    assert files_in(tmp_path) == []


def test_folders_expand_to_their_photos_in_order(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    other = tmp_path / "single.pgm"
    other.touch()
    assert [path.name for path in photo_files(tmp_path)] == ["a.png", "b.JPG", "single.pgm"]
    assert photo_files([other, str(tmp_path / "notes.txt")]) == [other, tmp_path / "notes.txt"]
    (tmp_path / "sub" / ".deep").mkdir(parents=True)
    for name in ("d.webp", ".deep/e.png"):
        (tmp_path / "sub" / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in photo_files(tmp_path, recursive=True)]
    assert names == ["a.png", "b.JPG", "single.pgm", "sub/d.webp"]
    with pytest.raises(ValueError, match=r"must be a folder with photos .*got none in it"):
        photo_files([tmp_path / "c.png"])
    with pytest.raises(FileNotFoundError, match="absent must be a photo or a folder of photos, got no such path"):
        photo_files([tmp_path / "absent"])
    with pytest.raises(ValueError, match="paths must hold at least one photo or folder"):
        photo_files([])


@pytest.mark.parametrize("step", ["fsync", "replace", "open", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step, error):
    path = tmp_path / "photo.bin"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)) as caught:
        atomic_write(path, b"new")
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["photo.bin"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path):
    path = save(tmp_path / "photo.png")
    before = path.read_bytes()
    photo = photos.Photo(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write the file: File too large"):
            write_photo(photo, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["photo.png"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent/photo\.png"):
        write_photo(photos.Photo(picture()), tmp_path / "absent" / "photo.png")


def test_a_written_file_has_ordinary_permissions_and_keeps_those_it_had(tmp_path):
    (tmp_path / "ordinary").touch()
    atomic_write(tmp_path / "new", b"1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    atomic_write(tmp_path / "new", b"2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new").read_bytes() == b"2"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
