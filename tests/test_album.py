"""Folders of photos: mirrored, done once, stopped by no bad photo, and no original lost."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcloak import enrol
from fastcloak.cloak import Cloak
from fastcloak.protection import album as album_module
from fastcloak.protection import photo as photo_module
from fastcloak.protection.album import MANIFEST, Plan, plan_photos, protect_photos
from tests.pictures import make_cloak, orl_file


def save_face(path, seed=0):
    """An aligned picture, in which no face is looked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(20, 230, (112, 112, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def album(tmp_path):
    album = tmp_path / "album"
    for seed, name in enumerate(("a.png", "summer/b.png", "summer/beach/c.png", ".hidden/d.png")):
        save_face(album / name, seed)
    (album / "notes.txt").write_text("not a photo")
    return album


def run(album, out, cloak=None, **options):
    return protect_photos(plan_photos([album], out), cloak or make_cloak(), **options)


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


def contents(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.promise("P17")
def test_subfolders_are_mirrored_and_originals_kept(album, tmp_path):
    before = contents(album)
    outcomes = run(album, tmp_path / "out")
    assert statuses(outcomes) == ["protected"] * 3
    assert contents(album) == before
    assert sorted(contents(tmp_path / "out")) == [MANIFEST, "a.png", "summer/b.png", "summer/beach/c.png"]
    for outcome in outcomes:
        assert outcome.destination == tmp_path / "out" / outcome.source.relative_to(album)
        old, new = (np.array(Image.open(path)).astype(int) for path in (outcome.source, outcome.destination))
        assert 4 < np.abs(new - old).max() <= 8


def test_an_output_inside_the_album_is_not_protected_again(album):
    assert len(run(album, album / "safe")) == 3
    again = run(album, album / "safe")
    assert statuses(again) == ["done before"] * 3
    with pytest.raises(ValueError, match=r"must hold photos outside the output folder"):
        plan_photos([album / "summer"], album)


def test_only_what_changed_is_done_again(album, tmp_path):
    out = tmp_path / "out"
    run(album, out)
    first = contents(out)
    assert statuses(run(album, out)) == ["done before"] * 3
    assert contents(out) == first
    save_face(album / "a.png", seed=9)
    assert statuses(run(album, out)) == ["protected", "done before", "done before"]
    assert contents(out)["a.png"] != first["a.png"]
    # What this program wrote and nobody changed may be replaced; what somebody changed may not.
    assert statuses(run(album, out, make_cloak(1))) == ["protected"] * 3
    assert statuses(run(album, out, make_cloak(1), quality=90)) == ["protected"] * 3
    save_face(out / "a.png", seed=10)
    edited = contents(out)["a.png"]
    outcomes = run(album, out)
    assert statuses(outcomes) == ["failed", "protected", "protected"]
    assert "exists; name another folder or pass --overwrite" in outcomes[0].error
    assert contents(out)["a.png"] == edited
    assert statuses(run(album, out, overwrite=True)) == ["protected", "done before", "done before"]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("error", [RuntimeError("decoder"), MemoryError(), KeyError("y")])
def test_one_bad_photo_never_stops_the_rest(album, tmp_path, monkeypatch, error):
    protect_payload = album_module.protect_payload

    def fragile(payload, source, *rest, **options):
        if source.name == "b.png":
            raise error
        return protect_payload(payload, source, *rest, **options)

    monkeypatch.setattr(album_module, "protect_payload", fragile)
    (album / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (album / "gone.png").symlink_to(tmp_path / "nowhere.png")
    plan = plan_photos([album], tmp_path / "out")
    plan = Plan((*plan.photos, (album / "x.png", tmp_path / "out/x.png")), plan.manifest)
    outcomes = protect_photos(plan, make_cloak(), jobs=2)
    reasons = ["", "PhotoError", type(error).__name__, "", "FileNotFoundError"]
    assert [outcome.reason for outcome in outcomes] == reasons
    assert statuses(outcomes) == ["failed" if reason else "protected" for reason in reasons]
    assert all(outcome.error for outcome in outcomes if outcome.status == "failed")


def test_jobs_change_nothing_in_the_photos(album, tmp_path):
    for i in range(12):
        save_face(album / f"{i}.png", 100 + i)
    known = []
    one, four = (
        run(album, tmp_path / str(jobs), jobs=jobs, progress=lambda outcome: known.append(outcome.source))
        for jobs in (1, 4)
    )
    assert [outcome.source for outcome in one] == [outcome.source for outcome in four]
    assert sorted(known) == sorted([outcome.source for outcome in one] * 2)
    photos = [
        {name: payload for name, payload in contents(tmp_path / str(jobs)).items() if name != MANIFEST}
        for jobs in (1, 4)
    ]
    assert photos[0] == photos[1]
    assert len(photos[0]) == 15
    for jobs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="jobs must be a whole number, 1 or more"):
            run(album, tmp_path / "x", jobs=jobs)


def test_a_dry_run_plans_and_writes_nothing(album, tmp_path):
    Image.new("RGB", (200, 150), "green").save(album / "meadow.png")
    outcomes = run(album, tmp_path / "out", dry_run=True)
    assert [(outcome.source.name, outcome.status, outcome.faces) for outcome in outcomes] == [
        ("a.png", "planned", 1),
        ("meadow.png", "failed", 0),
        ("b.png", "planned", 1),
        ("c.png", "planned", 1),
    ]
    assert outcomes[1].reason == "FaceNotFoundError"
    assert not (tmp_path / "out").exists()
    run(album, tmp_path / "out")
    assert statuses(run(album, tmp_path / "out", dry_run=True)) == [
        "done before",
        "failed",
        "done before",
        "done before",
    ]


@pytest.mark.promise("P10")
def test_a_crash_at_any_point_is_made_good(album, tmp_path):
    out = tmp_path / "out"
    run(album, out)
    complete = contents(out)
    # Killed after the line and before the photo; with the photo of an earlier run there; within the line.
    (out / "a.png").unlink()
    assert statuses(run(album, out)) == ["protected", "done before", "done before"]
    run(album, out, make_cloak(1))
    older = contents(out)
    run(album, out)
    (out / "a.png").write_bytes(older["a.png"])
    assert statuses(run(album, out)) == ["protected", "done before", "done before"]
    manifest = (out / MANIFEST).read_text()
    (out / MANIFEST).write_text(manifest[:-20])
    outcomes = run(album, out, overwrite=True)
    assert "failed" not in statuses(outcomes)
    assert {name: payload for name, payload in contents(out).items() if name != MANIFEST} == {
        name: payload for name, payload in complete.items() if name != MANIFEST
    }


@pytest.mark.parametrize(
    "content",
    ["[]\n3\nnull\n{}\n", '{"photo": [1], "sha256": {}}\n', "\x00\xff\n", "[" * 100_000, '{"photo": "a.png", "sha2'],
)
def test_a_manifest_that_is_foreign_or_was_cut_off_does_no_harm(album, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_bytes(content.encode("latin-1"))
    assert statuses(run(album, out)) == ["protected"] * 3
    assert statuses(run(album, out)) == ["done before"] * 3


def test_the_manifest_holds_hashes_and_no_photo(album, tmp_path):
    cloak = make_cloak()
    run(album, tmp_path / "out", cloak, strip_gps=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()[1:]]
    assert {line["photo"] for line in lines} == {"a.png", "summer/b.png", "summer/beach/c.png"}
    assert {(line["cloak"], line["who"], line["strip_gps"]) for line in lines} == {(cloak.id, "largest", True)}
    assert cloak.id != make_cloak(1).id
    assert cloak.id == Cloak(cloak.delta.clone(), cloak.eps, {"other": "info"}).id != Cloak(cloak.delta, 0.5).id
    assert Path(MANIFEST).name.startswith(".")


@pytest.mark.promise("P17")
def test_no_original_is_written_over_by_any_name(album, tmp_path):
    before = contents(album)
    (tmp_path / "link").symlink_to(album)
    for output in (album, tmp_path / "link", album / "summer" / ".."):
        outcomes = run(album, output, overwrite=True)
        assert statuses(outcomes) == ["failed"] * 3
        assert all("is one of the originals" in outcome.error for outcome in outcomes)
    (tmp_path / "out").mkdir()
    os.link(album / "a.png", tmp_path / "out" / "a.png")
    assert statuses(run(album, tmp_path / "out", overwrite=True))[0] == "failed"
    assert {name: before[name] for name in before} == {name: contents(album)[name] for name in before}


def test_two_photos_never_share_a_destination(tmp_path):
    for place in ("one", "two"):
        save_face(tmp_path / place / "me.png", seed=len(place) + ord(place[0]))
    save_face(tmp_path / "two" / "ME.PNG", seed=5)
    plan = plan_photos([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    outcomes = protect_photos(plan, make_cloak(), jobs=3)
    assert sorted(statuses(outcomes)) == ["failed", "failed", "protected"]
    assert "another photo is called" in next(outcome.error for outcome in outcomes if outcome.error)
    # A photo that fails leaves its place to another.
    (tmp_path / "one" / "me.png").write_bytes(b"broken")
    outcomes = protect_photos(
        plan_photos([tmp_path / "one", tmp_path / "two" / "me.png"], tmp_path / "new"), make_cloak()
    )
    assert statuses(outcomes) == ["failed", "protected"]


def test_a_single_photo_may_name_its_file(album, tmp_path):
    outcomes = protect_photos(plan_photos([album / "a.png"], tmp_path / "safe.jpg"), make_cloak())
    assert statuses(outcomes) == ["protected"]
    assert (tmp_path / "safe.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["safe.jpg"]
    assert "exists" in protect_photos(plan_photos([album / "a.png"], tmp_path / "safe.jpg"), make_cloak())[0].error
    with pytest.raises(NotADirectoryError, match=r"output must be a folder, got the file"):
        plan_photos([album], tmp_path / "safe.jpg")
    with pytest.raises(ValueError, match="paths must hold at least one photo or folder"):
        plan_photos([], tmp_path)


def test_only_the_enrolled_person_is_cloaked(tmp_path):
    def orl(person, photo):
        return Image.open(orl_file(person, photo)).convert("RGB").resize((276, 336))

    group = Image.new("RGB", (700, 400), "grey")
    group.paste(orl(1, 9).resize((300, 365)), (10, 10))  # the stranger's face is the larger one
    group.paste(orl(2, 9), (400, 30))
    album = tmp_path / "album"
    album.mkdir()
    group.save(album / "group.png")
    orl(1, 8).save(album / "stranger.png")
    orl(2, 8).save(album / "me.png")
    enrolment = enrol([orl_file(2, i) for i in range(1, 6)])
    outcomes = run(album, tmp_path / "out", who=enrolment)
    assert [(outcome.source.stem, outcome.status, outcome.reason) for outcome in outcomes] == [
        ("group", "protected", ""),
        ("me", "protected", ""),
        ("stranger", "failed", "PersonNotFoundError"),
    ]
    change = np.abs(np.array(Image.open(tmp_path / "out/group.png")).astype(int) - np.array(group)).max(-1)
    assert change[:, :390].max() == 0
    assert change[:, 390:].max() == 8
    again = run(album, tmp_path / "out", who=enrolment)
    assert statuses(again) == ["done before", "done before", "failed"]
    lines = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines() if line]
    assert {line["who"] for line in lines} == {"me"}
    # Another enrolment may choose another face.
    other = enrol([orl_file(1, i) for i in range(1, 6)])
    assert statuses(run(album, tmp_path / "out", who=other)).count("protected") == 2


def test_a_protected_photo_is_not_protected_again_by_memory_or_pixels(album, tmp_path):
    assert statuses(run(album, tmp_path / "out")) == ["protected"] * 3
    again = run(tmp_path / "out", tmp_path / "twice")
    assert statuses(again) == ["already protected"] * 3
    assert all("carries it already" in outcome.error for outcome in again)
    assert [file for file in contents(tmp_path / "twice") if file != MANIFEST] == []
    Image.new("RGB", (112, 112), (90, 80, 70)).save(tmp_path / "plain.png")
    run(tmp_path / "plain.png", tmp_path / "plain")
    (tmp_path / "plain" / MANIFEST).unlink()
    assert statuses(run(tmp_path / "plain", tmp_path / "twice")) == ["already protected"]
    assert statuses(run(tmp_path / "out", tmp_path / "other", make_cloak(1))) == ["protected"] * 3
    assert statuses(run(tmp_path / "out", tmp_path / "insist", again=True)) == ["protected"] * 3


def test_the_memory_knows_a_photo_by_its_content_below_its_folder(album, tmp_path, monkeypatch):
    run(album, tmp_path / "out")
    monkeypatch.setattr(photo_module, "carries", lambda crop, delta: False)
    (tmp_path / "out" / "summer" / "b.png").rename(tmp_path / "out" / "summer" / "renamed.png")
    with open(tmp_path / "out" / MANIFEST, "a") as file:
        file.write('\n[]\n{"photo": [], "sha256": {}}\n')
    plan = plan_photos([tmp_path / "out" / "summer" / "renamed.png"], tmp_path / "twice")
    assert statuses(protect_photos(plan, make_cloak())) == ["already protected"]
    assert statuses(protect_photos(plan, make_cloak(1))) == ["protected"]
