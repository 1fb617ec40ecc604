"""Many people: in one process, and on a real Ray cluster of several nodes that loses some of them."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyNet, smooth_faces
from PIL import Image

import fastcloak
from fastcloak.cli.main import main as cli
from fastcloak.fitting.claim import claim
from fastcloak.scale import cluster
from fastcloak.scale.index import COLUMNS
from fastcloak.scale.jobs import fit_dataset, protect_dataset
from fastcloak.system.errors import CheckpointError
from fastcloak.system.files import cloak_file

# As on Ray's workers; and TinyNet never in bfloat16, which conftest.py's patch does not reach there.
OPTIONS = {"preset": "plain", "steps": 3, "inner_steps": 2, "dtype": "float32"}


def save_people(folder, count, photos=3):
    for i in range(count):
        person = folder / f"p{i:03}"
        person.mkdir(parents=True)
        for j, face in enumerate(smooth_faces(photos, seed=i)):
            Image.fromarray((face * 255).round().byte().permute(1, 2, 0).numpy()).save(person / f"{j}.png")
    return folder


def index_rows(out):
    parts = sorted((out / "index").iterdir())
    assert parts
    if parts[0].suffix == ".jsonl":
        rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    else:
        parquet = import_module("pyarrow.parquet")
        rows = [row for part in parts for row in parquet.read_table(part).to_pylist()]
    assert all(tuple(row) == tuple(COLUMNS) for row in rows)
    people = {row["person"]: row for row in rows}
    assert len(people) == len(rows), "someone is in the index twice"
    return people


def deltas(out):
    return {path.name: fastcloak.load(path).delta for path in sorted(out.glob("*.safetensors"))}


def assert_same_cloaks(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_everyone_gets_the_cloak_of_fit_and_a_row(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 3)
    out = tmp_path / "cloaks"
    told = []
    summary = fit_dataset(people, tiny_net, out, concurrency=0, progress=lambda *seen: told.append(seen), **OPTIONS)
    assert (summary.people, summary.fitted, summary.done_before, summary.failed) == (3, 3, 0, 0)
    assert [(row["person"], row["status"], total) for row, total in told] == [
        (f"p00{i}", "fitted", 3) for i in range(3)
    ]
    assert summary.people_per_hour == pytest.approx(3 * 3600 / summary.seconds)
    rows = index_rows(out)
    for i in range(3):
        name = f"p{i:03}"
        expected = fastcloak.fit(people / name, tiny_net, **OPTIONS)
        cloak = fastcloak.load(out / f"{name}.safetensors")
        assert torch.equal(cloak.delta, expected.delta)
        row = rows[name]
        assert row["path"] == f"{name}.safetensors"
        assert row["sha256"] == import_module("hashlib").sha256((out / row["path"]).read_bytes()).hexdigest()
        assert row["loss"] == expected.info["losses"][-1]
        assert (row["eps"], row["photos"], row["image_gradients"]) == (8 / 255, 3, 3 * 2)
        assert (row["reason"], row["error"]) == (None, None)
        assert row["seconds"] == cloak.info["seconds"]


def test_a_failure_is_a_row_and_only_it_is_tried_again(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 3)
    out = tmp_path / "cloaks"
    (people / "p001" / "0.png").write_bytes(b"no photo")
    (people / "empty").mkdir()
    for file in list((people / "p002").iterdir())[1:]:
        file.unlink()  # one photo is too few
    summary = fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    assert (summary.people, summary.fitted, summary.failed) == (4, 1, 3)
    assert summary.reasons == Counter({"ValueError": 2, "PhotoError": 1})
    rows = index_rows(out)
    assert rows["p000"]["error"] is None
    assert "p001/0.png" in rows["p001"]["error"]
    assert "2 photos of the person or more" in rows["p002"]["error"]
    assert rows["p001"]["path"] is None
    assert [path.name for path in out.glob("*.safetensors")] == ["p000.safetensors"]

    before = (out / "p000.safetensors").stat()
    Image.new("RGB", (112, 112)).save(people / "p001" / "0.png")
    told = []
    summary = fit_dataset(people, tiny_net, out, concurrency=0, progress=lambda *seen: told.append(seen), **OPTIONS)
    assert (summary.fitted, summary.done_before, summary.failed) == (1, 1, 2)
    assert {row["person"]: row["status"] for row, _ in told} == {
        "empty": "failed",
        "p000": "done before",
        "p001": "fitted",
        "p002": "failed",
    }
    after = (out / "p000.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    rows = index_rows(out)
    assert set(rows) == {"empty", "p000", "p001", "p002"}
    assert {name for name, row in rows.items() if row["error"] is None} == {"p000", "p001"}


def test_a_removed_cloak_is_learnt_anew(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 2)
    out = tmp_path / "cloaks"
    fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    expected = deltas(out)
    (out / "p001.safetensors").unlink()
    summary = fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    assert (summary.fitted, summary.done_before) == (1, 1)
    assert_same_cloaks(deltas(out), expected)
    assert set(index_rows(out)) == {"p000", "p001"}


def test_a_lost_index_is_made_of_the_cloaks(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 2)
    out = tmp_path / "cloaks"
    fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    expected = index_rows(out)
    for part in (out / "index").iterdir():
        part.unlink()
    assert fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS).done_before == 2
    assert index_rows(out) == expected


def test_a_damaged_index_is_made_of_the_cloaks(tmp_path, tiny_net, caplog):
    people = save_people(tmp_path / "people", 2)
    out = tmp_path / "cloaks"
    fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    expected = index_rows(out)
    for damage in (lambda whole: whole[:50], lambda whole: b"", lambda whole: b"x" * len(whole)):
        (part,) = (out / "index").iterdir()
        part.write_bytes(damage(part.read_bytes()))
        caplog.clear()
        assert fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS).done_before == 2
        assert "made anew" in caplog.text
        assert index_rows(out) == expected


def test_what_is_no_cloak_is_never_written_over(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 1)
    out = tmp_path / "cloaks"
    fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    for part in (out / "index").iterdir():
        part.unlink()
    (out / "p000.safetensors").write_bytes(b"somebody's")
    summary = fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    assert (summary.done_before, summary.failed) == (0, 1)
    assert "remove the file" in index_rows(out)["p000"]["error"]
    assert (out / "p000.safetensors").read_bytes() == b"somebody's"


def test_a_stopped_job_goes_on(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 5)
    expected = tmp_path / "expected"
    fit_dataset(people, tiny_net, expected, concurrency=0, **OPTIONS)
    out = tmp_path / "cloaks"

    def stop(row, total):
        if row["person"] == "p002":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_dataset(people, tiny_net, out, concurrency=0, people_per_batch=1, progress=stop, **OPTIONS)
    assert sorted(index_rows(out)) == ["p000", "p001", "p002"]
    summary = fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    assert (summary.fitted, summary.done_before) == (2, 3)
    assert_same_cloaks(deltas(out), deltas(expected))
    rows, wanted = index_rows(out), index_rows(expected)
    for name, row in rows.items():
        assert row["loss"] == wanted[name]["loss"]


def test_ctrl_c_keeps_those_of_the_batch_who_are_finished(tmp_path):
    people = save_people(tmp_path / "people", 4)
    out = tmp_path / "cloaks"
    net, calls, limit = TinyNet(), [], 10**9

    def interrupts(x):
        calls.append(1)
        if len(calls) >= limit:
            raise KeyboardInterrupt
        return net(x)

    interrupts.__name__ = "net"
    fit_dataset(people, interrupts, tmp_path / "all", concurrency=0, **OPTIONS)
    limit, _ = len(calls) - 8, calls.clear()  # in the last person or two
    with pytest.raises(KeyboardInterrupt):
        fit_dataset(people, interrupts, out, concurrency=0, **OPTIONS)
    kept = deltas(out)
    assert 1 <= len(kept) < 4
    limit = 10**9
    assert fit_dataset(people, interrupts, out, concurrency=0, **OPTIONS).done_before == len(kept)
    assert_same_cloaks(deltas(out), deltas(tmp_path / "all"))


def test_other_options_another_network_or_folder_are_refused(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 1)
    out = tmp_path / "cloaks"
    fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    with pytest.raises(ValueError, match="eps was .* name another folder"):
        fit_dataset(people, tiny_net, out, concurrency=0, eps=4 / 255, **OPTIONS)
    other = TinyNet()
    other.body[0].weight.data += 0.1
    with pytest.raises(ValueError, match="other weights"):
        fit_dataset(people, other, out, concurrency=0, **OPTIONS)
    with pytest.raises(ValueError, match="new or empty folder"):
        fit_dataset(people, tiny_net, people, concurrency=0, **OPTIONS)
    with pytest.raises(CheckpointError, match="make .* first"):
        fit_dataset(people, tiny_net, tmp_path / "no" / "where", concurrency=0, **OPTIONS)
    known = json.loads((out / "checkpoint.json").read_text())["fit"]
    with claim(out, known), pytest.raises(CheckpointError, match="another fit is using this folder"):
        fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": -1}, "concurrency must be"),
        ({"concurrency": True}, "concurrency must be"),
        ({"num_gpus": "1"}, "num_gpus must be"),
        ({"num_gpus": float("nan")}, "num_gpus must be"),
        ({"people_per_batch": 0}, "people_per_batch must be"),
        ({"people_per_batch": "many"}, "people_per_batch must be"),
        ({"concurrency": 0, "address": "auto"}, "concurrency must be 1 or more with an address"),
        ({"eps": 2}, "eps must be"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_done(tmp_path, tiny_net, options, words):
    people = save_people(tmp_path / "people", 1)
    with pytest.raises(ValueError, match=words):
        fit_dataset(people, tiny_net, tmp_path / "cloaks", **options)
    assert not list(tmp_path.glob("cloaks/*.safetensors"))


def test_a_disk_that_is_full_ends_the_job_with_words(tmp_path, tiny_net, monkeypatch):
    people = save_people(tmp_path / "people", 2)

    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(fastcloak.Cloak, "save", full)
    with pytest.raises(RuntimeError, match="No space left on device.*p000"):
        fit_dataset(people, tiny_net, tmp_path / "cloaks", concurrency=0, **OPTIONS)


def test_a_disk_that_is_full_before_the_first_photo_is_nobody_s_failure(tmp_path, tiny_net, monkeypatch):
    people = save_people(tmp_path / "people", 2)

    def full(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(fastcloak.scale, "open", full, raising=False)
    with pytest.raises(RuntimeError, match="cannot write below .*No space left"):
        fit_dataset(people, tiny_net, tmp_path / "cloaks", concurrency=0, **OPTIONS)


def test_a_worker_that_cannot_begin_ends_the_job_with_words(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 2)
    with pytest.raises(RuntimeError, match="device must be"):
        fit_dataset(people, tiny_net, tmp_path / "cloaks", device="cuda:9", concurrency=0, **OPTIONS)


def without(monkeypatch, *missing):
    find_spec, require = import_module("importlib.util").find_spec, fastcloak.assets.require

    def hidden(name, *more):
        return None if name.partition(".")[0] in missing else find_spec(name, *more)

    def required(module, *, extra):
        if module.partition(".")[0] in missing:
            raise fastcloak.MissingExtraError(f"not there; pip install 'fastcloak[{extra}]'")
        return require(module, extra=extra)

    for module in ("fastcloak.scale.cluster", "fastcloak.scale.index"):
        monkeypatch.setattr(import_module(module), "find_spec", hidden)
    monkeypatch.setattr(fastcloak.assets, "require", required)


def test_without_ray_one_process_does_it_and_says_what_to_install(tmp_path, tiny_net, monkeypatch, caplog):
    people = save_people(tmp_path / "people", 2)
    out = tmp_path / "cloaks"
    without(monkeypatch, "ray", "pyarrow")
    with caplog.at_level(logging.WARNING, "fastcloak"):
        assert fit_dataset(people, tiny_net, out, **OPTIONS).fitted == 2
    assert "pip install 'fastcloak[ray]'" in caplog.text
    assert set(index_rows(out)) == {"p000", "p001"}
    assert [part.suffix for part in (out / "index").iterdir()] == [".jsonl"]
    (out / "p001.safetensors").unlink()
    assert fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS).done_before == 1
    assert set(index_rows(out)) == {"p000", "p001"}
    for options in ({"concurrency": 2}, {"address": "auto"}):
        with pytest.raises(fastcloak.MissingExtraError, match=r"pip install 'fastcloak\[ray\]'"):
            fit_dataset(people, tiny_net, out, **options, **OPTIONS)
    monkeypatch.undo()
    expected = index_rows(out)
    assert fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS).done_before == 2
    assert index_rows(out) == expected
    assert {part.suffix for part in (out / "index").iterdir()} == {".parquet"}


def test_a_surrogate_holds_nothing_that_pickle_looks_up_in_the_caller_s_script(tiny_net):
    # It looks for a torch.memory_format by name in all modules, first in the script, which workers do not have.
    for surrogate in (loaded := fastcloak.load_model(tiny_net), fastcloak.models.prepare(loaded, channels_last=True)):
        assert not any(isinstance(value, torch.memory_format) for value in vars(surrogate).values())
    assert surrogate.memory_format == torch.channels_last


def test_importing_fastcloak_and_its_command_line_imports_no_ray():
    code = """import sys, fastcloak.cli.main
sys.exit(any(name.split(".")[0] in ("ray", "pyarrow") for name in sys.modules))"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# On a cluster, whose client library warns of itself
CLUSTER = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def ray_environment():
    """Ray without telling anyone, whose workers can import this folder's modules."""
    before = dict(os.environ)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "RAY_AUTH_MODE": "disabled",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    yield
    os.environ.clear()
    os.environ |= before


@pytest.fixture
def nodes(ray_environment):
    """A cluster whose head does no work, to which nodes can be added: (cluster, first two nodes)."""
    ray, cluster_utils = import_module("ray"), import_module("ray.cluster_utils")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.client_address = f"ray://127.0.0.1:{port}"
    try:
        two = [made.add_node(num_cpus=2), made.add_node(num_cpus=2)]
        ray.init(made.address, logging_level=logging.ERROR, log_to_driver=False)
        yield made, two
    finally:
        ray.shutdown()
        made.shutdown()


def workers_of(node):
    """Process ids of the workers of a node that fit."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if title else 0
        except OSError:
            continue
        if title.startswith(b"ray::MapWorker(MapBatches(_RayWorker))") and parent == raylet:
            found.append(int(entry.name))
    return found


@CLUSTER
def test_a_job_that_loses_a_worker_and_a_node_equals_an_undisturbed_one(nodes, tmp_path, one_thread):
    made, two = nodes
    people = save_people(tmp_path / "people", 40)
    (people / "p007" / "1.png").write_bytes(b"no photo")
    expected = tmp_path / "expected"
    undisturbed = fit_dataset(people, TinyNet(), expected, concurrency=0, **OPTIONS)
    assert (undisturbed.fitted, undisturbed.failed) == (39, 1)

    killed, told = [], []

    def strike(row, total):
        told.append(row["person"])
        if len(told) == 1:
            worker = [*workers_of(two[1]), *workers_of(two[0])][0]
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
        if len(told) == 8:
            made.remove_node(two[0], allow_graceful=False)
            killed.append(two[0])

    out = tmp_path / "cloaks"
    summary = fit_dataset(
        people, TinyNet(), out, concurrency=3, num_gpus=0, people_per_batch=2, progress=strike, **OPTIONS
    )
    assert len(killed) == 2
    assert (summary.people, summary.failed) == (40, 1)
    # Whose worker died between the cloak and the row counts as done before.
    assert summary.fitted + summary.done_before == 39
    assert summary.fitted > 30
    assert len(told) == len(set(told)) == 40
    assert_same_cloaks(deltas(out), deltas(expected))
    rows, wanted = index_rows(out), index_rows(expected)
    assert rows.keys() == wanted.keys()
    for name, row in rows.items():
        assert (row["path"], row["loss"], row["error"]) == tuple(wanted[name][key] for key in ("path", "loss", "error"))


@CLUSTER
def test_a_job_whose_driver_stops_goes_on_file_for_file(nodes, tmp_path, one_thread):
    made, _ = nodes
    people = save_people(tmp_path / "people", 24)
    expected = tmp_path / "expected"
    fit_dataset(people, TinyNet(), expected, concurrency=0, **OPTIONS)
    out = tmp_path / "cloaks"
    told = []

    def stop(row, total):
        told.append(row)
        if len(told) == 6:
            raise KeyboardInterrupt

    options = {"concurrency": 2, "num_gpus": 0, "people_per_batch": 2, **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        fit_dataset(people, TinyNet(), out, progress=stop, **options)
    assert len(index_rows(out)) == 6
    summary = fit_dataset(people, TinyNet(), out, **options)
    assert summary.people == summary.fitted + summary.done_before == 24
    assert summary.done_before >= 6
    assert_same_cloaks(deltas(out), deltas(expected))
    assert set(index_rows(out)) == {f"p{i:03}" for i in range(24)}

    # A Ray Dataset, with photos as bytes.
    data = import_module("ray.data")
    some = [people / name for name in ("p000", "p001", "p002")]
    rows = [
        {"person": person.name, "photos": [photo.read_bytes() for photo in sorted(person.iterdir())]} for person in some
    ]
    again = tmp_path / "again"
    summary = fit_dataset(data.from_items(rows), TinyNet(), again, num_gpus=0, people_per_batch=2, **OPTIONS)
    assert (summary.people, summary.fitted) == (3, 3)
    for name, delta in deltas(again).items():
        assert torch.equal(delta, fastcloak.load(expected / name).delta)

    # From outside of the cluster, in another process.
    code = (
        "import sys; from fastcloak.scale import fit_dataset; from conftest import TinyNet\n"
        f"print(fit_dataset(*sys.argv[1:2], TinyNet(), *sys.argv[2:], address={made.client_address!r}, **{options}))"
    )
    far = tmp_path / "far"
    command = [sys.executable, "-c", code, str(people), str(far)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "people=24, fitted=24" in ended.stdout, ended.stderr
    assert_same_cloaks(deltas(far), deltas(expected))

    # Photos, on the cluster too.
    protected = protect_dataset(people, expected, tmp_path / "protected", address=None)
    assert protected.photos == Counter(protected=72)


class DeadlyNet(TinyNet):
    """A network whose process dies of photos with a white upper edge."""

    def forward(self, x):
        if (x[:, :, 0] == 1).flatten(1).all(1).any():
            os._exit(1)
        return super().forward(x)


@CLUSTER
def test_who_kills_every_worker_gets_a_row_and_the_others_a_cloak(nodes, tmp_path, one_thread):
    people = save_people(tmp_path / "people", 6)
    for photo in (people / "p004").iterdir():
        pixels = np.array(Image.open(photo))
        pixels[0] = 255
        Image.fromarray(pixels).save(photo)
    out = tmp_path / "cloaks"
    summary = fit_dataset(people, DeadlyNet(), out, concurrency=1, num_gpus=0, people_per_batch=3, **OPTIONS)
    assert (summary.fitted, summary.failed, summary.reasons) == (5, 1, Counter(ProcessDied=1))
    assert "died" in index_rows(out)["p004"]["error"]
    for name, delta in deltas(out).items():
        assert torch.equal(delta, fastcloak.fit(people / Path(name).stem, DeadlyNet(), **OPTIONS).delta)


def test_photos_that_kill_the_reader_are_given_up_after_three_deaths(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 2)
    out = tmp_path / "cloaks"
    code = (
        "import os, sys; from fastcloak import scale; from conftest import TinyNet\n"
        "def load(photos): os._exit(9) if 'p000' in str(photos) else read(photos)\n"
        "read, scale.named_faces = scale.named_faces, load\n"
        f"scale.fit_dataset(sys.argv[1], TinyNet(), sys.argv[2], concurrency=0, **{OPTIONS})"
    )
    command = [sys.executable, "-c", code, str(people), str(out)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    for _ in range(3):
        assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 9
    summary = fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS)
    assert (summary.fitted, summary.reasons) == (1, Counter(ProcessDied=1))
    assert not list((out / ".deaths").iterdir())
    assert fit_dataset(people, tiny_net, out, concurrency=0, **OPTIONS).fitted == 1  # the next job tries again


def test_more_workers_than_cpus_are_warned_of(caplog):
    on_ray = object.__new__(cluster.OnRay)
    on_ray._cpus, on_ray._most, on_ray._gpus = 2.0, 2, 0.0
    with caplog.at_level(logging.WARNING, "fastcloak"):
        on_ray._check(2, cluster.READ_SHARE)
        assert not caplog.text
        on_ray._check(3, cluster.READ_SHARE)
    assert "smaller concurrency" in caplog.text


# Photos


def test_everyone_s_photos_get_their_own_cloak(tmp_path, tiny_net):
    people = save_people(tmp_path / "people", 3)
    cloaks, out = tmp_path / "cloaks", tmp_path / "safe"
    fit_dataset(people, tiny_net, cloaks, concurrency=0, **OPTIONS)
    (cloaks / "p002.safetensors").unlink()
    summary = protect_dataset(people, cloaks, out, concurrency=0)
    assert (summary.people, summary.failed) == (3, 1)
    assert summary.photos == Counter(protected=6)
    assert summary.reasons == Counter(FileNotFoundError=1)
    for name in ("p000", "p001"):
        cloak = fastcloak.load(cloaks / cloak_file(name))
        for photo in (people / name).iterdir():
            fastcloak.protect_photo(photo, tmp_path / "one.png", cloak, overwrite=True)
            assert (out / name / photo.name).read_bytes() == (tmp_path / "one.png").read_bytes()
    assert protect_dataset(people, cloaks, out, concurrency=0).photos == Counter({"done before": 6})
    with pytest.raises(FileNotFoundError, match="cloaks must be the folder"):
        protect_dataset(people, tmp_path / "nowhere", out, concurrency=0)
    with pytest.raises(TypeError, match="unknown option enrolment"):
        protect_dataset(people, cloaks, out, concurrency=0, enrolment=1)


# Command line


def test_the_command_line_fits_and_protects_many(tmp_path, capsys, monkeypatch):
    people = save_people(tmp_path / "people", 3)
    (people / "p001" / "0.png").write_bytes(b"no photo")
    out = tmp_path / "cloaks"
    load_model = fastcloak.load_model
    monkeypatch.setattr(fastcloak, "load_model", lambda what, **options: load_model(TinyNet()))
    fit = ["fit-many", str(people), "-o", str(out), "--workers", "0", "--preset", "plain", "--steps", "2"]
    assert cli.main(fit) == 3
    printed = capsys.readouterr()
    assert "2  people fitted" in printed.out
    assert "1    cannot be read or written as a photo" in printed.out
    assert "people per hour" in printed.out
    assert "p001: " in printed.err
    assert cli.main([*fit, "--json"]) == 3
    summary = json.loads(capsys.readouterr().out)
    assert (summary["people"], summary["done_before"], summary["failed"]) == (3, 2, 1)
    assert summary["reasons"] == {"PhotoError": 1}
    safe = tmp_path / "safe"
    protect = ["protect-many", str(out), str(people), "-o", str(safe), "--workers", "0"]
    assert cli.main(protect) == 3
    printed = capsys.readouterr()
    assert "6  photos protected" in printed.out
    assert "1    not there" in printed.out
    assert cli.main([*protect, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["photos"] == {"done before": 6}
    assert cli.main([*fit, "--people-per-batch", "0"]) == 1
    assert "people_per_batch must be" in capsys.readouterr().err
    assert cli.main(["fit-many", str(people / "p000"), "-o", str(tmp_path / "x"), "--workers", "0"]) == 1
    assert "at least one person" in capsys.readouterr().err
