import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcloak
from fastcloak import CheckpointError, FitInterrupted, FitManyError, fit, fit_many
from fastcloak.cli.main import main
from fastcloak.fitting import checkpoint, claim
from tests.conftest import TinyNet, smooth_faces

ROOT = Path(__file__).parent.parent


class Stopped(Exception):
    """What a test stops a fit with."""


@pytest.fixture(autouse=True)
def every_step_is_saved(monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))


def stop_at(steps, error=Stopped):
    def progress(done, total):
        if done == steps:
            raise error

    return progress


def same(a, b):
    return (
        torch.equal(a.delta, b.delta)
        and a.info["losses"] == b.info["losses"]
        and a.info["hull_gap"] == b.info["hull_gap"]
    )


def other_net():
    net = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(576, 9, bias=False)).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    return net


@pytest.mark.parametrize(
    "options",
    [
        {"method": "opom"},
        {"method": "opom", "objective": "fi_uap", "decay": 1.0, "average": 0.5},
        {"preset": "plain", "warmup": 2},
        {"preset": "balanced"},
        {"dropout": 0.2, "decay": 0.9, "average": 1.0},
        {"dropout": 0.2, "augment": "geometry,jpeg", "batch_size": 2},
        {"objective": "affine_hull"},
    ],
    ids=lambda options: "-".join(f"{value}" for value in options.values()),
)
def test_a_fit_stopped_at_every_step_goes_on_to_the_same_cloak(tiny_net, faces, tmp_path, options):
    goes_on(tiny_net, faces, tmp_path / "state", {"steps": 4, **options})


@pytest.mark.parametrize("ensemble", ["loss", "gradient", "turns"])
def test_a_fit_on_several_networks_goes_on_to_the_same_cloak(tiny_net, faces, tmp_path, ensemble):
    options = {"ensemble": ensemble, "steps": 4, "inner_steps": 3, "decay": 0.5, "dropout": 0.1, "average": 0.75}
    goes_on([tiny_net, other_net()], faces, tmp_path / "state", options)


def goes_on(model, faces, folder, options):
    """Stops a fit at each of its four steps, each time in the fit that went on from the step before."""
    expected = fit(faces, model, **options)
    for step in range(1, 5):
        with pytest.raises(Stopped):
            fit(faces, model, checkpoint=folder, progress=stop_at(step), **options)
    seen = []
    got = fit(faces, model, checkpoint=folder, progress=lambda done, total: seen.append(done), **options)
    assert same(got, expected)
    assert seen == [1, 2, 3, 4]


def test_steps_that_were_saved_are_not_done_again(faces, tmp_path):
    net, calls = TinyNet(), []

    def spy(x):
        calls.append(len(x))
        return net(x)

    fit(faces, spy, steps=6, inner_steps=1)
    whole = len(calls)
    with pytest.raises(Stopped):
        fit(faces, spy, steps=6, inner_steps=1, checkpoint=tmp_path / "state", progress=stop_at(4))
    calls.clear()
    fit(faces, spy, steps=6, inner_steps=1, checkpoint=tmp_path / "state")
    assert len(calls) == whole - 4 + 1  # and the embedding that tells the network
    calls.clear()
    fit(faces, spy, steps=6, inner_steps=1, checkpoint=tmp_path / "state")
    assert len(calls) < whole - 6 + 1


def test_nothing_is_written_without_a_checkpoint(tiny_net, faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (checkpoint, claim):
        monkeypatch.setattr(module, "atomic_write", lambda *_: pytest.fail("written"))
    fit(faces, tiny_net, steps=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("empty", [{"steps": 0}, {"eps": 0.0}])
def test_an_empty_fit_has_a_checkpoint_too(tiny_net, faces, tmp_path, empty):
    for _ in range(2):
        assert same(fit(faces, tiny_net, checkpoint=tmp_path / "state", **empty), fit(faces, tiny_net, **empty))


def test_states_are_saved_when_the_last_is_old_enough(tiny_net, faces, tmp_path, monkeypatch):
    written = []
    write = checkpoint.atomic_write
    for module in (checkpoint, claim):
        monkeypatch.setattr(
            module, "atomic_write", lambda path, payload: (written.append(path.name), write(path, payload))
        )
    monkeypatch.setattr(checkpoint, "SECONDS", 60.0)
    fit(faces, tiny_net, steps=3, checkpoint=tmp_path / "rare")
    assert len(written) == 2  # what is fitted, and that it is finished
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e-9)
    written.clear()
    fit(faces, tiny_net, steps=3, checkpoint=tmp_path / "dear")
    assert len(written) == 3  # also the first state, after which writing has cost too much


def people():
    return {f"person {i}": smooth_faces(4 + i % 2, seed=i) for i in range(5)}


@pytest.mark.parametrize("options", [{}, {"memory_budget": 10**7, "dropout": 0.1}, {"memory_budget": 10**9}], ids=str)
def test_many_people_stopped_anywhere_get_the_same_cloaks(tiny_net, tmp_path, options):
    options = {"steps": 2, "inner_steps": 2, **options}
    ticks = []
    expected = fit_many(people(), tiny_net, progress=lambda done, total: ticks.append(done), **options)
    # Once in each fit of its own, and once in fits that go on from each other.
    for folders in ([tmp_path / str(done) for done in ticks], [tmp_path / "one"] * len(ticks)):
        for done, folder in zip(ticks, folders, strict=True):
            with pytest.raises(Stopped):
                fit_many(people(), tiny_net, checkpoint=folder, progress=stop_at(done), **options)
        for folder in dict.fromkeys(folders):
            seen = []
            callback = {"progress": lambda done, total, seen=seen: seen.append(done)}
            cloaks = fit_many(people(), tiny_net, checkpoint=folder, **callback, **options)
            assert list(cloaks) == list(expected)
            assert all(same(cloaks[name], expected[name]) for name in expected)
            assert seen[-1] == 10


def test_a_finished_person_has_a_cloak_file_and_is_not_fitted_again(tiny_net, tmp_path, monkeypatch):
    everyone = people()
    with pytest.raises(Stopped):
        fit_many(everyone, tiny_net, steps=2, checkpoint=tmp_path / "state", progress=stop_at(5))
    files = sorted(path.name for path in (tmp_path / "state").glob("*.safetensors"))
    assert files == ["person-person%200.safetensors", "person-person%201.safetensors"]
    first = fastcloak.load(tmp_path / "state" / files[0])
    cloaks = fit_many(everyone, tiny_net, steps=2, checkpoint=tmp_path / "state")
    assert cloaks["person 0"].info == first.info  # also the seconds that it took
    assert torch.equal(cloaks["person 0"].delta, first.delta)


def test_people_may_be_added_left_out_and_reordered(tiny_net, tmp_path, caplog):
    everyone = people()
    expected = fit_many(everyone, tiny_net, steps=2)
    with pytest.raises(Stopped):
        fit_many(everyone, tiny_net, steps=2, checkpoint=tmp_path / "state", progress=stop_at(5))
    some = {name: everyone[name] for name in ("person 4", "person 2", "person 1")}
    cloaks = fit_many(some, tiny_net, steps=2, checkpoint=tmp_path / "state")
    assert list(cloaks) == list(some)
    cloaks |= fit_many(everyone, tiny_net, steps=2, checkpoint=tmp_path / "state")
    assert all(same(cloaks[name], expected[name]) for name in everyone)
    assert not caplog.records


def test_a_shared_pass_goes_on_only_with_the_same_people(tiny_net, tmp_path, caplog):
    four = {name: smooth_faces(4, seed=i) for i, name in enumerate("abcd")}
    options = {"steps": 3, "dropout": 0.1, "memory_budget": 10**9}
    with pytest.raises(Stopped):
        fit_many(four, tiny_net, checkpoint=tmp_path / "state", progress=stop_at(8), **options)
    shuffled = {name: four[name] for name in "cabd"}
    expected = fit_many(four, tiny_net, **options)
    # Less memory, another order: who was together stays together, in the same places.
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "state").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    cloaks = fit_many(shuffled, tiny_net, checkpoint=copy, **{**options, "memory_budget": 1})
    assert list(cloaks) == list("cabd")
    assert all(same(cloaks[name], expected[name]) for name in four)
    assert not caplog.records
    three = {name: four[name] for name in "abd"}
    cloaks = fit_many(three, tiny_net, checkpoint=tmp_path / "state", **options)
    assert "begin again" in caplog.text
    expected = fit_many(three, tiny_net, **options)
    assert all(same(cloaks[name], expected[name]) for name in three)
    assert same(fit_many(four, tiny_net, checkpoint=tmp_path / "state", **options)["a"], expected["a"])


def test_someone_who_failed_may_come_again_with_other_photos(tiny_net, faces, tmp_path):
    black = faces.clone()
    black[2] = 0

    def breaks_on_black(x):
        return torch.where((x.amax((1, 2, 3)) < 0.1)[:, None] & x.requires_grad, torch.nan, tiny_net(x))

    options = {"steps": 3, "checkpoint": tmp_path / "state", "memory_budget": 10**9, "batch_size": 6}
    with pytest.raises(FitManyError) as caught:
        fit_many({"good": faces, "black": black, "few": faces[:1]}, breaks_on_black, **options)
    assert list(caught.value.cloaks) == ["good"]
    for _ in range(2):
        cloaks = fit_many({"good": faces, "black": faces.flip(0), "few": faces[:2]}, breaks_on_black, **options)
        assert same(cloaks["good"], caught.value.cloaks["good"])


def test_names_become_files_of_their_own_in_the_folder(tiny_net, tmp_path):
    names = [
        "Ann",
        "ann",
        "ANN",
        "../ann",
        "/ann",
        "a/b",
        "",
        ".",
        "..",
        "con",
        "é",
        "e\u0301",
        "\0",
        "a" * 300,
        "a" * 299 + "b",
    ]
    names += ["%41nn", "a=b", "\ud800", "Ä" * 100, "person-", "*", "-"]
    folder = tmp_path / "state"
    cloaks = fit_many(
        {name: smooth_faces(2, seed=i) for i, name in enumerate(names)}, tiny_net, steps=1, checkpoint=folder
    )
    files = [path.name for path in folder.glob("person-*.safetensors")]
    assert len(files) == len({name.lower() for name in files}) == len(names)
    assert all(name.isascii() and len(name) < 140 for name in files)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    again = fit_many(
        {name: smooth_faces(2, seed=i) for i, name in enumerate(names)}, tiny_net, steps=1, checkpoint=folder
    )
    assert all(again[name].info == cloaks[name].info for name in names)
    with pytest.raises(TypeError, match="people must have names of type str"):
        fit_many({1: smooth_faces(2)}, tiny_net, checkpoint=folder)


@pytest.mark.parametrize("stop", [3, 99], ids=["under way", "finished"])
def test_other_photos_options_and_networks_are_refused(tiny_net, faces, tmp_path, monkeypatch, stop):
    folder = tmp_path / "state"
    options = {"steps": 4, "inner_steps": 1, "checkpoint": folder}
    with contextlib.suppress(Stopped):
        fit(faces, tiny_net, progress=stop_at(stop), **options)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refused(words, images=faces, model=tiny_net, **others):
        with pytest.raises(ValueError, match=words) as caught:
            fit(images, model, **{**options, **others})
        assert str(folder) in str(caught.value)
        assert "name another folder, or begin again with resume=False" in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    refused("images must be those", faces.flip(0))
    refused("images must be those", faces[:5])
    refused("images must be those", (faces + 1 / 255).clamp(0, 1))
    refused("steps was 4 and is 5", steps=5)
    refused("augment was .*; decay was 1.0 and is 0.0; .*; preset was 'fast' and is 'plain';", preset="plain")
    refused("seed was 0 and is 1", seed=1)
    refused("dtype was 'float32' and is 'bfloat16'", dtype="bfloat16")
    altered = TinyNet()
    altered.body[0].weight.data[0, 0, 0, 0] += 1e-6
    refused("another fit: the network had other weights;", model=altered)
    refused("models was", model=lambda x: tiny_net(x))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        refused("versions was")
    assert same(fit(faces, tiny_net, **options), fit(faces, tiny_net, steps=4, inner_steps=1))
    assert same(
        fit(faces.flip(0), altered, resume=False, **{**options, "steps": 3}),
        fit(faces.flip(0), altered, steps=3, inner_steps=1),
    )


def test_another_function_of_the_same_name_is_refused(tiny_net, faces, tmp_path):
    def model(factor):
        return lambda x: tiny_net(x) + factor * x.mean((2, 3))[:, :1]

    with pytest.raises(Stopped):
        fit(faces, model(1), checkpoint=tmp_path / "state", progress=stop_at(2))
    with pytest.raises(ValueError, match="another fit: the network gave other embeddings;"):
        fit(faces, model(2), checkpoint=tmp_path / "state")
    assert same(fit(faces, model(1), checkpoint=tmp_path / "state"), fit(faces, model(1)))


def test_other_photos_of_one_person_do_not_stop_the_others(tiny_net, tmp_path):
    everyone = people()
    fit_many(everyone, tiny_net, steps=2, checkpoint=tmp_path / "state")
    changed = {**everyone, "person 3": smooth_faces(5, seed=9)}
    with pytest.raises(FitManyError, match="1 of 5 people.*the photos of 'person 3' must be those") as caught:
        fit_many(changed, tiny_net, steps=2, checkpoint=tmp_path / "state")
    assert list(caught.value.cloaks) == [name for name in everyone if name != "person 3"]


def test_resume_false_begins_again(tiny_net, faces, tmp_path):
    folder = tmp_path / "state"
    fit_many({"a": faces, "b": faces}, tiny_net, steps=2, checkpoint=folder)
    with pytest.raises(Stopped):
        fit_many({"c": faces}, tiny_net, steps=3, checkpoint=folder, resume=False, progress=stop_at(1))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".state"}
    with pytest.raises(ValueError, match="resume must be True or False, got 'no'"):
        fit(faces, tiny_net, checkpoint=folder, resume="no")


def test_a_folder_of_other_things_is_left_alone(tiny_net, faces, tmp_path):
    (tmp_path / "person-.safetensors").write_text("mine")
    for resume in (True, False):
        with pytest.raises(ValueError, match="must be a new or empty folder, or one of an earlier fit, got"):
            fit(faces, tiny_net, checkpoint=tmp_path, resume=resume)
    claim.clear(tmp_path)
    claim.clear(tmp_path / "nowhere")
    assert (tmp_path / "person-.safetensors").read_text() == "mine"
    with pytest.raises(CheckpointError, match=r"make .* first") as caught:
        fit(faces, tiny_net, checkpoint=tmp_path / "no" / "where")
    assert caught.value.filename == str(tmp_path / "no" / "where")
    with pytest.raises(CheckpointError, match="must be a folder, and is a file"):
        fit(faces, tiny_net, checkpoint=tmp_path / "person-.safetensors")


def test_one_fit_at_a_time(tiny_net, faces, tmp_path):
    def again(done, total):
        fit(faces, tiny_net, steps=1, checkpoint=tmp_path / "state")

    with pytest.raises(CheckpointError, match="another fit is using this folder"):
        fit(faces, tiny_net, steps=1, checkpoint=tmp_path / "state", progress=again)
    fit(faces, tiny_net, steps=1, checkpoint=tmp_path / "state")


def test_clear_leaves_what_is_not_its_own(tiny_net, faces, tmp_path):
    for mine in (False, True):
        folder = tmp_path / str(mine)
        fit(faces, tiny_net, steps=1, checkpoint=folder)
        if mine:
            (folder / "notes.txt").write_text("mine")
        claim.clear(folder)
        assert folder.exists() == mine
    assert [path.name for path in (tmp_path / "True").iterdir()] == ["notes.txt"]


def damaged(payload, flips):
    """A file cut short at many lengths, with another end, with single bits turned, with other content, and gone."""
    n = len(payload)
    draw = torch.Generator().manual_seed(0)
    yield from (payload[: n * k // 16] for k in range(16))
    yield from (payload[:-1], payload + b"\0", b"{}", None)
    for position in [*torch.randint(n, (flips,), generator=draw).tolist(), *range(0, 200, 7), n - 1]:
        flipped = bytearray(payload)
        flipped[position % n] ^= 1 << int(torch.randint(8, (1,), generator=draw))
        yield bytes(flipped)


@pytest.fixture
def stopped(tiny_net, faces, tmp_path):
    """A checkpoint of one finished person and one under way, its options, and the cloaks that it should give."""
    everyone, options = {"done": faces, "begun": faces.flip(0)}, {"steps": 3, "inner_steps": 1, "decay": 1.0}
    with pytest.raises(Stopped):
        fit_many(everyone, tiny_net, checkpoint=tmp_path / "state", progress=stop_at(5), **options)
    assert len(list((tmp_path / "state").iterdir())) == 4
    return everyone, options, fit_many(everyone, tiny_net, **options), tmp_path / "state"


def test_damaged_files_are_noticed_and_never_taken(stopped, caplog):
    everyone, _, expected, folder = stopped
    this = json.loads((folder / claim.MARKER).read_bytes())["fit"]

    def found():
        with checkpoint.open_checkpoint(folder, this, resume=True) as kept:
            cloak = kept.finished("done", everyone["done"])
            assert kept.finished("begun", everyone["begun"]) is None
            return cloak, kept.start(["begun"]).state

    _, state = found()
    assert len(state["losses"]) == 2
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    unnoticed = []
    for path, payload in whole.items():
        for content in damaged(payload, 60):
            for one, was in whole.items():
                one.write_bytes(was)
            path.unlink() if content is None else path.write_bytes(content)
            caplog.clear()
            try:
                cloak, got = found()
            except ValueError:  # what the fit is does not match, or nothing says that the folder is a checkpoint
                assert path.name == claim.MARKER
                continue
            assert cloak is None or same(cloak, expected["done"])
            assert not got or all(torch.equal(got[name], state[name]) for name in state)
            if not caplog.records and content is not None:
                unnoticed.append(path.name)
                assert cloak is not None
                assert got
    # What says nothing: white space, or a digit of the embedding within its tolerance. In a cloak every bit counts.
    assert not any(name.endswith(".safetensors") for name in unnoticed)
    assert sum(name.endswith(".state") for name in unnoticed) < 5


def test_fits_go_on_beside_damaged_files(tiny_net, stopped):
    everyone, options, expected, folder = stopped
    for path in folder.iterdir():
        if path.name != claim.MARKER:
            path.write_bytes(path.read_bytes()[:-5])
    for _ in range(2):
        cloaks = fit_many(everyone, tiny_net, checkpoint=folder, **options)
        assert all(same(cloaks[name], expected[name]) for name in everyone)


def test_a_state_of_another_folder_is_not_taken(tiny_net, faces, tmp_path, caplog):
    for folder, seed in (("a", 0), ("b", 1)):
        with pytest.raises(Stopped):
            fit(faces, tiny_net, seed=seed, checkpoint=tmp_path / folder, progress=stop_at(2))
    (state,) = (tmp_path / "b").glob("*.state")
    (tmp_path / "a" / state.name).write_bytes(state.read_bytes())
    assert same(fit(faces, tiny_net, checkpoint=tmp_path / "a"), fit(faces, tiny_net))
    assert "it belongs to another fit" in caplog.text


def test_kills_at_random_moments_lose_nothing():
    command = [sys.executable, "-m", "tests.kills", "--kills", "12", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kills"], found["equal"], found["whole"], found["litter"]) == (12, True, True, [])


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_an_interruption_leaves_the_cloak_of_the_last_whole_step(tiny_net, faces, average):
    options = {"preset": "plain", "inner_steps": 2, "decay": 1.0, "average": average}
    with pytest.raises(FitInterrupted) as caught:
        fit(faces, tiny_net, steps=6, progress=stop_at(2, KeyboardInterrupt), **options)
    assert caught.value.cloaks == {}
    (cloak,) = caught.value.partial.values()
    # Before the average begins, two of six steps give what a fit of two steps gives.
    expected = fit(faces, tiny_net, steps=2, **{**options, "average": 0.0})
    assert torch.equal(cloak.delta, expected.delta)
    assert cloak.info["losses"] == expected.info["losses"]
    assert (cloak.info["partial"], cloak.info["steps_done"], cloak.info["steps"]) == (True, 2, 6)
    assert cloak.info["image_gradients"] == 2 * 2
    assert "partial" not in expected.info
    with pytest.raises(FitInterrupted) as caught:
        fit(faces, tiny_net, steps=6, progress=stop_at(5, KeyboardInterrupt), **options)
    sizes = caught.value.partial[""].delta.abs().unique()
    assert (len(sizes) <= 2) == bool(average)  # the sign of the mean so far, times eps


def test_an_interruption_in_the_middle_of_a_step_leaves_the_step_before(faces):
    net, calls = TinyNet(), []

    def interrupts(x):
        calls.append(1)
        if len(calls) == limit:
            raise KeyboardInterrupt
        return net(x)

    limit = 0
    fit(faces, interrupts, steps=0)
    before = len(calls)
    for limit in (1, before, before + 1, before + 2, before + 8, before + 9):
        calls.clear()
        with pytest.raises(FitInterrupted) as caught:
            fit(faces, interrupts, preset="plain", steps=4, inner_steps=3)
        done = max(0, limit - before - 1) // 3
        assert [cloak.info["steps_done"] for cloak in caught.value.partial.values()] == [done] * (done > 0)
        if done:
            expected = fit(faces, lambda x: net(x), preset="plain", steps=done, inner_steps=3)
            assert torch.equal(caught.value.partial[""].delta, expected.delta)


def test_an_interruption_keeps_finished_people_and_says_how_to_go_on(tiny_net, tmp_path):
    everyone = people()
    folder = tmp_path / "state"
    expected = fit_many(everyone, tiny_net, steps=2, inner_steps=1)
    with pytest.raises(FitInterrupted, match=f"1 of 5 people are finished .* saved in {folder}") as caught:
        fit_many(
            everyone,
            tiny_net,
            steps=2,
            inner_steps=1,
            checkpoint=folder,
            progress=stop_at(3, KeyboardInterrupt),
        )
    assert isinstance(caught.value, KeyboardInterrupt)
    assert list(caught.value.cloaks) == ["person 0"]
    assert list(caught.value.partial) == ["person 1"]
    assert same(caught.value.cloaks["person 0"], expected["person 0"])
    cloaks = fit_many(everyone, tiny_net, steps=2, inner_steps=1, checkpoint=folder)
    assert all(same(cloaks[name], expected[name]) for name in everyone)


def test_the_callers_world_is_left_as_it_was_after_an_interruption(tiny_net, faces, tmp_path):
    tiny_net.train()
    torch.manual_seed(5)
    random, weights = torch.get_rng_state(), {name: one.clone() for name, one in tiny_net.state_dict().items()}
    for error in (KeyboardInterrupt, Stopped):
        for step in (1, 2):
            with pytest.raises((FitInterrupted, Stopped)), torch.no_grad():
                fit(faces, tiny_net, steps=3, dropout=0.1, checkpoint=tmp_path / "state", progress=stop_at(step, error))
            assert torch.equal(torch.get_rng_state(), random)
            assert torch.is_grad_enabled()
            assert tiny_net.training
            assert all(torch.equal(one, weights[name]) for name, one in tiny_net.state_dict().items())
            assert all(parameter.requires_grad for parameter in tiny_net.parameters())


def test_a_full_disk_stops_at_once_and_loses_nothing(tiny_net, faces, tmp_path):
    folder = tmp_path / "state"
    everyone, options = {"first": faces[:2], "second": faces}, {"steps": 3, "inner_steps": 1, "decay": 1.0}
    expected = fit_many(everyone, tiny_net, **options)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done, total):
        if done == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    try:
        with pytest.raises(CheckpointError, match="checkpoint: .*File too large") as caught:
            fit_many(everyone, tiny_net, checkpoint=folder, progress=fill, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value, OSError)
    assert Path(caught.value.filename).parent == folder
    assert not list(folder.glob(".*"))
    assert same(caught.value.cloaks["first"], expected["first"])
    assert caught.value.partial["second"].info["steps_done"] == 2
    cloaks = fit_many(everyone, tiny_net, checkpoint=folder, **options)
    assert all(same(cloaks[name], expected[name]) for name in everyone)


@pytest.fixture
def photos(tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i, face in enumerate(smooth_faces(3)):
        Image.fromarray(face.permute(1, 2, 0).mul(255).byte().numpy()).save(folder / f"{i}.png")
    return folder


def test_ctrl_c_on_the_command_line_keeps_the_cloak_and_the_state(photos, tmp_path):
    output, state = tmp_path / "me.safetensors", tmp_path / "state"
    command = [sys.executable, "-m", "fastcloak", "fit", photos, "-o", output, "--preset", "plain"]
    command += ["--steps", "5000", "--inner-steps", "1", "--checkpoint", state]
    # A shell's background jobs ignore SIGINT, and so would their children.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, **heeds) as program:
        try:
            while not list(state.glob("*.state")):
                assert program.poll() is None, program.stderr.read()
                time.sleep(0.05)
            program.send_signal(signal.SIGINT)
            message = program.communicate(timeout=60)[1]
        finally:
            program.kill()
    assert program.returncode == 130
    (line,) = message.splitlines()
    cloak = fastcloak.load(output)
    done = cloak.info["steps_done"]
    assert 0 < done < 5000
    assert line == (
        f"fastcloak: interrupted; the cloak of {done} of 5000 steps is in {output}; the same command goes on from what "
        f"is saved in {state}"
    )
    assert not list(state.glob(".*"))


def command_line(monkeypatch, model, *arguments):
    monkeypatch.setattr("fastcloak.cli.fit.models", lambda _: model)
    return main(["fit", *map(str, arguments), "--steps", "3", "--inner-steps", "1"])


def test_the_command_goes_on_and_removes_what_it_needs_no_more(photos, tiny_net, tmp_path, monkeypatch, capsys):
    output, state = tmp_path / "me.safetensors", tmp_path / "state"
    arguments = (photos, "-o", output, "--checkpoint", state)
    really_fit = fastcloak.fit

    def stopped(*images, **options):
        return really_fit(*images, **{**options, "progress": stop_at(2, KeyboardInterrupt)})

    with monkeypatch.context() as patch:
        patch.setattr(fastcloak, "fit", stopped)
        for file in ("me", "me.partial", "me.partial2"):
            assert command_line(patch, tiny_net, *arguments, "--restart") == 130
            where = tmp_path / f"{file}.safetensors"
            assert f"interrupted; the cloak of 2 of 3 steps is in {where}; the same" in capsys.readouterr().err
            assert fastcloak.load(where).info["steps_done"] == 2
    # Another seed is refused, and begins again with --restart.
    assert command_line(monkeypatch, tiny_net, *arguments, "--seed", "1") == 1
    assert "seed was 0 and is 1; name another folder" in capsys.readouterr().err
    assert command_line(monkeypatch, tiny_net, *arguments) == 0
    assert not state.exists()
    crops = sorted(photos.iterdir())
    assert same(fastcloak.load(output), really_fit(crops, tiny_net, preset="strong", steps=3, inner_steps=1))
    assert command_line(monkeypatch, tiny_net, *arguments, "--restart") == 0
    assert command_line(monkeypatch, tiny_net, photos, "-o", output, "--restart") == 1
    assert "--restart needs --checkpoint DIR" in capsys.readouterr().err


def test_the_command_says_when_not_one_step_was_done(photos, faces, tmp_path, monkeypatch, capsys):
    def interrupts(x):
        raise KeyboardInterrupt

    assert command_line(monkeypatch, interrupts, photos, "-o", tmp_path / "me.safetensors") == 130
    assert capsys.readouterr().err == "fastcloak: interrupted before the first step was done; no cloak was written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
