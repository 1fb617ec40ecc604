"""Albums whose photos get masks of their own: what is kept, done once, remembered, and what stops nothing."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from fastcloak import enrol, plan_photos, tailor_photos
from fastcloak.cli.main import main
from fastcloak.photos.alignment import align
from fastcloak.photos.detection import detect
from fastcloak.protection.album import MANIFEST
from fastcloak.tailoring import tailor as tailor_module
from fastcloak.tailoring.options import TailorConfig
from tests.conftest import TinyNet, smooth_faces
from tests.pictures import orl_file, orl_pixels, ramps
from tests.test_album import contents, statuses
from tests.test_protect import inside_square

LARGEST = math.ceil(255 * TailorConfig().largest)


@pytest.fixture(scope="module")
def me():
    """Whom every face is: the threshold is the least there is."""
    return enrol(smooth_faces(3, seed=9), TinyNet(), threshold=-1)


@pytest.fixture
def small_passes(monkeypatch):
    monkeypatch.setattr(tailor_module, "ON_CPU", 2)


def save_face(path, seed, grey=False):
    """An aligned picture, in which no face is looked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * smooth_faces(1, seed)[0]).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)
    return path


@pytest.fixture
def album(tmp_path):
    for seed, name in enumerate(("a.png", "b.png", "summer/c.png", "summer/d.png", ".hidden/e.png")):
        save_face(tmp_path / "album" / name, seed)
    return tmp_path / "album"


def run(paths, out, me, **options):
    paths = paths if isinstance(paths, list) else [paths]
    options = {"gradients": 2, "device": "cpu", "dtype": "float32", **options}
    return tailor_photos(plan_photos(paths, out), me, options.pop("models", None) or TinyNet(), **options)


def photos_in(root):
    return {name: payload for name, payload in contents(root).items() if name != MANIFEST}


def lines_in(root):
    return [json.loads(line) for line in (root / MANIFEST).read_text().splitlines() if line]


def change(old, new):
    return np.array(Image.open(new)).astype(int) - np.array(Image.open(old))


# ---- what a tailored photo is


@pytest.mark.promise("P2")
@pytest.mark.promise("P17")
def test_every_photo_gets_a_mask_of_its_own_and_originals_are_kept(album, tmp_path, me):
    before = contents(album)
    known = []
    outcomes = run(album, tmp_path / "out", me, progress=known.append)
    assert statuses(outcomes) == ["protected"] * 4
    assert sorted(outcome.source for outcome in known) == [outcome.source for outcome in outcomes]
    assert contents(album) == before
    assert sorted(photos_in(tmp_path / "out")) == ["a.png", "b.png", "summer/c.png", "summer/d.png"]
    masks = [change(outcome.source, outcome.destination) for outcome in outcomes]
    for mask in masks:
        assert LARGEST / 2 < np.abs(mask).max() <= LARGEST
    for i in range(4):
        assert not any(np.array_equal(masks[i], masks[j]) for j in range(i))
    for output in (album, album / "summer" / ".."):
        assert statuses(run(album, output, me, overwrite=True)) == ["failed"] * 4
    assert {name: payload for name, payload in contents(album).items() if name != MANIFEST} == before


@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.parametrize("scale", [1, 3])  # below and above the size at which a canvas holds a face's own pixels
def test_a_photo_changes_in_the_square_of_its_face_alone(scale, tmp_path, me):
    photo = np.full((112 * scale + 90, 92 * scale + 150, 3), (90, 120, 150), np.uint8)
    photo[30 : 30 + 112 * scale, 40 : 40 + 92 * scale] = orl_pixels(1, 1, scale)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (outcome,) = run(tmp_path / "photo.png", tmp_path / "out.png", me, eps=4 / 255)
    (face,) = detect(photo)
    mask = np.abs(change(tmp_path / "photo.png", tmp_path / "out.png"))
    assert 2 <= mask.max() <= math.ceil(1.75 * 4)
    assert not mask[~inside_square(face, *photo.shape[:2], margin=-1e-3)].any()
    assert mask[inside_square(face, *photo.shape[:2], margin=12 * 112 / outcome.face_sizes[0])].any()
    assert outcome.faces == 1
    assert ("is small" in str(outcome.warnings)) == (outcome.face_sizes[0] < 60)


@pytest.mark.promise("P2")
@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("L", suffix) for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp", ".pgm")],
        *[("RGB", suffix) for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp")],
        *[("RGBA", suffix) for suffix in (".png", ".webp", ".tif")],
        *[("P", suffix) for suffix in (".png", ".tif", ".bmp")],
    ],
)
def test_files_stay_what_they_are(mode, suffix, tmp_path, me):
    picture = Image.fromarray(ramps(112, 112)).convert("RGB" if mode == "RGBA" else mode)
    if mode == "RGBA":
        picture.putalpha(99)
    source, out = tmp_path / f"photo{suffix}", tmp_path / f"out{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Model] = 6, "Phone"
    options = {} if suffix in (".bmp", ".pgm") else {"exif": exif}
    picture.save(source, **options, **({"lossless": True} if suffix == ".webp" else {}))
    run(source, out, me)
    with Image.open(source) as old, Image.open(out) as new:
        assert new.mode == {"P": "RGB"}.get(old.mode, old.mode)
        assert new.getexif().get(ExifTags.Base.Model) == ("Phone" if options else None)
        assert new.getexif().get(ExifTags.Base.Orientation, 1) == 1
        mask = np.array(new).astype(int) - np.array(ImageOps.exif_transpose(old).convert(new.mode))
    assert mask.any()
    assert np.abs(mask).max() <= (3 * LARGEST if suffix == ".jpg" else LARGEST)
    if mode == "RGBA":
        assert not mask[..., 3].any()


def test_metadata_and_quality_are_as_asked(album, tmp_path, me):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "Phone"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    Image.open(album / "a.png").save(tmp_path / "a.jpg", exif=exif, quality=70)
    found = []
    for i, options in enumerate(({}, {"strip_gps": True}, {"strip_metadata": True, "quality": 70})):
        out = tmp_path / f"{i}.jpg"
        run(tmp_path / "a.jpg", out, me, **options)
        with Image.open(out) as image, Image.open(tmp_path / "a.jpg") as old:
            found.append((set(image.getexif()), image.quantization == old.quantization))
    model, gps = int(ExifTags.Base.Model), int(ExifTags.IFD.GPSInfo)
    assert found == [({model, gps}, False), ({model}, False), (set(), True)]


# ---- the same again


@pytest.mark.promise("P6")
def test_the_same_command_gives_the_same_bytes_whatever_the_jobs(album, tmp_path, me, small_passes):
    for i in range(5):
        save_face(album / f"z{i}.png", 100 + i, grey=i % 2 == 0)
    (album / "broken.png").write_bytes(b"no photo")
    save_face(tmp_path / "other" / "b.png", 50)  # a second photo for one name
    found = []
    for jobs in (1, 1, 3):
        out = tmp_path / f"out{len(found)}"
        outcomes = run([album, tmp_path / "other"], out, me, jobs=jobs)
        assert sorted(statuses(outcomes)) == ["failed"] * 2 + ["protected"] * 9
        assert "another photo is called b.png too" in outcomes[-1].error
        found.append(photos_in(out))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 9
    # A photo that fails leaves its place to another, also if that was read before.
    (album / "b.png").write_bytes(b"broken")
    outcomes = run([album, tmp_path / "other"], tmp_path / "new", me, jobs=3)
    assert outcomes[-1].status == "protected"
    for jobs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="jobs must be a whole number, 1 or more"):
            run(album, tmp_path / "x", me, jobs=jobs)


def test_only_what_changed_is_done_again(album, tmp_path, me):
    out = tmp_path / "out"
    run(album, out, me)
    first = contents(out)
    assert statuses(run(album, out, me)) == ["done before"] * 4
    assert contents(out) == first
    save_face(album / "a.png", 60)
    assert statuses(run(album, out, me)) == ["protected", *["done before"] * 3]
    assert statuses(run(album, out, me, apart=0.5)) == ["protected"] * 4
    other = enrol(smooth_faces(3, seed=8), TinyNet(), threshold=-1)
    assert statuses(run(album, out, other, apart=0.5)) == ["protected"] * 4
    assert statuses(run(album, out, None, apart=0.5)) == ["protected"] * 4
    save_face(out / "a.png", 61)
    outcomes = run(album, out, None, apart=0.5)
    assert statuses(outcomes) == ["failed", *["done before"] * 3]
    assert "exists; name another folder or pass --overwrite" in outcomes[0].error


def test_the_lines_hold_the_recipe_and_places_and_nothing_of_the_face(album, tmp_path, me):
    Image.fromarray(orl_pixels(1, 1, 3)).save(album / "x.png")
    run(album, tmp_path / "out", me, seed=3)
    lines = lines_in(tmp_path / "out")
    names = {"photo", "sha256", "who", "person", "quality", "strip_gps", "strip_metadata", "cloak", "tailored"}
    for line in lines:
        assert set(line) == names | {"models", "source", "faces"}
        assert (line["who"], line["cloak"], line["models"]) == ("me", None, ["TinyNet"])
        assert line["tailored"]["seed"] == 3
        assert len(line["person"]) == 64  # a hash
    places = {line["photo"]: line["faces"] for line in lines}
    (landmarks,) = places["x.png"]
    (face,) = detect(orl_pixels(1, 1, 3))
    assert np.allclose(landmarks, face.landmarks, atol=0.0051)
    assert len(json.dumps(landmarks)) < 100


# ---- the old album in mind


@pytest.fixture
def remembered(monkeypatch):
    """How many faces each call of `Tailor.remember` got."""
    numbers, remember = [], tailor_module.Tailor.remember

    def noted(self, faces, originals=None):
        for pictures in (faces, originals):
            if pictures is not None:
                assert pictures.shape == (len(faces), 3, 112, 112)
                assert 0 <= pictures.min() <= pictures.max() <= 1
        numbers.append(len(faces))
        remember(self, faces, originals)

    monkeypatch.setattr(tailor_module.Tailor, "remember", noted)
    return numbers


def test_new_photos_are_kept_apart_from_those_of_earlier_runs(album, tmp_path, me, remembered):
    out = tmp_path / "out"
    run(album, out, me)
    assert remembered == [4]
    run(album, out, me)  # nothing to do, nothing to look at
    assert remembered == [4]
    new = save_face(tmp_path / "new" / "f.png", 70)
    save_face(out / "b.png", 71)  # what somebody changed is none of ours
    (out / "summer" / "d.png").unlink()
    run(new.parent, out, me)
    assert remembered == [4, 2, 1]
    run(new.parent, tmp_path / "alone", me)
    assert (out / "f.png").read_bytes() != (tmp_path / "alone" / "f.png").read_bytes()
    # What is written again is no reason to keep anything apart.
    remembered.clear()
    run(new.parent, out, me, apart=0.5)
    assert remembered == [2, 1]


@pytest.mark.parametrize("who", ["largest", "all"])
def test_without_the_person_earlier_runs_are_remembered_too(who, album, tmp_path, remembered, monkeypatch):
    out, originals = tmp_path / "out", []
    run(album, out, None, who=who)
    (album / "b.png").unlink()  # whose face that is, nothing says any more
    noted = tailor_module.Tailor.remember
    monkeypatch.setattr(
        tailor_module.Tailor, "remember", lambda self, *faces: originals.append(faces[1]) or noted(self, *faces)
    )
    remembered.clear()
    new = save_face(tmp_path / "new" / "f.png", 70)
    run([album, new], out, None, who=who)
    assert remembered == [1, 3, 1]
    assert originals[0] is None
    expected = [np.array(Image.open(album / name)) for name in ("a.png", "summer/c.png", "summer/d.png")]
    assert np.array_equal((255 * originals[1]).round().permute(0, 2, 3, 1).numpy(), expected)
    run(new, tmp_path / "alone", None, who=who)
    assert (out / "f.png").read_bytes() != (tmp_path / "alone" / "f.png").read_bytes()


def test_earlier_faces_are_found_where_the_lines_say(tmp_path, me, remembered, monkeypatch):
    Image.fromarray(orl_pixels(1, 1, 3)).save(tmp_path / "x.png")
    out = tmp_path / "out"
    run(tmp_path / "x.png", out, me)
    seen, remember = [], tailor_module.Tailor.remember
    monkeypatch.setattr(
        tailor_module.Tailor, "remember", lambda self, faces, _: seen.append(faces) or remember(self, faces)
    )
    run(save_face(tmp_path / "new.png", 72), out, me)
    (face,) = detect(orl_pixels(1, 1, 3))
    expected = align(np.array(Image.open(out / "x.png")), face)[0]
    assert np.abs(255 * seen[0][0].permute(1, 2, 0).numpy() - expected).mean() < 1


@pytest.mark.parametrize(
    "faces",
    ["null", "3", '"x"', "[[[NaN,0],[0,0],[0,0],[0,0],[0,0]]]", "[[[1e30,0],[0,1],[0,0],[0,0],[0,0]]]", "[[1]]"],
)
def test_lines_that_say_nonsense_do_no_harm(faces, album, tmp_path, me, remembered):
    out = tmp_path / "out"
    run(album, out, me)
    text = (out / MANIFEST).read_text().splitlines()
    text = [line[: line.index('"faces"')] + f'"faces": {faces}}}' if line else "" for line in text]
    (out / MANIFEST).write_text("\n".join([*text, '{"photo": "../../x", "sha256": "0", "faces": []}', "[" * 10_000]))
    remembered.clear()
    assert statuses(run([album, save_face(tmp_path / "f.png", 73)], out, me)) == [*["done before"] * 4, "protected"]
    assert remembered == [1]


def test_a_photo_that_an_earlier_run_protected_is_left_out(album, tmp_path, me):
    out = tmp_path / "out"
    run(album, out, me)
    (out / "a.png").rename(out / "renamed.png")
    for enrolment in (me, None):  # whose face it was cannot be told without an enrolment
        outcomes = run(out, tmp_path / "twice", enrolment, apart=0.25)
        assert statuses(outcomes) == ["already protected"] * 4
        assert all("must be an original" in outcome.error for outcome in outcomes)
    assert not photos_in(tmp_path / "twice")
    # Of a photo of two people each has a mask.
    other = enrol(smooth_faces(3, seed=8), TinyNet(), threshold=-1)
    assert statuses(run(out, tmp_path / "theirs", other)) == ["protected"] * 4
    assert statuses(run(out, tmp_path / "insist", me, again=True)) == ["protected"] * 4


# ---- what stops nothing


@pytest.mark.promise("P15")
def test_one_bad_photo_never_stops_the_rest(album, tmp_path, me, small_passes):
    (album / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (album / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (200, 150), "green").save(album / "meadow.png")
    picture = Image.open(album / "a.png").convert("RGB")
    picture.putalpha(9)
    picture.save(album / "alpha.png")
    plan = plan_photos([album], tmp_path / "out")
    photos = [(source, path.with_suffix(".jpg") if "alpha" in path.name else path) for source, path in plan.photos]
    plan = type(plan)((*photos, (album / "x.png", tmp_path / "out/x.png")), plan.manifest)
    outcomes = tailor_photos(plan, me, TinyNet(), gradients=1, jobs=2, device="cpu")
    reasons = {outcome.source.name: outcome.reason for outcome in outcomes if outcome.status != "protected"}
    assert reasons == {
        "alpha.png": "PhotoError",
        "broken.jpg": "PhotoError",
        "meadow.png": "FaceNotFoundError",
        "x.png": "FileNotFoundError",
    }
    assert sorted(photos_in(tmp_path / "out")) == ["a.png", "b.png", "summer/c.png", "summer/d.png"]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("error", [FloatingPointError("NaN"), MemoryError()])
def test_an_error_while_learning_fails_the_photos_of_that_pass(error, album, tmp_path, me, small_passes, monkeypatch):
    masks, calls = tailor_module.Tailor.masks, []

    def fragile(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return masks(self, *arguments, **options)

    monkeypatch.setattr(tailor_module.Tailor, "masks", fragile)
    outcomes = run(album, tmp_path / "out", me)
    assert statuses(outcomes) == ["failed", "failed", "protected", "protected"]
    assert {outcome.reason for outcome in outcomes[:2]} == {type(error).__name__}
    assert statuses(run(album, tmp_path / "out", me)) == ["protected", "protected", "done before", "done before"]


def test_an_interruption_keeps_what_is_done_and_the_next_run_goes_on(album, tmp_path, me, small_passes):
    known, steps = [], []

    def interrupt(photos):
        steps.append(photos)
        if len(steps) == 3:  # the first step of the second pass
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(album, tmp_path / "out", me, progress=known.append, learning=interrupt)
    assert sum(steps) == pytest.approx(3)
    assert {outcome.source.name for outcome in known} == set(photos_in(tmp_path / "out")) <= {"a.png", "b.png"}
    done = photos_in(tmp_path / "out")
    again = run(album, tmp_path / "out", me)
    assert statuses(again).count("done before") == len(done)
    assert "failed" not in statuses(again)
    assert {name: payload for name, payload in photos_in(tmp_path / "out").items() if name in done} == done


KILLED = """
import itertools, os, signal, sys
from pathlib import Path
import torch
from bench.reliability.kills import killed_after
from fastcloak.protection import album
from fastcloak.tailoring import tailor as tailor_module
from tests.test_tailor_photos import me, photos_in, run
torch.set_num_threads(1)  # a forked child would wait for the threads of OpenMP, which stay in its parent
tailor_module.ON_CPU = 1
folder, person, atomic_write, kept, found = Path(sys.argv[1]), me.__wrapped__(), album.atomic_write, {}, []
def work(moment, calls):
    counted = itertools.count(1)
    def here(name):
        if name == moment and next(counted) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
    def write(path, payload):
        here("line")
        atomic_write(path, payload)
        here("photo")
    album.atomic_write = write
    run(folder / "album", folder / "out", person, learning=lambda photos: here("step"))
for moment in (("step", 4), ("line", 1), ("photo", 1), ("line", 2), ("step", 1)):
    try:
        killed_after(60, lambda: work(*moment))
        raise SystemExit(f"not killed: {moment}")
    except RuntimeError as killed:
        assert str(killed).endswith(" 9"), killed
    now = photos_in(folder / "out") if (folder / "out").exists() else {}
    assert kept.items() <= now.items()
    kept = now
    found.append(len(kept))
again = [outcome.status for outcome in run(folder / "album", folder / "out", person)]
assert again.count("done before") == len(kept), (again, found)
assert kept.items() <= photos_in(folder / "out").items()
print(found[-1], sorted(set(again)))
"""


@pytest.mark.promise("P10")
def test_kill_9_at_any_moment_loses_no_finished_photo(album, tmp_path):
    save_face(album / "z.png", 62)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    number, statuses = done.stdout.split(" ", 1)
    assert 2 <= int(number) <= 3
    assert statuses == "['done before', 'protected']\n"


def test_a_dry_run_learns_nothing_and_writes_nothing(album, tmp_path, me, monkeypatch):
    monkeypatch.setattr(tailor_module.Tailor, "masks", lambda *arguments, **options: pytest.fail("learnt"))
    Image.new("RGB", (200, 150), "green").save(album / "meadow.png")
    outcomes = run(album, tmp_path / "out", me, dry_run=True)
    assert [(outcome.status, outcome.faces) for outcome in outcomes] == [
        ("planned", 1),
        ("planned", 1),
        ("failed", 0),
        ("planned", 1),
        ("planned", 1),
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.promise("P4")
def test_no_steps_change_nothing_and_say_so(album, tmp_path, me, caplog):
    outcomes = run(album, tmp_path / "out", me, gradients=0)
    assert "with gradients = 0 a mask protects nothing" in caplog.text
    assert all("is not protected" in outcome.warnings[0] for outcome in outcomes)
    assert not change(album / "a.png", tmp_path / "out" / "a.png").any()


# ---- whose face


def test_in_a_group_photo_only_the_person_gets_a_mask(tmp_path, caplog):
    group = np.full((400, 700, 3), 128, np.uint8)
    group[10:375, 10:310] = np.array(Image.fromarray(orl_pixels(1, 9)).resize((300, 365)))  # the larger face
    group[30:366, 400:676] = orl_pixels(2, 9, 3)
    (tmp_path / "album").mkdir()
    Image.fromarray(group).save(tmp_path / "album" / "group.png")
    Image.fromarray(orl_pixels(1, 8, 3)).save(tmp_path / "album" / "stranger.png")
    person = enrol([orl_file(2, i) for i in range(1, 6)])
    places = {}
    for who, enrolment in (("me", person), ("largest", person), ("largest", None), ("all", None)):
        caplog.clear()
        out = tmp_path / f"{who}{enrolment is None}"
        outcomes = run(tmp_path / "album", out, enrolment, who=who)
        assert outcomes[1].reason == ("PersonNotFoundError" if who == "me" else "")
        mask = np.abs(change(tmp_path / "album" / "group.png", out / "group.png")).max(-1)
        places[out.name] = bool(mask[:, :390].any()), bool(mask[:, 390:].any()), len(lines_in(out)[0]["faces"])
        assert ("which protects less" in caplog.text) == (enrolment is None)
        assert mask.max() <= LARGEST
    assert places == {
        "meFalse": (False, True, 1),
        "largestFalse": (True, False, 1),
        "largestTrue": (True, False, 1),
        "allTrue": (True, True, 2),
    }


def test_a_photo_may_have_more_faces_than_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(tailor_module, "ON_CPU", 1)
    group = np.full((400, 700, 3), 128, np.uint8)
    group[30:366, 20:296], group[30:366, 400:676] = orl_pixels(1, 9, 3), orl_pixels(2, 9, 3)
    Image.fromarray(group).save(tmp_path / "group.png")
    steps = []
    (outcome,) = run(tmp_path / "group.png", tmp_path / "out", None, who="all", learning=steps.append)
    assert outcome.faces == 2
    assert steps == [0.25] * 4
    mask = change(tmp_path / "group.png", tmp_path / "out" / "group.png")
    assert mask[:, :350].any()
    assert mask[:, 350:].any()


def test_faces_that_overlap_stay_within_the_bound(tmp_path, monkeypatch):
    photo = orl_pixels(1, 1, 3)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (face,) = detect(photo)
    monkeypatch.setattr("fastcloak.protection.photo.find_faces", lambda pixels, **options: [face, face, face])
    run(tmp_path / "photo.png", tmp_path / "out", None, who="all", gradients=3)
    assert np.abs(change(tmp_path / "photo.png", tmp_path / "out" / "photo.png")).max() <= LARGEST


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"who": "both"}, "who must be 'me', 'largest' or 'all', got 'both'"),
        ({"who": "all"}, "got photos of one person too; leave them out"),
        ({"gradients": -1}, "gradients must be a whole number"),
        ({"look": "pretty"}, "look must be one of even, textured"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(options, message, album, tmp_path, me):
    with pytest.raises(ValueError, match=message):
        run(album, tmp_path / "out", me, **options)
    with pytest.raises(ValueError, match="who='me' must come with photos of the person"):
        run(album, tmp_path / "out", None, who="me")
    with pytest.raises(TypeError, match=r"me must be an Enrolment or None, got str; fastcloak\.enrol"):
        run(album, tmp_path / "out", "photos/of/me")
    assert not (tmp_path / "out").exists()


# ---- the command


@pytest.fixture
def cli(capsys):
    def run_command(*arguments, code=0):
        try:
            found = main(["tailor", *map(str, arguments)])
        except SystemExit as stop:
            found = stop.code
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return run_command


QUICK = ("--gradients", 1, "--models", "sface", "--device", "cpu", "--dtype", "float32")


@pytest.mark.promise("P16")
def test_the_command_tailors_an_album_and_goes_on_with_new_photos(cli, tmp_path):
    def orl(photo, name, person=2):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(orl_pixels(person, photo, 2)).save(tmp_path / name)

    for i in range(1, 4):
        orl(i, f"me/{i}.png")
    orl(8, "album/8.png")
    orl(9, "album/9.png")
    command = (tmp_path / "album", "--me", tmp_path / "me", "-o", tmp_path / "safe", *QUICK)
    out, err = cli(*command, "--dry-run")
    assert "  2  planned\n  2  faces\n" in out
    assert not (tmp_path / "safe").exists()
    out, err = cli(*command)
    assert "  2  protected\n  2  faces\n" in out
    assert err == ""
    orl(10, "album/10.png")
    orl(1, "album/stranger.png", person=1)
    (tmp_path / "album" / "x.jpg").write_bytes(b"no photo")
    result = json.loads(cli(*command, "--json", code=3)[0])
    assert result["counts"] == {"protected": 1, "done before": 2, "failed": 2}
    assert result["models"] == ["sface"]
    assert [photo["reason"] for photo in result["photos"]] == ["", "", "", "PersonNotFoundError", "PhotoError"]
    out, err = cli(
        tmp_path / "safe", "--me", *sorted((tmp_path / "me").iterdir()), "-o", tmp_path / "twice", *QUICK, code=3
    )
    assert "  3  already protected\n" in out
    assert "--again" in err
    cli(tmp_path / "album" / "x.jpg", "-o", tmp_path / "safe", *QUICK, code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("album -o safe --who me", 1, "--who me needs --me with photos of you; --who all goes without"),
        ("album -o safe --who all --me album", 1, "--who me needs --me with photos of you; --who all goes without"),
        ("nowhere -o safe", 1, "nowhere must be a photo or a folder of photos"),
        ("album -o safe --me nowhere", 1, "nowhere must be a photo or a folder of photos"),
        ("album -o safe --eps 0.3", 2, "must be 0.5 to 255 grey levels, got '0.3', with which a "),
        ("album -o safe --gradients 0", 2, "must be a whole number, 1 to "),
        ("--me album album -o safe", 2, "the following arguments are required: PHOTO"),
    ],
)
def test_wrong_use_of_the_command_is_one_line(arguments, code, message, cli, album, monkeypatch):
    monkeypatch.chdir(album.parent)
    out, err = cli(*arguments.split(), code=code)
    assert out == ""
    assert message in err.splitlines()[-1]
    assert not os.path.exists("safe")


def test_an_interrupted_command_says_what_was_kept(cli, album, tmp_path, small_passes, monkeypatch):
    masks, calls = tailor_module.Tailor.masks, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return masks(self, *arguments, **options)

    monkeypatch.setattr(tailor_module.Tailor, "masks", interrupted)
    _, err = cli(album, "-o", tmp_path / "safe", *QUICK, "--jobs", 1, code=130)
    number = len(photos_in(tmp_path / "safe"))
    kept = f"; {number} of 4 photos are protected in {tmp_path / 'safe'}"
    assert err.splitlines()[-1] == f"fastcloak: interrupted{kept}"


def test_without_the_person_the_command_says_what_is_lost(cli, album, tmp_path, caplog):
    out, _ = cli(album, "-o", tmp_path / "safe", *QUICK)
    assert "  4  protected\n" in out
    assert "which protects less; name about ten: me=fastcloak.enrol(photos) (--me)" in caplog.text


def test_a_tailor_goes_on_with_another_person_but_takes_no_options(album, tmp_path, me):
    worker = tailor_module.Tailor(None, TinyNet(), device="cpu", dtype="float32", gradients=2)
    for name, person in (("me", me), ("other", enrol(smooth_faces(3, seed=5), TinyNet(), threshold=-1))):
        tailor_photos(plan_photos([album], tmp_path / "on" / name), person, worker)
        run(album, tmp_path / "alone" / name, person)
        assert photos_in(tmp_path / "on" / name) == photos_in(tmp_path / "alone" / name)
    with pytest.raises(TypeError, match="options must be those of the Tailor, got gradients"):
        tailor_photos(plan_photos([album], tmp_path / "on"), me, worker, gradients=3)
