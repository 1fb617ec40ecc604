import json

import numpy as np
import pytest
import torch
from PIL import Image

import fastcloak
from fastcloak import Cloak, assets
from fastcloak.cli import main, parse_model

EPS = 8 / 255


@pytest.fixture(scope="module")
def orl():
    """Folder of one ORL person's ten photos (92x112, grey)."""
    return assets.orl_folder() / "s1"


@pytest.fixture
def cloak_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 28, 28, generator=generator) * 2 - 1
    delta = torch.nn.functional.interpolate(coarse, (112, 112))[0].clamp(-1, 1) * 0.031
    path = tmp_path / "me.safetensors"
    Cloak(delta, EPS, {"method": "ga", "models": ["sface"], "losses": [0.5], "alpha": 1 / 255}).save(path)
    return path


def test_fit_writes_a_cloak_that_hides_from_its_surrogate(orl, tmp_path, capsys):
    path = tmp_path / "me.safetensors"
    photos = [str(orl / f"{i}.pgm") for i in (1, 2, 3)]
    assert main(["fit", *photos, "-o", str(path), "--method", "opom", "--steps", "6", "--objective", "fi_uap"]) == 0
    assert "from 3 photos, learnt on sface with 18 image-gradients" in capsys.readouterr().out
    cloak = fastcloak.load(path)
    assert cloak.eps == EPS
    surrogate = fastcloak.load_model("sface")
    faces = fastcloak.faces.load_faces(photos)
    with torch.no_grad():
        clean, cloaked = (torch.nn.functional.normalize(surrogate(x)) for x in (faces, cloak.apply(faces)))
    assert (clean * cloaked).sum(1).max() < 0.5

    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "eps: 8 grey levels" in shown
    assert "objective: fi_uap" in shown
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_gradients"] == 18


def test_fit_takes_grey_levels_and_options(tmp_path, capsys):
    crops = tmp_path / "crops"
    crops.mkdir()
    generator = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(generator.integers(0, 256, (112, 112, 3), np.uint8)).save(crops / f"{i}.png")
    options = [
        "--eps",
        "4",
        "--alpha",
        "2",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--inner-steps",
        "1",
        "--decay",
        "0.5",
    ]
    assert main(["fit", str(crops), "-o", str(tmp_path / "me.safetensors"), "--model", "dlib", "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["eps"], told["alpha"], told["decay"], told["models"]) == (4 / 255, 2 / 255, 0.5, ["dlib"])
    assert fastcloak.load(told["cloak"]).delta.abs().max() <= 4 / 255


def test_apply_protects_photos_and_says_which_failed(orl, cloak_file, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in (1, 2):
        Image.open(orl / f"{i}.pgm").save(photos / f"{i}.png")
    assert main(["apply", str(cloak_file), str(photos), "-o", str(tmp_path / "out")]) == 0
    assert "2 photos protected" in capsys.readouterr().out
    for i in (1, 2):
        before, after = (np.array(Image.open(folder / f"{i}.png")).astype(int) for folder in (photos, tmp_path / "out"))
        assert before.shape == after.shape
        assert 4 < np.abs(before - after).max() <= 8

    Image.new("RGB", (300, 200), "green").save(photos / "3.png")
    (photos / "4.jpg").write_bytes(b"not a photo")
    assert main(["apply", str(cloak_file), str(photos), "-o", str(tmp_path / "out")]) == 3
    captured = capsys.readouterr()
    assert "2 photos protected" in captured.out
    assert "3.png" in captured.err
    assert "4.jpg" in captured.err
    assert main(["apply", str(cloak_file), str(photos), "-o", str(tmp_path / "out"), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert len(told["protected"]) == 2
    assert len(told["failed"]) == 2
    assert main(["apply", str(cloak_file), str(photos / "4.jpg"), "-o", str(tmp_path / "out")]) == 1


def test_apply_never_touches_the_originals(orl, cloak_file, tmp_path, capsys):
    Image.open(orl / "1.pgm").save(tmp_path / "1.png")
    before = (tmp_path / "1.png").read_bytes()
    assert main(["apply", str(cloak_file), str(tmp_path / "1.png"), "-o", str(tmp_path)]) == 1
    assert (tmp_path / "1.png").read_bytes() == before
    assert "1.png" in capsys.readouterr().err


def test_apply_does_not_overwrite_one_photo_with_another_of_its_name(orl, cloak_file, tmp_path, capsys):
    for i in (1, 2):
        (tmp_path / str(i)).mkdir()
        Image.open(orl / f"{i}.pgm").save(tmp_path / str(i) / "me.png")
    photos = [str(tmp_path / str(i)) for i in (1, 2)]
    assert main(["apply", str(cloak_file), *photos, "-o", str(tmp_path / "out")]) == 3
    assert "another photo is called me.png" in capsys.readouterr().err


def test_check_compares_originals_and_protected(orl, cloak_file, tmp_path, capsys):
    before, after, others = (tmp_path / name for name in ("before", "after", "others"))
    for folder in (before, others):
        folder.mkdir()
    for i in (1, 2, 3):
        Image.open(orl / f"{i}.pgm").save(before / f"{i}.png")
        Image.open(orl.parent / "s9" / f"{i}.pgm").save(others / f"{i}.png")
    assert main(["apply", str(cloak_file), str(before), "-o", str(after)]) == 0
    capsys.readouterr()
    arguments = ["check", str(before), str(after), "--model", "dlib", "--distractors", str(others)]
    assert main(arguments) == 0
    assert "dlib" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["photos"] == told["distractors"] == 3
    assert len(told["models"][0]["to_own"]) == 3


def test_doctor_says_what_would_run(capsys):
    assert main(["doctor"]) == 0
    assert "reference" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engine"]["answer"] == "eager"
    assert told["sface"]["answer"] == "yes"
    if not torch.cuda.is_available():
        assert told["device"]["answer"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "nobody.safetensors"], "nobody.safetensors"),
        (["fit", "nobody.jpg", "-o", "me.safetensors"], "nobody.jpg"),
        (["fit", ".", "-o", "me.safetensors", "--model", "arcface"], "unknown model 'arcface'"),
        (["fit", ".", "-o", "me.safetensors", "--model", "dlib,scales=2"], "model option must be"),
        (["check", "a", "b"], "a"),
        (["demo", "--people", "40"], "people must be 1 to 39"),
    ],
)
def test_failures_are_one_line_and_exit_code_one(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (112, 112)).save("1.png")
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastcloak: ")
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_wrong_usage_is_exit_code_two(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_model_options_on_the_command_line(tmp_path):
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "mean.onnx")
    surrogate = parse_model(f"{tmp_path / 'mean.onnx'},scale=2,shift=-1,bgr")
    red = torch.zeros(1, 3, 112, 112)
    red[:, 0] = 1
    torch.testing.assert_close(surrogate(red), torch.tensor([[-1.0, -1.0, 1.0]]))
