"""The commands as people type them: what they write, print and return."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFilter

import fastcloak
from fastcloak import Cloak
from fastcloak.cli.fit import PRESET
from fastcloak.cli.main import COMMANDS, build_parser, main
from fastcloak.cli.options import fit_options, parse_model
from fastcloak.cli.output import reasons
from fastcloak.photos.inputs import load_faces
from fastcloak.protection import album
from fastcloak.system import packages

EPS = 8 / 255


@pytest.fixture
def cli(capsys):
    """Runs a command, which must end with that exit code; returns its stdout and stderr."""

    def run(*arguments, code=0):
        try:
            found = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            found = stop.code
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return run


def orl_photo(person, photo, to, size=(92, 112)):
    to.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(packages.orl_folder() / f"s{person}" / f"{photo}.pgm") as image:
        image.resize(size).save(to)
    return to


@pytest.fixture
def cloak_file(tmp_path):
    signs = torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(0)).sign()
    info = {"method": "ga", "models": ["sface"], "losses": [0.5], "alpha": 1 / 255}
    Cloak(signs * EPS * (1 - 1e-6), EPS, info).save(tmp_path / "me.safetensors")
    return tmp_path / "me.safetensors"


@pytest.fixture
def photo_folders(tmp_path):
    """Folders A, B with a photo x.png each, of different content, and y.png in B."""
    for photo, name in enumerate(("A/x", "B/x", "B/y"), 1):
        orl_photo(1, photo, tmp_path / f"{name}.png")
    return tmp_path / "A", tmp_path / "B"


# ---- fit and info


def test_fit_writes_a_cloak_that_hides_from_its_network(cli, tmp_path):
    path = tmp_path / "me.safetensors"
    photos = [orl_photo(1, i, tmp_path / f"{i}.png") for i in (1, 2, 3)]
    options = ("--method", "opom", "--steps", 6, "--objective", "fi_uap", "--models", "sface")
    out, _ = cli("fit", *photos, "-o", path, *options)
    assert "from 3 photos, fitted on sface with 18 image-gradients" in out
    cloak, faces, surrogate = fastcloak.load(path), load_faces(photos), fastcloak.load_model("sface")
    assert cloak.eps == EPS
    with torch.no_grad():
        clean, cloaked = (torch.nn.functional.normalize(surrogate(x)) for x in (faces, cloak.apply(faces)))
    assert (clean * cloaked).sum(1).max() < 0.5
    out, _ = cli("info", path)
    assert {"eps: 8 grey levels", "objective: fi_uap"} <= set(out.splitlines())
    assert json.loads(cli("info", path, "--json")[0])["image_gradients"] == 18


def test_fit_takes_grey_levels_and_several_networks(cli, tmp_path):
    for i in (1, 2):
        orl_photo(1, i, tmp_path / f"{i}.png", (112, 112))
    options = ["--eps", 4, "--alpha", 2, "--steps", 2, "--batch-size", 2, "--inner-steps", 1, "--decay", 0.5]
    command = ("fit", tmp_path, "-o", tmp_path / "me.st", "--json", *options, "--models", "dlib", "sface")
    info = json.loads(cli(*command)[0])
    assert (info["eps"], info["alpha"], info["decay"], info["models"]) == (4 / 255, 2 / 255, 0.5, ["dlib", "sface"])
    assert fastcloak.load(info["cloak"]).delta.abs().max() <= 4 / 255


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "strong"),
        (["--steps", "5", "--models", "dlib"], "strong"),
        (["--preset", "fast"], "fast"),
        (["--method", "opom"], None),
    ],
)
def test_a_person_gets_the_strongest_recipe_and_opom_its_own(monkeypatch, tmp_path, options, expected):
    parsed = build_parser().parse_args(["fit", str(tmp_path), "-o", "me.st", *options])
    assert tuple(parsed.models) == (("dlib",) if "--models" in options else ("sface", "dlib"))
    assert fit_options(parsed, PRESET).get("preset") == expected
    many = build_parser().parse_args(["fit-many", str(tmp_path), "-o", "cloaks"])
    assert (tuple(many.models), fit_options(many).get("preset")) == (("sface",), None)


def test_model_options_on_the_command_line(monkeypatch):
    monkeypatch.setattr(fastcloak, "load_model", lambda what, **options: (what, options))
    file, options = parse_model("my/net.onnx,scale=2,shift=-0.5,input_size=96,bgr")
    assert (file, options) == ("my/net.onnx", {"scale": 2.0, "shift": -0.5, "input_size": 96, "bgr": True})


EVIL = "\x1b]0;owned\x07\x9b\x7f\r\nmodels: sface\ud800"


@pytest.mark.parametrize(
    "info",
    [
        {"losses": 3, "alpha": "x", "models": None, "versions": [1, {"a": []}]},
        {"losses": ["a"], "alpha": 10**400, "inner_alpha": {}, "photos": True},
        {"losses": [], "nested": {"a": {"b": [1, None]}}, "": ""},
        {EVIL: EVIL, "models": [EVIL], "versions": {EVIL: [EVIL]}, "losses": EVIL},
    ],
    ids=["types", "large", "nested", "control characters"],
)
def test_info_shows_odd_values_without_control_characters(info, cli, tmp_path):
    Cloak(torch.zeros(3, 112, 112), EPS, info).save(tmp_path / "odd.safetensors")
    out, _ = cli("info", tmp_path / "odd.safetensors")
    assert len(out.splitlines()) == 2 + len(info)
    assert out.replace("\n", "").isprintable()
    assert ("\\u001b]0;owned" in out) == (EVIL in info)
    assert json.loads(cli("info", tmp_path / "odd.safetensors", "--json")[0])["eps"] == EPS


# ---- protect


@pytest.mark.promise("P15")
def test_protect_says_which_photos_failed_and_protects_the_others(cli, cloak_file, tmp_path):
    photos = tmp_path / "photos"
    for i in (1, 2):
        orl_photo(1, i, photos / f"{i}.png")
    command = ("protect", cloak_file, photos, "-o", tmp_path / "out")
    out, _ = cli(*command)
    assert "  2  protected\n  2  faces\n" in out
    Image.new("RGB", (300, 200), "green").save(photos / "3.png")
    (photos / "4.jpg").write_bytes(b"not a photo")
    out, err = cli(*command, "--overwrite", code=3)
    assert "  2  done before\n  2  failed\n  1    " in out
    assert "  1    no face found\n" in out
    assert "3.png" in err
    assert "4.jpg" in err
    result = json.loads(cli(*command, "--overwrite", "--json", code=3)[0])
    assert result["counts"] == {"done before": 2, "failed": 2}
    assert [photo["reason"] for photo in result["photos"]] == ["", "", "FaceNotFoundError", "PhotoError"]
    cli("protect", cloak_file, photos / "4.jpg", "-o", tmp_path / "out", code=1)


@pytest.mark.promise("P17")
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_protect_never_writes_over_an_original(cli, cloak_file, photo_folders, options, tmp_path):
    a, b = photo_folders
    before = (b / "x.png").read_bytes()
    (tmp_path / "link").symlink_to(b)
    # By its own name, through a link, and by a roundabout name.
    for output in (b, tmp_path / "link", a / ".." / "B"):
        _, err = cli("protect", cloak_file, a / "x.png", b / "x.png", "-o", output, *options, code=1)
        assert err.count("is one of the originals; name another folder") == 2
        assert (b / "x.png").read_bytes() == before


@pytest.mark.promise("P17")
def test_protect_replaces_photos_in_the_output_only_when_told(cli, cloak_file, photo_folders):
    a, b = photo_folders
    before = (b / "x.png").read_bytes()
    _, err = cli("protect", cloak_file, a, "-o", b, code=1)
    assert "x.png exists; name another folder or pass --overwrite" in err
    assert (b / "x.png").read_bytes() == before
    cli("protect", cloak_file, a, "-o", b, "--overwrite")
    assert (b / "x.png").read_bytes() != before


def test_protect_never_writes_two_photos_to_one_name(cli, cloak_file, photo_folders, tmp_path):
    for options in ([], [], ["--overwrite"]):
        _, err = cli("protect", cloak_file, *photo_folders, "-o", tmp_path / "out", *options, code=3)
        assert "another photo is called x.png" in err


def test_protect_writes_a_single_photo_as_asked(cli, cloak_file, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    exif[ExifTags.Base.Model] = "Phone"
    with Image.open(orl_photo(1, 1, tmp_path / "photo.png")) as image:
        image.convert("RGB").save(tmp_path / "photo.jpg", exif=exif, quality=90)
    command = ("protect", cloak_file, tmp_path / "photo.jpg", "-o", tmp_path / "safe.jpg")
    cli(*command, "--strip-gps", "--quality", 80, "--jobs", 2)
    with Image.open(tmp_path / "safe.jpg") as image:
        assert dict(image.getexif()) == {ExifTags.Base.Model: "Phone"}
        image.save(tmp_path / "eighty.jpg", quality=80)
        with Image.open(tmp_path / "eighty.jpg") as eighty:
            assert image.quantization == eighty.quantization
    _, err = cli(*command, code=1)
    assert "safe.jpg exists" in err
    out, _ = cli(*command, "--overwrite", "--json", "-")
    assert json.loads(out)["counts"] == {"protected": 1}
    cli(*command, "--overwrite", "--strip-metadata")
    with Image.open(tmp_path / "safe.jpg") as image:
        assert not dict(image.getexif())


def test_protect_finds_one_person_and_writes_json_to_a_file(cli, cloak_file, tmp_path):
    orl_photo(1, 9, tmp_path / "album" / "me.png", (276, 336))
    orl_photo(2, 9, tmp_path / "album" / "sub" / "stranger.png", (276, 336))
    mine = tmp_path / "mine"
    for i in range(1, 5):
        orl_photo(1, i, mine / f"{i}.png")
    out = tmp_path / "out"
    command = ("protect", cloak_file, tmp_path / "album", "-o", out, "--who", "me", "--enrolment", mine)
    shown, err = cli(*command, "--models", "sface", "--dry-run", code=3)
    assert "  1  planned\n  1  failed\n  1    not the enrolled person\n" in shown
    assert "stranger.png must show the enrolled person" in err
    assert not out.exists()
    assert cli(*command, "--json", tmp_path / "result.json", code=3)[0] == ""
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["counts"] == {"protected": 1, "failed": 1}
    assert [photo["faces"] for photo in result["photos"]] == [1, 0]
    assert (out / "me.png").exists()


def test_protect_says_each_time_where_it_cannot_tell_which_way_up_a_face_is(cli, cloak_file, tmp_path):
    # The upper half of a blurred face, above the same half turned, as on a playing card.
    photo = orl_photo(31, 1, tmp_path / "people" / "me" / "photo.png", (276, 336))
    with Image.open(photo) as image:
        half = np.array(image.convert("RGB").filter(ImageFilter.GaussianBlur(6)))[:216]
    Image.fromarray(np.concatenate([half, half[::-1, ::-1]])).save(photo)
    command = ("protect", cloak_file, photo.parent, "-o", tmp_path / "out")
    many = ("protect-many", tmp_path, tmp_path / "people", "-o", tmp_path / "many", "--workers", 0)
    counted = ["protected", "faces", "photos with a warning", "photos to turn upright and protect again"]
    for _ in range(2):
        out, err = cli(*command, code=3)
        assert "photo.png: which way up a face is cannot be told" in err
        assert "\n".join(f"  1  {what}" for what in counted) in out
        out, _ = cli(*many, code=3)
        assert "  1  photos to turn upright and protect again" in out
    orl_photo(31, 1, photo, (276, 336))
    cli(*command)
    out, _ = cli(*command)
    assert "  1  done before\n" in out


def test_protect_leaves_out_a_photo_that_is_already_protected(cli, cloak_file, tmp_path):
    Image.new("RGB", (112, 112), (90, 90, 90)).save(tmp_path / "a.png")
    command = ("protect", cloak_file)
    once, twice = tmp_path / "once", tmp_path / "twice"
    cli(*command, tmp_path / "a.png", "-o", once)
    out, err = cli(*command, once / "a.png", "-o", twice, code=3)
    assert "1  already protected" in out
    assert "a.png" in err
    assert "--again" in err
    assert not (twice / "a.png").exists()
    cli(*command, once / "a.png", "-o", twice, "--again")
    cli(*command, tmp_path / "a.png", "-o", once)  # done before


@pytest.mark.parametrize(("delta", "info"), [(0.0, {}), (0.4 / 255, {}), (0.03, {"alpha": 0.0})])
def test_a_cloak_of_nothing_is_not_used(delta, info, cli, photo_folders, tmp_path):
    Cloak(torch.full((3, 112, 112), delta), EPS, info).save(tmp_path / "none.safetensors")
    _, err = cli("protect", tmp_path / "none.safetensors", photo_folders[0], "-o", tmp_path / "out", code=1)
    assert "protects nothing" in err
    assert not (tmp_path / "out").exists()


# ---- check and doctor


def test_check_compares_originals_and_protected(cli, cloak_file, photo_folders, tmp_path):
    _, before = photo_folders
    after, report = tmp_path / "after", tmp_path / "report.html"
    for i in (1, 2):
        orl_photo(9, i, tmp_path / "others" / f"{i}.png")
    cli("protect", cloak_file, before, "-o", after)
    command = ("check", before, after, "--models", "sface", "--distractors", tmp_path / "others")
    out, _ = cli(*command, "--html", report)
    assert "recognised by" in out.splitlines()[0].lower()
    assert "half size, JPEG 75" in out
    assert f"Report with pictures: {report}" in out
    text = report.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 14
    assert "sface*" not in text
    result = json.loads(cli(*command, "--json", "--cloak", cloak_file)[0])
    assert len(result["photos"]) == result["distractors"] == 2
    assert [network["white_box"] for network in result["models"]] == [True]
    cli("protect", cloak_file, tmp_path / "others", "-o", tmp_path / "safe")
    result = json.loads(
        cli(*command, "--json", "-", "--protected-distractors", tmp_path / "safe", "--fitted-on", "x")[0]
    )
    assert (result["protected_distractors"], result["fitted_on"]) == (2, ["x"])
    assert result["models"][0]["post_processing"][0]["after"]["rates"]["mixed_top1"] is not None


def test_check_takes_file_names_that_are_no_text(cli, tmp_path):
    folder, report = tmp_path / "photos", tmp_path / "report.html"
    names = [os.fsdecode(b"\xff<script>\x1b[31m.png"), "quote\"'.png"]
    for name in names:
        orl_photo(1, 1, folder / name)
    (folder / os.fsdecode(b"\xfe.jpg")).write_bytes(b"not a photo")
    command = ("check", folder, folder, "--models", "sface")
    out, _ = cli(*command, "--html", report, code=3)
    assert out.replace("\n", "").isprintable()
    assert "\\udcff<script>\\x1b[31m.png" in out
    assert "Not checked: \\udcfe.jpg" in out
    text = report.read_bytes().decode("utf-8")
    assert text.count("<script>") == 1
    assert "\\udcff&lt;script&gt;\\x1b[31m.png" in text
    out, _ = cli(*command, "--json", "-", code=3)
    assert {photo["name"] for photo in json.loads(out)["photos"]} == set(names)


def test_check_says_what_it_could_not_check(cli, photo_folders):
    a, b = photo_folders
    out, _ = cli("check", a / "x.png", b / "x.png", "--models", "sface", code=3)
    assert out.startswith("No photo was checked")
    assert "x.png: not a pair: " in out
    (a / "y.png").write_bytes((b / "y.png").read_bytes())
    out, _ = cli("check", a, b, "--models", "sface", code=3)
    assert out.startswith("Nothing was changed in 1 of 1 photo: not protected.\n")
    assert "\nNot checked: 1 file, listed with the reason.\n" in out
    (a / "y.png").unlink()
    (a / "x.png").write_bytes((b / "x.png").read_bytes())
    out, _ = cli("check", b, a, "--models", "sface", code=3)
    assert "Not checked, since there is no protected photo of that name: y.png." in out


def test_check_leaves_out_distractors_that_show_the_person(cli, photo_folders, tmp_path):
    b, others = photo_folders[1], tmp_path / "others"
    for person in (9, 12):
        orl_photo(person, 1, others / f"s{person}.png")
    me = orl_photo(1, 4, others / "me.png")
    result = json.loads(cli("check", b, b, "--models", "sface", "--distractors", others, "--json")[0])
    assert (result["left_out"], result["distractors"]) == ([str(me)], 2)
    assert any(line.startswith("Left out: 1 of 3 distractors. They show the person") for line in result["summary"])
    # The originals: nobody else is left, and there are no rates.
    out, _ = cli("check", b, b, "--models", "sface", "--distractors", b, code=3)
    assert "Left out: 2 of 2 distractors." in out
    assert "2 photos, 0 distractors." in out


def test_doctor_says_what_would_run(cli):
    out, _ = cli("doctor")
    assert "reference" in out
    found = json.loads(cli("doctor", "--json")[0])
    assert (found["engine"]["answer"], found["sface"]["answer"]) == ("eager", "yes")
    if not torch.cuda.is_available():
        assert found["device"]["answer"] == "cpu"


# ---- errors, interruptions and streams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info nobody.safetensors", "nobody.safetensors"),
        ("fit nobody.jpg -o me.st", "nobody.jpg"),
        ("fit A -o me.st --models arcface", "unknown model 'arcface'"),
        ("fit A -o me.st --models dlib,scales=2", "model option must be"),
        ("fit A -o me.st --models dlib,scale=x", "option scale must be a number, got 'x'"),
        ("fit A -o me.st --models n.onnx,input_size=1.5", "input_size must be a whole number"),
        ("fit A -o A/x.png", "-o may replace a cloak only"),
        ("fit A -o B", "-o must be a file such as me.safetensors, got the folder B"),
        ("fit A -o none/me.st", "-o must be in a folder that exists, got none/me.st; make none first"),
        ("fit A -o me.st --restart", "--restart needs --checkpoint DIR"),
        ("protect me.safetensors nobody.png -o out", "nobody.png"),
        ("protect me.safetensors A -o out --who me", "--who me needs --enrolment FOLDER"),
        ("protect me.safetensors A -o out --enrolment B", "--who me needs --enrolment FOLDER"),
        ("protect me.safetensors A -o out --models dlib", "--enrolment and --models need --who me"),
        ("protect me.safetensors A -o out --who me --enrolment B --models dlib sface", "must be one network"),
        ("check B A/x.png", "A/x.png"),
        ("check A B --models sface", "must hold the same photos as"),
        ("check A B --html A/x.png", "ends in .html or .htm"),
        ("check A B --html mine.html", "is no report of fastcloak check"),
        ("check A B --html B", "got the folder"),
        ("check A B --html none/report.html", "make "),
    ],
)
def test_failures_are_one_line_and_change_no_file(arguments, message, cli, cloak_file, photo_folders, monkeypatch):
    monkeypatch.chdir(cloak_file.parent)
    (cloak_file.parent / "mine.html").write_text("mine")
    before = {file: file.is_file() and file.read_bytes() for file in cloak_file.parent.rglob("*")}
    out, err = cli(*arguments.split(), code=1)
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("fastcloak: ")
    assert message in line
    assert {file: file.is_file() and file.read_bytes() for file in cloak_file.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("fit", "PHOTO"),
        *[(f"demo --people {n}", f"must be a whole number, 1 to 39, got '{n}'") for n in ("0", "40", "two")],
        *[(f"fit A -o me.st --eps {n}", f"must be 0.5 to 255 grey levels, got '{n}'") for n in ("256", "nan")],
        *[
            (f"{command} A -o me.st --{option}", f"--{option.partition('=')[0]}: must be ")
            for command in ("fit", "fit-many")
            for option in ("eps=0", "eps=0.3", "steps=0", "alpha=0", "alpha=-1")
        ],
        ("check a b --distractors=", "must be a path, got an empty one"),
        *[(f"{command} A B -o me.st --model dlib", "--models") for command in ("fit", "protect")],
        ("check A B --model=dlib", "--models"),
        ("fit A -o me.st --check state", "unrecognized arguments: --check"),
        ("fit -o me.st --models sface A", "got the photo or folder 'A'; put it before --models"),
        ("fit -o me.st --models sface dlib A/x.png", "got the photo or folder 'A/x.png'; put it before --models"),
    ],
)
def test_wrong_usage_is_exit_code_two(arguments, message, cli, photo_folders, monkeypatch):
    monkeypatch.chdir(photo_folders[0].parent)
    out, err = cli(*arguments.split(), code=2)
    assert out == ""
    assert "usage" in err
    assert message in err.splitlines()[-1]
    assert sorted(os.listdir()) == ["A", "B"]


def test_a_network_may_have_the_name_of_a_folder(photo_folders, monkeypatch):
    monkeypatch.chdir(photo_folders[0].parent)
    os.mkdir("sface")
    parsed = build_parser().parse_args(["fit", "A", "--models", "sface", "net.onnx,scale=2,bgr", "-o", "me.st"])
    assert parsed.models == ["sface", "net.onnx,scale=2,bgr"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_every_argument_is_for(command, cli):
    out, _ = cli(command, "--help")
    # An option, or a word alone, with nothing behind and below it.
    assert re.findall(r"^  (?:-(?:(?!  ).)*|\w+)\n(?! {20})", out, re.MULTILINE) == []


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--version"], 0), (["fit"], 2), (["nonsense"], 2)])
def test_help_and_wrong_usage_import_nothing_heavy(arguments, code):
    program = (
        "import sys\nfrom fastcloak.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'tqdm'} & set(sys.modules)\nsys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True).returncode == code


def test_an_interruption_says_what_was_kept(cli, cloak_file, photo_folders, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    first = iter([album.protect_payload])
    monkeypatch.setattr(album, "protect_payload", lambda *a, **options: next(first, interrupt)(*a, **options))
    for name in ("fit", "check_photos", "cli.demo.run_demo", "cli.doctor.diagnose"):
        monkeypatch.setattr(f"fastcloak.{name}", interrupt)
    b, out = photo_folders[1], tmp_path / "out"
    for arguments, kept in (
        (("fit", b, "-o", tmp_path / "new.safetensors"), "; no cloak was written"),
        (("protect", cloak_file, b, "-o", out, "--jobs", 1), f"; 1 of 2 photos are protected in {out}"),
        (("demo", "-o", out), f"; any finished files are in {out}"),
        (("doctor",), ""),
        (("check", b, b), ""),
        (("check", b, b, "--html", tmp_path / "r.html"), "; no report was written"),
    ):
        assert cli(*arguments, code=130) == ("", f"fastcloak: interrupted{kept}\n")
    assert sorted(file.name for file in out.iterdir()) == [".fastcloak.jsonl", "x.png"]


def test_a_closed_pipe_is_no_error(cloak_file):
    command = [sys.executable, "-m", "fastcloak", "info", str(cloak_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert program.stderr.read() == b""


@pytest.mark.promise("P11")
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
    kinds = Counter(["PhotoError", "UnicodeDecodeError", "IsADirectoryError", "ZeroDivisionError", "Foreign"])
    assert {words.strip(): number for number, words in reasons(kinds)} == {
        "cannot be read or written as a photo": 1,
        "cannot be used": 1,
        "cannot be read or written": 1,
        "unexpected error": 2,
    }
