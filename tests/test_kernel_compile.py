"""The kernels as a GPU would get them, compiled for sm_80 and sm_90a without one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.speed.kernel_table import BUDGETS, complaints, kernel_functions, recorded, variants
from bench.speed.machine_code import instructions_of

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "bench/results/kernel_table.csv"

NAMES = ("kernel", "variant", "arch")
# What depends on the kernels and their launches alone. Registers, shared memory and the number of accesses also depend
# on the version of the compiler.
OURS = ("num_warps", "programs", "bytes_read", "bytes_written", "least_read", "least_written")
PHOTO_COUNTS = (*range(2, 13), 16, 17, 24, 32, 33, 48, 64)


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


# In a process of its own like the table: prints what is launched for hulls of any number of photos.
EVERY_PHOTO_COUNT = """
import sys, torch, fastcloak.kernels
from bench.speed.kernel_table import identity, recorded
for size in (128, 512):
    for photos in map(int, sys.argv[2:]):
        for b in (1, 10, 16):
            points, gram = torch.zeros(2, photos, size), torch.zeros(2, photos, photos, dtype=torch.float64)
            index = torch.zeros(b, 2, dtype=torch.int64).T if b == 10 else torch.zeros(2, b, dtype=torch.int64)
            with recorded() as launches:
                fastcloak.kernels.hull_loss(torch.zeros(2, b, size), points, gram, points[:, 0], index, sys.argv[1])
            print(size, *(hash(identity(launch)) for launch in launches))
"""


@pytest.mark.parametrize("objective", ["fi_uap", "affine_hull", "convex_hull"])
def test_six_kernels_serve_all_photo_counts(objective):
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", EVERY_PHOTO_COUNT, objective, *map(str, PHOTO_COUNTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=plain, check=True)
    launched = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert len(launched) == 2 * (6 if objective.endswith("_hull") else 1)


def some_launches():
    with recorded() as launches:
        for _, call in variants():
            call()
    return launches


def test_complaints_name_what_is_wrong():
    launches = some_launches()
    step = next(launch for launch in launches if launch.name == "_outer_step_kernel")
    scaled = next(launch for launch in launches if launch.name == "_cloak_batch_kernel")
    good = {"spill_bytes": 0, "stack_bytes": 0, "registers": 32, "loads_16": 4, "stores_16": 6}
    good |= {"loads_4": 0, "stores_4": 0, "waits_for_stores": 0, "loop_barriers": 0}
    assert complaints(step, good) == []
    assert complaints(step, good | {"spill_bytes": 8}) == ["spills 8 bytes, stack 0, 0 allowed"]
    assert complaints(step, good | {"registers": 65}) == ["65 registers, budget 64"]
    assert complaints(step, good | {"stores_16": 0}) == ["no 16-byte store"]
    assert complaints(step, good | {"waits_for_stores": 1}) == [
        "1 loads wait for a store that they do not need, 0 allowed"
    ]
    assert complaints(scaled, good | {"waits_for_stores": 1}) == []  # 10 photos in groups of 8
    assert complaints(scaled, good | {"loads_4": 6}) == []
    assert complaints(scaled, good | {"loads_4": 7}) == ["7 narrow loads, 6 allowed"]
    hull = next(launch for launch in launches if launch.options["num_warps"] == 1)
    assert complaints(hull, good | {"loop_barriers": 7}) == ["7 barriers inside loops, budget 6"]


LISTING = """
.text.kernel_0:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0020*/               @P0 LDG.E.U16 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0030*/               @P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
.L_x_4:
        /*0060*/               @P2 BRA `(.L_x_2) ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00a0*/                   BRA `(.L_x_4) ;
.L_x_5:
        /*00b0*/                   BRA `(.L_x_5);
"""


def test_loops_and_accesses_are_read_from_machine_code():
    # The cold code at .L_x_3 enters the inner loop at .L_x_4, so that only the outer one is a natural loop.
    (body,) = instructions_of(LISTING).values()
    accesses = [(one.name, one.bits, one.loops) for one in body if one.name in ("LDG", "STG")]
    assert accesses == [("LDG", 128, 0), ("STG", 32, 0), ("LDG", 16, 0), ("LDG", 64, 1)]
    assert [one.loops for one in body if one.name == "BAR"] == [1, 1]
    without = LISTING.split(".L_x_3:")[0].replace("BRA `(.L_x_3)", "EXIT")
    (body,) = instructions_of(without).values()
    assert [one.loops for one in body if one.name == "BAR"] == [2]


def test_the_interpreter_is_refused_with_a_hint(tmp_path):
    done = run_table(tmp_path / "table.csv", TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "unset it" in done.stderr
    assert not (tmp_path / "table.csv").exists()
