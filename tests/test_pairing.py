"""Which two photos are a pair: whatever a service does to a protected photo, and no other photo of anyone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcloak import check_photos
from fastcloak.evaluation.page import page
from fastcloak.evaluation.pairing import check_same_face, check_same_picture
from fastcloak.evaluation.postprocessing import POST_PROCESSING, jpeg, resized, scaled
from fastcloak.photos.alignment import align
from fastcloak.photos.detection import detect
from fastcloak.system import packages
from tests.judges import Pixels, network, orl_photo

JUDGE = network(module=Pixels)


@pytest.fixture(scope="module")
def photo():
    """(person, number) -> [280, 230, 3], one of the ORL photos."""
    folder = packages.orl_folder()
    return lambda person, number=1: orl_photo(folder, person, number, (230, 280))


@pytest.fixture(scope="module")
def face(photo):
    """(person, number) -> [112, 112, 3], the aligned face in that photo."""

    def aligned(*which):
        pixels = photo(*which)
        return align(pixels, detect(pixels)[0])[0]

    return aligned


def box_of(pixels):
    height, width = pixels.shape[:2]
    return None if height == width == 112 else np.array(detect(pixels)[0].box) / [width, height, width, height]


def masked(pixels, levels=8):
    """Protected as by a cloak of blobs of one sign, which is harder than pixel noise: it stays when made small."""
    signs = torch.randint(0, 2, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    mask = nn.functional.interpolate(signs, pixels.shape[:2])[0].permute(1, 2, 0).numpy() * levels
    return np.clip(pixels + mask, 0, 255).astype(np.uint8)


def verdict(original, protected, box=None):
    try:
        check_same_picture(original, protected)
        if box is not None:
            check_same_face(original, protected, box)
    except ValueError as error:
        return str(error)
    return "pair"


def grey(pixels):
    return np.repeat(np.array(Image.fromarray(pixels).convert("L"))[..., None], 3, 2)


@pytest.mark.parametrize("levels", [0, 8, 16])
def test_whatever_a_service_does_leaves_a_pair(photo, face, levels):
    services = {
        **POST_PROCESSING,
        "JPEG 20": lambda pixels: jpeg(pixels, 20),
        "a third": lambda pixels: scaled(pixels, 1 / 3),
        "grey": grey,
        "brighter": lambda pixels: np.clip(pixels.astype(int) + 20, 0, 255).astype(np.uint8),
        "less contrast": lambda pixels: (0.7 * pixels + 30).astype(np.uint8),
    }
    for original in (make(person) for make in (photo, face) for person in (1, 7, 16)):
        for name, change in services.items():
            assert verdict(original, change(masked(original, levels)), box_of(original)) == "pair", name


def test_other_photos_are_no_pair(photo, face):
    people = (1, 2, 7, 9, 16)
    for make, person in ((make, person) for make in (photo, face) for person in people):
        original = make(person)
        box = box_of(original)
        for other in [*((person, n) for n in (2, 4, 6)), *((p, 1) for p in people if p != person)]:
            found = verdict(original, make(*other), box)
            assert found.startswith("not a pair: the protected photo must show the "), (person, other)
            assert found.endswith("; compare the two photos and their names")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pixels: np.rot90(pixels), "turned by 90 degrees; turn it back"),
        (lambda pixels: np.rot90(pixels, 2), "turned by 180 degrees; turn it back"),
        (lambda pixels: np.rot90(pixels, 3), "turned by 90 degrees; turn it back"),
        (lambda pixels: resized(np.rot90(pixels), 140, 115), "turned by 90 degrees; turn it back"),
        (lambda pixels: pixels[:, ::-1], "got it mirrored; turn it back"),
        (lambda pixels: pixels[20:], "the shape of its original, 230x280 pixels, got 230x260; resized photos can be"),
        (lambda pixels: resized(pixels[28:252, 23:207], 230, 280), "must show the picture of its original"),
        (lambda pixels: np.roll(pixels, 23, 1), "must show the picture of its original"),
        (lambda pixels: 255 - pixels, "must show the picture of its original"),
        (lambda pixels: np.full_like(pixels, 90), "must show the picture of its original"),
    ],
)
def test_turned_mirrored_cut_and_blank_photos_are_no_pair(photo, change, words):
    assert words in verdict(photo(1), np.ascontiguousarray(change(masked(photo(1)))))


def test_the_face_and_what_is_around_it_must_both_be_the_same(photo):
    # As a burst from a tripod, and as one face in two scenes.
    scene = np.random.default_rng(0).integers(0, 256, (25, 40, 3), np.uint8)
    scene = np.array(Image.fromarray(scene).resize((1000, 625), Image.Resampling.BICUBIC))
    original, other_face, elsewhere = scene.copy(), scene.copy(), np.roll(scene, 10, 1)
    for picture, number in ((original, 1), (other_face, 5), (elsewhere, 1)):
        picture[200:480, 400:630] = photo(1, number)
    box = np.array([440, 240, 150, 200]) / [1000, 625, 1000, 625]
    assert verdict(original, masked(original), box) == "pair"
    assert "must show the face of its original" in verdict(original, other_face, box)
    assert "must show the picture around the face of its original" in verdict(original, elsewhere, box)


def test_photos_that_show_nothing_are_a_pair_and_no_copies():
    flat = np.full((112, 112, 3), 90, np.uint8)
    assert verdict(flat, flat + 30) == "pair"
    checked = check_photos([flat], [flat + 30], network(), [flat - 20])
    assert (checked.distractors, checked.left_out) == (1, ())


def test_copies_among_the_distractors_are_left_out_whatever_the_network(face):
    faces = [face(1, number) for number in (1, 4)]
    posted = [masked(one) for one in faces]
    others = [face(person) for person in (5, 9, 16)]
    crowd = [others[0], faces[0], jpeg(faces[1], 50), others[1], grey(posted[1]), others[2]]
    checked = check_photos(faces, posted, JUDGE, crowd)
    assert checked.left_out == ("distractors[1]", "distractors[2]", "distractors[4]")
    assert checked.distractors == 3
    assert checked.complete
    without = check_photos(faces, posted, JUDGE, others)
    assert checked.models[0].as_saved.after.rates == without.models[0].as_saved.after.rates
    assert "Left out: 3 of 6 distractors. They show the person or are copies of these photos" in checked.table()
    assert "no network here can tell beyond doubt" in checked.table()
    assert checked.to_json()["left_out"] == list(checked.left_out)
    named = check_photos(faces, posted, JUDGE, {"ann": others[:1], "me": faces})
    assert (named.distractors, named.left_out) == (1, ("me[0]", "me[1]"))
    none = check_photos(faces, posted, JUDGE, faces)
    assert (none.distractors, none.models[0].as_saved.after.rates) == (0, None)
    assert not none.complete


def test_photos_of_the_person_among_the_distractors_are_left_out_by_a_network_that_knows(face):
    faces = [face(1, number) for number in (1, 2, 3)]
    crowd = [face(*which) for which in ((1, 5), (1, 6), (2, 1), (3, 1), (12, 1))]
    checked = check_photos(faces, [masked(one) for one in faces], "sface", crowd)
    assert checked.left_out == ("distractors[0]", "distractors[1]")
    assert checked.distractors == 3
    assert "what sface takes for the person beyond doubt" in checked.table()


def test_a_photo_that_was_not_changed_is_never_praised(face):
    # Two faces that no network would match: not recognised, whether protected or not.
    faces, judge = [face(1), 255 - face(1)], network("sface", Pixels)
    bare = check_photos(faces, faces, judge)
    assert bare.models[0].as_saved.after.recognised == (False, False)
    assert bare.headline() == "Nothing was changed in 2 of 2 photos: not protected."
    assert [bare.verdict(i) for i in (0, 1)] == ["not protected: nothing was changed"] * 2
    assert bare.to_json()["photos"][0]["verdict"] == "not protected: nothing was changed"
    assert bare.complete
    shown = page(bare)
    assert "not protected: nothing was changed" in shown
    assert 'class="good"' not in shown
    # Without pictures too, there is a page.
    assert "<img" not in shown
    assert "same whole photo" in shown
    half = check_photos(faces, [masked(faces[0]), faces[1]], judge)
    assert half.headline() == (
        "Nothing was changed in 1 of 2 photos: not protected. "
        "Recognised by sface in 0.0 % of pairs; before protection in 0.0 %."
    )
    assert half.summary()[2] == "Not recognised by 1 of 1 network in the other photo."
    assert half.verdict(0) == "not recognised by 1 of 1 network"
