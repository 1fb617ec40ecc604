"""bench/gpu_check.sh and gpu_check.py as far as they run without a GPU: every section writes its rows."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.harness.machine import row_context
from bench.speed import gpu as gpu_check

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bench/gpu_check.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")


def run_script(*arguments, **environment):
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    before = sorted(path.name for path in ROOT.iterdir())
    done = run_script("--dry-run", OUT=str(folder), COMMIT="0123456789ab-dirty")
    # Building the package leaves nothing behind.
    assert sorted(path.name for path in ROOT.iterdir()) == before
    return done, folder


def rows_of(folder, topic):
    (path,) = folder.glob(f"gpu_{topic}_*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_script_is_well_formed_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only where there is none")
def test_without_a_gpu_it_ends_with_words(tmp_path):
    done = run_script(OUT=str(tmp_path))
    assert done.returncode == 1
    assert "gpu_check needs a CUDA device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_python_ends_it_with_words(tmp_path):
    done = run_script("--dry-run", OUT=str(tmp_path), PYTHON="no-such-python")
    assert done.returncode == 1
    assert "no-such-python" in done.stderr


def test_the_dry_run_succeeds_and_ends_with_the_table_and_the_verdicts(dry_run):
    done, folder = dry_run
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    end = done.stdout.splitlines()[-4:]
    assert end[0] == "skipped tests: no CUDA device"
    assert end[1].startswith("ok      measurements")
    assert end[2].startswith("skipped compute-sanitizer")
    assert end[3].endswith(f"rows and log in {folder}")
    for topic in gpu_check.COLUMNS:
        assert f"\n{topic}: cpu_dry_run, " in done.stdout
    assert (folder / "gpu_check.txt").stat().st_size > 0
    assert len(list(folder.iterdir())) <= 8, "the device machine gives back 8 files"


@pytest.mark.parametrize("topic", gpu_check.COLUMNS)
def test_every_section_writes_rows_with_machine_and_numbers(dry_run, topic):
    rows = rows_of(dry_run[1], topic)
    assert rows
    expected = {*gpu_check.COLUMNS[topic], "note", "card", "dry_run", *row_context("cpu")}
    for row in rows:
        assert set(row) == expected
        assert (row["card"], row["dry_run"], row["note"]) == ("cpu_dry_run", "True", "")
        assert (row["commit"], row["dirty"]) == ("0123456789ab", "True")
        assert row["torch"]
        assert row.get("agrees", "True") == "True"
        empty = {column for column in gpu_check.COLUMNS[topic] if row[column] == ""}
        assert empty <= {"variant", "layout"}


def test_every_kernel_and_rung_has_a_row(dry_run):
    kernels = {(row["operation"], row["variant"]) for row in rows_of(dry_run[1], "kernels")}
    assert kernels == {
        ("cloak_batch_", ""),
        ("accumulate_step_", ""),
        ("outer_step_", ""),
        ("outer_step_", "momentum"),
        *(("hull_loss", objective) for objective in ("fi_uap", "class_center", "affine_hull", "convex_hull")),
    }
    rungs = [row["rung"] for row in rows_of(dry_run[1], "ladder")]
    assert rungs[:4] == ["published", "clean features cached", "weights frozen", "batch norm folded"]
    assert len(rungs) == 9


def test_a_row_that_fails_says_why_and_the_others_go_on(tmp_path, capsys):
    run = gpu_check.Run(tmp_path, dry_run=True, ends=float("inf"))
    run.start("launches")
    run.attempt("launches", {"net": "a"}, lambda: 1 / 0)
    run.attempt("launches", {"net": "b"}, lambda: {"network": 3})
    run.ends = 0.0
    run.attempt("launches", {"net": "c"}, lambda: {"network": 4}, needs=5)
    rows = rows_of(tmp_path, "launches")
    assert [row["note"] for row in rows] == ["ZeroDivisionError: division by zero", "", "skipped: 0 s left, needs 5"]
    assert [row["network"] for row in rows] == ["", "3", ""]
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert "not measured: ZeroDivisionError: division by zero" in gpu_check.table(tmp_path)


def test_a_section_that_fails_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_check.SECTIONS, "energy", lambda run: 1 / 0)
    run = gpu_check.Run(tmp_path, dry_run=True, ends=float("inf"))
    assert not gpu_check.run_section(run, "energy")
    assert rows_of(tmp_path, "energy")[0]["note"] == "section ended: ZeroDivisionError: division by zero"


def test_bytes_of_the_kernels_are_the_minimum(tmp_path):
    run = gpu_check.Run(tmp_path, dry_run=True, ends=float("inf"))
    n, P, b = 3 * 6 * 6, 1, 2
    moved = {(c.operation, c.what.get("variant", "")): c.moved for c in gpu_check.cases(run) if c.what["batch"] == b}
    first = next(c for c in gpu_check.cases(run))
    assert first.moved == P * (4 * b * n + 4 * n + 8 * b + 2 * b * n) + 24  # bfloat16 out
    assert moved["outer_step_", ""] == P * n * 4 * 5
    assert moved["outer_step_", "momentum"] == P * n * 4 * 7


def test_compare_knows_rounding_from_error():
    exact = torch.linspace(-1, 1, 101)
    assert gpu_check.compare([(exact + 1e-6, exact)], signs=False)[1]
    assert not gpu_check.compare([(exact + 1e-3, exact)], signs=False)[1]
    assert not gpu_check.compare([(exact * torch.nan, exact)], signs=True)[1]
    assert gpu_check.compare([(exact.bfloat16(), exact.bfloat16())], signs=False) == (0.0, True)
