"""The kernels as a GPU would get them, compiled for sm_80 and sm_90a without one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.speed.kernel_table import BUDGETS, complaints, kernel_functions, recorded, variants

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "bench/results/kernel_table.csv"

NAMES = ("kernel", "variant", "arch")
# What depends on the kernels and their launches alone. Registers, shared memory and the number of accesses also depend
# on the version of the compiler.
OURS = ("num_warps", "programs", "bytes_read", "bytes_written", "least_read", "least_written")


def run_table(output, **environment):
    # A process of its own: TRITON_INTERPRET=1, which the other tests need, replaces the kernels when they are imported.
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.speed.kernel_table", "-o", output]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=plain | environment)


def rows_of(file):
    with file.open() as lines:
        return {tuple(row[name] for name in NAMES): row for row in csv.DictReader(lines)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    output = tmp_path_factory.mktemp("table") / "kernel_table.csv"
    return run_table(output), rows_of(output)


def test_every_kernel_compiles_without_spills_within_its_registers_and_with_wide_accesses(table):
    done, rows = table
    assert done.returncode == 0, done.stderr
    kernels = {function.__name__ for function in kernel_functions()}
    assert {kernel for kernel, _, _ in rows} == kernels == set(BUDGETS)
    assert {arch for _, _, arch in rows} == {"sm_80", "sm_90"}


def test_the_committed_table_is_that_of_these_kernels(table):
    committed = rows_of(COMMITTED)
    for names, row in table[1].items():
        assert [committed[names][column] for column in OURS] == [row[column] for column in OURS], names


def test_complaints_name_what_is_wrong():
    with recorded() as launches:
        for _, call in variants():
            call()
    step = next(launch for launch in launches if launch.name == "_outer_step_kernel")
    scaled = next(launch for launch in launches if launch.name == "_cloak_batch_kernel")
    good = {"spill_bytes": 0, "stack_bytes": 0, "registers": 32, "load_v4": 4, "store_v4": 6}
    good |= {"load_small": 0, "store_small": 0}
    assert complaints(step, good) == []
    assert complaints(step, good | {"spill_bytes": 8}) == ["spills 8 bytes, stack 0"]
    assert complaints(step, good | {"registers": 65}) == ["65 registers, budget 64"]
    assert complaints(step, good | {"store_v4": 0}) == ["no 16-byte store"]
    assert complaints(scaled, good | {"load_small": 6}) == []
    assert complaints(scaled, good | {"load_small": 7}) == ["7 narrow loads, 6 allowed"]


def test_the_interpreter_is_refused_with_a_hint(tmp_path):
    done = run_table(tmp_path / "table.csv", TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "unset it" in done.stderr
    assert not (tmp_path / "table.csv").exists()
