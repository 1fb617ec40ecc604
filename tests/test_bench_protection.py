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
from bench.protection import recipes, summary
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
