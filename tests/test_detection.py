"""Faces are found, whichever way up and how large they are."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fastcloak.photos.alignment import TEMPLATE_112, align
from fastcloak.photos.detection import detect, find_faces
from fastcloak.photos.inputs import load_faces
from fastcloak.system import packages
from fastcloak.system.errors import FaceNotFoundError
from tests.pictures import orl_pixels


def test_faces_of_every_orl_person_are_found_and_aligned():
    for person in range(1, 41):
        pixels = orl_pixels(person, 1 + person % 10)
        faces = detect(pixels)
        assert len(faces) == 1, person
        left, top, width, height = faces[0].box
        assert -10 < left < left + width < 102
        assert -10 < top < top + height < 132
        assert faces[0].landmarks.dtype == np.float32
        _, transform = align(pixels, faces[0])
        placed = faces[0].landmarks @ transform[:, :2].T + transform[:, 2]
        assert np.abs(placed - TEMPLATE_112).max() < 12, person


@pytest.mark.parametrize("scale", [0.5, 4, 20])
def test_the_same_face_is_found_in_the_same_place_at_any_size(scale):
    shifts = []
    for person in (1, 5, 9, 14):
        small = orl_pixels(person)
        large = np.array(
            Image.fromarray(small).resize((round(92 * scale), round(112 * scale)), Image.Resampling.BICUBIC)
        )
        landmarks = (detect(large)[0].landmarks + 0.5) / scale - 0.5
        transform = align(small, detect(small)[0])[1]
        placed = landmarks @ transform[:, :2].T + transform[:, 2]
        shifts.append(np.abs(placed.mean(0) - TEMPLATE_112.mean(0)).max())
    # Half a side leaves a face of 35 px, where landmarks are coarse.
    assert max(shifts) < (6 if scale < 1 else 3.5)


def group(*people, background=128):
    photo = np.full((900, 1600, 3), background, np.uint8)
    for (left, top, scale), person in zip(people, (1, 5, 9), strict=False):
        face = orl_pixels(person, scale=scale)
        photo[top : top + face.shape[0], left : left + face.shape[1]] = face
    return photo


def test_faces_come_largest_first_and_who_chooses():
    photo = group((100, 100, 2), (800, 50, 4), (500, 600, 1))
    faces = find_faces(photo, who="all")
    assert [face.box[0] // 400 for face in faces] == [2, 0, 1]
    (largest,) = find_faces(photo)
    assert largest.box[0] // 400 == 2
    with pytest.raises(ValueError, match="who must be 'largest' or 'all', .* Enrolment, got 'me'; .*enrol"):
        find_faces(photo, who="me")
    with pytest.raises(FaceNotFoundError, match="^blank must show a face, got none found in 50x40 pixels"):
        find_faces(np.zeros((40, 50, 3), np.uint8), name="blank")


def test_a_thorough_look_finds_faces_that_the_first_one_misses():
    photo = np.full((3000, 4000, 3), 128, np.uint8)
    photo[200:1320, 200:1120] = orl_pixels(1, scale=10)
    photo[2500:2612, 3500:3592] = orl_pixels(5)
    assert len(detect(photo)) == 1
    assert len(detect(photo, thorough=True)) == 2


def on_grey(pixels, angle, side=600):
    """A photo turned counterclockwise in the middle of a grey one."""
    photo = Image.new("RGB", (side, side), (128, 128, 128))
    photo.paste(Image.fromarray(pixels), ((side - pixels.shape[1]) // 2, (side - pixels.shape[0]) // 2))
    return np.array(photo.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))


@pytest.mark.parametrize("angle", [45, 90, 160, 180, 270, 330])
def test_a_turned_face_is_aligned_as_the_upright_one_is(angle):
    for person in (1, 5):
        photos = [on_grey(orl_pixels(person, scale=3), by) for by in (0, angle)]
        (upright,), (turned,) = map(detect, photos)
        assert not turned.uncertain
        assert abs((turned.turn - upright.turn - angle + 180) % 360 - 180) < 12, person
        crops = [align(photo, face)[0][20:-20, 20:-20] for photo, face in zip(photos, (upright, turned), strict=True)]
        assert np.corrcoef(crops[0].ravel(), crops[1].ravel())[0, 1] > 0.75, person
        areas = [face.box[2] * face.box[3] for face in (upright, turned)]
        assert areas[1] == pytest.approx(areas[0], rel=0.4)


@pytest.fixture
def looks(monkeypatch):
    """Counts the looks that detectors take; a detector belongs to its thread, so a new thread has one that counts."""
    cv2, count = packages.require("cv2", extra="faces"), []

    class Counting:
        create = staticmethod(lambda *settings: Counting(create(*settings)))

        def __init__(self, detector):
            self.detector = detector

        def __getattr__(self, name):
            return getattr(self.detector, name)

        def detect(self, pixels):
            count.append(pixels.shape)
            return self.detector.detect(pixels)

    create = cv2.FaceDetectorYN.create
    monkeypatch.setattr(cv2, "FaceDetectorYN", Counting)
    return count


def in_a_new_thread(work, *arguments):
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work, *arguments).result()


def test_upright_photos_are_looked_at_no_more_often(looks):
    in_a_new_thread(lambda: [detect(orl_pixels(person, scale=4)) for person in (1, 5, 9)])
    assert len(looks) == 6


def test_an_opencv_that_cannot_be_silenced_detects_all_the_same(monkeypatch):
    monkeypatch.delattr(packages.require("cv2", extra="faces").utils, "logging", raising=False)
    assert len(in_a_new_thread(detect, orl_pixels(1, scale=4))) == 1


def test_each_face_of_a_group_has_its_own_way_up():
    photo = group((100, 100, 4), (800, 50, 4))
    photo[:, 800:] = photo[::-1, :799:-1]
    faces = detect(photo, thorough=True)
    turns = {face.box[0] > 800: face.turn for face in faces}
    assert len(faces) == 2
    assert abs(turns[False]) < 20
    assert abs(turns[True]) > 160


def test_what_is_known_of_the_way_up_is_taken():
    photo = on_grey(orl_pixels(5, scale=3), 180)
    assert [abs(face.turn) > 160 for face in detect(photo, turn=180)] == [True]
    assert all(abs(face.turn) < 60 for face in detect(photo, turn=0))


def test_a_face_that_is_the_same_both_ways_up_is_uncertain(caplog):
    pixels = orl_pixels(5, scale=3)
    top = pixels[: int(detect(pixels)[0].landmarks[2, 1])]
    card = on_grey(np.concatenate([top, top[::-1, ::-1]]), 0)
    assert detect(card)[0].uncertain
    load_faces({"upright": on_grey(pixels, 0)})
    assert caplog.text == ""
    load_faces({"card": card})
    assert "card: which way up a face is cannot be told" in caplog.text


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5), (112, 112), (300, 400)])
def test_photos_of_any_shape_without_a_face_give_none(shape):
    assert detect(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)) == []
    assert detect(np.zeros((*shape, 3), np.uint8)) == []


def test_detection_gives_the_same_in_any_order_and_in_threads():
    photos = [orl_pixels(person, scale=scale) for person, scale in ((1, 1), (2, 3), (3, 2), (4, 5))]
    expected = [detect(photo)[0].landmarks for photo in photos]
    with ThreadPoolExecutor(len(photos)) as executor:
        found = [faces[0].landmarks for faces in executor.map(detect, photos[::-1])][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pixels_that_detect_cannot_take_are_refused():
    for pixels, got in (
        (np.zeros((5, 5)), r"float64 \[5, 5\]"),
        (np.zeros((5, 5, 4), np.uint8), r"uint8 \[5, 5, 4\]"),
        ([[1]], "list"),
    ):
        with pytest.raises(ValueError, match=rf"pixels must be a uint8 array \[H, W, 3\], RGB, got {got}"):
            detect(pixels)
    with pytest.raises(ValueError, match="at least one pixel"):
        detect(np.zeros((0, 5, 3), np.uint8))
