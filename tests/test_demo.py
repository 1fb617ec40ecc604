"""The demo from end to end on real faces and networks, made small, and that nothing here asks the network."""

import socket

import pytest
import torch
from PIL import Image

import fastcloak
from fastcloak.cli.demo import run_demo
from tests.conftest import smooth_faces

CHEAP = {"steps": 4, "alpha": 4 / 255, "inner_steps": 2, "batch_size": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "made"


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def demo(folder, said):
    return run_demo(folder, people=2, strangers=3, progress=False, say=said.append, **CHEAP)


def test_demo_judges_four_masks_on_both_networks(demo):
    evaluation = demo.evaluation
    assert [(row.model, row.mask) for row in evaluation.rows] == [
        (model, mask) for model in ("dlib", "sface") for mask in ("clean", "random", "opom", "ga")
    ]
    assert (evaluation.people, evaluation.pairs, evaluation.distractors) == (("s1", "s2"), 24, 30)
    marked = {(row.model, row.mask) for row in evaluation.rows if row.white_box}
    assert marked == {("sface", "opom"), ("sface", "ga")}
    assert all(row.largest_change <= 8 for row in evaluation.rows)


def test_demo_cloaks_protect_on_the_network_they_were_learnt_on(demo):
    sface = {row.mask: row for row in demo.evaluation.rows if row.model == "sface"}
    controls = max(sface[mask].protection_top1 for mask in ("clean", "random"))
    for method in ("opom", "ga"):
        assert sface[method].protection_top1 > controls
        assert sface[method].mean_similarity < sface["random"].mean_similarity


def test_demo_files_exist_load_and_have_the_right_size(demo, folder):
    assert [file.name for file in demo.files] == [
        "s1.cloak.safetensors",
        "s2.cloak.safetensors",
        "cloaked.png",
        "protection.png",
    ]
    assert sorted(folder.iterdir()) == sorted(demo.files)
    for name, file in zip(("s1", "s2"), demo.files, strict=False):
        cloak = fastcloak.load(file)
        assert torch.equal(cloak.delta, demo.cloaks["ga"][name].delta)
        assert cloak.info["photos"] == 6
        assert cloak.info["image_gradients"] == 4 * 2 * 1
    with Image.open(folder / "cloaked.png") as picture:
        # Two photos of each person.
        assert picture.size == (8 + 4 * (2 * 112 + 8), 8 + 3 * (20 + 2 * 112 + 8))
    with Image.open(folder / "protection.png") as picture:
        picture.load()
        assert picture.width > 500


def test_demo_gives_ga_options_to_ga_only(demo, said):
    assert demo.cloaks["opom"]["s1"].info["image_gradients"] == 4 * 6
    assert demo.cloaks["ga"]["s1"].info["inner_steps"] == 2
    assert said[0] == "Detecting and aligning 50 ORL photos ..."
    assert len(said) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"people": 0}, "people must be 1 to 39"),
        ({"people": 40}, "people must be 1 to 39"),
        ({"people": 30, "strangers": 11}, "strangers must be 1 to 10 beside 30 people, got 11"),
        ({"strangers": 0}, "strangers must be 1 to 34"),
    ],
)
def test_demo_refuses_numbers_out_of_range(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run_demo(tmp_path / "made", **options)
    assert not (tmp_path / "made").exists()


def test_no_socket_is_opened(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.create_connection(("localhost", 1))

    surrogate = fastcloak.load_model("sface")
    cloak = fastcloak.fit(smooth_faces(2), surrogate, steps=1, inner_steps=1, batch_size=1, progress=False)
    evaluation = fastcloak.evaluate({"me": cloak}, {"me": smooth_faces(2)}, surrogate, smooth_faces(1, seed=1))
    assert [row.mask for row in evaluation.rows] == ["clean", "random", "cloak"]
