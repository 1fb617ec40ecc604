import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from fastcloak.photos import detection as faces_module
from fastcloak.photos.alignment import TEMPLATE_112, Face, align, similarity_transform, warp
from fastcloak.photos.detection import _new_detector, _run_detector, choose_faces, detect, find_faces
from fastcloak.photos.files import read_photo
from fastcloak.photos.inputs import load_faces
from fastcloak.system import packages
from fastcloak.system.errors import FaceNotFoundError, PhotoError


def orl(person=1, photo=1):
    return packages.orl_folder() / f"s{person}" / f"{photo}.pgm"


def orl_pixels(person=1, photo=1, scale=1):
    pixels = read_photo(orl(person, photo)).pixels
    size = pixels.shape[1] * scale, pixels.shape[0] * scale
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def aligned(count=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), np.uint8)


def turned(angle, scale, shift):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def smooth(x, y):
    """A colour picture that is known at every real coordinate."""
    return 127 + 100 * np.stack([np.sin(x / 9), np.cos(y / 11), np.sin((x + y) / 13)], -1)


def test_a_similarity_is_recovered_exactly():
    for angle, scale, shift in ((0.0, 1.0, (0, 0)), (0.4, 3.7, (800, -20)), (-2.9, 0.05, (5, 7))):
        expected = turned(angle, scale, shift)
        points = np.random.default_rng(0).normal(size=(5, 2)) * 40
        found = similarity_transform(points, points @ expected[:, :2].T + expected[:, 2])
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_similarity_is_the_best_one_and_never_a_reflection():
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) * [-1, 1]
    best = similarity_transform(source, target)
    assert np.linalg.det(best[:, :2]) > 0
    assert best[0, 0] == pytest.approx(best[1, 1])
    assert best[0, 1] == pytest.approx(-best[1, 0])

    def error(matrix):
        return ((source @ matrix[:, :2].T + matrix[:, 2] - target) ** 2).sum()

    a, b = best[0, 0], best[1, 0]
    for change in np.eye(4) * 1e-3:
        near = np.array([[a + change[0], -b - change[1], best[0, 2] + change[2]],
                         [b + change[1], a + change[0], best[1, 2] + change[3]]])  # fmt: skip
        assert error(near) > error(best)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (np.zeros((5, 2)), np.zeros((4, 2)), r"both be \[m, 2\] with m >= 2, got \[5, 2\] and \[4, 2\]"),
        (np.zeros((5, 3)), np.zeros((5, 3)), r"both be \[m, 2\]"),
        (np.zeros((1, 2)), np.zeros((1, 2)), r"m >= 2"),
        (np.ones((5, 2)), TEMPLATE_112, r"source must hold points that differ, got 5 times \[1\.0, 1\.0\]"),
    ],
)
def test_a_similarity_of_wrong_points_is_refused(source, target, words):
    with pytest.raises(ValueError, match=words):
        similarity_transform(source, target)


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.0, 2.5, 7.3])
@pytest.mark.parametrize("angle", [0.0, 0.35, -1.2])
def test_alignment_undoes_a_known_similarity(scale, angle):
    to_photo = turned(angle, scale, (0, 0))
    to_photo[:, 2] = 650 - to_photo[:, :2] @ [56, 56]
    inverse = np.linalg.inv(to_photo[:, :2])
    y, x = np.mgrid[:1300, :1300]
    u, v = np.moveaxis((np.stack([x, y], -1) - to_photo[:, 2]) @ inverse.T, -1, 0)
    photo = np.rint(smooth(u, v)).astype(np.uint8)
    landmarks = (TEMPLATE_112 @ to_photo[:, :2].T + to_photo[:, 2]).astype(np.float32)

    crop, transform = align(photo, Face((0, 0, 1, 1), landmarks, 1.0))
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    np.testing.assert_allclose(transform[:, :2] @ to_photo[:, :2], np.eye(2), atol=1e-5)
    np.testing.assert_allclose(transform[:, :2] @ to_photo[:, 2] + transform[:, 2], 0, atol=1e-3)
    v, u = np.mgrid[:112, :112]
    # Linear interpolation between photo pixels flattens curves a little where a face has fewer of them than the crop.
    assert np.abs(crop - smooth(u, v)).max() < (6 if scale < 0.5 else 2)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((900, 900, 1), np.float32)
    stripes[:, ::2] = 1
    shrunk = warp(stripes, turned(0, 1 / 9, (-4 / 9, -4 / 9)), 100, 100)
    np.testing.assert_allclose(shrunk[1:-1, 1:-1].squeeze(), 0.5, atol=0.1)


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
    faces = detect(photo, thorough=True)
    assert [face.box[0] // 400 for face in faces] == [2, 0, 1]
    assert choose_faces(faces[::-1], "largest") == [faces[0]]
    assert choose_faces(faces, "all") == faces
    assert len(find_faces(photo, who="all")) == 3
    with pytest.raises(ValueError, match="who must be 'largest' or 'all', got 'me'; choose"):
        find_faces(photo, who="me")


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
    for person in (1, 5, 9):
        photos = [on_grey(orl_pixels(person, scale=3), by) for by in (0, angle)]
        (upright,), (turned,) = map(detect, photos)
        assert not turned.uncertain
        assert abs((turned.turn - upright.turn - angle + 180) % 360 - 180) < 12, person
        crops = [align(photo, face)[0][20:-20, 20:-20] for photo, face in zip(photos, (upright, turned), strict=True)]
        assert np.corrcoef(crops[0].ravel(), crops[1].ravel())[0, 1] > 0.75, person
        areas = [face.box[2] * face.box[3] for face in (upright, turned)]
        assert areas[1] == pytest.approx(areas[0], rel=0.4)


def test_upright_photos_are_looked_at_no_more_often(monkeypatch):
    looks = []
    monkeypatch.setattr(faces_module, "_run_detector", lambda *a, **k: looks.append(a) or _run_detector(*a, **k))
    for person in (1, 5, 9):
        detect(orl_pixels(person, scale=4))
    assert len(looks) == 6


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


def test_a_face_that_is_the_same_both_ways_up_is_uncertain(monkeypatch, tmp_path, caplog):
    pixels = orl_pixels(5, scale=3)
    top = pixels[: int(detect(pixels)[0].landmarks[2, 1])]
    card = on_grey(np.concatenate([top, top[::-1, ::-1]]), 0)
    monkeypatch.setattr(faces_module, "_CLEAR", 1.0)
    assert detect(card)[0].uncertain
    assert not detect(on_grey(pixels, 0))[0].uncertain
    Image.fromarray(card).save(tmp_path / "card.png")
    load_faces(tmp_path)
    assert "card.png: which way up a face is cannot be told" in caplog.text
    caplog.clear()
    load_faces([on_grey(pixels, 0)])
    assert caplog.text == ""


def test_an_opencv_that_cannot_be_silenced_detects_all_the_same(monkeypatch):
    cv2 = packages.require("cv2", extra="faces")
    monkeypatch.delattr(cv2.utils, "logging", raising=False)
    assert _new_detector(str(packages.yunet_file())) is not None
    with ThreadPoolExecutor(1) as executor:  # a new thread makes a new detector
        assert len(executor.submit(detect, orl_pixels(1, scale=4)).result()) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5), (112, 112), (700, 900)])
def test_photos_of_any_shape_without_a_face_give_none(shape):
    assert detect(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)) == []
    assert detect(np.zeros((*shape, 3), np.uint8)) == []


def test_detection_gives_the_same_in_any_order_and_in_threads():
    photos = [orl_pixels(person, scale=scale) for person, scale in ((1, 1), (2, 3), (3, 2), (4, 5))]
    expected = [detect(photo)[0].landmarks for photo in photos]
    found = [None] * len(photos)

    def work(index):
        found[index] = detect(photos[index])[0].landmarks

    threads = [threading.Thread(target=work, args=(index,)) for index in reversed(range(len(photos)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


def test_aligned_pictures_pass_exactly_in_every_form(tmp_path):
    pixels = aligned()
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    forms = {
        "array [N, H, W, 3]": pixels,
        "array [N, 3, H, W]": first,
        "tensor": torch.from_numpy(first),
        "channels_last tensor": torch.from_numpy(first).to(memory_format=torch.channels_last),
        "float tensor": expected,
        "tensor with grad": expected.clone().requires_grad_(),
        "float64 array": expected.double().numpy(),
        "list of arrays": list(pixels),
        "list of tensors": list(torch.from_numpy(first)),
        "tuple of PIL images": tuple(map(Image.fromarray, pixels)),
        "folder": tmp_path,
        "list of paths": [tmp_path / "0.png", str(tmp_path / "1.png"), tmp_path / "2.png"],
        "mixed list": [pixels[0], Image.fromarray(pixels[1]), tmp_path / "2.png"],
        "array with negative strides": pixels[..., ::-1][..., ::-1],
    }
    for name, images in forms.items():
        faces = load_faces(images)
        assert faces.dtype == torch.float32, name
        assert faces.is_contiguous(), name
        assert not faces.requires_grad, name
        assert torch.equal(faces, expected), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted(dtype):
    images = (torch.from_numpy(aligned()).permute(0, 3, 1, 2).double() / 255).to(dtype)
    assert torch.equal(load_faces(images), images.float())
    if dtype != torch.bfloat16:
        assert torch.equal(load_faces(images.numpy()), images.float())


def test_grey_pictures_become_three_equal_channels(tmp_path):
    grey = aligned()[..., 0]
    Image.fromarray(grey[0]).save(tmp_path / "grey.png")
    for images in (grey[:, None], grey[..., None], list(grey), [Image.fromarray(picture) for picture in grey]):
        faces = load_faces(images)
        assert torch.equal(faces, (torch.from_numpy(grey)[:, None].float() / 255).expand(-1, 3, -1, -1))
    assert torch.equal(load_faces(tmp_path)[0, 2], torch.from_numpy(grey[0]).float() / 255)


def test_the_callers_pictures_are_not_changed_and_not_shared():
    images = torch.rand(2, 3, 112, 112)
    before = images.clone()
    load_faces(images).zero_()
    assert torch.equal(images, before)


def test_other_pictures_are_detected_and_aligned():
    pixels = orl_pixels(3, 2, scale=2)
    expected = torch.from_numpy(align(pixels, detect(pixels)[0])[0]).permute(2, 0, 1).float()[None] / 255
    for images in (pixels[None], [Image.fromarray(pixels)], torch.from_numpy(pixels)[None].float() / 255):
        assert torch.equal(load_faces(images), expected)
    assert load_faces([orl(1), Image.fromarray(pixels), aligned()[0]]).shape == (3, 3, 112, 112)


def test_a_folder_of_people_photos_loads():
    faces = load_faces(packages.orl_folder() / "s7")
    assert faces.shape == (10, 3, 112, 112)
    assert 0.1 < faces.mean() < 0.9


def test_an_exif_orientation_of_a_pil_image_is_honoured():
    image = Image.fromarray(np.ascontiguousarray(np.rot90(aligned()[0])))
    image.getexif()[274] = 6
    assert torch.equal(load_faces([image]), load_faces(aligned(1)))


def test_who_all_takes_every_face():
    photo = group((100, 100, 2), (800, 50, 4))
    assert load_faces([photo]).shape[0] == 1
    assert load_faces([photo], who="all").shape[0] == 2


def test_a_photo_without_a_face_is_named(tmp_path):
    blank = np.zeros((40, 50, 3), np.uint8)
    Image.fromarray(blank).save(tmp_path / "blank.png")
    words = r"must show a face, got none found in 50x40 pixels; use a sharper.*aligned to 112x112"
    with pytest.raises(FaceNotFoundError, match=rf"^images\[1\] {words}"):
        load_faces([aligned()[0], blank])
    with pytest.raises(FaceNotFoundError, match=rf"^images\[0\] \(.*blank\.png\) {words}"):
        load_faces([tmp_path / "blank.png"])
    with pytest.raises(FaceNotFoundError, match=rf"blank\.png {words}"):
        load_faces(tmp_path)


def floats(**places):
    images = torch.rand(3, 3, 112, 112)
    images[1, 2, 5, 5] = places["value"]
    return images


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (floats(value=0) * 255, r"images\[0\] must be in \[0, 1\] where it is float, got .* to 25\d.*; divide by 255"),
        (floats(value=-0.1), r"images\[1\] must be in \[0, 1\] where it is float, got -0\.1 to .*; clip it"),
        (floats(value=1.01), r"images\[1\] must be in \[0, 1\].* to 1\.01; clip it"),
        (floats(value=float("nan")), r"images\[1\] must hold finite values.*got NaN or Inf"),
        (floats(value=float("inf")).numpy(), r"images\[1\] must hold finite values"),
        (np.full((1, 3, 112, 112), 1e300), r"images\[0\] must hold finite values"),
        ([floats(value=0)[0], floats(value=2.5)[1]], r"images\[1\] must be in \[0, 1\].*divide by 255"),
        (aligned().astype(np.int64), "images must be uint8 or float.*got int64; convert to uint8"),
        (aligned().astype(np.uint16), "images must be uint8 or float.*got uint16"),
        (torch.zeros(1, 3, 112, 112, dtype=torch.bool), r"images must be uint8 or float.*got torch\.bool"),
        (np.zeros((1, 3, 112, 112), complex), "images must be uint8 or float.*got complex128"),
        (np.array([["a"]]), "images must be uint8 or float"),
        (aligned()[0], r"images must be \[N, 3, H, W\].*got \[112, 112, 3\]; for one picture pass images\[None\]"),
        (torch.rand(3, 112, 112), r"got \[3, 112, 112\]; for one picture pass images\[None\]"),
        (torch.rand(1, 1, 3, 112, 112), r"images must be \[N, 3, H, W\].*got \[1, 1, 3, 112, 112\]"),
        (torch.rand(2, 4, 112, 112), r"images must have 3 colour channels.*got \[4, 112, 112\]; leave alpha out"),
        (np.zeros((2, 0, 5, 3), np.uint8), r"images must have 3 colour channels.*got \[0, 5, 3\]"),
        (torch.rand(2, 3, 112, 3), r"images must show by its shape.*got \[3, 112, 3\], which reads both ways"),
        (torch.rand(0, 3, 112, 112), r"images must hold at least one picture, got \[0, 3, 112, 112\]"),
        ([], "images must hold at least one picture, got an empty list"),
        ([aligned()], r"images\[0\] must be one picture.*got \[3, 112, 112, 3\]; pass a stack"),
        ([aligned()[0, ..., :2]], r"images\[0\] must have 3 colour channels.*got \[112, 112, 2\]"),
        ([Image.new("CMYK", (112, 112))], r"images\[0\] must be a grey or RGB photo.*CMYK"),
    ],
)
def test_wrong_pictures_are_refused_by_name_with_a_cure(images, words):
    with pytest.raises(ValueError, match=words):
        load_faces(images)


def test_wrong_types_are_refused_with_words(tmp_path):
    with pytest.raises(TypeError, match=r"got Image; for one picture pass \[image\]"):
        load_faces(Image.new("RGB", (112, 112)))
    with pytest.raises(
        TypeError, match=r"images must be a tensor or array, a folder, or a list.*got generator; collect"
    ):
        load_faces(picture for picture in aligned())
    with pytest.raises(TypeError, match=r"images\[0\] must be a path, a PIL image, an array or a tensor, got int"):
        load_faces([1])
    Image.new("RGB", (112, 112)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"got the single photo .*photo\.png; pass \[path\]"):
        load_faces(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"images\[0\] must be a photo, got the folder"):
        load_faces([tmp_path])
    with pytest.raises(FileNotFoundError, match="no such path"):
        load_faces(tmp_path / "absent")
    with pytest.raises(ValueError, match="who must be"):
        load_faces(aligned(), who="me")


def test_a_damaged_picture_in_a_list_is_named(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(aligned()[0]).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PhotoError, match=r"photo\.png must be a JPEG"):
        load_faces([aligned()[0], path])
    with Image.open(path) as image, pytest.raises(PhotoError, match=r"images\[1\] must be a whole picture"):
        load_faces([aligned()[0], image])


def test_aligned_pictures_need_no_extra_and_others_name_it():
    code = """
import sys
sys.modules["cv2"] = None
import numpy as np
from fastcloak.system.errors import MissingExtraError
from fastcloak.photos.inputs import load_faces
load_faces(np.zeros((1, 112, 112, 3), np.uint8))
try:
    load_faces(np.zeros((1, 50, 50, 3), np.uint8))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'fastcloak[faces]'" in done.stdout, done.stderr
    assert done.stderr == ""
