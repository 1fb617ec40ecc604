"""Many people: in one process, and on a real Ray cluster that loses a worker and a node."""

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
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
from fastcloak.models import prepare
from fastcloak.scale import cluster
from fastcloak.scale.jobs import fit_dataset, protect_dataset, tailor_dataset
from fastcloak.scale.rows import INDEXED
from fastcloak.system.errors import CheckpointError, MissingExtraError
from fastcloak.system.files import cloak_file

# float32: on Ray's workers conftest.py does not keep TinyNet from bfloat16.
OPTIONS = {"preset": "plain", "steps": 2, "inner_steps": 1, "dtype": "float32"}
TAILOR = {"gradients": 2, "device": "cpu", "dtype": "float32"}
fit_here = partial(fit_dataset, concurrency=0, **OPTIONS)


def save_people(folder, count, photos=2):
    for i in range(count):
        person = folder / f"p{i:03}"
        person.mkdir(parents=True)
        for j, face in enumerate(smooth_faces(photos, seed=i)):
            Image.fromarray((face * 255).byte().permute(1, 2, 0).numpy()).save(person / f"{j}.png")
    return folder


def photo_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def parts_of(output):
    return sorted((output / "index").iterdir())


def index_rows(output):
    rows = []
    for part in parts_of(output):
        if part.suffix == ".jsonl":
            rows += map(json.loads, part.read_text().splitlines())
        else:
            rows += import_module("pyarrow.parquet").read_table(part).to_pylist()
    assert all(tuple(row) == tuple(INDEXED) for row in rows)
    people = {row["person"]: row for row in rows}
    assert len(people) == len(rows), "someone is in the index twice"
    return people


def deltas(output):
    return {path.stem: fastcloak.load(path).delta for path in output.glob("*.safetensors")}


def assert_same_job(output, expected):
    cloaks, rows = deltas(expected), index_rows(expected)
    assert (deltas(output).keys(), index_rows(output).keys()) == (cloaks.keys(), rows.keys())
    assert all(torch.equal(delta, cloaks[name]) for name, delta in deltas(output).items())
    for name, row in index_rows(output).items():
        assert all(row[key] == rows[name][key] for key in ("path", "loss", "error")), name


@pytest.fixture
def three(tmp_path):
    return save_people(tmp_path / "people", 3)


@pytest.fixture
def expected(three, tiny_net, tmp_path):
    """The output of an undisturbed job."""
    fit_here(three, tiny_net, tmp_path / "expected")
    return tmp_path / "expected"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "cloaks"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# In this process


def test_everyone_gets_the_cloak_of_fit_and_a_row(three, output, tiny_net):
    seen = []
    summary = fit_here(three, tiny_net, output, progress=lambda *row: seen.append(row))
    assert (summary.people, summary.fitted, summary.done_before, summary.failed) == (3, 3, 0, 0)
    assert summary.people_per_hour == pytest.approx(3 * 3600 / summary.seconds)
    rows = index_rows(output)
    assert [(row["person"], row["status"], total) for row, total in seen] == [(name, "fitted", 3) for name in rows]
    assert all(rows[row["person"]].items() <= row.items() for row, _ in seen)
    for name, row in rows.items():
        expected, path = fastcloak.fit(three / name, tiny_net, **OPTIONS), output / f"{name}.safetensors"
        cloak, digest = fastcloak.load(path), hashlib.sha256(path.read_bytes()).hexdigest()
        assert torch.equal(cloak.delta, expected.delta)
        learnt = (8 / 255, 2, expected.info["losses"][-1], 2, cloak.info["seconds"])
        assert tuple(row.values()) == (name, path.name, digest, *learnt, None, None)


@pytest.mark.promise("P15")
def test_a_failure_is_a_row_and_only_it_is_tried_again(three, output, tiny_net):
    (three / "p001" / "0.png").write_bytes(b"no photo")
    (three / "empty").mkdir()
    (three / "p002" / "1.png").unlink()
    summary = fit_here(three, tiny_net, output)
    assert (summary.people, summary.fitted, summary.failed) == (4, 1, 3)
    assert summary.reasons == Counter({"ValueError": 2, "PhotoError": 1})
    rows = index_rows(output)
    assert (rows["p000"]["error"], rows["p001"]["path"]) == (None, None)
    assert "p001/0.png" in rows["p001"]["error"]
    assert "2 photos of the person or more" in rows["p002"]["error"]

    before = (output / "p000.safetensors").stat()
    Image.new("RGB", (112, 112)).save(three / "p001" / "0.png")
    seen = {}
    summary = fit_here(three, tiny_net, output, progress=lambda row, _: seen.update({row["person"]: row["status"]}))
    assert (summary.fitted, summary.done_before, summary.failed) == (1, 1, 2)
    assert seen == {"empty": "failed", "p000": "done before", "p001": "fitted", "p002": "failed"}
    after = (output / "p000.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    rows = index_rows(output)
    assert rows.keys() == seen.keys()
    assert all((row["error"] is None) is (seen[name] != "failed") for name, row in rows.items())


@pytest.mark.parametrize("damage", [None, lambda whole: whole[:50], lambda whole: b"", lambda whole: b"x" * len(whole)])
def test_a_lost_or_damaged_index_is_rebuilt_from_the_cloaks(three, output, tiny_net, caplog, damage):
    fit_here(three, tiny_net, output)
    expected = index_rows(output)
    (part,) = parts_of(output)
    if damage is None:
        part.unlink()
    else:
        part.write_bytes(damage(part.read_bytes()))
    assert fit_here(three, tiny_net, output).done_before == 3
    assert ("rebuilt" in caplog.text) is (damage is not None)
    assert index_rows(output) == expected


def test_a_removed_cloak_is_fitted_again_and_a_foreign_file_is_never_written_over(three, output, tiny_net, expected):
    fit_here(three, tiny_net, output)
    (output / "p001.safetensors").unlink()
    summary = fit_here(three, tiny_net, output)
    assert (summary.fitted, summary.done_before) == (1, 2)
    assert_same_job(output, expected)
    for part in parts_of(output):
        part.unlink()
    (output / "p001.safetensors").write_bytes(b"somebody's")
    summary = fit_here(three, tiny_net, output)
    assert (summary.done_before, summary.failed) == (2, 1)
    assert "remove the file" in index_rows(output)["p001"]["error"]
    assert (output / "p001.safetensors").read_bytes() == b"somebody's"


@pytest.mark.promise("P10")
def test_a_stopped_job_goes_on(three, output, tiny_net, expected):
    def stop(row, total):
        if row["person"] == "p001":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_here(three, tiny_net, output, people_per_batch=1, progress=stop)
    assert sorted(index_rows(output)) == ["p000", "p001"]
    summary = fit_here(three, tiny_net, output)
    assert (summary.fitted, summary.done_before) == (1, 2)
    assert_same_job(output, expected)


def test_ctrl_c_keeps_the_finished_people_of_a_batch(three, output, tmp_path):
    net, calls, limit = TinyNet(), [], float("inf")

    def interrupts(x):
        calls.append(1)
        if len(calls) >= limit:
            raise KeyboardInterrupt
        return net(x)

    fit_here(three, interrupts, tmp_path / "expected")
    limit, _ = len(calls) - 1, calls.clear()  # in the last person
    with pytest.raises(KeyboardInterrupt):
        fit_here(three, interrupts, output)
    assert deltas(output).keys() == {"p000", "p001"}
    limit = float("inf")
    assert fit_here(three, interrupts, output).done_before == 2
    assert_same_job(output, tmp_path / "expected")


def test_other_options_another_network_or_folder_are_refused(three, output, tiny_net, tmp_path):
    fit_here(three, tiny_net, output)
    with pytest.raises(ValueError, match="eps was .* name another folder"):
        fit_here(three, tiny_net, output, eps=4 / 255)
    other = TinyNet()
    other.body[0].weight.data += 0.1
    with pytest.raises(ValueError, match="other weights"):
        fit_here(three, other, output)
    with pytest.raises(ValueError, match="new or empty folder"):
        fit_here(three, tiny_net, three)
    with pytest.raises(CheckpointError, match="make .* first"):
        fit_here(three, tiny_net, tmp_path / "no" / "where")
    known = json.loads((output / "checkpoint.json").read_text())["fit"]
    with claim(output, known), pytest.raises(CheckpointError, match="another fit is using this folder"):
        fit_here(three, tiny_net, output)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"concurrency": -1}, ValueError, "concurrency must be"),
        ({"concurrency": True}, ValueError, "concurrency must be"),
        ({"concurrency": 0, "address": "auto"}, ValueError, "concurrency must be 1 or more with an address"),
        ({"address": "ray://10.0.0.1:10001"}, ValueError, "address must be .* got ray://10.*: ray job submit"),
        ({"num_gpus": "1"}, ValueError, "num_gpus must be"),
        ({"num_gpus": float("nan")}, ValueError, "num_gpus must be"),
        ({"people_per_batch": 0}, ValueError, "people_per_batch must be"),
        ({"people_per_batch": "many"}, ValueError, "people_per_batch must be"),
        ({"eps": 2}, ValueError, "eps must be"),
        ({"dtype": "int8"}, ValueError, "dtype must be"),
        ({"checkpoint": None}, TypeError, "unknown option checkpoint"),
        ({"people": []}, TypeError, "people must be .* got list"),
    ],
)
def test_bad_arguments_are_refused_before_anyone_is_fitted(three, output, tiny_net, options, error, message):
    with pytest.raises(error, match=message):
        fit_dataset(**{"people": three, "model": tiny_net, "output": output, **options})
    assert not list(output.glob("*.safetensors"))


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))


@pytest.mark.promise("P11")
@pytest.mark.parametrize(
    ("broken", "device", "message"),
    [
        ("fastcloak.cloak.Cloak.save", "cpu", "No space left on device"),
        ("fastcloak.scale.stages.open", "cpu", "No space left on device.*crashes"),
        (None, "cuda:9", "device must be"),
    ],
)
def test_a_full_disk_or_a_broken_worker_ends_the_job_and_is_nobody_s_failure(
    three, output, tiny_net, monkeypatch, broken, device, message
):
    if broken is not None:
        monkeypatch.setattr(broken, full, raising=False)
    with pytest.raises(RuntimeError, match=message):
        fit_here(three, tiny_net, output, device=device)
    assert not parts_of(output)


def test_without_ray_one_process_does_it_and_the_index_stays_as_it_began(three, output, tiny_net, monkeypatch, caplog):
    def required(module, *, extra):
        raise MissingExtraError(f"not there; pip install 'fastcloak[{extra}]'")

    for name in ("cluster", "index"):
        monkeypatch.setattr(f"fastcloak.scale.{name}.find_spec", lambda name: None)
    monkeypatch.setattr("fastcloak.scale.cluster.packages.require", required)
    assert fit_dataset(three, tiny_net, output, **OPTIONS).fitted == 3
    assert "pip install 'fastcloak[ray]'" in caplog.text
    for options in ({"concurrency": 2}, {"address": "auto"}):
        with pytest.raises(MissingExtraError, match=r"pip install 'fastcloak\[ray\]'"):
            fit_dataset(three, tiny_net, output, **options, **OPTIONS)
    monkeypatch.undo()
    expected = index_rows(output)
    (output / "p001.safetensors").unlink()
    assert fit_here(three, tiny_net, output).done_before == 2
    assert index_rows(output).keys() == expected.keys()
    assert {part.suffix for part in parts_of(output)} == {".jsonl"}

    fit_here(three, tiny_net, three.parent / "parquet")
    monkeypatch.setattr("fastcloak.scale.cluster.packages.require", required)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcloak\[ray\]'"):
        fit_here(three, tiny_net, three.parent / "parquet")


def test_a_surrogate_holds_nothing_that_pickle_looks_up_in_the_caller_s_script(tiny_net):
    # It looks for a torch.memory_format by name in all modules, first in the script, which workers do not have.
    for surrogate in (loaded := fastcloak.load_model(tiny_net), prepare(loaded, channels_last=True)):
        assert not any(isinstance(value, torch.memory_format) for value in vars(surrogate).values())
    assert surrogate.memory_format == torch.channels_last


def test_importing_fastcloak_and_its_command_line_imports_no_ray():
    code = "import sys, fastcloak.cli.main; sys.exit(any(name in ('ray', 'pyarrow') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks, from Python 3.12 on
def test_photos_that_kill_the_reader_are_given_up_after_three_crashes(three, output, tiny_net, monkeypatch, one_thread):
    def die(photos):
        os._exit(9)

    monkeypatch.setattr("fastcloak.scale.stages.named_faces", die)
    for _ in range(3):
        if (child := os.fork()) == 0:
            try:
                fit_here(three, tiny_net, output)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    summary = fit_here(three, tiny_net, output)
    assert (summary.fitted, summary.reasons) == (2, Counter(ProcessDied=1))
    assert not list((output / ".crashes").iterdir())
    assert fit_here(three, tiny_net, output).fitted == 1  # the next job tries again


def test_everyone_s_photos_get_their_own_cloak(three, output, tiny_net, tmp_path):
    safe = tmp_path / "safe"
    fit_here(three, tiny_net, output)
    (output / "p002.safetensors").unlink()
    summary = protect_dataset(three, output, safe, concurrency=0)
    assert (summary.people, summary.failed) == (3, 1)
    assert summary.photos == Counter(protected=4)
    assert summary.reasons == Counter(FileNotFoundError=1)
    for name in ("p000", "p001"):
        cloak = fastcloak.load(output / cloak_file(name))
        for photo in (three / name).iterdir():
            fastcloak.protect_photo(photo, tmp_path / "one.png", cloak, overwrite=True)
            assert (safe / name / photo.name).read_bytes() == (tmp_path / "one.png").read_bytes()
    assert protect_dataset(three, output, safe, concurrency=0).photos == Counter({"done before": 4})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cloaks": "nowhere"}, FileNotFoundError, "cloaks must be the folder"),
        ({"enrolment": 1}, TypeError, "unknown option enrolment"),
        ({"address": "ray://10.0.0.1:10001"}, ValueError, "ray job submit"),
    ],
)
def test_bad_arguments_are_refused_before_any_photo_is_protected(three, output, options, error, message):
    with pytest.raises(error, match=message):
        protect_dataset(**{"people": three, "cloaks": three, "output": output, **options})
    assert not output.exists()


# On Ray

CLUSTER = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def test_batches_and_workers_are_fitted_to_the_cluster(caplog):
    cpus = cluster.RayRunner(cpus=2, gpus=0, concurrency=None, num_gpus=None)
    gpus = cluster.RayRunner(cpus=16, gpus=4, concurrency=None, num_gpus=0.5)
    assert [cpus.batch_size(people) for people in (None, 1000, 20, 1)] == [16, 16, 10, 1]
    assert [gpus.batch_size(people) for people in (None, 1000, 80)] == [64, 64, 10]
    cpus.warn_if_short(workers=2, cpus=2)
    gpus.warn_if_short(workers=8, cpus=9)
    assert not caplog.text
    for runner, workers, wanted in ((cpus, 3, 2.5), (gpus, 9, 10), (gpus, 8, 17)):
        caplog.clear()
        runner.warn_if_short(workers, wanted)
        assert "smaller concurrency" in caplog.text


@pytest.fixture(scope="module")
def head():
    """A cluster of one node with a CPU, to which others can be added; it reports to nobody, and imports `conftest`."""
    before = dict(os.environ)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "RAY_AUTH_MODE": "disabled",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    ray, cluster_utils = import_module("ray"), import_module("ray.cluster_utils")
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(made.address, logging_level=logging.ERROR, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        os.environ.clear()
        os.environ |= before


@pytest.fixture
def two_nodes(head, one_thread):
    """The head, and a node with a CPU that the test may remove."""
    added = head.add_node(num_cpus=1)
    yield head, added
    if added in head.worker_nodes:
        head.remove_node(added)


def workers_of(node):
    """Process ids of the workers of a node that fit."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if title.startswith(b"ray::MapWorker") and parent == raylet:
            found.append(int(entry.name))
    return found


@CLUSTER
@pytest.mark.promise("P10")
def test_a_job_that_loses_a_worker_and_a_node_equals_an_undisturbed_one(two_nodes, tmp_path, output):
    head, added = two_nodes
    people = save_people(tmp_path / "people", 16)
    (people / "p007" / "1.png").write_bytes(b"no photo")
    fit_here(people, TinyNet(), tmp_path / "expected")
    seen = []

    def strike(row, total):
        seen.append(row["person"])
        if len(seen) == 1:
            (worker,) = workers_of(head.head_node)
            os.kill(worker, signal.SIGKILL)
        if len(seen) == 5:
            assert workers_of(added)
            head.remove_node(added, allow_graceful=False)

    options = {"concurrency": 2, "num_gpus": 0, "people_per_batch": 1, **OPTIONS}
    summary = fit_dataset(people, TinyNet(), output, progress=strike, **options)
    # People whose worker died between the cloak and the row count as done before.
    assert (summary.people, summary.fitted + summary.done_before, summary.failed) == (16, 15, 1)
    assert summary.fitted > 10
    assert len(seen) == len(set(seen)) == 16
    assert_same_job(output, tmp_path / "expected")


@CLUSTER
def test_a_job_whose_driver_stops_goes_on_file_for_file(head, tmp_path, output, one_thread):
    people = save_people(tmp_path / "people", 8)
    fit_here(people, TinyNet(), tmp_path / "expected")
    seen = []

    def stop(row, total):
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt

    options = {"concurrency": 1, "num_gpus": 0, "people_per_batch": 2, **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        fit_dataset(people, TinyNet(), output, progress=stop, **options)
    assert len(index_rows(output)) == 3
    summary = fit_dataset(people, TinyNet(), output, **options)
    assert summary.people == summary.fitted + summary.done_before == 8
    assert summary.done_before >= 3
    assert_same_job(output, tmp_path / "expected")
    protected = protect_dataset(people, output, tmp_path / "protected", people_per_batch=4)
    assert protected.photos == Counter(protected=16)
    enrolments, net = save_people(tmp_path / "enrolments", 7), fastcloak.load_model(TinyNet(), name="sface")
    for options in ({"concurrency": 1, "num_gpus": 0, "output": tmp_path / "ray"}, {"concurrency": 0}):
        tailored = tailor_dataset(people, enrolments, [net], **{"output": tmp_path / "here", **options, **TAILOR})
        assert (tailored.photos, tailored.failed) == (Counter(protected=14), 1)
    assert photo_bytes(tmp_path / "ray") == photo_bytes(tmp_path / "here")


class DeadlyNet(TinyNet):
    """A network whose process dies of photos with a white upper edge."""

    def forward(self, x):
        if (x[:, :, 0] == 1).flatten(1).all(1).any():
            os._exit(1)
        return super().forward(x)


@CLUSTER
def test_whoever_kills_every_worker_gets_a_row_and_the_others_of_a_dataset_a_cloak(two_nodes, three, output):
    for photo in (three / "p001").iterdir():
        pixels = np.array(Image.open(photo))
        pixels[0] = 255
        Image.fromarray(pixels).save(photo)
    rows = [
        {"person": person.name, "photos": [photo.read_bytes() for photo in sorted(person.iterdir())]}
        for person in sorted(three.iterdir())
    ]
    dataset = import_module("ray.data").from_items(rows)
    summary = fit_dataset(dataset, DeadlyNet(), output, num_gpus=0, people_per_batch=3, **OPTIONS)
    assert (summary.people, summary.fitted, summary.reasons) == (3, 2, Counter(ProcessDied=1))
    assert "died" in index_rows(output)["p001"]["error"]
    for name, delta in deltas(output).items():
        assert torch.equal(delta, fastcloak.fit(three / name, TinyNet(), **OPTIONS).delta)


def test_a_ray_address_of_ray_client_is_refused(three, output, tiny_net, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for address in (None, "auto"):
        with pytest.raises(ValueError, match="got RAY_ADDRESS=ray://10.*: ray job submit"):
            fit_dataset(three, tiny_net, output, address=address, **OPTIONS)
    monkeypatch.undo()
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    with pytest.raises(ValueError, match="got a connection of Ray Client.*: ray job submit"):
        fit_dataset(three, tiny_net, output, **OPTIONS)


# The command line


def test_the_command_line_fits_and_protects_many(three, output, tmp_path, capsys, monkeypatch):
    (three / "p001" / "0.png").write_bytes(b"no photo")
    load_model = fastcloak.load_model
    monkeypatch.setattr(fastcloak, "load_model", lambda what, **options: load_model(TinyNet()))
    fit = ["fit-many", str(three), "-o", str(output), "--workers", "0", "--preset", "plain", "--steps", "2"]
    protect = ["protect-many", str(output), str(three), "-o", str(tmp_path / "safe"), "--workers", "0"]

    def run(*arguments):
        return cli(arguments), capsys.readouterr()

    code, printed = run(*fit)
    assert code == 3
    assert "2  people fitted" in printed.out
    assert "1    cannot be read or written as a photo" in printed.out
    assert "people per hour" in printed.out
    assert "p001: " in printed.err
    code, printed = run(*fit, "--json")
    summary = json.loads(printed.out)
    assert (code, summary["people"], summary["done_before"], summary["failed"]) == (3, 3, 2, 1)
    assert summary["reasons"] == {"PhotoError": 1}
    code, printed = run(*protect)
    assert code == 3
    assert "4  photos protected" in printed.out
    assert "1    not there" in printed.out
    code, printed = run(*protect, "--json")
    assert (code, json.loads(printed.out)["photos"]) == (3, {"done before": 4})
    for command, message in (
        ([*fit, "--people-per-batch", "0"], "people_per_batch must be"),
        ([*fit[:-2], "--address", "ray://10.0.0.1:10001"], "ray job submit"),
        (["fit-many", str(three / "p000"), "-o", str(tmp_path / "x"), "--workers", "0"], "at least one person"),
    ):
        code, printed = run(*command)
        assert code == 1
        assert message in printed.err


# Albums whose photos get masks of their own


@pytest.fixture
def known_net():
    """A network whose name has a threshold, by which people are found."""
    return fastcloak.load_model(TinyNet(), name="sface")


@pytest.mark.promise("P15")
def test_everyone_s_album_is_tailored_and_a_bad_person_or_photo_stops_nobody(three, tmp_path, known_net):
    albums, safe = save_people(tmp_path / "albums", 4), tmp_path / "safe"
    (albums / "p000" / "1.png").write_bytes(b"no photo")
    (three / "p001" / "0.png").write_bytes(b"no photo")
    tailor = partial(tailor_dataset, albums, three, [known_net], concurrency=0, **TAILOR)
    assert tailor(tmp_path / "dry", dry_run=True).photos == Counter(planned=3, failed=1)
    assert not photo_bytes(tmp_path / "dry")
    seen = {}
    summary = tailor(safe, progress=lambda row, total: seen.update({row["person"]: (row["status"], total)}))
    assert (summary.people, summary.failed) == (4, 2)
    assert summary.photos == Counter(protected=3, failed=1)
    assert summary.reasons == Counter(PhotoError=2, FileNotFoundError=1)
    done, failed = ("protected", 4), ("failed", 4)
    assert seen == {"p000": done, "p001": failed, "p002": done, "p003": failed}
    for name in ("p000", "p002"):  # as if they were alone
        plan = fastcloak.plan_photos([albums / name], tmp_path / "alone" / name)
        fastcloak.tailor_photos(plan, fastcloak.enrol(three / name, known_net), [known_net], **TAILOR)
    assert photo_bytes(safe) == photo_bytes(tmp_path / "alone")

    Image.open(albums / "p002" / "1.png").save(albums / "p000" / "1.png")
    (three / "p001" / "0.png").unlink()
    (save_people(tmp_path / "more", 4) / "p003").rename(three / "p003")
    again = tailor(safe)
    assert (again.people, again.failed) == (4, 0)
    assert again.photos["done before"] == 3
    assert not list((safe / ".crashes").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks, from Python 3.12 on
def test_photos_that_kill_the_tailor_are_given_up_after_three_crashes(
    three, tmp_path, known_net, monkeypatch, one_thread
):
    albums, safe = save_people(tmp_path / "albums", 3), tmp_path / "safe"
    enrolled = fastcloak.scale.stages.enrol

    def die(photos, finder):
        if photos[0].parent.name == "p001":
            os._exit(9)
        return enrolled(photos, finder)

    def tailor():
        return tailor_dataset(albums, three, [known_net], safe, concurrency=0, **TAILOR)

    monkeypatch.setattr("fastcloak.scale.stages.enrol", die)
    for _ in range(3):
        if (child := os.fork()) == 0:
            try:
                tailor()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    summary = tailor()  # nobody tries that person again
    assert (summary.people, summary.failed, summary.reasons) == (3, 1, Counter(ProcessDied=1))
    assert summary.photos.total() == 4  # those that were done when it crashed are found or made again
    assert not list((safe / ".crashes").iterdir())
    monkeypatch.undo()
    again = tailor()  # the next job does
    assert (again.failed, again.photos) == (0, Counter({"done before": 4, "protected": 2}))


@pytest.mark.parametrize("name", ["..", "../albums/p000", ".p000", "nobody"])
def test_a_name_of_a_manifest_leads_out_of_no_folder_of_enrolments(three, tmp_path, known_net, name):
    manifest = tmp_path / "albums.jsonl"
    manifest.write_text(json.dumps({"person": name, "photos": [str(three / "p000")]}))
    summary = tailor_dataset(manifest, three, [known_net], tmp_path / "safe", concurrency=0, **TAILOR)
    assert (summary.failed, summary.reasons) == (1, Counter(FileNotFoundError=1))
    assert not photo_bytes(tmp_path / "safe")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"enrolments": "nowhere"}, FileNotFoundError, "enrolments must be a folder"),
        ({"who": "all"}, ValueError, "who must be 'me' or 'largest'"),
        ({"steps": 1}, TypeError, "unknown option"),
        ({"gradients": -1}, ValueError, "gradients must be"),
    ],
)
def test_bad_arguments_are_refused_before_any_album_is_tailored(three, output, known_net, options, error, message):
    arguments = {"people": three, "enrolments": three, "models": [known_net], "output": output, "concurrency": 0}
    with pytest.raises(error, match=message):
        tailor_dataset(**{**arguments, **options})
    assert not output.exists()


@pytest.mark.promise("P11")
def test_a_device_that_is_not_there_ends_the_job_and_is_nobody_s_failure(three, output, known_net):
    with pytest.raises(RuntimeError, match="device must be"):
        tailor_dataset(three, three, [known_net], output, concurrency=0, device="cuda:9")


def test_the_command_line_tailors_many(three, tmp_path, capsys, monkeypatch, known_net):
    monkeypatch.setattr(fastcloak, "load_model", lambda what, **options: known_net)
    safe, albums = tmp_path / "safe", save_people(tmp_path / "albums", 4)
    many = ["protect-many", str(three), str(albums), "-o", str(safe), "--workers", "0"]
    tailor = [*many, "--tailor", "--models", "sface", "--gradients", "2", "--device", "cpu"]
    assert cli(tailor) == 3
    printed = capsys.readouterr()
    assert "6  photos protected" in printed.out
    assert "1  people without an enrolment or photos" in printed.out
    assert cli([*tailor, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["photos"] == {"done before": 6}
    for more in (["--gradients", "2"], ["--device", "cpu"], ["--who", "me"], ["--models", "sface"]):
        assert cli([*many, *more]) == 1
        assert "must come with --tailor" in capsys.readouterr().err
