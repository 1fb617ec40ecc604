"""The kernels as a GPU would get them, compiled for sm_80 and sm_90a without one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "bench/results/kernel_table.csv"

# What depends on the kernels and the launchers alone. Registers, shared memory and the number of accesses also depend
# on the version of the compiler.
OURS = (
    "kernel",
    "variant",
    "arch",
    "num_warps",
    "programs",
    "bytes_read",
    "bytes_written",
    "least_read",
    "least_written",
)


def run_table(output, **environment):
    # A process of its own: TRITON_INTERPRET=1, which the other tests need, replaces the kernels when they are imported.
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench.speed.kernel_table", "-o", output],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=plain | environment,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    output = tmp_path_factory.mktemp("table") / "kernel_table.csv"
    done = run_table(output)
    with output.open() as file:
        return done, list(csv.DictReader(file))


def test_every_variant_compiles_without_spills_and_with_wide_accesses(table):
    done, rows = table
    assert done.returncode == 0, done.stderr
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90"}
    assert all(row["spill_bytes"] == row["stack_bytes"] == "0" for row in rows)


def test_the_committed_table_is_that_of_these_kernels(table):
    _, rows = table
    with COMMITTED.open() as file:
        committed = list(csv.DictReader(file))
    assert [[row[name] for name in OURS] for row in committed] == [[row[name] for name in OURS] for row in rows]


def test_every_kernel_is_in_the_table(table):
    from bench.speed.kernel_table import BUDGETS, kernel_functions

    _, rows = table
    assert {row["kernel"] for row in rows} == {function.__name__ for function in kernel_functions()} == set(BUDGETS)


def test_registers_stay_within_their_budget(table):
    from bench.speed.kernel_table import BUDGETS

    _, rows = table
    for row in rows:
        assert int(row["registers"]) <= BUDGETS[row["kernel"]], row


def test_complaints_name_what_is_wrong():
    from bench.speed.kernel_table import complaints, recorded, variants

    launches = {}
    for name, call in variants():
        with recorded() as found:
            call()
        launches |= {(launch.name, name): launch for launch in found}
    launch = launches["_outer_step_kernel", "plain"]
    good = {"spill_bytes": 0, "stack_bytes": 0, "registers": 32, "load_v4": 4, "load_small": 0}
    good |= {"store_v4": 6, "store_small": 0}
    assert complaints(launch, good) == []
    assert complaints(launch, good | {"spill_bytes": 8}) == ["spills 8 bytes, stack 0"]
    assert complaints(launch, good | {"registers": 65}) == ["65 registers, budget 64"]
    assert complaints(launch, good | {"load_small": 8}) == ["8 narrow loads, 0 allowed"]
    assert complaints(launch, good | {"store_v4": 0}) == ["no 16-byte store"]
    scaled = launches["_cloak_batch_kernel", "float32 scale"]
    assert complaints(scaled, good | {"load_small": 6}) == []
    assert complaints(scaled, good | {"load_small": 7}) == ["7 narrow loads, 6 allowed"]


def test_the_interpreter_is_refused_with_words(tmp_path):
    done = run_table(tmp_path / "table.csv", TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "unset it" in done.stderr
    assert not (tmp_path / "table.csv").exists()
