"""What a check of protected photos counts, what it leaves out, and what it says in words."""

import gc
import io
import json
import math
import os
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcloak import Cloak, MissingExtraError, check_photos, evaluate, load_model
from fastcloak.evaluation.page import page
from fastcloak.evaluation.postprocessing import (
    SURVIVALS,
    as_saved,
    double_size,
    half_size,
    half_size_jpeg75,
    jpeg,
    resized,
)
from fastcloak.evaluation.text import plain_name
from fastcloak.photos.files import read_photo
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS
from fastcloak.system import packages


class RedGreen(nn.Module):
    """Embeds a picture as (mean red, mean green): every angle can be worked out on paper."""

    def forward(self, faces):
        return faces[:, :2].mean((2, 3))


class Pixels(nn.Module):
    """The picture at 8x8, each number less the mean: sees what is in a picture and not how bright it is."""

    def forward(self, faces):
        small = nn.functional.adaptive_avg_pool2d(faces, 8).flatten(1)
        return small - small.mean(1, keepdim=True)


def flat(*colours):
    """[N, 3, 112, 112] uint8 of one (red, green) each."""
    faces = torch.zeros(len(colours), 3, 112, 112, dtype=torch.uint8)
    faces[:, :2] = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None]
    return faces


def net(name="sface", module=None):
    return load_model(module or RedGreen(), name=name)


BOB = flat((0, 200), (4, 200), (2, 200))
STRANGERS = flat((100, 200), (11, 200))


@pytest.fixture(scope="module")
def orl():
    return packages.orl_folder()


def orl_pixels(orl, person, photo, scale=1):
    image = Image.open(orl / f"s{person}" / f"{photo}.pgm").convert("RGB")
    return np.array(image.resize((92 * scale, 112 * scale), Image.Resampling.BICUBIC))


def write(folder, **photos):
    for name, pixels in photos.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def after(checked, survival="as saved", model=0):
    (one,) = [one for one in checked.models[model].survivals if one.survival == survival]
    return one.after


def test_check_equals_a_hand_count_and_evaluate():
    posted = BOB.clone()
    posted[:, 0] += 8
    checked = check_photos(BOB, posted, net("other"), STRANGERS)
    (model,) = checked.models
    assert (len(checked.photos), checked.distractors) == (3, 2)
    side = after(checked)
    # Original 0 is (0, 200), protected 0 is (8, 200): cosine 200 / |(8, 200)|.
    assert side.own[0] == pytest.approx(200 / (8**2 + 200**2) ** 0.5)
    to_bob = [(8 * red + 200 * 200) / ((8**2 + 200**2) * (red**2 + 200**2)) ** 0.5 for red in (4, 2)]
    assert side.others[0] == pytest.approx(sum(to_bob) / 2)
    assert side.nearest[0] == pytest.approx(max(to_bob))
    assert model.as_saved.before.others[0] == pytest.approx(sum(200 / (red**2 + 200**2) ** 0.5 for red in (4, 2)) / 2)
    assert model.as_saved.before.own == pytest.approx((1.0, 1.0, 1.0))
    delta = torch.zeros(3, 112, 112)
    delta[0] = 0.9999 * 8 / 255
    whole = evaluate({"bob": Cloak(delta, 8 / 255)}, {"bob": BOB}, net("other"), {"others": STRANGERS})
    (row,) = [row for row in whole.rows if row.mask == "cloak"]
    assert side.rates == row.per_person["bob"]


def test_recognised_is_one_other_original_at_the_threshold():
    # Angles: originals 0, 60 and 90 degrees; sface's 0.375 is the cosine of 67.98 degrees.
    points = [(200, 0), (100, 173), (0, 200)]
    checked = check_photos(flat(*points), flat((0, 200), (200, 0), (200, 0)), net())
    side = after(checked)
    # Protected 0 is 30 and 0 degrees from the originals 1 and 2, protected 1 is 0 and 90, protected 2 is 0 and 60.
    assert side.recognised == (True, True, True)
    assert side.accepted == pytest.approx(5 / 6)
    # Protected photos: 0 is 90 degrees from both others, which are the same.
    assert side.linked == pytest.approx(2 / 6)
    # 60 degrees lie within the threshold, 90 do not: 0-1, 1-0, 1-2 and 2-1 of six.
    assert checked.models[0].as_saved.before.accepted == pytest.approx(4 / 6)
    far = check_photos(flat((200, 0), (200, 0)), flat((0, 200), (200, 1)), net())
    assert after(far).recognised == (False, True)
    assert after(far).accepted == pytest.approx(1 / 2)
    assert far.summary()[1].startswith("Photo by photo and network by network: not recognised in 1 of 2 cases; before ")
    assert "if its cosine with the other original reaches" in far.definition()
    assert "with at least one of the 2 other originals reaches" in checked.definition()
    assert far.headline() == "Recognised by the one network asked in at least one of the 2 photos."


def test_the_headline_counts_networks_that_recognise_in_no_photo():
    originals, posted = flat((200, 0), (200, 0)), flat((0, 200), (1, 200))
    networks = [net("sface"), net("dlib"), net("third", module=Pixels())]
    faces = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert check_photos(originals, posted, networks[:1]).headline() == (
        "Not recognised by 1 of 1 network in any of the 2 photos."
    )
    assert check_photos(originals, posted, networks[:2]).headline() == (
        "Not recognised by 2 of 2 networks in any of the 2 photos."
    )
    # The third network has no threshold, and says nothing.
    posted = faces // 4 * 4
    checked = check_photos(faces, posted, networks)
    assert checked.models[2].threshold is None
    assert checked.headline() == "Recognised by both networks asked in at least one of the 2 photos."
    assert "third: no threshold is known" in checked.table()
    assert check_photos(faces, posted, networks[2]).headline().startswith("Whether these networks recognise")
    assert after(check_photos(faces, posted, networks[2])).recognised == (None, None)


def test_one_photo_is_compared_with_its_own_original():
    one = check_photos(flat((3, 4)), flat((4, 3)), net(), STRANGERS)
    side = after(one)
    assert side.own == pytest.approx((24 / 25,))
    assert (side.others, side.nearest, side.accepted, side.linked, side.rates) == ((None,), (None,), None, None, None)
    assert side.recognised == (True,)
    assert one.headline() == "Recognised by the one network asked."
    assert check_photos(flat((200, 0)), flat((0, 200)), net()).headline() == "Not recognised by 1 of 1 network."
    assert "its own original" in one.table()
    assert json.loads(json.dumps(one.to_json(), allow_nan=False)) == one.to_json()


def test_thresholds_say_where_they_come_from():
    generator = torch.Generator().manual_seed(1)
    strangers = torch.randint(0, 256, (1000, 3, 112, 112), dtype=torch.uint8, generator=generator)
    known = check_photos(BOB, BOB, net("dlib"), strangers[:10])
    assert known.models[0].threshold.value == VERIFICATION_THRESHOLDS["dlib"]
    assert "LFW" in known.models[0].threshold.origin
    faces = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=generator)
    other = net("other", module=Pixels())
    estimated = check_photos(faces, faces, other, strangers).models[0].threshold
    assert "3 of 3000 pairs" in estimated.origin
    clean, crowd = (nn.functional.normalize(other(x / 255)) for x in (faces, strangers))
    assert int((clean @ crowd.T >= estimated.value - 1e-6).sum()) == 3
    assert check_photos(faces, faces, other, strangers[:999]).models[0].threshold is None


def test_the_cloak_marks_the_networks_it_was_learnt_on():
    blank = torch.zeros(3, 112, 112)
    networks = [net("sface"), net("dlib"), load_model([net("sface"), net("x")], name="both")]
    marked = check_photos(BOB, BOB, networks, cloak=Cloak(blank, 0.1, {"models": ["sface"]}))
    assert [model.white_box for model in marked.models] == [True, False, True]
    assert "sface*" in marked.table()
    assert "The cloak was learnt on sface." in marked.table()
    assert [model.white_box for model in check_photos(BOB, BOB, networks).models] == [None] * 3
    assert "The cloak was not given" in check_photos(BOB, BOB, networks).table()
    for info in ({}, {"models": 3}, {"models": [1, None]}):
        assert check_photos(BOB, BOB, networks, cloak=Cloak(blank, 0.1, info)).learnt_on == ()


def test_different_counts_and_no_photos_raise():
    with pytest.raises(
        ValueError, match=r"protected photos must match the originals one to one, got 2 for 3 originals"
    ):
        check_photos(BOB, BOB[:2], net())
    with pytest.raises(ValueError, match=r"originals must hold at least one photo, got none"):
        check_photos([], [], net())
    with pytest.raises(TypeError, match=r"images must be a tensor or array"):
        check_photos(3, 3, net())
    with pytest.raises(ValueError, match="must not be the empty path"):
        check_photos(BOB, BOB, net(), "")
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more, got"):
            check_photos(BOB, BOB, net(), batch_size=size)


def test_a_protected_photo_of_another_size_has_no_quality():
    pair = [Image.new("RGB", (112, 112), (9, 90, 0))], [Image.new("RGB", (56, 56), (9, 90, 0))]
    checked = check_photos(*pair, net(), keep_pictures=True)
    (photo,) = checked.photos
    assert (photo.largest_change, photo.psnr, photo.face_ssim) == (None, None, None)
    assert "of another size than its original" in checked.table()
    assert after(checked).own == pytest.approx((1.0,))
    assert photo.pictures.width == 112


def test_quality_is_what_is_worked_out_by_hand(monkeypatch):
    faces = flat((100, 100), (0, 50))
    changed = faces.clone()
    changed[0] += 5
    checked = check_photos(faces, changed, net())
    assert [photo.largest_change for photo in checked.photos] == [5, 0]
    assert checked.photos[0].psnr == pytest.approx(20 * math.log10(255 / 5))
    # Flat pictures: only the means count, (2 a b + c) / (a^2 + b^2 + c) with c = (0.01 * 255)^2.
    c = 2.55**2
    ssim = [(2 * a * (a + 5) + c) / (a**2 + (a + 5) ** 2 + c) for a in (100, 100, 0)]
    assert checked.photos[0].ssim == pytest.approx(sum(ssim) / 3, abs=1e-4)
    assert (checked.photos[1].psnr, checked.photos[1].ssim) == (math.inf, 1.0)
    assert checked.to_json()["photos"][1]["psnr"] is None
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    without = check_photos(faces, changed, net())
    assert (without.photos[0].psnr, without.photos[0].ssim, without.photos[0].largest_change) == (None, None, 5)
    assert "not measured: pip install 'fastcloak[report]'" in without.table()
    assert "not measured" not in checked.table()


def test_folders_are_paired_by_relative_path_without_suffix(tmp_path):
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    before = write(tmp_path / "before", a=face, trip__a=255 - face, trip__b=face)
    after_ = write(tmp_path / "after", a=face)
    (after_ / "trip").mkdir()
    Image.fromarray(255 - face).save(after_ / "trip" / "a.jpg", quality=100)
    # Hidden files, and what is no photo, do not count.
    (after_ / ".hidden.png").write_bytes(b"")
    (after_ / "notes.txt").write_text("")
    checked = check_photos(before, after_, net(module=Pixels()))
    assert [photo.name for photo in checked.photos] == ["a.png", "trip/a.png"]
    assert checked.omitted == ("trip/b.png",)
    assert not checked.complete
    assert after(checked).own == pytest.approx((1.0, 1.0), abs=1e-2)
    assert "Not checked, since there is no protected photo of that name: trip/b.png." in checked.table()
    assert checked.to_json()["omitted"] == ["trip/b.png"]


def test_two_photos_of_one_name_pair_by_their_suffix(tmp_path):
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    folders = [write(tmp_path / name, a=face, b=face) for name in ("before", "after")]
    for folder in folders:
        Image.fromarray(face).save(folder / "a.webp", lossless=True)
    checked = check_photos(*folders, net())
    assert sorted(photo.name for photo in checked.photos) == ["a.png", "a.webp", "b.png"]
    # Which of the two a.jpg is made from cannot be told.
    for name in ("a.png", "a.webp"):
        (folders[1] / name).unlink()
    Image.fromarray(face).save(folders[1] / "a.jpg")
    checked = check_photos(*folders, net())
    assert [photo.name for photo in checked.photos] == ["b.png"]
    assert sorted(checked.omitted) == ["a.png", "a.webp"]


def test_a_protected_photo_without_original_is_refused_by_name(tmp_path):
    face = np.zeros((112, 112, 3), np.uint8)
    before, other = write(tmp_path / "before", x=face, z=face), write(tmp_path / "after", x=face, y=face)
    with pytest.raises(ValueError, match=r"must hold the same photos as .* got differences: y, z; take the others out"):
        check_photos(before, other, net())
    with pytest.raises(ValueError, match=r"got differences: x, y, z"):
        check_photos(write(tmp_path / "other", z=face), other, net())


def test_two_single_photos_are_a_pair_whatever_their_names(tmp_path):
    face = np.full((112, 112, 3), 90, np.uint8)
    folder = write(tmp_path, one=face, two=face)
    checked = check_photos(folder / "one.png", str(folder / "two.png"), net())
    assert [photo.name for photo in checked.photos] == ["one.png"]
    with pytest.raises(ValueError, match="must both be folders, or both one photo"):
        check_photos(folder, folder / "two.png", net())
    with pytest.raises(FileNotFoundError, match=r"three\.png must be a photo or a folder"):
        check_photos(folder / "three.png", folder / "two.png", net())


def test_what_cannot_be_checked_is_listed_and_the_rest_is_checked(tmp_path, orl):
    before = write(tmp_path / "before", a=orl_pixels(orl, 1, 1), b=np.full((200, 300, 3), 90, np.uint8))
    after_ = write(tmp_path / "after", a=orl_pixels(orl, 1, 1), b=np.full((200, 300, 3), 90, np.uint8))
    for folder in (before, after_):
        (folder / "c.jpg").write_bytes(b"not a photo")
    crowd = write(tmp_path / "crowd", d=orl_pixels(orl, 9, 1), e=np.full((200, 300, 3), 90, np.uint8))
    checked = check_photos(before, after_, net("other", module=Pixels()), crowd)
    assert [photo.name for photo in checked.photos] == ["a.png"]
    assert checked.distractors == 1
    assert sorted(checked.failed) == sorted(["b.png", "c.jpg", str(crowd / "e.png")])
    assert "b.png must show a face" in checked.failed["b.png"]
    assert not checked.complete
    (before / "a.png").unlink()
    (after_ / "a.png").unlink()
    nothing = check_photos(before, after_, net(module=Pixels()))
    assert (nothing.photos, nothing.models, sorted(nothing.failed)) == ((), (), ["b.png", "c.jpg"])
    assert not nothing.complete
    assert "No photo was checked" in nothing.table()
    assert "c.jpg must be" in page(nothing)
    assert json.loads(json.dumps(nothing.to_json()))["photos"] == []


def test_the_face_that_changed_is_the_one_that_is_checked(orl):
    photo = np.full((560, 900, 3), 127, np.uint8)
    photo[:, :460] = orl_pixels(orl, 1, 1, scale=5)
    photo[100:436, 560:836] = orl_pixels(orl, 5, 1, scale=3)
    touched = photo.copy()
    touched[150:400, 600:800] = np.clip(touched[150:400, 600:800].astype(int) + 6, 0, 255)
    small = check_photos([photo], [touched], net(module=Pixels()), keep_pictures=True)
    large = check_photos([photo], [photo], net(module=Pixels()), keep_pictures=True)
    assert small.photos[0].faces == large.photos[0].faces == 2
    assert small.photos[0].face_psnr < small.photos[0].psnr
    clean = [nn.functional.normalize(Pixels()(crop)) for crop in (crops(orl, 1, 5), crops(orl, 5, 3))]
    shown = [Image.open(io.BytesIO(one.photos[0].pictures.original)) for one in (small, large)]
    assert shown[0].width < shown[1].width
    assert float((clean[0] * clean[1]).sum()) < 0.95
    assert after(small).own[0] > 0.98


def crops(orl, person, scale):
    from fastcloak.photos.inputs import load_faces

    return load_faces([Image.fromarray(orl_pixels(orl, person, 1, scale=scale))])


def test_a_face_that_is_not_found_any_more_is_counted_and_in_no_cosine(orl):
    photos = [orl_pixels(orl, 1, photo, scale=2) for photo in (1, 2, 3)]
    # So small that the detector misses it.
    hidden = [photos[0], resized(photos[1], 11, 13), photos[2]]
    strangers = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), np.uint8)
    checked = check_photos(photos, hidden, net(module=Pixels()), strangers)
    side = after(checked)
    assert side.no_face == 1
    assert (side.own[1], side.others[1], side.recognised[1]) == (None, None, None)
    assert side.own[0] == pytest.approx(1.0, abs=1e-5)
    assert side.rates is not None
    assert checked.verdict(1) == "no face found"
    assert "In 1 protected photo no face was found" in checked.table()
    gone = check_photos(photos[1:2], hidden[1:2], net(module=Pixels()))
    assert gone.headline() == "The detector used here finds no face in 1 protected photo."
    assert after(gone).accepted is None


def test_faces_are_found_after_every_change(orl):
    photos = [orl_pixels(orl, 2, photo, scale=2) for photo in (1, 2)]
    checked = check_photos(photos, photos, net(module=Pixels()))
    assert checked.survivals == tuple(SURVIVALS)
    for one in checked.models[0].survivals:
        assert one.after == one.before
        assert min(one.after.own) > 0.9, one.survival
    assert checked.models[0].survivals[3].after.own != checked.models[0].as_saved.after.own


@pytest.mark.parametrize("quarters", [1, 2])
def test_a_turned_face_is_checked_upright(orl, quarters):
    photo = np.full((420, 420, 3), 127, np.uint8)
    photo[20:356, 60:336] = orl_pixels(orl, 1, 1, scale=3)
    other = np.clip(photo.astype(int) + 9, 0, 255).astype(np.uint8)
    upright = check_photos([photo], [other], net(module=Pixels()))
    turned = check_photos(*([np.rot90(pixels, quarters).copy()] for pixels in (photo, other)), net(module=Pixels()))
    for one, same in zip(upright.models[0].survivals, turned.models[0].survivals, strict=True):
        assert same.after.own == pytest.approx(one.after.own, abs=0.02), one.survival


def test_only_one_photo_is_in_memory_at_a_time(tmp_path, monkeypatch):
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    folder = write(tmp_path, **{f"p{i}": face for i in range(5)})
    alive, most = set(), []

    def counted(path):
        photo = read_photo(path)
        alive.add(id(photo.pixels))
        weakref.finalize(photo.pixels, alive.discard, id(photo.pixels))
        gc.collect()
        most.append(len(alive))
        return photo

    monkeypatch.setattr("fastcloak.evaluation.pairing.read_photo", counted)
    check_photos(folder, folder, net(), keep_pictures=True)
    assert len(most) == 10
    # The pair that is read, and the pair before it, whose names still point at it.
    assert max(most) <= 4


def test_names_are_shown_without_what_a_terminal_obeys():
    assert plain_name("a\x1b]0;owned\x07\n.png") == "a\\x1b]0;owned\\x07\\n.png"
    assert plain_name(os.fsdecode(b"\xff.png")) == "\\udcff.png"
    assert plain_name("Zoë 照片.png") == "Zoë 照片.png"
    assert plain_name("a\u202egnp.exe") == "a\\u202egnp.exe"


def test_changes_do_what_their_names_say():
    photo = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    assert as_saved(photo) is photo
    assert half_size(photo).shape == (16, 24, 3)
    assert double_size(photo).shape == (62, 94, 3)
    assert half_size(photo[:1, :1]).shape == (1, 1, 3)
    errors = [float(np.abs(jpeg(photo, q).astype(int) - photo).mean()) for q in (95, 75, 50)]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert (half_size_jpeg75(photo) == jpeg(half_size(photo), 75)).all()
    even = np.full((20, 30, 3), 77, np.uint8)
    for name, survive in SURVIVALS.items():
        assert np.abs(survive(even).astype(int) - 77).max() <= 1, name
    before = photo.copy()
    for survive in SURVIVALS.values():
        assert survive(photo).dtype == np.uint8
    assert (photo == before).all()
    assert list(SURVIVALS) == [
        "as saved",
        "JPEG 95",
        "JPEG 75",
        "JPEG 50",
        "half size",
        "double size",
        "half size, JPEG 75",
    ]


def test_jpeg_halves_the_resolution_of_colour():
    # Columns of red and cyan of one brightness, one pixel wide: colour at half resolution mixes them.
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (200, 60, 60), (60, 120, 120)
    spread = [float(np.ptp(picture[8:24, 8:24, 0].astype(int))) for picture in (stripes, jpeg(stripes, 95))]
    assert spread[1] < 0.3 * spread[0]


def test_aligned_crops_need_no_extra(monkeypatch, tmp_path):
    for name in ("cv2", "onnx", "skimage", "skimage.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    checked = check_photos(BOB, BOB, net(), STRANGERS, keep_pictures=True)
    assert after(checked, "half size, JPEG 75").no_face == 0
    assert checked.photos[0].pictures is not None
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcloak\[faces\]'"):
        check_photos([np.zeros((200, 150, 3), np.uint8)], [np.zeros((200, 150, 3), np.uint8)], net())
