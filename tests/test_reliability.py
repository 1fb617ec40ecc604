"""The long bench counts what it says: every outcome is seen once, and a damaged file can be made again."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.harness.rows import read
from bench.reliability import __main__ as reliability
from bench.reliability import damage
from bench.reliability.fuzz import READERS, CloakReader, WrongResult, case_random, cases_of, fuzz, outcome_of, work
from fastcloak import Cloak, CloakFileError, PhotoError, load


def out_of_memory(hidden=False):
    try:
        bytearray(4 * 2**30)
    except MemoryError as error:
        if not hidden:
            raise
        wrapped = PhotoError("no photo")
        wrapped.__cause__ = error
        return outcome_of(wrapped)


def busy():
    while True:
        pass


def wrong():
    raise WrongResult("another mask")


SCRIPT = (
    *(lambda: "exact_loads", os.abort, lambda: "typed_errors", busy, lambda: time.sleep(600), out_of_memory),
    *(lambda: out_of_memory(hidden=True), lambda: {}["not documented"], wrong, lambda: "other_loads"),
)


class Scripted:
    """A reader whose case number says what happens, in the child process of `fuzz`."""

    def __init__(self, folder):
        self.folder, self.warm = folder, False

    def make(self, kind, rng):
        return ".bin", b"x", None

    def read(self, path, allowed):
        if not self.warm:  # the child reads its first case once before
            self.warm = True
            return "exact_loads"
        counter = Path(os.environ["SCRIPT_TURN"])
        turn = int(counter.read_text())
        counter.write_text(str(turn + 1))
        return SCRIPT[turn]()


def scripted(*arguments):
    READERS["cloaks"] = Scripted
    work(*arguments)


def test_each_outcome_is_counted_and_the_rest_goes_on(monkeypatch, tmp_path):
    (tmp_path / "turn").write_text("0")
    monkeypatch.setenv("SCRIPT_TURN", str(tmp_path / "turn"))
    cases = [("scripted", i) for i in range(len(SCRIPT))]
    tally = fuzz("cloaks", cases, time_limit=0.5, memory=1.0, child=scripted)["scripted"]
    assert list(tally.counts.values()) == [10, 2, 2, 2, 1, 1, 1, 1]
    failed = [line.split(": ")[:2] for line in tally.failures]
    outcomes = ("crashes", "hangs", "hangs", "memory", "memory", "crashes", "wrong")
    assert failed == [[outcome, f"scripted {i}"] for outcome, i in zip(outcomes, (1, 3, 4, 5, 6, 7, 8), strict=True)]
    assert tally.slowest >= 0.5


@pytest.mark.parametrize("part", READERS)
def test_a_damaged_file_can_be_made_again_and_is_damaged(part, tmp_path):
    reader = READERS[part](tmp_path)
    whole = set(getattr(reader, "raws", None) or reader.files.values())
    altered = 0
    for case in cases_of(part, 2 * len(reader.kinds)):
        if case[0] != "bomb":
            first, again, other = (reader.make(case[0], case_random(seed, case))[:2] for seed in (3, 3, 4))
            assert first == again
            altered += first != other and first[1] not in whole
    assert altered >= 8, altered


def test_a_wrong_mask_would_be_seen(tmp_path):
    reader, path = CloakReader(tmp_path), tmp_path / "case.safetensors"
    path.write_bytes(reader.raws[0])
    whole = [damage.Allowed.of(one.delta, one.eps, one.info) for one in reader.originals]
    assert reader.read(path, whole) == "exact_loads"
    with pytest.raises(WrongResult):
        reader.read(path, whole[1:])
    minus, plus = torch.full((3, 112, 112), -0.0), torch.zeros(3, 112, 112)
    assert not damage.Allowed.of(plus, 0.0, {}).equals(Cloak(minus, 0.0, {}))


def test_forged_cloaks_pass_the_hash_so_that_the_bounds_are_what_refuses_them(tmp_path):
    for number in range(12):
        rng = case_random(0, ("forged mask", number))
        raw, allowed = damage.cloak_case("forged mask", [bytes(8), bytes(8)], damage.cloaks(), rng)
        (tmp_path / "forged.safetensors").write_bytes(raw)
        if allowed:
            assert allowed[0].equals(load(tmp_path / "forged.safetensors"))
        else:
            with pytest.raises(CloakFileError, match="at most eps|holds no mask of"):
                load(tmp_path / "forged.safetensors")


def test_photo_files_hold_the_picture_and_are_their_parts(tmp_path):
    files = damage.photo_files(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    assert {name.rsplit(".", 1)[1] for name in files} == {"jpg", "png", "webp", "tif", "bmp", "pgm", "heic"}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        with Image.open(tmp_path / name) as image:
            assert sorted(image.size) == [30, 40]  # some carry an orientation
        suffix = "." + name.rsplit(".", 1)[1]
        png = suffix == ".png"
        assert raw == (damage.png(damage.png_chunks(raw)) if png else b"".join(damage.segments(raw, suffix)))


def test_rows_of_other_parts_stay(tmp_path):
    path = tmp_path / "rows.csv"
    reliability.write_part(path, "a", [{"kind": "x", "runs": 1, "seconds": 0.123456}])
    reliability.write_part(path, "b", [{"kind": "y", "runs": 2, "ranks": [1, 2]}])
    reliability.write_part(path, "a", [{"kind": "z", "runs": 3, "seconds": 1.0}])
    rows = read(path)
    assert [(row["part"], row["kind"], row["runs"]) for row in rows] == [("b", "y", "2"), ("a", "z", "3")]
    assert all(row["torch"] and row["commit"] for row in rows)
