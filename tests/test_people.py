"""The people of a folder or manifest, and the names of their cloak files."""

import json
import os
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcloak.scale.people import read_people
from fastcloak.system.files import cloak_file


def manifest(path, *people):
    path.write_text("".join(json.dumps({"person": name, "photos": photos}) + "\n" for name, photos in people))
    return path


def test_a_folder_gives_its_visible_subfolders_in_order_of_names(tmp_path):
    for name in ("bob", "anna", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").write_text("no person")
    assert list(read_people(tmp_path)) == [(name, [str(tmp_path / name)]) for name in ("anna", "bob")]


def test_paths_of_a_manifest_count_from_its_folder(tmp_path, monkeypatch):
    path = manifest(tmp_path / "people.jsonl", ("bob", ["b/1.jpg", "/abs/2.jpg"]), ("anna", ["a"]))
    path.write_text(path.read_text() + "\n")  # an empty line is no person
    expected = [("bob", [str(tmp_path / "b/1.jpg"), "/abs/2.jpg"]), ("anna", [str(tmp_path / "a")])]
    assert list(read_people(path)) == expected
    monkeypatch.chdir(tmp_path)
    assert list(read_people("people.jsonl")) == expected


def test_a_parquet_manifest_is_read_like_json_lines(tmp_path):
    table, parquet = import_module("pyarrow").Table, import_module("pyarrow.parquet")
    rows = [{"person": f"p{i}", "photos": [f"{i}/1.jpg", f"{i}/2.jpg"], "more": i} for i in range(1500)]
    parquet.write_table(table.from_pylist(rows), tmp_path / "people.parquet")
    lines = manifest(tmp_path / "people.jsonl", *((row["person"], row["photos"]) for row in rows))
    assert list(read_people(tmp_path / "people.parquet")) == list(read_people(lines))
    parquet.write_table(table.from_pylist([{"person": "p"}]), tmp_path / "half.parquet")
    with pytest.raises(ValueError, match="columns person and photos"):
        list(read_people(tmp_path / "half.parquet"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 must be a line such as"),
        ("[1]", "line 2 must be a line such as"),
        ('{"person": "x"}', "line 2 must be a line such as"),
        ('{"person": "x", "photos": []}', "one or more paths"),
        ('{"person": "x", "photos": "x.jpg"}', "one or more paths"),
        ('{"person": "x", "photos": [1]}', "one or more paths"),
        ('{"person": "", "photos": ["x.jpg"]}', "name must be text"),
        ('{"person": 7, "photos": ["x.jpg"]}', "name must be text"),
        ('{"person": "\\ud800", "photos": ["x.jpg"]}', "UTF-8"),
        ('{"person": "anna", "photos": ["x.jpg"]}', "names of their own, got 'anna' after .*line 1"),
        ('{"person": "Anna", "photos": ["x.jpg"]}', "names of their own"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = manifest(tmp_path / "people.jsonl", ("anna", ["a"]))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        list(read_people(path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "no such path"),
        (".", ValueError, "at least one person"),
        ("people.csv", ValueError, "folder of people or a manifest"),
        ("people.parquet", ValueError, "must be a Parquet file"),
    ],
)
def test_a_source_without_people_is_refused(tmp_path, name, error, message):
    if "people" in name:
        (tmp_path / name).write_text("anna")
    with pytest.raises(error, match=message):
        list(read_people(tmp_path / name))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300), unique=True, max_size=8))
def test_cloak_files_stay_in_their_folder_and_are_never_shared(names):
    files = [cloak_file(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert os.path.basename(file) == file
        assert not file.startswith(".")
        assert "\0" not in file
        assert len(file.encode()) <= 255


@pytest.mark.parametrize(
    ("name", "stem"),
    [("Anna_Lindh-2", "Anna_Lindh-2"), ("José María", "José María"), ("../x", "%2e.%2fx"), ("50%", "50%25")],
)
def test_ordinary_names_are_kept(name, stem):
    assert cloak_file(name) == f"{stem}.safetensors"
