"""Files are written whole or not at all, under names that are safe."""

import errno
import os
import resource

import pytest

from fastcloak.photos.files import Photo, write_photo
from fastcloak.system.files import atomic_write, cloak_file, safe_name
from tests.pictures import aligned


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.promise("P10")
@pytest.mark.promise("P11")
@pytest.mark.parametrize("step", ["fsync", "replace", "open", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step, error):
    path = tmp_path / "photo.bin"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)) as caught:
        atomic_write(path, b"new")
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["photo.bin"]


@pytest.mark.promise("P11")
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write the file: File too large"):
            write_photo(Photo(aligned(1)[0]), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["photo.png"]
    with pytest.raises(FileNotFoundError, match=r"absent/photo\.png"):
        write_photo(Photo(aligned(1)[0]), tmp_path / "absent" / "photo.png")


def test_a_written_file_has_ordinary_permissions_and_keeps_those_it_had(tmp_path):
    (tmp_path / "ordinary").touch()
    atomic_write(tmp_path / "new", b"1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    atomic_write(tmp_path / "new", b"2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new").read_bytes() == b"2"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


NAMES = ["anna", "Anna", "Žofie Ödön", ".hidden", " blank", "a/b", "a%2fb", "..", "", "x" * 300, "X" * 300, "é" * 90]
NAMES += ["e\u0301", "é", "a=b", "nul\0", "ẞ", "\ud800", "a.b,c+d@e-f_g"]


@pytest.mark.parametrize("caseless", [False, True])
def test_every_name_has_a_safe_file_of_its_own(caseless, tmp_path):
    files = [safe_name(name, caseless=caseless) for name in NAMES]
    assert len(set(files)) == len(NAMES)
    for file in filter(None, files):
        (tmp_path / file).touch()
        assert len(file.encode()) <= 200
        assert not file.startswith((".", " "))
        assert not caseless or (file.isascii() and file == file.lower())
    assert len(files_in(tmp_path)) == len(NAMES) - 1


def test_cloak_files_keep_the_names_of_earlier_versions():
    long = "x" * 160 + "=0d4e2ca9e9cbced7a7a5380eb29e1a37"
    known = {"anna": "anna", "Žofie Ödön": "Žofie Ödön", ".a/b": "%2ea%2fb", "a=b%": "a%3db%25", "x" * 300: long}
    assert {name: cloak_file(name) for name in known} == {name: f"{file}.safetensors" for name, file in known.items()}
