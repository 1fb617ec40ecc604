"""bench.protection measures every row once, and its summary says what the lines say."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.harness.rows import Rows, read
from bench.protection import __main__ as protection
from bench.protection import albums, recipes, summary, tailored
from bench.protection.people import load_models, read_people
from fastcloak import load_model
from fastcloak.fitting.options import configure
from tests.conftest import TinyNet, smooth_faces

RESULTS = Path(__file__).parent.parent / "bench/results"
QUICK = {"steps": 2, "inner_steps": 1, "warmup": 1}
ROWS = {"quick": QUICK, "by photos": lambda photos: {**QUICK, "batch_size": photos}}


@pytest.fixture(scope="module")
def nets():
    other = TinyNet()
    torch.nn.init.normal_(other.body[-1].weight, 0, 0.1, torch.Generator().manual_seed(3))
    return load_model(TinyNet(), name="a"), load_model(other, name="b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five people with six photos each."""
    folder = tmp_path_factory.mktemp("made") / "crowd"
    for person in range(5):
        (folder / f"p{person}").mkdir(parents=True)
        for photo, face in enumerate(smooth_faces(6, seed=person)):
            pixels = (face * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(folder / f"p{person}" / f"{photo}.png")
    return folder


@pytest.fixture
def run(folder, nets, tmp_path):
    people = read_people(folder, learn=3, first=1, count=2)
    paths = {"output": tmp_path / "rows.csv", "cloaks": tmp_path / "cloaks"}
    return functools.partial(protection.measure, people, surrogates=nets[:1], targets=nets, **paths)


def line(row, surrogate, target, rates, **more):
    """A line of the file as far as summaries read it."""
    text = " ".join(map(str, rates))
    about = {"data": "crowd", "learn": "6", "first": "0", "count": str(len(rates)), "distractors": "30"}
    about |= {"row": row, "surrogate": surrogate, "target": target, "white_box": str(surrogate == target)}
    about |= {"seed": "0", "survival": "saved", "image_gradients": "96", "seconds": "2.5", "fastcloak": "0.1.0"}
    return {**about, "commit": "abc", "per_person_top1": text, "per_person_linkage": text, **more}


def test_people_are_divided_into_taught_judged_and_distractors(folder):
    people = read_people(folder, learn=3, first=1, count=2)
    assert {name: len(faces) for name, faces in people.learnt_from.items()} == {"p1": 3, "p2": 3}
    assert torch.equal(people.probes["p1"].float() / 255, smooth_faces(6, seed=1)[3:])
    assert list(people.columns().values()) == ["crowd", "3", "1", "2", "18"]
    assert len(read_people(folder, folder / "p0", learn=3, count=2).distractors) == 6
    for learn, message in ((5, "p0 must have 7 photos or more, got 6"), (3, "got 5 of 5")):
        with pytest.raises(ValueError, match=message):
            read_people(folder, learn=learn)


def test_every_row_is_measured_once_and_an_interrupted_run_goes_on(run, nets, tmp_path, monkeypatch):
    everything = functools.partial(run, ROWS, surrogates=[nets[0], load_model(list(nets))], seeds=[0, 1])
    add, left = Rows.add, iter(range(19))

    def interrupted(self, row):
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(Rows, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            everything()
    before = read(tmp_path / "rows.csv")
    everything()
    lines = read(tmp_path / "rows.csv")
    assert (len(before), lines[:19]) == (19, before)
    # Controls (clean has no seed either) and two rows on a network and an ensemble; two targets, three survivals.
    assert len(lines) == len({tuple(line[column] for column in protection.KEY) for line in lines}) == (3 + 8) * 6
    white = {(line["surrogate"], line["target"]) for line in lines if line["white_box"] == "True"}
    assert white == {("a", "a"), ("a+b", "a"), ("a+b", "b")}
    by_photos = [line for line in lines if line["row"] == "by photos"]
    assert {(one["surrogate"], one["image_gradients"]) for one in by_photos} == {("a", "6"), ("a+b", "12")}
    assert json.loads(by_photos[0]["options"]) == {**QUICK, "batch_size": 3, "grey": False}
    # A lost cloak is fitted again, alone; nothing else is.
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cloaks/crowd/*/*/*/*.safetensors")}
    (lost := tmp_path / "cloaks/crowd/quick/a/0/p2.safetensors").unlink()
    everything(targets=[load_model(TinyNet(), name="c")])
    assert {path for path, when in kept.items() if path.stat().st_mtime_ns != when} == {lost}


def test_changed_options_are_refused(run, tmp_path):
    run({"quick": QUICK}, survivals=["saved"])
    with pytest.raises(ValueError, match="row 'quick' is now .*\"steps\": 3.*another output file"):
        run({"quick": {**QUICK, "steps": 3}})
    with pytest.raises(ValueError, match="row 'quick' is now .*another --cloaks"):
        run({"quick": {**QUICK, "steps": 3}}, output=tmp_path / "other.csv")
    (tmp_path / "rows.csv").write_text("row,top1\nquick,1\n")
    with pytest.raises(ValueError, match="must have the columns"):
        run({"quick": QUICK})


@pytest.mark.parametrize("photos", [6, 10])
def test_groups_compare_at_equal_cost(photos):
    for name in (*recipes.GROUPS["table1"], *recipes.GROUPS["table2"], *recipes.GROUPS["fig2a"]):
        config = configure(recipes.options_of(recipes.RECIPES[name], photos))
        inner, batch = config.inner_steps, config.batch(photos)
        # The nearest that whole steps allow, where b does not divide N.
        off = 0 if photos % batch == 0 else (config.steps if inner * config.steps == 16 else 1) * batch / 2
        assert abs(config.steps * inner * batch - 16 * photos) <= off, name


def test_rows_are_names_groups_or_given_by_hand_and_models_are_loaded_once():
    given = ["ga b=1 M=2", "@table1", "mine=steps:3,augment:('flip','jpeg'),method:opom,decay:0.5", "ga convex_hull"]
    rows = recipes.parse_rows(given)
    assert list(rows) == ["ga b=1 M=2", *recipes.GROUPS["table1"], "mine"]
    assert rows["mine"] == {"steps": 3, "augment": ("flip", "jpeg"), "method": "opom", "decay": 0.5}
    for wrong in ("opomm", "@table9", "clean=steps:3", "ga momentum=steps:3", "mine=3"):
        with pytest.raises(ValueError, match=r"must be one of @table1.*opom convex_hull.*got"):
            recipes.parse_rows([wrong], reserved=summary.CONTROLS)
    one, two = (load_model(TinyNet(), name=name) for name in ("one", "two"))
    assert [model.name for model in load_models(["one", "one&two"], {"one": one, "two": two})] == ["one", "one+two"]
    with pytest.raises(ValueError, match="names of their own"):
        load_models(["one", "one"], {"one": one})


def test_summary_is_worked_by_hand():
    # Of two people, 1 and 0: both first 1/4, mixed 1/2, both second 1/4 of the draws.
    assert summary.interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)
    opom = "opom convex_hull"
    lines = [
        *(line(row, "-", target, [0.1] * 4) for row in summary.CONTROLS for target in "ab"),
        line(opom, "a", "b", [0.2, 0.4, 0.6, 0.8]),
        line(opom, "b", "a", [0.4, 0.4, 0.4, 0.4]),
        line(opom, "a", "a", [1, 1, 1, 0.8]),
        line("better", "a", "b", [0.3, 0.5, 0.7, 0.9]),
        line("better", "a", "b", [0.5, 0.7, 0.9, 1.1], seed="1"),
        line("better", "b", "a", [0.4, 0.4, 0.4, 0.4]),
        line("half", "b", "a", [0.6, 0.6, 0.6, 0.6]),
    ]
    header, *rows = summary.summary(lines, opom)
    assert header[3:] == ["a -> b", "b -> a", "mean", "95 %", f"vs {opom}", "95 %", "times", "linkage", "white box"]
    found = {cells[0]: cells[1:] for cells in rows}
    assert found["clean"][2:6] == ["10.0", "10.0", "10.0", "[10.0, 10.0]"]
    assert found[opom][:5] == ["96", "2.5", "50.0", "40.0", "45.0"]
    assert found[opom][6:] == ["", "", "", "45.0", "95.0"]
    # Mean over seeds 0.2 above in one pair, equal in the other, the same for everyone; "half" has b -> a alone.
    assert found["better"][2:5] + found["better"][6:9] == ["70.0", "40.0", "55.0", "+10.0", "[+10.0, +10.0]", "1.22"]
    assert found["half*"][2:] == ["", "60.0", "60.0", "[60.0, 60.0]", "+20.0", "[+20.0, +20.0]", "1.50", "60.0", ""]
    # An ensemble is compared with the mean of its members on the same target.
    lines = [line(opom, "a", "c", [0.2, 0.2]), line(opom, "b", "c", [0.4, 0.4]), line("e", "a+b", "c", [0.6, 0.5])]
    assert summary.summary(lines, opom)[2][8:11] == ["+25.0", "[+20.0, +30.0]", "1.83"]


def test_the_command_summarises_and_draws_the_committed_rows(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need the extra demo")
    path = tmp_path / "rows.csv"
    shutil.copy(RESULTS / "protection_orl.csv", path)
    protection.main(["-o", str(path), "--summary", "--plots", str(tmp_path)])
    said = capsys.readouterr()
    assert "orl, jpeg75: 6 people from 0, 6 photos learnt from, 340 distractors, seeds 0\n" in said.out
    assert "vs opom convex_hull" in said.out
    drawn = {f"protection_orl_{name}.svg" for name in ("fig2a", "fig2b", "presets", "table1", "table2")}
    assert {file.name for file in tmp_path.glob("*.svg")} == drawn
    for wrong in (["--against", "nobody", "--summary"], ["--surrogates", "a", "--targets", "b", "--rows", "opomm"], []):
        with pytest.raises(SystemExit):
            protection.main(["-o", str(path), *wrong])
    assert path.read_bytes() == (RESULTS / "protection_orl.csv").read_bytes()
    # It ends quietly where its reader is gone.
    command = [sys.executable, "-m", "bench.protection", "-o", str(path), "--summary"]
    done = subprocess.run(["bash", "-c", '"$@" | true; echo ${PIPESTATUS[0]}', "_", *command], capture_output=True)
    assert (done.stdout, done.stderr) == (b"0\n", b"")


TAILORED = {
    "clean": {"how": "clean"},
    "quick": {"surrogates": "a", "gradients": 4, "eps": 20 / 255, "look": "even"},
    "later": {"surrogates": "a&b", "gradients": 1, "later": 2, "me": False},
    "one for all": {"how": "universal", "surrogates": "a", **QUICK},
}


@pytest.fixture
def run_tailored(folder, nets, tmp_path):
    people = read_people(folder, learn=3, first=1, count=2)
    known = load_model(TinyNet(), name="sface")  # the name of a network whose threshold is known
    options = {"recipes": {row: albums.album_recipe(own) for row, own in TAILORED.items()}, "targets": [nets[1], known]}
    options |= {"files": ["as saved", "JPEG 95"], "loaded": {"a": nets[0], "b": nets[1]}}
    return functools.partial(tailored.measure, people, output=tmp_path / "rows.csv", **options)


def test_albums_are_protected_as_their_rows_say_and_measured_once(run_tailored, nets, tmp_path):
    run_tailored()
    lines = read(tmp_path / "rows.csv")
    assert len({tuple(line[column] for column in tailored.KEY) for line in lines}) == len(lines) == 4 * 2 * 2
    found = {(line["row"], line["target"], line["file"]): line for line in lines}
    for (row, target, _), line in found.items():
        assert (line["photos"], line["refused"], line["found"], line["face"]) == ("12", "0", "1", "112")
        assert line["white_box"] == str((row, target) == ("later", "b"))
        # Of networks that are not known there are too few pairs here to find a threshold.
        assert (line["accepted"] != "", line["threshold"] != "") == (target == "sface",) * 2
        assert (line["new_linkage"] != "") == (row == "later")
        assert (line["new_linked"] != "") == ((row, target) == ("later", "sface"))
        assert len(json.loads(line["per_person"])["top1"]) == 2
    clean, quick = (found[row, "b", "as saved"] for row in ("clean", "quick"))
    assert (clean["image_gradients"], clean["seconds"]) == ("0", "0")
    assert (quick["image_gradients"], found["one for all", "b", "as saved"]["image_gradients"]) == ("4", "0.333333")
    assert float(quick["seconds"]) > 0
    if clean["ssim"]:
        assert (clean["ssim"], clean["ciede2000"]) == ("1", "0")
        assert float(quick["ssim"]) < 1 < float(quick["ciede2000"])
    run_tailored()
    assert read(tmp_path / "rows.csv") == lines
    run_tailored(targets=[load_model(TinyNet(), name="c")], files=["JPEG 95"])
    more = read(tmp_path / "rows.csv")
    assert (more[: len(lines)], [line["row"] for line in more[len(lines) :]]) == (lines, list(TAILORED))
    changed = albums.album_recipe({**TAILORED["quick"], "apart": 0.25})
    with pytest.raises(ValueError, match="row 'quick' is now .*another output file"):
        run_tailored(recipes={"quick": changed})
    (tmp_path / "rows.csv").write_text("row,top1\nquick,1\n")
    with pytest.raises(ValueError, match="must have the columns"):
        run_tailored()


def test_albums_are_kept_apart_and_photos_of_a_second_run_from_the_first(folder, nets):
    people = read_people(folder, learn=3, first=0, count=1)
    (paths,), (learn,), (faces,) = people.photos.values(), people.learnt_from.values(), people.albums.values()
    pictures = [tailored.picture_at(path, 1) for path in paths]

    def protected(*, first=0, **options):
        recipe = albums.album_recipe({"look": "even", "eps": 24 / 255, "gradients": 24, **options})
        album = albums.protect_album(recipe, pictures[first:], learn, nets[0])
        changes = [np.abs(a.astype(int) - b) for a, (b, _) in zip(album.photos, pictures[first:], strict=True)]
        assert [change.max() for change in changes] == [24] * len(changes)
        return torch.stack([tailored.crop_again(photo) for photo in album.photos])

    def cosine(a, b):
        return (tailored.embed(nets[0], a) @ tailored.embed(nets[0], b).T).mean().item()

    assert cosine(protected(apart=0.0), faces) < cosine(faces, faces) - 0.3
    linked, album, second = (protected(me=False, apart=a, later=n) for a, n in ((0.0, 0), (1.0, 0), (1.0, 3)))
    assert cosine(album, album) < cosine(linked, linked) - 0.04
    # The same three photos, had the first run not been looked at.
    unaware = protected(me=False, apart=1.0, first=3)
    assert cosine(second[3:], second[:3]) < cosine(unaware, second[:3]) - 0.04


def test_rates_of_an_album_are_worked_by_hand():
    def face(*values):
        picture = torch.zeros(3, 112, 112, dtype=torch.uint8)
        picture[0, 0, :2] = torch.tensor(values)
        return picture

    target = load_model(lambda x: x[:, 0, 0, :2], name="first two pixels")
    crowd = torch.tensor([[0.6, 0.8]] * 5)
    gallery = tailored.Gallery({"me": torch.tensor([[1.0, 0.0]] * 3)}, crowd, 0.9)
    # Photo 0 looks as before, photo 1 like a stranger, rather; in photo 2 no face was found.
    found = {0: face(255, 0), 1: face(0, 255)}
    rates = tailored.rates(target, gallery, "me", found, 1)
    assert (rates["top1"], rates["top5"], rates["accepted"]) == (0.5, 0.5, 0.5)
    assert (rates["linkage"], rates["linked"], rates["impersonation"]) == (0, 0, 0)
    assert (rates["new_linkage"], rates["new_linked"]) == (0, 0)
    twice = tailored.rates(target, gallery, "me", {**found, 2: face(255, 0)}, 2)
    # Of six pairs 0 and 2 find each other; 2 finds 0 in the first run, and not 1.
    assert (twice["linkage"], twice["new_linkage"], twice["new_linked"]) == (1 / 3, 0.5, 0.5)
    assert tailored.rates(target, gallery, "me", {0: face(255, 0)}, 3) == {}


def test_rows_of_albums_are_checked_and_groups_share_the_default():
    made = {name: albums.album_recipe(options) for name, options in albums.RECIPES.items()}
    default = albums.album_recipe({})
    assert [name for name, recipe in made.items() if recipe == default] == ["tailored"]
    assert {name for name, group in albums.GROUPS.items() if "tailored" not in group} == {"later", "universal"}
    bounds = [made[row].options for row in albums.GROUPS["bounds"]]
    levels = {(one["look"], round(255 * one["eps"], 2)) for one in bounds}
    assert levels == {(look, level) for look in ("even", "textured") for level in (5, 6, 7.25, 8, 9)}
    for wrong, message in (
        ({"how": "else"}, "how must be one of tailored, universal, clean, got 'else'"),
        ({"me": 1}, "me must be True or False"),
        ({"later": -1}, "later a whole number"),
        ({"zoom": 0}, "zoom above 0"),
        ({"how": "clean", "eps": 0.1}, "must have no options, got eps"),
        ({"gradients": -1}, "gradients"),
    ):
        with pytest.raises(ValueError, match=message):
            albums.album_recipe(wrong)
    for wrong in ({"gradient": 3}, {"how": "universal", "apart": 1.0}):
        with pytest.raises(TypeError, match="unknown option"):
            albums.album_recipe(wrong)


def test_rows_of_albums_are_summarised_and_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need the extra demo")
    path, context = tmp_path / "rows.csv", {"gpu": "", "cpu": "none", "cores": "1", "torch": "2", "commit": "abc"}
    rows = Rows(path, lambda: {**context, "date": "2026-01-01T00:00"})
    names = ["clean", "universal strong", "even 5", "even 8", "textured 5", "gradients 10", "tailored", "gradients 20"]
    for i, (name, white) in enumerate((name, white) for name in names for white in (False, True)):
        values = dict.fromkeys((*tailored.RATES, *tailored.NEW_RATES, *tailored.LOOKS))
        values |= {"top1": [i / 20, i / 20], "accepted": [0.1, 0.3], "ssim": [0.9 - i / 100] * 2, "top5": [None, 0.5]}
        values = {column: [None, None] if value is None else value for column, value in values.items()}
        means = {column: tailored._mean(value) for column, value in values.items()}
        line = dict.fromkeys(tailored.KEY, "0") | {"data": "crowd", "row": name, "target": "b", "file": "JPEG 95"}
        line |= {"target": f"t{white}", "white_box": white, "photos": 30, "refused": 0, "found": 0.995, "face": 128.0}
        line |= {"options": recipes.as_json({"options": albums.album_recipe(albums.RECIPES[name]).options})}
        line |= {"image_gradients": 10 * i, "seconds": 0.1 * i, "per_person": json.dumps(values)}
        rows.add({**line, **{column: "" if mean is None else mean for column, mean in means.items()}})
    tailored.main(["-o", str(path), "--summary", "--plots", str(tmp_path)])
    said = capsys.readouterr().out
    assert "crowd: albums of 0 people from 0, 0 photos learnt from, 0 distractors\n" in said
    header, *table = tailored.summary(read(path))
    assert header[5:8] == ["Top-1", "Top-5", "accepted"]
    assert "linkage" not in header
    row = dict(zip(header, table[7], strict=True))
    assert (row["row"], row["target"], row["found"], row["face"]) == ("even 8", "tTrue*", "99.5", "128")
    assert (row["Top-1"], row["Top-5"]) == ("35.0 [35.0, 35.0]", "50.0 [50.0, 50.0]")
    assert (row["accepted"], row["SSIM"]) == ("20.0 [10.0, 30.0]", "0.830 [0.830, 0.830]")
    assert {file.name for file in tmp_path.glob("*.svg")} == {
        f"tailored_crowd_0_0_{name}.svg" for name in ("ssim", "seconds")
    }
    for wrong in (["--rows", "quick"], ["--targets", "a", "--rows", "x=me:1"], ["--targets", "a", "--rows", "x=nn:1"]):
        with pytest.raises(SystemExit):
            tailored.main(["-o", str(path), *wrong])
