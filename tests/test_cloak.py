import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import fastcloak
from fastcloak import Cloak, CloakFileError
from tests.conftest import smooth_faces

EPS = 8 / 255


def make_cloak(eps=EPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    delta = (torch.rand(3, 112, 112, generator=generator) * 2 - 1) * 0.9999 * eps
    return Cloak(delta, eps, {"method": "ga", "losses": [0.1, 0.25], "models": ["tiny"]})


@pytest.fixture
def cloak():
    return make_cloak()


@pytest.fixture
def saved(cloak, tmp_path):
    path = tmp_path / "me.safetensors"
    cloak.save(path)
    return path


def test_save_and_load_is_exact(cloak, saved):
    loaded = fastcloak.load(saved)
    assert torch.equal(loaded.delta, cloak.delta)
    assert loaded.eps == cloak.eps
    assert loaded.info == cloak.info


def test_file_is_plain_safetensors_with_readable_metadata(saved):
    raw = saved.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header["delta"]["shape"] == [3, 112, 112]
    assert header["__metadata__"]["format"] == "fastcloak.cloak"
    assert json.loads(header["__metadata__"]["info"])["models"] == ["tiny"]


def test_saving_leaves_no_litter_and_replaces(cloak, saved):
    make_cloak(seed=1).save(saved)
    assert torch.equal(fastcloak.load(saved).delta, make_cloak(seed=1).delta)
    assert [path.name for path in saved.parent.iterdir()] == ["me.safetensors"]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 5000, -1])
def test_truncated_file_is_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CloakFileError, match="me.safetensors"):
        fastcloak.load(saved)


def test_any_flipped_bit_is_refused(saved):
    raw = saved.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    generator = np.random.default_rng(0)
    positions = [*range(0, 8 + length, 5), *generator.integers(8 + length, len(raw), 60)]
    for position in positions:
        altered = bytearray(raw)
        altered[position] ^= 1 << int(generator.integers(8))
        saved.write_bytes(altered)
        try:
            loaded = fastcloak.load(saved)
        except CloakFileError:
            continue
        # White space of the header may change without changing anything that is read.
        assert torch.equal(loaded.delta, make_cloak().delta)
        assert loaded.eps == EPS
        assert loaded.info == make_cloak().info


@pytest.mark.parametrize("content", [b"", b"not a cloak", b"\x00" * 5_000_000, b"\xff" * 64])
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(CloakFileError, match="other.safetensors"):
        fastcloak.load(path)


def test_a_loaded_cloak_does_not_hang_on_its_file(cloak, saved, tmp_path):
    # It was mapped once: another program that wrote over the file changed the mask, or ended the process.
    loaded = fastcloak.load(saved)
    make_cloak(seed=1).save(tmp_path / "other.safetensors")
    with open(saved, "r+b") as file:
        file.write((tmp_path / "other.safetensors").read_bytes())
    assert torch.equal(loaded.delta, cloak.delta)
    with open(saved, "r+b") as file:
        file.truncate(10)
    assert torch.equal(loaded.delta, cloak.delta)


def test_a_pipe_or_device_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CloakFileError, match="not a file but a pipe or device"):
            fastcloak.load(path)
    with pytest.raises(IsADirectoryError, match="got the folder"):
        fastcloak.load(tmp_path)


@pytest.mark.parametrize("delta", [torch.zeros(3, 112, 112, dtype=torch.float64), torch.zeros(3, 112, 56)])
def test_a_mask_of_another_kind_is_refused_by_name(delta, tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(save({"delta": delta}, {"format": "fastcloak.cloak", "schema": "1"}))
    with pytest.raises(CloakFileError, match=r"odd.safetensors holds no mask of float32 \[3, 112, 112\], got"):
        fastcloak.load(path)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"delta": torch.zeros(3, 112, 112)}))
    with pytest.raises(CloakFileError, match="not a fastcloak cloak"):
        fastcloak.load(path)


def test_a_newer_schema_says_update(saved, cloak):
    path = saved.with_name("newer.safetensors")
    path.write_bytes(save({"delta": cloak.delta}, {"format": "fastcloak.cloak", "schema": "2"}))
    with pytest.raises(CloakFileError, match="schema '2'.*update fastcloak"):
        fastcloak.load(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nobody"):
        fastcloak.load(tmp_path / "nobody.safetensors")


@pytest.mark.parametrize(
    ("delta", "eps", "words"),
    [
        (torch.zeros(3, 112, 113), EPS, r"\[3, 112, 112\].*got.*113"),
        (torch.zeros(3, 112, 112, dtype=torch.float64), EPS, "float32.*got.*float64"),
        (torch.full((3, 112, 112), 0.04), EPS, "at most eps"),
        (torch.full((3, 112, 112), math.nan), EPS, "at most eps.*nan"),
        (torch.zeros(3, 112, 112), 8.0, r"eps must be in \[0, 1\].*divided by 255"),
    ],
)
def test_no_cloak_beyond_its_bounds(delta, eps, words):
    with pytest.raises(ValueError, match=words):
        Cloak(delta, eps)


@pytest.mark.parametrize("eps", [np.float64(EPS), np.float32(EPS), np.float16(EPS), 1, np.int64(1)])
def test_eps_of_any_number_type_is_saved_and_loaded(eps, tmp_path):
    cloak = Cloak(torch.zeros(3, 112, 112), eps)
    assert type(cloak.eps) is float
    cloak.save(tmp_path / "me.safetensors")
    assert fastcloak.load(tmp_path / "me.safetensors").eps == float(eps)


@pytest.mark.parametrize("eps", [True, np.True_, "0.03", None, [0.03], 1j, math.nan])
def test_eps_that_is_no_number_is_refused(eps):
    with pytest.raises(ValueError, match=r"eps must be .*in \[0, 1\], got"):
        Cloak(torch.zeros(3, 112, 112), eps)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "info",
    [
        {"alpha": np.float32(0.5)},
        {"losses": np.zeros(3)},
        {"models": {"sface"}},
        {("a", "b"): 1},
        {"nested": nested(100_000)},
    ],
)
def test_info_that_json_cannot_hold_is_refused_at_once(info):
    with pytest.raises(ValueError, match="info must hold only what JSON can"):
        Cloak(torch.zeros(3, 112, 112), EPS, info)


@pytest.mark.parametrize("info", [None, [1], "ga"])
def test_info_must_be_a_mapping(info):
    with pytest.raises(ValueError, match="info must be a mapping, got"):
        Cloak(torch.zeros(3, 112, 112), EPS, info)


@pytest.mark.parametrize("info", ["[1]", "3", "null", '"ga"', "[" * 100_000, '{"a": ' + "[" * 100_000, "{"])
def test_a_file_with_odd_info_is_refused(info, cloak, tmp_path):
    from fastcloak.cloak import digest

    metadata = {"format": "fastcloak.cloak", "schema": "1", "eps": repr(EPS), "info": info}
    metadata["sha256"] = digest(cloak.delta, metadata)
    (tmp_path / "odd.safetensors").write_bytes(save({"delta": cloak.delta}, metadata))
    with pytest.raises(CloakFileError, match="odd.safetensors holds no valid cloak"):
        fastcloak.load(tmp_path / "odd.safetensors")


def test_apply_takes_arrays_in_any_memory_layout(cloak):
    floats = smooth_faces(2).numpy()
    levels = (floats * 255).round().astype(np.uint8)
    for array in (levels, floats, floats.astype(np.float64), floats.astype(np.float16)):
        before, expected = array.copy(), cloak.apply(array)
        foreign = array.astype(array.dtype.newbyteorder("S"))
        fixed = array.copy()
        fixed.flags.writeable = False
        for given in (foreign, fixed, array[::-1][::-1], np.asfortranarray(array)):
            result = cloak.apply(given)
            assert result.dtype == given.dtype
            assert result.dtype.byteorder == given.dtype.byteorder
            assert np.array_equal(result, expected)
            assert result.flags.writeable
        assert np.array_equal(cloak.apply(array[..., ::-1, :][..., ::-1, :]), expected)
        assert np.array_equal(cloak.apply(array[::-1]), expected[::-1])
        assert np.array_equal(array, before)


def test_apply_rounds_to_the_nearest_grey_level():
    cloak = Cloak(torch.full((3, 112, 112), 1.6 / 255), 2 / 255)
    faces = torch.full((1, 3, 112, 112), 100, dtype=torch.uint8)
    assert (cloak.apply(faces) == 102).all()
    assert (Cloak(-cloak.delta, 2 / 255).apply(faces) == 98).all()
    assert (cloak.apply(torch.full_like(faces, 255)) == 255).all()
    assert (Cloak(-cloak.delta, 2 / 255).apply(torch.zeros_like(faces)) == 0).all()


def test_apply_changes_no_pixel_by_more_than_eps(cloak):
    faces = (smooth_faces(4) * 255).round().to(torch.uint8)
    change = cloak.apply(faces).int() - faces.int()
    assert change.abs().max() == 8


def test_apply_gives_back_what_it_was_given(cloak):
    float_faces = smooth_faces(2)
    byte_faces = (float_faces * 255).round().to(torch.uint8)
    expected = cloak.apply(byte_faces)
    array = byte_faces.permute(0, 2, 3, 1).contiguous().numpy()
    assert np.array_equal(cloak.apply(array), expected.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(cloak.apply(byte_faces.numpy()), expected.numpy())
    picture = cloak.apply(Image.fromarray(array[0]))
    assert isinstance(picture, Image.Image)
    assert np.array_equal(np.array(picture), expected[0].permute(1, 2, 0).numpy())
    assert [np.array(p).tolist() for p in cloak.apply([Image.fromarray(array[0])])] == [np.array(picture).tolist()]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        result = cloak.apply(float_faces.to(dtype))
        assert result.dtype == dtype
        assert result.shape == float_faces.shape
    torch.testing.assert_close(cloak.apply(float_faces), (float_faces + cloak.delta).clamp(0, 1))
    assert torch.equal(byte_faces, (float_faces * 255).round().to(torch.uint8))  # the input is as before


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.full((1, 3, 112, 112), 255.0), ValueError, "divide by 255"),
        (torch.full((1, 3, 112, 112), math.nan), ValueError, r"must be in \[0, 1\]"),
        (torch.zeros(1, 3, 100, 100), ValueError, "fastcloak.protect"),
        (torch.zeros(1, 3, 112, 112, dtype=torch.int32), ValueError, "uint8 or float"),
        ("me.jpg", TypeError, "PIL image"),
        (np.zeros((3, 112, 112), object), ValueError, "uint8 or float .*got object"),
        (np.zeros((3, 112, 112), np.longdouble), ValueError, "uint8 or float .*got float128"),
        (np.zeros((3, 112, 112), np.uint16), ValueError, "uint8 or float .*got uint16"),
        (Image.new("RGBA", (112, 112)), ValueError, r"mode RGB, got RGBA; image.convert\('RGB'\)"),
        (Image.new("L", (112, 112)), ValueError, "mode RGB, got L"),
    ],
)
def test_apply_refuses_with_a_clear_message(cloak, images, error, words):
    with pytest.raises(error, match=words):
        cloak.apply(images)
