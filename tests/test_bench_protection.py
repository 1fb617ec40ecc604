"""bench/protection/__main__.py measures every row once, and its summary says what the lines say."""

import csv
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench.protection import __main__ as protection
from bench.protection import figures as protection_plots
from bench.protection import recipes
from bench.protection import summary as protection_summary
from fastcloak import load_model
from fastcloak.fitting.options import configure
from tests.conftest import TinyNet, smooth_faces

QUICK = {"steps": 2, "inner_steps": 1, "warmup": 1}
ROWS = {"quick": QUICK, "by photos": lambda photos: {**QUICK, "batch_size": photos}}


def other_net():
    net = TinyNet()
    generator = torch.Generator().manual_seed(3)
    for weight in net.parameters():
        if weight.ndim > 1:
            weight.data += 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
    return net


@pytest.fixture(scope="module")
def nets():
    return load_model(TinyNet(), name="a"), load_model(other_net(), name="b")


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


@pytest.fixture(scope="module")
def people(folder):
    return protection.read_people(folder, learn=3, first=1, count=2)


@pytest.fixture
def fits(monkeypatch):
    """Who was fitted, a list of names per call."""
    calls = []

    def counted(people, *arguments, **options):
        calls.append(list(people))
        return fit_many(people, *arguments, **options)

    fit_many = protection.fit_many
    monkeypatch.setattr(protection, "fit_many", counted)
    return calls


@pytest.fixture
def run(people, nets, tmp_path):
    return functools.partial(
        protection.measure,
        people,
        surrogates=nets[:1],
        targets=nets,
        output=tmp_path / "rows.csv",
        cloaks=tmp_path / "cloaks",
    )


def read(folder):
    with open(folder / "rows.csv", newline="") as file:
        return list(csv.DictReader(file))


def line(row, surrogate, target, rates, **more):
    """A line of the file as far as summaries read it."""
    text = " ".join(map(str, rates))
    return {
        **dict.fromkeys(protection.COLUMNS, ""),
        "data": "crowd",
        "learn": "6",
        "first": "0",
        "count": str(len(rates)),
        "distractors": "30",
        "row": row,
        "surrogate": surrogate,
        "target": target,
        "white_box": str(surrogate == target),
        "seed": "0",
        "survival": "saved",
        "image_gradients": "96",
        "seconds": "2.5",
        "per_person_top1": text,
        "per_person_linkage": text,
        "fastcloak": "0.1.0",
        "commit": "abc",
        **more,
    }


def controls(targets, people=4):
    return [line(row, "-", target, [0.1] * people) for row in protection_summary.CONTROLS for target in targets]


def write(path, lines):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, protection.COLUMNS)
        table.writeheader()
        table.writerows(lines)


def test_people_are_divided_into_taught_judged_and_distractors(folder, people):
    assert list(people.probes) == ["p1", "p2"]
    assert [tuple(faces.shape[:1]) for faces in people.learnt_from.values()] == [(3,), (3,)]
    assert torch.equal(people.probes["p1"].float() / 255, smooth_faces(6, seed=1)[3:])
    assert people.columns() == {"data": "crowd", "learn": "3", "first": "1", "count": "2", "distractors": "18"}
    assert len(protection.read_people(folder, folder / "p0", learn=3, count=2).distractors) == 6
    with pytest.raises(ValueError, match="p0 must have 7 photos or more, got 6"):
        protection.read_people(folder, learn=5)
    with pytest.raises(ValueError, match="got 5 of 5"):
        protection.read_people(folder, learn=3)


def test_every_row_is_measured_on_every_target_and_survival(run, nets, tmp_path):
    ensemble = load_model(list(nets))
    run(ROWS, surrogates=[nets[0], ensemble], seeds=[0, 1])
    lines = read(tmp_path)
    measured = {(line["row"], line["surrogate"], line["target"], line["seed"], line["survival"]) for line in lines}
    learnt = {(row, surrogate, seed) for row in ROWS for surrogate in ("a", "a+b") for seed in "01"}
    expected = {("clean", "-", "0"), ("random", "-", "0"), ("random", "-", "1"), *learnt}
    assert measured == {
        (row, surrogate, target, seed, survival)
        for row, surrogate, seed in expected
        for target in "ab"
        for survival in ("saved", "jpeg75", "resize")
    }
    assert len(lines) == len(measured)
    assert lines[0]["row"] == "clean"
    white = {(line["surrogate"], line["target"]) for line in lines if line["white_box"] == "True"}
    assert white == {("a", "a"), ("a+b", "a"), ("a+b", "b")}
    costs = {(line["surrogate"], line["image_gradients"]) for line in lines if line["row"] == "by photos"}
    assert costs == {("a", "6"), ("a+b", "12")}  # an image-gradient for each network
    assert {line["options"] for line in lines if line["row"] == "by photos"} == {
        json.dumps({**QUICK, "batch_size": 3, "grey": False}, sort_keys=True)
    }
    for line in lines:
        rates = [float(rate) for rate in line["per_person_cosine"].split()]
        assert len(rates) == 2
        assert float(line["cosine"]) == pytest.approx(np.mean(rates), abs=1e-4)
    # Two learnt masks of different seeds are different masks.
    assert len({line["per_person_cosine"] for line in lines if line["row"] == "random"}) == 12


def test_interrupted_run_goes_on_where_it_was(run, fits, nets, tmp_path, monkeypatch):
    append = protection._append
    left = iter(range(9))

    def interrupted(output, row):
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(output, row)

    with monkeypatch.context() as patched:
        patched.setattr(protection, "_append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(ROWS, survivals=["saved", "resize"])
    before = read(tmp_path)
    assert len(before) == 9
    assert fits == [["p1", "p2"]]
    run(ROWS, survivals=["saved", "resize"])
    after = read(tmp_path)
    assert after[:9] == before
    assert len(after) == 16
    assert fits == [["p1", "p2"]] * 2
    # Another survival and another target cost no fit; nothing at all is done twice.
    run(ROWS)
    assert len(read(tmp_path)) == 24
    run(ROWS)
    assert len(read(tmp_path)) == 24
    assert fits == [["p1", "p2"]] * 2
    # A lost cloak is learnt again, alone.
    (tmp_path / "cloaks/crowd/quick/a/0/p2.safetensors").unlink()
    run(ROWS, targets=[load_model(other_net(), name="c")])
    assert fits[2:] == [["p2"]]


def test_changed_options_are_refused(run, fits, tmp_path):
    run({"quick": QUICK}, survivals=["saved"])
    with pytest.raises(ValueError, match="row 'quick' is now .*\"steps\": 3.*another output file"):
        run({"quick": {**QUICK, "steps": 3}})
    with pytest.raises(ValueError, match="row 'quick' is now .*another --cloaks"):
        run({"quick": {**QUICK, "steps": 3}}, output=tmp_path / "other.csv")
    assert len(fits) == 1
    (tmp_path / "rows.csv").write_text("row,top1\nquick,1\n")
    with pytest.raises(ValueError, match="must have the columns"):
        run({"quick": QUICK})


def test_survivals_change_what_they_say(people):
    faces = people.probes["p1"]
    mask = torch.linspace(-7.9 / 255, 7.9 / 255, 3 * 112 * 112).view(3, 112, 112)
    posted = protection.Cloak(mask, 8 / 255).apply(faces)
    assert torch.equal(protection.saved(posted), ((faces / 255 + mask).clamp(0, 1) * 255).round().byte())
    for survival in (protection.jpeg75, protection.resize):
        changed = survival(posted)
        assert (changed.shape, changed.dtype) == (posted.shape, torch.uint8)
        difference = (changed.int() - posted.int()).abs().float()
        assert 0 < difference.mean() < 8
    # A half and back keeps what is flat.
    assert torch.equal(
        protection.resize(torch.full((1, 3, 112, 112), 77, dtype=torch.uint8)).unique(), torch.tensor([77])
    )


@pytest.mark.parametrize("photos", [6, 10])
def test_groups_compare_at_equal_cost(photos):
    def cost(name):
        config = configure(recipes.options_of(recipes.RECIPES[name], photos))
        return config.steps, config.inner(), config.batch(photos)

    for group in ("table1", "table2"):
        for name in recipes.GROUPS[group]:
            steps, inner, batch = cost(name)
            assert (steps, inner * batch) == (16, photos), name
    for name in recipes.GROUPS["fig2a"]:
        steps, inner, batch = cost(name)
        if photos % batch == 0:
            assert steps * inner * batch == 16 * photos, name
        else:  # the nearest that whole steps allow
            assert abs(steps * inner * batch - 16 * photos) <= (steps if inner * steps == 16 else 1) * batch / 2, name
    for name in recipes.GROUPS["fig2b"]:
        assert cost(name)[0] == 16


def test_rows_are_names_groups_or_given_by_hand():
    rows = protection.parse_rows(
        ["ga b=1 M=2", "@table1", "mine=steps:3,augment:('flip','jpeg'),method:opom,decay:0.5", "ga convex_hull"]
    )
    assert list(rows) == ["ga b=1 M=2", *recipes.GROUPS["table1"], "mine"]
    assert rows["mine"] == {"steps": 3, "augment": ("flip", "jpeg"), "method": "opom", "decay": 0.5}
    assert rows["ga b=1 M=2"] is recipes.RECIPES["ga b=1 M=2"]
    for wrong in ("opomm", "@table9", "ga b=1 M=3", "clean=steps:3", "ga momentum=steps:3", "mine=3"):
        with pytest.raises(ValueError, match=r"must be one of @table1.*opom convex_hull.*got"):
            protection.parse_rows([wrong])


def test_unknown_row_is_wrong_usage(tmp_path, capsys):
    wrong = ["--surrogates", "a", "--targets", "b", "--rows", "opomm", "-o", str(tmp_path / "rows.csv")]
    for arguments in (wrong, ["-o", str(tmp_path / "rows.csv")]):
        with pytest.raises(SystemExit) as stopped:
            protection.main(arguments)
        assert stopped.value.code == 2
    assert "'opomm'" in capsys.readouterr().err


def test_models_are_loaded_once(monkeypatch):
    asked = []
    monkeypatch.setattr(protection, "parse_model", lambda text: asked.append(text) or load_model(TinyNet(), name=text))
    loaded = {}
    surrogates = protection.load_models(["one", "one&two"], loaded)
    targets = protection.load_models(["two", "three"], loaded)
    assert [model.name for model in (*surrogates, *targets)] == ["one", "one+two", "two", "three"]
    assert asked == ["one", "two", "three"]
    with pytest.raises(ValueError, match="names of their own"):
        protection.load_models(["one", "one"], loaded)


def test_interval_worked_by_hand():
    assert protection_summary.interval(np.full(5, 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    # Of two people, 1 and 0: both first 1/4, mixed 1/2, both second 1/4 of the draws.
    assert protection_summary.interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)
    # 200 people, half of them 1: 0.5 +- 1.96 * sqrt(0.25 / 200).
    mean, low, high = protection_summary.interval(np.arange(200) % 2.0)
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - 0.0693, 0.5 + 0.0693), abs=0.006)


def test_summary_is_the_mean_worked_by_hand():
    lines = [
        *controls(["a", "b"]),
        line("opom convex_hull", "a", "b", [0.2, 0.4, 0.6, 0.8]),
        line("opom convex_hull", "b", "a", [0.4, 0.4, 0.4, 0.4]),
        line("opom convex_hull", "a", "a", [1, 1, 1, 0.8]),
        line("better", "a", "b", [0.3, 0.5, 0.7, 0.9]),
        line("better", "a", "b", [0.5, 0.7, 0.9, 1.1], seed="1"),
        line("better", "b", "a", [0.4, 0.4, 0.4, 0.4]),
        line("half", "b", "a", [0.6, 0.6, 0.6, 0.6]),
    ]
    header, *rows = protection_summary.summary(lines, "opom convex_hull")
    assert header == [
        *("row", "image-gradients", "s/person", "a -> b", "b -> a", "mean", "95 %"),
        *("vs opom convex_hull", "95 %", "times", "linkage", "white box"),
    ]
    found = {cells[0]: cells for cells in rows}
    assert list(found) == ["clean", "random", "opom convex_hull", "better", "half*"]
    assert found["clean"][3:7] == ["10.0", "10.0", "10.0", "[10.0, 10.0]"]
    assert found["opom convex_hull"][1:6] == ["96", "2.5", "50.0", "40.0", "45.0"]
    assert found["opom convex_hull"][7:] == ["", "", "", "45.0", "95.0"]
    # Mean over seeds 0.2 above in one pair, equal in the other, the same for everyone.
    assert found["better"][3:6] == ["70.0", "40.0", "55.0"]
    assert found["better"][7:] == ["+10.0", "[+10.0, +10.0]", "1.22", "55.0", ""]
    # Over b -> a alone.
    assert found["half*"][3:] == ["", "60.0", "60.0", "[60.0, 60.0]", "+20.0", "[+20.0, +20.0]", "1.50", "60.0", ""]


def test_an_ensemble_is_compared_with_its_members_on_the_same_target():
    lines = [
        line("opom convex_hull", "a", "c", [0.2, 0.2]),
        line("opom convex_hull", "b", "c", [0.4, 0.4]),
        line("opom convex_hull", "a", "b", [0.9, 0.9]),
        line("strong", "a+b", "c", [0.6, 0.5]),
        line("strange", "a+d", "c", [0.6, 0.5]),
    ]
    header, *rows = protection_summary.summary(lines, "opom convex_hull")
    found = {cells[0]: dict(zip(header, cells, strict=True)) for cells in rows}
    assert (found["strong*"]["vs opom convex_hull"], found["strong*"]["times"]) == ("+25.0", "1.83")
    assert (found["strange*"]["vs opom convex_hull"], found["strange*"]["times"]) == ("", "")


def test_paired_interval_is_narrower_than_that_of_either():
    lines = [line("one", "a", "b", [0.0, 0.3, 0.6, 0.9]), line("two", "a", "b", [0.0, 0.3, 0.6, 1.0])]
    cells = {row[0]: row for row in protection_summary.summary(lines, "one")}["two"]
    assert cells[6:8] == ["+2.5", "[+0.0, +7.5]"]


def test_summary_prints_text_or_markdown_and_measures_nothing(tmp_path, capsys):
    lines = [*controls("ab"), line("one", "a", "b", [0.5] * 4), line("one", "a", "b", [0.1] * 4, survival="jpeg75")]
    write(tmp_path / "rows.csv", lines)
    protection.main(["-o", str(tmp_path / "rows.csv"), "--summary", "--against", "random"])
    text = capsys.readouterr().out
    assert "crowd, saved: 4 people from 0, 6 photos learnt from, 30 distractors, seeds 0\n" in text
    assert "crowd, jpeg75: " in text
    assert "vs random" in text
    assert "+40.0" in text
    protection.main(["-o", str(tmp_path / "rows.csv"), "--summary", "--markdown"])
    assert "| one | 96 | 2.5 | 50.0 | 50.0 | [50.0, 50.0] | 50.0 |  |\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        protection.main(["-o", str(tmp_path / "rows.csv"), "--summary", "--against", "nobody"])
    assert len(read(tmp_path)) == len(lines)


def test_summary_ends_quietly_where_its_reader_is_gone(tmp_path):
    write(tmp_path / "rows.csv", [*controls("ab"), line("one", "a", "b", [0.5] * 4)])
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bench.protection.__main__", "-o", str(tmp_path / "rows.csv"), "--summary"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_figures_are_written_where_their_rows_are(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need the extra demo")
    lines = controls("ab")
    for group in ("table1", "fig2a", "presets"):
        lines += [
            line(row, surrogate, target, [0.2, 0.3, 0.4, 0.9])
            for row in recipes.GROUPS[group]
            for surrogate, target in ("ab", "ba", "aa")
        ]
    write(tmp_path / "rows.csv", lines)
    protection.main(["-o", str(tmp_path / "rows.csv"), "--summary", "--plots", str(tmp_path / "plots")])
    names = [
        f"protection_crowd_{figure}.{kind}" for figure in ("fig2a", "presets", "table1") for kind in ("png", "svg")
    ]
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == names
    with Image.open(tmp_path / "plots" / names[0]) as picture:
        assert min(picture.size) > 300
    said = capsys.readouterr().err
    assert "skipped fig2b of crowd: no saved rows ga b=1 M=1, " in said
    assert "skipped table2 of crowd: no saved rows opom momentum, " in said
    # Other people of the same collection do not take these names.
    lines = [line for line in lines if line["row"] in (*protection_summary.CONTROLS, *recipes.GROUPS["presets"])]
    write(tmp_path / "rows.csv", lines + [{**line, "first": "4"} for line in lines])
    protection.main(["-o", str(tmp_path / "rows.csv"), "--summary", "--plots", str(tmp_path / "both")])
    names = [f"protection_crowd_learn6_first{first}_count4_distractors30_presets.png" for first in (0, 4)]
    assert sorted(file.name for file in (tmp_path / "both").glob("*presets.png")) == names
    assert set(protection_plots.FIGURES) <= set(recipes.GROUPS)
