"""The long bench counts what it says: every outcome is seen once, and a damaged file can be made again."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.reliability import __main__ as reliability
from bench.reliability import damage
from bench.reliability.__main__ import WrongResult, case_random, cases_of, fuzz, read_one
from fastcloak import Cloak, CloakFileError, PhotoError, load


class Scripted:
    """A reader whose case number says what happens, in the child process of `fuzz`."""

    kinds = ("scripted",)

    def __init__(self, folder):
        self.folder = folder

    def make(self, kind, rng):
        return ".bin", b"x", None

    def read(self, path, allowed):
        what = os.environ["SCRIPT"].split(",")[self.turn()]
        if what == "crash":
            os.abort()
        if what == "hang":
            while True:
                pass
        if what == "sleep":
            time.sleep(600)
        if what == "memory":
            bytearray(4 * 2**30)
        if what == "hidden memory":
            try:
                bytearray(4 * 2**30)
            except MemoryError as error:
                try:
                    raise PhotoError("no photo") from error
                except PhotoError as wrapped:
                    return reliability._typed(wrapped)
        if what == "other error":
            raise KeyError("not documented")
        if what == "wrong":
            raise WrongResult("another mask")
        return what

    def turn(self):
        # The child reads its first case once to warm up; children after a crash begin anew.
        counter = Path(os.environ["SCRIPT_TURN"])
        turn = int(counter.read_text()) if counter.exists() else -1
        warming = not (self.folder / "warm").exists()
        (self.folder / "warm").touch()
        if warming:
            return -1
        counter.write_text(str(turn + 1))
        return turn + 1


SCRIPT = [
    "exact_loads",
    "crash",
    "typed_errors",
    "hang",
    "sleep",
    "memory",
    "hidden memory",
    "other error",
    "wrong",
    "other_loads",
]


def scripted_work(*arguments):
    reliability.READERS["cloaks"] = Scripted
    reliability._work(*arguments)


def test_each_outcome_is_counted_and_the_rest_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("SCRIPT", ",".join([*SCRIPT, "exact_loads"]))
    monkeypatch.setenv("SCRIPT_TURN", str(tmp_path / "turn"))
    monkeypatch.setattr(reliability, "_work", scripted_work)
    tally = fuzz("cloaks", [("scripted", i) for i in range(len(SCRIPT))], time_limit=0.5, memory=1.0)["scripted"]
    assert tally.counts == {
        "runs": 10,
        "crashes": 2,
        "hangs": 2,
        "memory": 2,
        "wrong": 1,
        "typed_errors": 1,
        "exact_loads": 1,
        "other_loads": 1,
    }
    assert [line.split(": ")[:2] for line in tally.failures] == [
        ["crashes", "scripted 1"],
        ["hangs", "scripted 3"],
        ["hangs", "scripted 4"],
        ["memory", "scripted 5"],
        ["memory", "scripted 6"],
        ["crashes", "scripted 7"],
        ["wrong", "scripted 8"],
    ]
    assert tally.slowest >= 0.5


@pytest.mark.parametrize("part", ["cloaks", "photos", "networks"])
def test_a_damaged_file_can_be_made_again_and_is_damaged(part, tmp_path):
    reader = reliability.READERS[part](tmp_path)
    whole = set(getattr(reader, "raws", None) or reader.files.values())
    altered = 0
    for case in cases_of(part, 2 * len(reader.kinds)):
        if case[0] == "bomb":
            continue
        first, again, other = (reader.make(case[0], case_random(seed, case))[:2] for seed in (3, 3, 4))
        assert first == again
        altered += first != other and first[1] not in whole
    assert altered >= 8, altered


def test_kinds_take_turns():
    assert cases_of("networks", 9)[:2] == [("truncated", 0), ("flipped", 0)]
    assert cases_of("networks", 9)[7:] == [("truncated", 1), ("flipped", 1)]


def test_a_wrong_mask_would_be_seen(tmp_path, monkeypatch):
    reader = reliability.CloakReader(tmp_path)
    path = tmp_path / "case.safetensors"
    path.write_bytes(reader.raws[0])
    whole = [damage.Allowed.of(one.delta, one.eps, one.info) for one in reader.originals]
    assert reader.read(path, whole) == "exact_loads"
    with pytest.raises(WrongResult):
        reader.read(path, whole[1:])
    for changed in (
        Cloak(-reader.originals[0].delta, 8 / 255, reader.originals[0].info),
        Cloak(reader.originals[0].delta, 9 / 255, reader.originals[0].info),
        Cloak(reader.originals[0].delta, 8 / 255, {}),
    ):
        assert not any(one.equals(changed) for one in whole)
    minus, plus = torch.full((3, 112, 112), -0.0), torch.zeros(3, 112, 112)
    assert not damage.Allowed.of(plus, 0.0, {}).equals(Cloak(minus, 0.0, {}))


@pytest.mark.parametrize("number", range(12))
def test_forged_cloaks_pass_the_hash_so_that_the_bounds_are_what_refuses_them(number, tmp_path):
    originals = damage.cloaks()
    rng = case_random(0, ("forged mask", number))
    raw, allowed = damage.cloak_case("forged mask", [bytes(8), bytes(8)], originals, rng)
    (tmp_path / "forged.safetensors").write_bytes(raw)
    if allowed:
        assert allowed[0].equals(load(tmp_path / "forged.safetensors"))
    else:
        with pytest.raises(CloakFileError, match="at most eps|holds no mask of"):
            load(tmp_path / "forged.safetensors")


def test_photo_files_hold_the_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    files = damage.photo_files(pixels)
    assert {name.rsplit(".", 1)[1] for name in files} == {"jpg", "png", "webp", "tif", "bmp", "pgm", "heic"}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        with Image.open(tmp_path / name) as image:
            assert sorted(image.size) == [30, 40]  # some carry an orientation
        joined = damage.png(damage.png_chunks(raw)) if name.endswith(".png") else None
        assert raw == (joined or b"".join(damage._segments(raw, "." + name.rsplit(".", 1)[1])))


def test_a_kill_tells_whether_it_came_in_time(tmp_path):
    # Forked in a process of its own: here threads may run.
    code = (
        "import time; from bench.reliability.__main__ import killed_after\n"
        "print(killed_after(0.2, lambda: time.sleep(60)), killed_after(30, lambda: None))\n"
    )
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout == "True False\n", done.stderr


def test_rows_of_other_parts_stay(tmp_path):
    path = tmp_path / "rows.csv"
    reliability._write_rows(path, "a", [{"kind": "x", "runs": 1, "seconds": 0.123456}])
    reliability._write_rows(path, "b", [{"kind": "y", "runs": 2, "ranks": [1, 2]}])
    reliability._write_rows(path, "a", [{"kind": "z", "runs": 3, "seconds": 1.0}])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["kind"], row["runs"]) for row in rows] == [("b", "y", "2"), ("a", "z", "3")]
    assert all(row["torch"] and row["commit"] for row in rows)


def test_read_one_keeps_the_reason(tmp_path):
    class Odd:
        folder = tmp_path

        def make(self, kind, rng):
            return ".bin", b"", None

        def read(self, path, allowed):
            raise ZeroDivisionError("here")

    outcome, why = read_one(Odd(), ("kind", 0), 0)
    assert outcome == "crashes"
    assert "ZeroDivisionError: here" in why
