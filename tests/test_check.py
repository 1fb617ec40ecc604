"""What a check of protected photos counts, what it leaves out, and what it says in words."""

import gc
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
from fastcloak.evaluation.postprocessing import POST_PROCESSING, jpeg, resized
from fastcloak.evaluation.text import plain_name
from fastcloak.photos.alignment import align
from fastcloak.photos.detection import detect
from fastcloak.photos.files import read_photo
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS
from fastcloak.system import packages
from tests.judges import Pixels, flat, network, noise, orl_photo

BOB = flat((0, 200), (4, 200), (2, 200))
STRANGERS = flat((100, 200), (11, 200))
PIXELS = network(module=Pixels)
FACE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)


@pytest.fixture(scope="module")
def photo():
    """(person, number, scale) -> photo of ORL."""
    folder = packages.orl_folder()
    return lambda person, number, scale=1: orl_photo(folder, person, number, (92 * scale, 112 * scale))


def write(folder, **photos):
    for name, pixels in photos.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def after(checked):
    return checked.models[0].as_saved.after


def test_check_equals_a_hand_count_and_evaluate():
    posted = BOB.clone()
    posted[:, 0] += 8
    checked = check_photos(BOB, posted, network(), STRANGERS)
    assert (len(checked.photos), checked.distractors) == (3, 2)
    named = [dict(zip("abc", faces.numpy(), strict=True)) for faces in (BOB, posted)]
    assert check_photos(*named, network(), STRANGERS) == checked
    side, before = after(checked), checked.models[0].as_saved.before
    # Original 0 is (0, 200), protected 0 is (8, 200): cosine 200 / |(8, 200)|.
    assert side.own[0] == pytest.approx(200 / (8**2 + 200**2) ** 0.5)
    to_bob = [(8 * red + 200 * 200) / ((8**2 + 200**2) * (red**2 + 200**2)) ** 0.5 for red in (4, 2)]
    assert side.others[0] == pytest.approx(sum(to_bob) / 2)
    assert side.nearest[0] == pytest.approx(max(to_bob))
    assert before.others[0] == pytest.approx(sum(200 / (red**2 + 200**2) ** 0.5 for red in (4, 2)) / 2)
    assert before.own == pytest.approx((1.0, 1.0, 1.0))
    delta = torch.zeros(3, 112, 112)
    delta[0] = 0.9999 * 8 / 255
    whole = evaluate({"bob": Cloak(delta, 8 / 255)}, {"bob": BOB}, network(), {"others": STRANGERS})
    (row,) = [row for row in whole.rows if row.mask == "cloak"]
    assert side.rates == row.per_person["bob"]


def test_recognised_is_one_other_original_at_the_threshold():
    # Angles: originals 0, 60 and 90 degrees; sface's 0.375 is the cosine of 67.98 degrees.
    points = [(200, 0), (100, 173), (0, 200)]
    checked = check_photos(flat(*points), flat((0, 200), (200, 0), (200, 0)), network("sface"))
    side = after(checked)
    # Protected 0 is 30 and 0 degrees from the originals 1 and 2, protected 1 is 0 and 90, protected 2 is 0 and 60.
    assert side.recognised == (True, True, True)
    assert side.accepted == pytest.approx(5 / 6)
    # Protected photos: 0 is 90 degrees from both others, which are the same.
    assert side.linked == pytest.approx(2 / 6)
    # 60 degrees lie within the threshold, 90 do not: 0-1, 1-0, 1-2 and 2-1 of six.
    assert checked.models[0].as_saved.before.accepted == pytest.approx(4 / 6)
    assert "with at least one of the 2 other originals reaches" in checked.definition()
    # 75 degrees from each of two others: near neither, whatever they add up to.
    apart = check_photos(flat((200, 0), (200, 0), (0, 200)), flat((200, 0), (200, 0), (52, 193)), network("sface"))
    assert after(apart).recognised == (True, True, False)
    far = check_photos(flat((200, 0), (200, 0)), flat((0, 200), (200, 1)), network("sface"))
    assert after(far).recognised == (False, True)
    assert after(far).accepted == pytest.approx(1 / 2)
    assert far.summary()[1].startswith("Photo by photo and network by network: not recognised in 1 of 2 cases; before ")
    assert "if its cosine with the other original reaches" in far.definition()
    assert far.headline() == "Recognised by the one network asked in at least one of the 2 photos."


def test_the_headline_counts_networks_that_recognise_in_no_photo():
    originals, posted = flat((200, 0), (200, 0)), flat((0, 200), (1, 200))
    networks = [network("sface"), network("dlib"), network("third", Pixels)]
    for count, words in ((1, "1 of 1 network"), (2, "2 of 2 networks")):
        headline = check_photos(originals, posted, networks[:count]).headline()
        assert headline == f"Not recognised by {words} in any of the 2 photos."
    # The third network has no threshold, and says nothing.
    faces = noise(2, 0)
    posted = faces // 4 * 4
    checked = check_photos(faces, posted, networks)
    assert checked.models[2].threshold is None
    assert checked.headline() == "Recognised by both networks asked in at least one of the 2 photos."
    assert "third: no threshold is known" in checked.table()
    alone = check_photos(faces, posted, networks[2])
    assert alone.headline().startswith("Whether these networks recognise")
    assert after(alone).recognised == (None, None)


def test_one_photo_is_compared_with_its_own_original():
    one = check_photos(flat((3, 4)), flat((4, 3)), network("sface"), STRANGERS)
    side = after(one)
    assert side.own == pytest.approx((24 / 25,))
    assert (side.others, side.nearest, side.accepted, side.linked, side.rates) == ((None,), (None,), None, None, None)
    assert side.recognised == (True,)
    assert one.headline() == "Recognised by the one network asked."
    hidden = check_photos(flat((200, 0)), flat((0, 200)), network("sface"))
    assert hidden.headline() == "Not recognised by 1 of 1 network."
    assert "its own original" in one.table()
    assert json.loads(json.dumps(one.to_json(), allow_nan=False)) == one.to_json()


def test_thresholds_say_where_they_come_from():
    strangers = noise(1000, 1)
    known = check_photos(BOB, BOB, network("dlib"), strangers[:10])
    assert known.models[0].threshold.value == VERIFICATION_THRESHOLDS["dlib"]
    assert "LFW" in known.models[0].threshold.origin
    faces = noise(3, 2)
    estimated = check_photos(faces, faces, PIXELS, strangers).models[0].threshold
    assert "3 of 3000 pairs" in estimated.origin
    clean, crowd = (nn.functional.normalize(PIXELS(x / 255)) for x in (faces, strangers))
    assert int((clean @ crowd.T >= estimated.value - 1e-6).sum()) == 3
    assert check_photos(faces, faces, PIXELS, strangers[:999]).models[0].threshold is None


def test_the_cloak_marks_the_networks_it_was_fitted_on():
    blank = torch.zeros(3, 112, 112)
    networks = [network("sface"), network("dlib"), load_model([network("sface"), network("x")], name="both")]
    marked = check_photos(BOB, BOB, networks, cloak=Cloak(blank, 0.1, {"models": ["sface"]}))
    assert [model.white_box for model in marked.models] == [True, False, True]
    assert "sface*" in marked.table()
    assert "The cloak was fitted on sface." in marked.table()
    bare = check_photos(BOB, BOB, networks)
    assert [model.white_box for model in bare.models] == [None] * 3
    assert "The cloak was not given" in bare.table()
    for info in ({}, {"models": 3}, {"models": [1, None]}):
        assert check_photos(BOB, BOB, networks, cloak=Cloak(blank, 0.1, info)).fitted_on == ()


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (
            {"protected": BOB[:2]},
            ValueError,
            "protected photos must match the originals one to one, got 2 for 3 originals",
        ),
        ({"originals": [], "protected": []}, ValueError, "originals must hold at least one photo, got none"),
        ({"originals": 3, "protected": 3}, TypeError, "images must be a tensor or array"),
        ({"distractors": ""}, ValueError, "must not be the empty path"),
        *(({"batch_size": size}, ValueError, "batch_size must be a whole number, 1 or") for size in (0, 2.0, True)),
    ],
)
def test_check_refuses(changed, error, words):
    with pytest.raises(error, match=words):
        check_photos(**{"originals": BOB, "protected": BOB, "models": network(), **changed})


def test_a_protected_photo_of_another_size_has_no_quality():
    pair = [Image.new("RGB", (112, 112), (9, 90, 0))], [Image.new("RGB", (56, 56), (9, 90, 0))]
    checked = check_photos(*pair, network(), keep_pictures=True)
    (photo,) = checked.photos
    assert (photo.largest_change, photo.psnr, photo.face_ssim) == (None, None, None)
    assert "of another size than its original" in checked.table()
    assert after(checked).own == pytest.approx((1.0,))
    assert photo.pictures.face.width == 112


def test_quality_is_what_is_worked_out_by_hand(monkeypatch):
    faces = flat((100, 100), (0, 50))
    changed = faces.clone()
    changed[0] += 5
    checked = check_photos(faces, changed, network())
    assert [photo.largest_change for photo in checked.photos] == [5, 0]
    assert checked.photos[0].psnr == pytest.approx(20 * math.log10(255 / 5))
    # Flat pictures: only the means count, (2 a b + c) / (a^2 + b^2 + c) with c = (0.01 * 255)^2.
    c = 2.55**2
    ssim = [(2 * a * (a + 5) + c) / (a**2 + (a + 5) ** 2 + c) for a in (100, 100, 0)]
    assert checked.photos[0].ssim == pytest.approx(sum(ssim) / 3, abs=1e-4)
    assert (checked.photos[1].psnr, checked.photos[1].ssim) == (math.inf, 1.0)
    assert checked.to_json()["photos"][1]["psnr"] is None
    assert "Not measured" not in checked.table()
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    (photo,) = check_photos(faces[:1], changed[:1], network()).photos
    assert photo.face_ssimulacra2 is None
    assert photo.face_ciede2000 == checked.photos[0].face_ciede2000
    assert "Not measured: SSIMULACRA2. pip install" in check_photos(faces, changed, network()).table()
    for name in ("skimage.metrics", "skimage.color"):
        monkeypatch.setitem(sys.modules, name, None)
    without = check_photos(faces, changed, network())
    assert (without.photos[0].psnr, without.photos[0].ssim, without.photos[0].largest_change) == (None, None, 5)
    assert "Not measured: PSNR, SSIM and CIEDE2000 and SSIMULACRA2. pip install 'fastcloak[report]'" in without.table()
    assert without.photo_table().rows[0][2:] == ("5", "-", "-", "-", "-")


def test_folders_are_paired_by_relative_path_without_suffix(tmp_path):
    before = write(tmp_path / "before", a=FACE, trip__a=255 - FACE, trip__b=FACE)
    posted = write(tmp_path / "after", a=FACE)
    (posted / "trip").mkdir()
    Image.fromarray(255 - FACE).save(posted / "trip" / "a.jpg", quality=100)
    # Hidden files, and what is no photo, do not count.
    (posted / ".hidden.png").write_bytes(b"")
    (posted / "notes.txt").write_text("")
    checked = check_photos(before, posted, PIXELS)
    assert [photo.name for photo in checked.photos] == ["a.png", "trip/a.png"]
    assert checked.omitted == ("trip/b.png",)
    assert not checked.complete
    assert after(checked).own == pytest.approx((1.0, 1.0), abs=1e-2)
    assert "Not checked, since there is no protected photo of that name: trip/b.png." in checked.table()
    assert checked.to_json()["omitted"] == ["trip/b.png"]


def test_two_photos_of_one_name_pair_by_their_suffix(tmp_path):
    folders = [write(tmp_path / name, a=FACE, b=FACE) for name in ("before", "after")]
    for folder in folders:
        Image.fromarray(FACE).save(folder / "a.webp", lossless=True)
    checked = check_photos(*folders, network())
    assert sorted(photo.name for photo in checked.photos) == ["a.png", "a.webp", "b.png"]
    # Which of the two a.jpg is made from cannot be told.
    for name in ("a.png", "a.webp"):
        (folders[1] / name).unlink()
    Image.fromarray(FACE).save(folders[1] / "a.jpg")
    checked = check_photos(*folders, network())
    assert [photo.name for photo in checked.photos] == ["b.png"]
    assert sorted(checked.omitted) == ["a.png", "a.webp"]


def test_paths_that_are_no_pair_are_refused_by_name(tmp_path):
    before, other = write(tmp_path / "before", x=FACE, z=FACE), write(tmp_path / "after", x=FACE, y=FACE)
    with pytest.raises(ValueError, match=r"must hold the same photos as .* got differences: y, z; take the others out"):
        check_photos(before, other, network())
    with pytest.raises(ValueError, match=r"got differences: x, y, z"):
        check_photos(write(tmp_path / "other", z=FACE), other, network())
    # Two single photos are a pair whatever their names.
    checked = check_photos(before / "x.png", str(other / "y.png"), network())
    assert [photo.name for photo in checked.photos] == ["x.png"]
    with pytest.raises(ValueError, match="must both be folders, or both one photo"):
        check_photos(before, other / "y.png", network())
    with pytest.raises(FileNotFoundError, match=r"three\.png must be a photo or a folder"):
        check_photos(before / "three.png", other / "y.png", network())


@pytest.mark.promise("P15")
def test_what_cannot_be_checked_is_listed_and_the_rest_is_checked(tmp_path, photo, monkeypatch):
    blank = np.full((200, 300, 3), 90, np.uint8)
    before, posted = (write(tmp_path / name, a=photo(1, 1), b=blank) for name in ("before", "after"))
    for folder in (before, posted):
        (folder / "c.jpg").write_bytes(b"not a photo")
    crowd = write(tmp_path / "crowd", d=photo(9, 1), e=blank)
    checked = check_photos(before, posted, PIXELS, crowd)
    assert [photo.name for photo in checked.photos] == ["a.png"]
    assert checked.distractors == 1
    assert sorted(checked.failed) == sorted(["b.png", "c.jpg", str(crowd / "e.png")])
    assert "b.png must show a face" in checked.failed["b.png"]
    assert not checked.complete
    (before / "a.png").unlink()
    (posted / "a.png").unlink()
    nothing = check_photos(before, posted, PIXELS)
    assert (nothing.photos, nothing.models, sorted(nothing.failed)) == ((), (), ["b.png", "c.jpg"])
    assert not nothing.complete
    assert "No photo was checked" in nothing.table()
    assert "c.jpg must be" in page(nothing)
    assert json.loads(json.dumps(nothing.to_json()))["photos"] == []
    # A face that the detector finds once and not again.
    monkeypatch.setattr("fastcloak.evaluation.versions.detect", lambda *arguments, **options: [])
    (lost,) = check_photos([photo(1, 1)], [photo(1, 1)], PIXELS).failed.values()
    assert "must show a face that is found twice" in lost


def test_the_face_that_changed_is_the_one_that_is_checked(photo):
    # The other face is so small that the detector finds it only where it is asked to be thorough.
    group = np.full((672, 1000, 3), 127, np.uint8)
    group[:, :552] = photo(1, 1, scale=6)
    group[300:351, 612:654] = resized(photo(5, 1), 42, 51)
    touched = group.copy()
    touched[300:351, 612:654] = np.clip(touched[300:351, 612:654].astype(int) + 6, 0, 255)
    small = check_photos([group], [touched], PIXELS, keep_pictures=True)
    large = check_photos([group], [group], PIXELS, keep_pictures=True)
    assert small.photos[0].faces == large.photos[0].faces == 2
    assert small.photos[0].face_psnr < small.photos[0].psnr
    assert small.photos[0].pictures.face.width < large.photos[0].pictures.face.width
    crops = [torch.from_numpy(align(group, face)[0]).permute(2, 0, 1) / 255 for face in detect(group, thorough=True)]
    assert torch.cosine_similarity(*Pixels()(torch.stack(crops)), dim=0) < 0.95  # another face would be noticed
    assert after(small).own[0] > 0.98


def test_a_face_that_is_not_found_any_more_is_counted_and_in_no_cosine(photo):
    photos = [photo(1, number, scale=2) for number in (1, 2, 3)]
    # So small that the detector misses it.
    hidden = [photos[0], resized(photos[1], 11, 13), photos[2]]
    checked = check_photos(photos, hidden, PIXELS, noise(4, 0))
    side = after(checked)
    assert side.no_face == 1
    assert (side.own[1], side.others[1], side.recognised[1]) == (None, None, None)
    assert side.own[0] == pytest.approx(1.0, abs=1e-5)
    assert side.rates is not None
    assert checked.verdict(1) == "no face found"
    assert "In 1 protected photo no face was found" in checked.table()
    gone = check_photos(photos[1:2], hidden[1:2], PIXELS)
    assert gone.headline() == "The detector used here finds no face in 1 protected photo."
    assert after(gone).accepted is None


def test_faces_are_found_after_every_post_processing(photo):
    photos = [photo(2, number, scale=2) for number in (1, 2)]
    checked = check_photos(photos, photos, PIXELS)
    assert checked.post_processing == tuple(POST_PROCESSING)
    for one in checked.models[0].post_processing:
        assert one.after == one.before
        assert min(one.after.own) > 0.9, one.name
    assert checked.models[0].post_processing[3].after.own != after(checked).own


@pytest.mark.parametrize("quarters", [1, 2])
def test_a_turned_face_is_checked_upright(photo, quarters):
    upright = np.full((280, 280, 3), 127, np.uint8)
    upright[20:244, 40:224] = photo(1, 1, scale=2)
    other = np.clip(upright.astype(int) + 9, 0, 255).astype(np.uint8)
    checked = check_photos([upright], [other], PIXELS)
    turned = check_photos(*([np.rot90(pixels, quarters).copy()] for pixels in (upright, other)), PIXELS)
    for one, same in zip(checked.models[0].post_processing, turned.models[0].post_processing, strict=True):
        assert same.after.own == pytest.approx(one.after.own, abs=0.02), one.name


def test_only_one_photo_is_in_memory_at_a_time(tmp_path, monkeypatch):
    folder = write(tmp_path, **{f"p{i}": FACE for i in range(4)})
    alive, most = set(), []

    def counted(path):
        photo = read_photo(path)
        alive.add(id(photo.pixels))
        weakref.finalize(photo.pixels, alive.discard, id(photo.pixels))
        gc.collect()
        most.append(len(alive))
        return photo

    monkeypatch.setattr("fastcloak.evaluation.pairing.read_photo", counted)
    check_photos(folder, folder, network(), keep_pictures=True)
    assert len(most) == 8
    # The pair that is read, and the pair before it, whose names still point at it.
    assert max(most) <= 4


def test_names_are_shown_without_what_a_terminal_obeys():
    assert plain_name("a\x1b]0;owned\x07\n.png") == "a\\x1b]0;owned\\x07\\n.png"
    assert plain_name(os.fsdecode(b"\xff.png")) == "\\udcff.png"
    assert plain_name("Zoë 照片.png") == "Zoë 照片.png"
    assert plain_name("a\u202egnp.exe") == "a\\u202egnp.exe"


def test_post_processing_does_what_its_names_say():
    photo = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    before, even = photo.copy(), np.full((20, 30, 3), 77, np.uint8)
    made = {name: change(photo) for name, change in POST_PROCESSING.items()}
    assert [(name, picture.shape[:2]) for name, picture in made.items()] == [
        ("as saved", (31, 47)),
        ("JPEG 95", (31, 47)),
        ("JPEG 75", (31, 47)),
        ("JPEG 50", (31, 47)),
        ("half size", (16, 24)),
        ("double size", (62, 94)),
        ("half size, JPEG 75", (16, 24)),
        ("median", (31, 47)),
        ("Gaussian", (31, 47)),
        ("non-local means", (31, 47)),
    ]
    assert made["as saved"] is photo
    assert (photo == before).all()
    errors = [float(np.abs(made[name].astype(int) - photo).mean()) for name in ("JPEG 95", "JPEG 75", "JPEG 50")]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert (made["half size, JPEG 75"] == jpeg(made["half size"], 75)).all()
    for name, change in POST_PROCESSING.items():
        assert np.abs(change(even).astype(int) - 77).max() <= 1, name
        assert change(photo[:1, :1]).size >= 3, name
    # JPEG has colour at half resolution, and mixes columns of red and cyan, one pixel wide and of one brightness.
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (200, 60, 60), (60, 120, 120)
    spread = [float(np.ptp(picture[8:24, 8:24, 0].astype(int))) for picture in (stripes, jpeg(stripes, 95))]
    assert spread[1] < 0.3 * spread[0]


def test_filters_take_away_what_stands_out():
    picture = np.full((31, 31, 3), 40, np.uint8)
    picture[15, 15] = 240
    made = {name: POST_PROCESSING[name](picture).astype(int) for name in ("median", "Gaussian")}
    assert (made["median"] == 40).all()
    # A Gaussian of 1 pixel leaves 1 / (2 pi) of a point in its middle, and the sum as it was.
    assert made["Gaussian"][15, 15] == pytest.approx(40 + 200 / (2 * math.pi), abs=3)
    assert made["Gaussian"].sum() == pytest.approx(picture.sum(), rel=1e-3)
    # Noise goes, an edge stays.
    edge = np.full((40, 40, 3), 60)
    edge[:, 20:] = 180
    noisy = (edge + np.random.default_rng(0).integers(-4, 5, edge.shape)).astype(np.uint8)
    smoothed = POST_PROCESSING["non-local means"](noisy).astype(int)
    assert np.abs(smoothed - edge).mean() < 0.5 * np.abs(noisy - edge).mean()
    assert np.abs(smoothed - edge).max() <= 6


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 50), (9, 7)])
def test_filters_take_grey_and_tiny_pictures(size):
    grey = np.random.default_rng(1).integers(0, 256, (*size, 1), np.uint8).repeat(3, 2)
    for name in ("median", "Gaussian", "non-local means"):
        made = POST_PROCESSING[name](grey)
        assert (made.shape, made.dtype) == (grey.shape, np.uint8), name
        # Non-local means goes through Lab in whole steps.
        assert np.ptp(made.astype(int), axis=2).max() <= 3, name


def test_filters_are_tried_around_the_face_and_on_large_faces_made_smaller(photo, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fastcloak.evaluation.postprocessing.non_local_means", lambda pixels, h: seen.append(pixels.shape) or pixels
    )
    wide = np.full((280, 900, 3), 127, np.uint8)
    wide[20:244, 40:224] = photo(1, 1, scale=2)
    for pixels in (wide, photo(1, 1, scale=12)):
        checked = check_photos([pixels], [pixels], PIXELS)
        assert checked.models[0].post_processing[-1].after.own == pytest.approx((1.0,), abs=0.05)
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][0] == 280
    assert seen[0][1] < 450
    # ORL's faces fill their photos, of 1344 pixels here.
    assert max(seen[2]) < 3 * 224


def test_aligned_crops_need_no_extra(monkeypatch):
    for name in ("cv2", "onnx", "skimage", "skimage.metrics", "skimage.color", "ssimulacra2"):
        monkeypatch.setitem(sys.modules, name, None)
    checked = check_photos(BOB, BOB, network(), STRANGERS, keep_pictures=True)
    assert checked.post_processing == tuple(POST_PROCESSING)[:-1]
    assert "Non-local means was not tried: pip install 'fastcloak[faces]'" in checked.table()
    assert checked.models[0].post_processing[-1].after.no_face == 0
    assert checked.photos[0].pictures is not None
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcloak\[faces\]'"):
        check_photos([np.zeros((200, 150, 3), np.uint8)], [np.zeros((200, 150, 3), np.uint8)], network())
