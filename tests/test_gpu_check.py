"""bench/gpu_check.sh and bench.speed.gpu as far as they run without a GPU: every section writes its rows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.harness.machine import row_context
from bench.harness.rows import read
from bench.speed import gpu
from bench.speed.operations import agreement, picture_operations

ROOT = Path(__file__).parent.parent
TOPICS = tuple(gpu.SHARES)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")


def run_script(*arguments, **environment):
    program = ["bash", ROOT / "bench/gpu_check.sh", *arguments]
    return subprocess.run(
        program, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable} | environment
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    before = sorted(path.name for path in ROOT.iterdir())
    done = run_script("--dry-run", OUT=str(folder), COMMIT="0123456789ab-dirty")
    # Building the package leaves nothing behind.
    assert sorted(path.name for path in ROOT.iterdir()) == before
    return done, folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only where there is none")
def test_without_a_gpu_or_python_the_script_ends_with_a_clear_message(tmp_path):
    for done, message in (
        (run_script(OUT=str(tmp_path)), "gpu_check needs a CUDA device"),
        (run_script("--dry-run", OUT=str(tmp_path), PYTHON="no-such-python"), "no-such-python"),
    ):
        assert done.returncode == 1
        assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_dry_run_succeeds_and_ends_with_the_table_and_the_verdicts(dry_run):
    done, folder = dry_run
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    end = done.stdout.splitlines()[-5:]
    assert end[0] == "skipped tests: no CUDA device"
    assert end[1].startswith("ok      tailoring")
    assert end[2].startswith("ok      measurements")
    assert end[3].startswith("skipped compute-sanitizer")
    assert end[4].endswith(f"rows and log in {folder}")
    assert all(f"\n{topic}: cpu_dry_run, " in done.stdout for topic in TOPICS)
    assert len(list(folder.iterdir())) <= 8, "the device machine gives back 8 files"


@pytest.mark.parametrize("topic", TOPICS)
def test_every_section_writes_rows_with_machine_and_numbers(dry_run, topic):
    rows = read(dry_run[1] / f"gpu_{topic}_cpu_dry_run.csv")
    for row in rows:
        assert set(row) >= {*gpu.SHOWN[topic], "card", "note", *row_context("cpu")}
        assert (row["card"], row["dry_run"], row["note"]) == ("cpu_dry_run", "True", "")
        assert (row["commit"], row["dirty"], row.get("agrees", "True")) == ("0123456789ab", "True", "True")
        empty = {column for column in gpu.SHOWN[topic] if row[column] == ""}
        assert empty <= {"variant", "layout"}
    assert len(rows) >= 2
    if topic == "kernels":
        assert len({(row["operation"], row["variant"]) for row in rows}) == 9


def test_what_fails_is_a_row_that_says_why_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    run = gpu.Run(tmp_path, dry_run=True, ends=float("inf"))
    run.attempt("launches", {"backend": "a"}, lambda: 1 / 0)
    run.attempt("launches", {"backend": "b"}, lambda: {"network": 3})
    monkeypatch.setitem(gpu.SECTIONS, "energy", lambda run: 1 / 0)
    assert not gpu.run_section(run, "energy")
    run.ends = 0.0
    run.attempt("launches", {"backend": "c"}, lambda: {"network": 4}, needs=5)
    rows = read(tmp_path / "gpu_launches_cpu_dry_run.csv")
    assert [row["note"] for row in rows] == ["ZeroDivisionError: division by zero", "", "skipped: 0 s left, needs 5"]
    assert [row["network"] for row in rows] == ["", "3", ""]
    (row,) = read(tmp_path / "gpu_energy_cpu_dry_run.csv")
    assert row["note"] == "section ended: ZeroDivisionError: division by zero"
    assert "not measured: a ZeroDivisionError: division by zero" in gpu.table(tmp_path)


def test_bytes_are_the_minimum_and_agreement_tells_rounding_from_error():
    n, P, b = 3 * 6 * 6, 1, 2
    found = picture_operations(P, b, torch.bfloat16, True, torch.device("cpu"), side=6, photos=3)
    moved = {(operation.name, operation.variant): operation.moved for operation in found}
    assert moved["cloak_batch_", ""] == P * (4 * b * n + 4 * n + 8 * b + 2 * b * n) + 24  # bfloat16 out
    assert moved["cloak_batch_", "bound"] == moved["cloak_batch_", ""] + P * 4 * n
    assert moved["outer_step_", "momentum"] == P * n * 4 * 7
    exact = torch.linspace(-1, 1, 101)
    assert agreement([(exact + 1e-6, exact)])[1]
    assert not agreement([(exact + 1e-3, exact)])[1]
    assert not agreement([(exact * torch.nan, exact)], turned=1e-3)[1]
