"""People are read in threads while others are learnt: the same cloaks and errors, no more read than one pass ahead."""

import signal
import threading
import time

import pytest
import torch

from fastcloak import FitInterrupted, FitManyError, load_model
from fastcloak.fitting.fitter import Fitter
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.padding import Padding, held
from fastcloak.fitting.state import Album, Tailoring
from fastcloak.models import prepare, unit_features
from fastcloak.ops import reference
from fastcloak.system.threads import in_order
from tests.conftest import TinyNet, smooth_faces

SHORT = {"preset": "plain", "steps": 2, "inner_steps": 2, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def fitter():
    return Fitter(TinyNet(), **SHORT)


class Noted(dict):
    """A person's photos, which call a function when they are read."""

    def __init__(self, photos, note):
        super().__init__(photos)
        self.note = note

    def items(self):
        for name, photo in super().items():
            self.note(name)
            yield name, photo


def someone(seed, note=lambda photo: None, photos=3):
    return Noted({f"{seed}.{i}": face for i, face in enumerate(smooth_faces(photos, seed))}, note)


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastcloak-reader")]


def test_whatever_the_number_of_readers_cloaks_and_errors_are_the_same(fitter, tmp_path, monkeypatch):
    people = {str(seed): someone(seed, photos=3 + seed % 2) for seed in range(5)}
    bad = {"none": [], "gone": [tmp_path / "gone.png"], "one": someone(9, photos=1)}
    results = []
    for number in (0, 1, 3):
        monkeypatch.setattr(fitter, "readers", number)
        with pytest.raises(FitManyError) as caught:
            fitter.fit_many({"none": bad["none"], **people, **bad})
        results.append(caught.value)
        assert not readers()
    for result in results:
        assert list(result.cloaks) == list(people)
        assert list(result.errors) == list(bad)
        assert list(map(str, result.errors.values())) == list(map(str, results[0].errors.values()))
        for name, cloak in results[0].cloaks.items():
            assert torch.equal(result.cloaks[name].delta, cloak.delta)


def test_the_next_pass_is_read_while_one_is_learnt_and_no_more(fitter, monkeypatch):
    monkeypatch.setattr(fitter, "readers", 1)
    begun = []

    def learning(done, total):
        person = (done - 1) // 2
        deadline = time.monotonic() + 60
        while len(begun) < min(3 * (person + 2), 18):  # with nobody reading ahead this would never end
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert len(begun) <= 3 * (person + 3)

    fitter.fit_many({str(seed): someone(seed, begun.append) for seed in range(6)}, progress=learning)
    assert len(begun) == 18


@pytest.fixture
def heeds_ctrl_c():
    """A shell's background jobs ignore SIGINT, and so would this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_readers_at_the_next_photo(fitter, monkeypatch, heeds_ctrl_c):
    monkeypatch.setattr(fitter, "readers", 2)
    read, sent = [], []

    def slowly(photo):
        read.append(photo)
        if len(read) >= 5 and not sent:
            sent.append(photo)
            # While the calling thread waits for the first person.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)

    people = {str(seed): someone(seed, slowly, photos=50) for seed in range(4)}
    with pytest.raises(FitInterrupted) as caught:
        fitter.fit_many(people)
    assert not caught.value.cloaks
    assert len(read) < 50
    assert not readers()


def test_one_face_without_features_costs_nobody_else_the_cloak(monkeypatch):
    def breaks_on_black(x):
        return torch.where((x.amax((1, 2, 3)) < 0.1)[:, None], torch.nan, net(x))

    net, black = TinyNet(), smooth_faces(3, 1)
    black[1] = 0
    people = {"0": smooth_faces(3, 0), "black": black, "2": smooth_faces(3, 2)}
    fitter = Fitter(breaks_on_black, **SHORT, memory_budget=10**9)
    sizes = []
    for together in (0, 4):
        monkeypatch.setattr(fitter, "faces_at_once", together)
        with pytest.raises(FitManyError) as caught:
            fitter.fit_many(people)
        assert list(caught.value.cloaks) == ["0", "2"]
        assert "for face 1;" in str(caught.value.errors["black"])
        sizes.append(caught.value.cloaks["2"].delta)
    assert (sizes[0] != sizes[1]).float().mean() < 0.01


def test_in_order_takes_no_more_than_it_may():
    taken = []

    def items():
        for i in range(6):
            taken.append(i)
            yield i

    for made in in_order(None, lambda i: 10 * i, items(), lambda: 3):
        assert taken[-1] == made // 10


# ---- a small pass on a loop that holds more


@pytest.mark.parametrize(
    ("persons", "most", "rows"), [(1, 1, 1), (5, 8, 8), (4, 8, 4), (1, 100, 1), (2, 100, 3), (9, 8, 9)]
)
def test_a_pass_takes_the_smallest_half_of_a_half_that_holds_it(persons, most, rows):
    assert held(persons, most) == rows


@pytest.mark.promise("P7")
@pytest.mark.parametrize("tailored", [False, True])
def test_a_pass_that_is_filled_up_learns_the_same_and_goes_on_where_it_stopped(tailored):
    surrogate = prepare(load_model(TinyNet()), device="cpu", dtype=torch.float32)
    config = FitConfig(objective="class_center" if tailored else "convex_hull", steps=4, inner_steps=2, decay=1.0)
    faces = torch.stack([smooth_faces(1 if tailored else 3, seed) for seed in range(3)])
    features = unit_features(surrogate, faces.flatten(0, 1)).view(3, faces.shape[1], -1)
    arguments = {"faces": faces, "features": features}
    tailoring = None
    if tailored:
        tailoring = Tailoring(112, 0.5)
        place = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3)
        arguments["album"] = Album(torch.full((3, 3, 112, 112), 0.03), place, 1 - torch.eye(3))
        arguments |= {"earlier": features[:1, 0], "alike": torch.tensor([[1.0], [0.0], [1.0]])}
    states = {}

    def keep(learnt, state):
        assert learnt.delta.shape == (3, 3, 112, 112)
        states[learnt.steps] = {name: tensor.clone() for name, tensor in state().items()}

    def learnt(rows, **more):
        loop = Loop(surrogate, config, reference, "eager", rows, faces.shape[1], tailoring)
        padding = Padding(3, rows)
        return padding.cut(loop.learn(**padding.filled({**arguments, **more})))

    alone, filled = learnt(3), learnt(5, keep=keep)
    assert torch.allclose(filled.losses, alone.losses, atol=1e-4)
    assert (filled.delta != alone.delta).float().mean() < 0.01
    assert filled.moved.tolist() == [True] * 3
    assert torch.equal(learnt(5, saved=states[2]).delta, filled.delta)
    assert torch.equal(learnt(4, saved=states[4]).delta, filled.delta)
