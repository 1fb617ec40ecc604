"""The demo from end to end on real faces and networks, made small."""

import pytest
import torch
from PIL import Image

import fastcloak
from fastcloak.cli import demo as demo_command
from fastcloak.cli.main import main

STAGES = [
    "Detecting and aligning 50 ORL photos ...",
    "Fitting 2 cloaks on SFace with opom ...",
    "Fitting 2 cloaks on SFace with ga ...",
    "Tailoring 8 photos on SFace ...",
    "Judging them on dlib, which no mask was learnt on, and on SFace ...",
]


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def demo(tmp_path_factory, stages):
    cheap = {"steps": 4, "alpha": 4 / 255, "inner_steps": 2, "batch_size": 1, "gradients": 8}
    folder = tmp_path_factory.mktemp("demo") / "made"
    return demo_command.run_demo(folder, people=2, strangers=3, progress=False, on_stage=stages.append, **cheap)


def test_five_masks_are_judged_on_both_networks(demo, stages):
    rows = {(row.model, row.mask): row for row in demo.evaluation.rows}
    masks = ("clean", "random", "opom", "ga", "tailored")
    assert list(rows) == [(model, mask) for model in ("dlib", "sface") for mask in masks]
    assert (demo.evaluation.people, demo.evaluation.pairs, demo.evaluation.distractors) == (("s1", "s2"), 24, 30)
    assert {key for key, row in rows.items() if row.white_box} == {
        ("sface", mask) for mask in ("opom", "ga", "tailored")
    }
    # A tailored mask has a mean bound of 7, and 1.75 times as much where the photo has texture.
    assert all(row.largest_change <= (13 if row.mask == "tailored" else 8) for row in rows.values())
    assert stages == STAGES


@pytest.mark.parametrize("method", ["opom", "ga", "tailored"])
def test_masks_protect_on_the_network_they_were_learnt_on(demo, method):
    sface = {row.mask: row for row in demo.evaluation.rows if row.model == "sface"}
    assert sface[method].protection_top1 > max(sface["clean"].protection_top1, sface["random"].protection_top1)
    assert sface[method].mean_similarity < sface["random"].mean_similarity


def test_options_of_ga_are_for_ga_only(demo):
    assert demo.cloaks["opom"]["s1"].info["image_gradients"] == 4 * 6
    assert demo.cloaks["ga"]["s1"].info["image_gradients"] == 4 * 2
    assert demo.cloaks["ga"]["s1"].info["photos"] == 6


def test_files_are_cloaks_and_pictures(demo):
    folder = demo.files[0].parent
    assert [file.name for file in demo.files] == [
        "s1.cloak.safetensors",
        "s2.cloak.safetensors",
        "cloaked.png",
        "protection.png",
    ]
    assert sorted(folder.iterdir()) == sorted(demo.files)
    assert torch.equal(fastcloak.load(demo.files[1]).delta, demo.cloaks["ga"]["s2"].delta)
    for picture in demo.files[2:]:
        with Image.open(picture) as opened:
            opened.load()
            assert opened.width > 500
            if picture.name == "cloaked.png":  # rows: original, universal, difference, tailored, difference
                assert opened.height == 8 + 5 * (20 + 224 + 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"people": 0}, "people must be 1 to 39"),
        ({"people": 40}, "people must be 1 to 39"),
        ({"people": 30, "strangers": 11}, "strangers must be 1 to 10 with 30 people, got 11"),
        ({"strangers": 0}, "strangers must be 1 to 36"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        demo_command.run_demo(tmp_path / "made", **options)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "people", "strangers"),
    [([], 4, 20), (["--full"], 6, 34), (["--people", "30"], 30, 10), (["--people", "5", "--full"], 5, 35)],
)
def test_full_demo_takes_everyone(monkeypatch, arguments, people, strangers):
    asked = {}

    def run_demo(folder, **options):
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(demo_command, "run_demo", run_demo)
    assert main(["demo", *arguments]) == 1
    assert (asked["people"], asked["strangers"]) == (people, strangers)
