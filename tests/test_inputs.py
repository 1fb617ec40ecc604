"""Whatever photos a caller has become files, pictures and aligned faces, or are refused by name."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastcloak.photos.alignment import align
from fastcloak.photos.detection import detect
from fastcloak.photos.inputs import load_faces, named_faces, photo_files, saved_faces
from fastcloak.system.errors import FaceNotFoundError, PhotoError
from tests.pictures import aligned, orl_file, orl_pixels


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
        "mapping": {"a": pixels[0], "b": Image.fromarray(pixels[1]), "c": tmp_path / "2.png"},
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
    assert load_faces([orl_file(1), Image.fromarray(pixels), aligned()[0]]).shape == (3, 3, 112, 112)


def test_faces_are_named_and_a_folder_of_people_photos_loads():
    names, faces = named_faces(orl_file(7).parent)
    assert faces.shape == (10, 3, 112, 112)
    assert 0.1 < faces.mean() < 0.9
    assert names == [str(path) for path in photo_files(orl_file(7).parent)]
    assert named_faces({"anna": aligned()[0]})[0] == ["anna"]
    assert named_faces([aligned()[0], orl_file(7)])[0] == ["images[0]", f"images[1] ({orl_file(7)})"]


def test_saved_faces_are_in_8_bits_and_may_be_none():
    assert torch.equal(saved_faces(aligned()), torch.from_numpy(aligned()).permute(0, 3, 1, 2))
    for empty in (None, [], {}, {"anna": []}):
        assert saved_faces(empty).shape == (0, 3, 112, 112)
    with pytest.raises(ValueError, match="must not be the empty path"):
        saved_faces("")


def test_an_exif_orientation_of_a_pil_image_is_honoured():
    image = Image.fromarray(np.ascontiguousarray(np.rot90(aligned()[0])))
    image.getexif()[274] = 6
    assert torch.equal(load_faces([image]), load_faces(aligned(1)))
    assert image.size == (112, 112)
    assert image.getexif()[274] == 6


def test_a_photo_without_a_face_is_named(tmp_path):
    blank = np.zeros((40, 50, 3), np.uint8)
    Image.fromarray(blank).save(tmp_path / "blank.png")
    message = r"must show a face, got none found in 50x40 pixels; use a sharper.*aligned to 112x112"
    with pytest.raises(FaceNotFoundError, match=rf"^images\[1\] {message}"):
        load_faces([aligned()[0], blank])
    with pytest.raises(FaceNotFoundError, match=rf"^images\[0\] \(.*blank\.png\) {message}"):
        load_faces([tmp_path / "blank.png"])
    with pytest.raises(FaceNotFoundError, match=rf"blank\.png {message}"):
        load_faces(tmp_path)


def floats(value):
    images = torch.rand(3, 3, 112, 112)
    images[1, 2, 5, 5] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (floats(0) * 255, r"images\[0\] must be in \[0, 1\] where it is float, got .* to 25\d.*; divide by 255"),
        (floats(-0.1), r"images\[1\] must be in \[0, 1\] where it is float, got -0\.1 to .*; clip it"),
        (floats(1.01), r"images\[1\] must be in \[0, 1\].* to 1\.01; clip it"),
        (floats(float("nan")), r"images\[1\] must hold finite values.*got NaN or Inf"),
        (floats(float("inf")).numpy(), r"images\[1\] must hold finite values"),
        (np.full((1, 3, 112, 112), 1e300), r"images\[0\] must hold finite values"),
        ([floats(0)[0], floats(2.5)[1]], r"images\[1\] must be in \[0, 1\].*divide by 255"),
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
def test_wrong_pictures_are_refused_by_name_with_a_hint(images, message):
    with pytest.raises(ValueError, match=message):
        load_faces(images)


def test_wrong_types_are_refused_with_a_clear_message(tmp_path):
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
