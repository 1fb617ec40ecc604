import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import fastcloak
from fastcloak import Cloak
from fastcloak.cli.main import main
from fastcloak.cli.options import parse_model
from fastcloak.photos import detection as faces
from fastcloak.photos.inputs import load_faces
from fastcloak.protection import album
from fastcloak.system import packages

EPS = 8 / 255


@pytest.fixture(scope="module")
def orl():
    """Folder of one ORL person's ten photos (92x112, grey)."""
    return packages.orl_folder() / "s1"


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
    faces = load_faces(photos)
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
    assert (
        main(["fit", str(crops), "-o", str(tmp_path / "me.safetensors"), "--models", "dlib", "--json", *options]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["eps"], told["alpha"], told["decay"], told["models"]) == (4 / 255, 2 / 255, 0.5, ["dlib"])
    assert fastcloak.load(told["cloak"]).delta.abs().max() <= 4 / 255


def test_protect_protects_photos_and_says_which_failed(orl, cloak_file, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in (1, 2):
        Image.open(orl / f"{i}.pgm").save(photos / f"{i}.png")
    assert main(["protect", str(cloak_file), str(photos), "-o", str(tmp_path / "out")]) == 0
    assert "  2  protected\n  2  faces\n" in capsys.readouterr().out
    for i in (1, 2):
        before, after = (np.array(Image.open(folder / f"{i}.png")).astype(int) for folder in (photos, tmp_path / "out"))
        assert before.shape == after.shape
        assert 4 < np.abs(before - after).max() <= 8

    Image.new("RGB", (300, 200), "green").save(photos / "3.png")
    (photos / "4.jpg").write_bytes(b"not a photo")
    again = ["protect", str(cloak_file), str(photos), "-o", str(tmp_path / "out"), "--overwrite"]
    assert main(again) == 3
    captured = capsys.readouterr()
    assert "  2  done before\n  2  failed\n  1    " in captured.out
    assert "  1    no face found\n" in captured.out
    assert "3.png" in captured.err
    assert "4.jpg" in captured.err
    assert main([*again, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"done before": 2, "failed": 2}
    assert [photo["reason"] for photo in told["photos"]] == ["", "", "FaceNotFoundError", "PhotoError"]
    assert main(["protect", str(cloak_file), str(photos / "4.jpg"), "-o", str(tmp_path / "out")]) == 1


def test_protect_never_touches_the_originals(orl, cloak_file, tmp_path, capsys):
    Image.open(orl / "1.pgm").save(tmp_path / "1.png")
    before = (tmp_path / "1.png").read_bytes()
    assert main(["protect", str(cloak_file), str(tmp_path / "1.png"), "-o", str(tmp_path)]) == 1
    assert (tmp_path / "1.png").read_bytes() == before
    assert "1.png" in capsys.readouterr().err


def test_protect_does_not_overwrite_one_photo_with_another_of_its_name(orl, cloak_file, tmp_path, capsys):
    for i in (1, 2):
        (tmp_path / str(i)).mkdir()
        Image.open(orl / f"{i}.pgm").save(tmp_path / str(i) / "me.png")
    photos = [str(tmp_path / str(i)) for i in (1, 2)]
    assert main(["protect", str(cloak_file), *photos, "-o", str(tmp_path / "out")]) == 3
    assert "another photo is called me.png" in capsys.readouterr().err


@pytest.fixture
def photo_folders(orl, tmp_path):
    """Folders A, B with a photo x.png each, of different content, and y.png in B."""
    for folder, photo, name in (("A", 1, "x"), ("B", 2, "x"), ("B", 3, "y")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.open(orl / f"{photo}.pgm").save(tmp_path / folder / f"{name}.png")
    return tmp_path / "A", tmp_path / "B"


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_protect_never_writes_over_another_photo_of_the_list(cloak_file, photo_folders, options, tmp_path, capsys):
    a, b = photo_folders
    before = (b / "x.png").read_bytes()
    # By its own name, through a link, and by a roundabout name.
    (tmp_path / "link").symlink_to(b)
    for output in (b, tmp_path / "link", a / ".." / "B"):
        assert main(["protect", str(cloak_file), str(a / "x.png"), str(b / "x.png"), "-o", str(output), *options]) == 1
        assert (b / "x.png").read_bytes() == before
        assert capsys.readouterr().err.count("is one of the originals; name another folder") == 2


def test_protect_replaces_photos_in_the_output_only_when_told(cloak_file, photo_folders, capsys):
    a, b = photo_folders
    before = (b / "x.png").read_bytes()
    assert main(["protect", str(cloak_file), str(a), "-o", str(b)]) == 1
    assert "x.png exists; name another folder or pass --overwrite" in capsys.readouterr().err
    assert (b / "x.png").read_bytes() == before
    assert main(["protect", str(cloak_file), str(a), "-o", str(b), "--overwrite"]) == 0
    assert (b / "x.png").read_bytes() != before


def test_protect_with_overwrite_keeps_both_photos_of_one_name(cloak_file, photo_folders, tmp_path, capsys):
    arguments = ["protect", str(cloak_file), *map(str, photo_folders), "-o", str(tmp_path / "out"), "--overwrite"]
    assert main(arguments) == 3
    assert "another photo is called x.png" in capsys.readouterr().err
    assert main(arguments) == 3


def test_protect_makes_no_folder_without_photos(cloak_file, tmp_path):
    assert main(["protect", str(cloak_file), str(tmp_path / "nobody.png"), "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_fit_never_writes_over_a_file_that_is_no_cloak(cloak_file, photo_folders, tmp_path, capsys, monkeypatch):
    def too_late(*arguments, **options):
        raise AssertionError("work was done before the output was looked at")

    monkeypatch.setattr(fastcloak, "fit", too_late)
    a, b = photo_folders
    before = (a / "x.png").read_bytes()
    for output, words in (
        (a / "x.png", "may replace a cloak only"),
        (b, "got the folder"),
        (tmp_path / "none" / "me.safetensors", f"make {tmp_path / 'none'} first"),
    ):
        assert main(["fit", str(b), "-o", str(output)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("fastcloak: -o ")
        assert words in line
    assert (a / "x.png").read_bytes() == before
    # An older cloak may be replaced, and so the work begins.
    with pytest.raises(AssertionError, match="work was done"):
        main(["fit", str(b), "-o", str(cloak_file)])


def test_an_interruption_says_what_was_kept(cloak_file, photo_folders, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    protect_payload, calls = album.protect_payload, []

    def interrupt_second(*arguments, **options):
        calls.append(arguments)
        return protect_payload(*arguments, **options) if len(calls) == 1 else interrupt()

    monkeypatch.setattr(fastcloak, "fit", interrupt)
    monkeypatch.setattr(album, "protect_payload", interrupt_second)
    monkeypatch.setattr(fastcloak, "check_photos", interrupt)
    monkeypatch.setattr("fastcloak.cli.demo.run_demo", interrupt)
    monkeypatch.setattr("fastcloak.cli.doctor.diagnose", interrupt)
    _, b = photo_folders
    out = tmp_path / "out"
    for arguments, words in (
        (["fit", str(b), "-o", str(tmp_path / "new.safetensors")], "; no cloak was written"),
        (
            ["protect", str(cloak_file), str(b), "-o", str(out), "--jobs", "1"],
            f"; 1 of 2 photos are protected in {out}",
        ),
        (["demo", "-o", str(out)], f"; any finished files are in {out}"),
        (["doctor"], ""),
        (["check", str(b), str(b)], ""),
        (["check", str(b), str(b), "--html", str(tmp_path / "r.html")], "; no report was written"),
    ):
        assert main(arguments) == 130
        assert capsys.readouterr().err == f"fastcloak: interrupted{words}\n"
    assert sorted(file.name for file in out.iterdir()) == [".fastcloak.jsonl", "x.png"]


def test_a_closed_pipe_is_no_error(cloak_file):
    command = [sys.executable, "-m", "fastcloak", "info", str(cloak_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        told = program.stderr.read()
    assert told == b""


@pytest.mark.parametrize(
    "info",
    [
        {"losses": 3, "alpha": "x", "models": None, "versions": [1, {"a": []}]},
        {"losses": ["a"], "alpha": 10**400, "inner_alpha": {}, "photos": True},
        {"losses": [], "nested": {"a": {"b": [1, None]}}, "": ""},
    ],
)
def test_info_shows_odd_values(info, tmp_path, capsys):
    Cloak(torch.zeros(3, 112, 112), EPS, info).save(tmp_path / "odd.safetensors")
    assert main(["info", str(tmp_path / "odd.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 2 + len(info)
    assert main(["info", str(tmp_path / "odd.safetensors"), "--json"]) == 0


def test_info_lets_no_control_character_through(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\x9b\x7f\r\nmodels: sface\ud800"
    info = {evil: evil, "models": [evil], "versions": {evil: [evil]}, "losses": evil}
    Cloak(torch.zeros(3, 112, 112), EPS, info).save(tmp_path / "evil.safetensors")
    assert main(["info", str(tmp_path / "evil.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert len(shown.splitlines()) == 6
    assert "\\u001b]0;owned" in shown


def test_check_compares_originals_and_protected(orl, cloak_file, tmp_path, capsys):
    before, after, others = (tmp_path / name for name in ("before", "after", "others"))
    for folder in (before, others):
        folder.mkdir()
    for i in (1, 2, 3):
        Image.open(orl / f"{i}.pgm").save(before / f"{i}.png")
        Image.open(orl.parent / "s9" / f"{i}.pgm").save(others / f"{i}.png")
    assert main(["protect", str(cloak_file), str(before), "-o", str(after)]) == 0
    capsys.readouterr()
    arguments = ["check", str(before), str(after), "--models", "dlib", "--distractors", str(others)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "recognised by" in told.splitlines()[0].lower()
    assert "half size, JPEG 75" in told
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["photos"]) == told["distractors"] == 3
    first = told["models"][0]["post_processing"][0]
    assert first["name"] == "as saved"
    assert len(first["after"]["own"]) == 3
    assert set(first["after"]["rates"]) == {"protection_top1", "protection_top5", "linkage_top1", "mean_similarity"}


def test_check_writes_a_report_and_marks_what_the_cloak_was_learnt_on(orl, cloak_file, tmp_path, capsys):
    before, after, report = tmp_path / "before", tmp_path / "after", tmp_path / "report.html"
    before.mkdir()
    Image.open(orl / "1.pgm").save(before / "<b>.png")
    assert main(["protect", str(cloak_file), str(before), "-o", str(after)]) == 0
    arguments = ["check", str(before), str(after), "--cloak", str(cloak_file), "--html", str(report)]
    assert main([*arguments, "--models", "sface"]) == 0
    assert f"Report with pictures: {report}" in capsys.readouterr().out
    text = report.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 3
    assert "&lt;b&gt;.png" in text
    assert "sface*" in text
    assert main([*arguments, "--models", "sface", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["white_box"] is True


def test_check_takes_file_names_that_are_no_text(orl, tmp_path, capsys):
    folder, report = tmp_path / "photos", tmp_path / "report.html"
    folder.mkdir()
    names = [os.fsdecode(b"\xff<script>\x1b[31m.png"), "quote\"'.png"]
    for name in names:
        Image.open(orl / "1.pgm").save(folder / name)
    (folder / os.fsdecode(b"\xfe.jpg")).write_bytes(b"not a photo")
    arguments = ["check", str(folder), str(folder), "--models", "sface", "--html", str(report)]
    assert main(arguments) == 3
    told = capsys.readouterr().out
    assert told.replace("\n", "").isprintable()
    assert "\\udcff<script>\\x1b[31m.png" in told
    assert "Not checked: \\udcfe.jpg" in told
    text = report.read_bytes().decode("utf-8")
    assert text.count("<script>") == 1
    assert "\\udcff&lt;script&gt;\\x1b[31m.png" in text
    assert main([*arguments, "--json", "-"]) == 3
    assert {photo["name"] for photo in json.loads(capsys.readouterr().out)["photos"]} == set(names)


def test_check_never_writes_over_a_file_that_is_no_report(photo_folders, capsys, monkeypatch):
    def too_late(*arguments, **options):
        raise AssertionError("work was done before the output was looked at")

    monkeypatch.setattr(fastcloak, "check_photos", too_late)
    a, b = photo_folders
    (b / "mine.html").write_text("mine")
    before = (a / "x.png").read_bytes()
    for output, words in (
        (a / "x.png", "ends in .html or .htm"),
        (b / "mine.html", "is no report of fastcloak check"),
        (b, "got the folder"),
        (b / "none" / "report.html", "make "),
    ):
        assert main(["check", str(a), str(b), "--html", str(output)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert (a / "x.png").read_bytes() == before
    assert (b / "mine.html").read_text() == "mine"


def test_check_of_folders_with_other_photos_is_refused(photo_folders, orl, capsys):
    a, b = photo_folders
    Image.open(orl / "3.pgm").save(a / "z.png")
    assert main(["check", str(a), str(b), "--models", "dlib"]) == 1
    assert "must hold the same photos as" in (told := capsys.readouterr().err)
    assert "got differences: y, z;" in told


def test_check_of_photos_that_are_no_pair_fails_and_says_so(photo_folders, tmp_path, capsys):
    a, b = photo_folders
    assert main(["check", str(a / "x.png"), str(b / "x.png"), "--models", "sface"]) == 3
    told = capsys.readouterr().out
    assert told.startswith("No photo was checked")
    assert "x.png: not a pair: " in told
    (a / "y.png").write_bytes((b / "y.png").read_bytes())
    report = tmp_path / "report.html"
    assert main(["check", str(a), str(b), "--models", "sface", "--html", str(report)]) == 3
    told = capsys.readouterr().out
    assert told.startswith("Nothing was changed in 1 of 1 photo: not protected.\n")
    assert "\nNot checked: 1 file, listed with the reason.\n" in told
    assert "\nNot checked: x.png: not a pair: the protected photo must show the picture of its original" in told
    assert "Not checked: x.png: not a pair: " in report.read_text(encoding="utf-8")
    assert main(["check", str(a), str(b), "--models", "sface", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["failed"]["x.png"].startswith("not a pair: ")


def test_check_leaves_out_distractors_that_show_the_person(photo_folders, orl, tmp_path, capsys):
    _, b = photo_folders
    others = tmp_path / "others"
    others.mkdir()
    for person in (9, 12):
        Image.open(orl.parent / f"s{person}" / "1.pgm").save(others / f"s{person}.png")
    arguments = ["check", str(b), str(b), "--models", "sface", "--distractors"]
    # Other photos of the person.
    Image.open(orl / "4.pgm").save(others / "me.png")
    assert main([*arguments, str(others), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"] == [str(others / "me.png")]
    assert told["distractors"] == 2
    assert any(line.startswith("Left out: 1 of 3 distractors. They show the person") for line in told["summary"])
    # The originals: nobody else is left, and there are no rates.
    assert main([*arguments, str(b)]) == 3
    told = capsys.readouterr().out
    assert "Left out: 2 of 2 distractors." in told
    assert "2 photos, 0 distractors." in told


def test_check_says_what_it_could_not_check(photo_folders, capsys):
    a, b = photo_folders
    (a / "x.png").write_bytes((b / "x.png").read_bytes())
    # Protected photos that failed are missing: the others are checked.
    assert main(["check", str(b), str(a), "--models", "sface"]) == 3
    assert "Not checked, since there is no protected photo of that name: y.png." in capsys.readouterr().out
    (a / "y.png").write_bytes(b"not a photo")
    assert main(["check", str(b), str(a), "--models", "sface", "--json"]) == 3
    assert list(json.loads(capsys.readouterr().out)["failed"]) == ["y.png"]


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
        (["fit", ".", "-o", "me.safetensors", "--models", "arcface"], "unknown model 'arcface'"),
        (["fit", ".", "-o", "me.safetensors", "--models", "dlib,scales=2"], "model option must be"),
        (["check", "a", "b"], "a"),
        (["fit", ".", "-o", "me.safetensors", "--models", "dlib,scale=x"], "option scale must be a number, got 'x'"),
        (
            ["fit", ".", "-o", "me.safetensors", "--models", "n.onnx,input_size=1.5"],
            "input_size must be a whole number",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fit"], "PHOTO"),
        (["demo", "--people", "0"], "must be a whole number, 1 to 39, got '0'"),
        (["demo", "--people", "40"], "must be a whole number, 1 to 39, got '40'"),
        (["demo", "--people", "two"], "must be a whole number, 1 to 39, got 'two'"),
        (["fit", ".", "-o", "me.safetensors", "--eps", "256"], "must be 0 to 255 grey levels, got '256'"),
        (["fit", ".", "-o", "me.safetensors", "--eps", "nan"], "must be 0 to 255 grey levels, got 'nan'"),
        (["fit", ".", "-o", "me.safetensors", "--alpha=-1"], "must be 0 to 255 grey levels, got '-1'"),
        (["check", "a", "b", "--distractors", ""], "must be a path, got an empty one"),
    ],
)
def test_wrong_usage_is_exit_code_two(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "usage" in told
    assert words in told


@pytest.mark.parametrize("command", ["demo", "fit", "protect", "check", "info", "doctor"])
def test_every_argument_has_words(command, capsys):
    from fastcloak.cli.main import _parser

    (commands,) = [action for action in _parser()._actions if action.dest == "command" or action.choices]
    for action in commands.choices[command]._actions:
        assert action.help, action
        assert not action.help.startswith("("), action
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "float16 " not in told.replace("bfloat16", "")
    if command == "fit":
        assert "(default: sface)" in told
        assert "(default: the preset's, else 1)" in told
        assert "(default of ga: fast)" in told


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


def test_protect_finds_one_person_and_says_what_was_done(orl, cloak_file, tmp_path, capsys):
    album = tmp_path / "album"
    (album / "sub").mkdir(parents=True)
    for name, person in (("me.png", "s1"), ("sub/stranger.png", "s2")):
        Image.open(orl.parent / person / "9.pgm").resize((276, 336)).save(album / name)
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(1, 5):
        Image.open(orl.parent / "s1" / f"{i}.pgm").save(mine / f"{i}.png")
    command = ["protect", str(cloak_file), str(album), "-o", str(tmp_path / "out"), "--who", "me"]
    assert main([*command, "--enrolment", str(mine), "--dry-run"]) == 3
    captured = capsys.readouterr()
    assert "  1  planned\n  1  failed\n  1    not the enrolled person\n" in captured.out
    assert "stranger.png must show the enrolled person" in captured.err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--enrolment", str(mine), "--json", str(tmp_path / "told.json")]) == 3
    assert capsys.readouterr().out == ""
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["counts"] == {"protected": 1, "failed": 1}
    assert [photo["faces"] for photo in told["photos"]] == [1, 0]
    assert (tmp_path / "out" / "me.png").exists()
    for wrong in (command, [*command[:-2], "--enrolment", str(mine)], [*command[:-2], "--models", "dlib"]):
        assert main(wrong) == 1
        assert "--who me needs --enrolment FOLDER" in capsys.readouterr().err


def test_protect_says_each_time_where_it_cannot_tell_which_way_up_a_face_is(
    orl, cloak_file, tmp_path, capsys, monkeypatch
):
    people = tmp_path / "people"
    (people / "me").mkdir(parents=True)
    Image.open(orl / "1.pgm").resize((276, 336)).save(people / "me" / "photo.png")
    monkeypatch.setattr(faces, "_CLEAR", 1.0)
    monkeypatch.setattr(faces, "_LEAST_LEAD", 2.0)
    monkeypatch.setattr(faces, "_CLEAR_LEAD", 2.0)
    command = ["protect", str(cloak_file), str(people / "me"), "-o", str(tmp_path / "out")]
    many = ["protect-many", str(tmp_path), str(people), "-o", str(tmp_path / "many"), "--workers", "0"]
    for _ in range(2):
        assert main(command) == 3
        captured = capsys.readouterr()
        assert "photo.png: which way up a face is cannot be told" in captured.err
        counted = ["protected", "faces", "photos with a warning", "photos to turn upright and protect again"]
        assert "\n".join(f"  1  {what}" for what in counted) in captured.out
        assert main(many) == 3
        assert "  1  photos to turn upright and protect again" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(command) == 0
    assert main(command) == 0
    assert "  1  done before\n" in capsys.readouterr().out


def test_protect_writes_a_single_photo_as_asked(orl, cloak_file, tmp_path, capsys):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    exif[ExifTags.Base.Model] = "Phone"
    Image.open(orl / "1.pgm").convert("RGB").save(tmp_path / "photo.jpg", exif=exif, quality=90)
    command = ["protect", str(cloak_file), str(tmp_path / "photo.jpg"), "-o", str(tmp_path / "safe.jpg")]
    assert main([*command, "--strip-gps", "--quality", "80", "--jobs", "2"]) == 0
    with Image.open(tmp_path / "safe.jpg") as image:
        assert dict(image.getexif()) == {ExifTags.Base.Model: "Phone"}
        image.save(tmp_path / "eighty.jpg", quality=80)
        with Image.open(tmp_path / "eighty.jpg") as eighty:
            assert image.quantization == eighty.quantization
    assert main(command) == 1
    assert "safe.jpg exists" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"protected": 1}
    assert main([*command, "--overwrite", "--strip-metadata"]) == 0
    with Image.open(tmp_path / "safe.jpg") as image:
        assert not dict(image.getexif())


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--version"], 0), (["fit"], 2), (["nonsense"], 2)])
def test_help_and_wrong_usage_import_nothing_heavy(arguments, code):
    program = (
        "import sys\nfrom fastcloak.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'tqdm'} & set(sys.modules)\nsys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True).returncode == code


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_closed_and_full_streams_lose_no_work(closed, cloak_file, tmp_path):
    Image.new("RGB", (112, 112)).save(tmp_path / "a\x1b[31m.png")
    (tmp_path / "b\x1b\n.png").write_bytes(b"nonsense")
    command = f"{sys.executable} -m fastcloak protect {cloak_file} {tmp_path}/*.png -o {tmp_path}/out {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "out" / "a\x1b[31m.png").exists()
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_summaries_name_reasons_in_words():
    from collections import Counter

    from fastcloak.cli.output import reasons as in_words

    reasons = Counter(["PhotoError", "UnicodeDecodeError", "IsADirectoryError", "ZeroDivisionError", "Foreign"])
    assert {words.strip(): number for number, words in in_words(reasons)} == {
        "cannot be read or written as a photo": 1,
        "cannot be used": 1,
        "cannot be read or written": 1,
        "unexpected error": 2,
    }


@pytest.mark.parametrize("option", [("--eps", "0"), ("--eps", "0.3"), ("--steps", "0"), ("--alpha", "0")])
@pytest.mark.parametrize("command", ["fit", "fit-many"])
def test_a_fit_of_nothing_is_refused(orl, tmp_path, capsys, command, option):
    with pytest.raises(SystemExit) as stop:
        main([command, str(orl), "-o", str(tmp_path / "out"), *option])
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cloak_of_nothing_is_not_used(orl, tmp_path, capsys):
    for name, cloak in (
        ("zero", Cloak(torch.zeros(3, 112, 112), EPS)),
        ("less", Cloak(torch.full((3, 112, 112), 0.4 / 255), EPS)),
        ("none", Cloak(torch.full((3, 112, 112), 0.03), EPS, {"alpha": 0.0})),
    ):
        cloak.save(tmp_path / f"{name}.safetensors")
        assert main(["protect", str(tmp_path / f"{name}.safetensors"), str(orl), "-o", str(tmp_path / "out")]) == 1
        assert "protects nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_photo_that_is_already_protected_is_told_and_left_out(tmp_path, capsys):
    signs = torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(0)).sign()
    Cloak(signs * EPS * (1 - 1e-6), EPS).save(tmp_path / "me.safetensors")
    Image.fromarray(np.full((112, 112, 3), 90, np.uint8)).save(tmp_path / "a.png")

    def run(source, out, *more):
        return main(
            ["protect", str(tmp_path / "me.safetensors"), str(tmp_path / source), "-o", str(tmp_path / out), *more]
        )

    assert run("a.png", "once") == 0
    assert run("once/a.png", "twice") == 3
    told = capsys.readouterr()
    assert "1  already protected" in told.out
    assert "a.png" in told.err
    assert "--again" in told.err
    assert not (tmp_path / "twice" / "a.png").exists()
    assert run("once/a.png", "twice", "--again") == 0
    assert run("a.png", "once") == 0  # done before
