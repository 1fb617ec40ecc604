"""`fastcloak doctor`: what would run on this machine, what would not, and why."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from fastcloak import __version__
from fastcloak.cli.output import OK, print_result
from fastcloak.system import packages
from fastcloak.system.errors import AlteredFileError, MissingExtraError


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        subject: what.
        answer: what would run, or "yes" or "no".
        why: the reason, or what to do; may be empty.
    """

    subject: str
    answer: str
    why: str = ""


def add_arguments(doctor: argparse.ArgumentParser) -> None:
    """Every command has this function; doctor has no arguments of its own."""


def run(arguments: argparse.Namespace) -> int:
    findings = diagnose()
    width = max(len(found.subject) for found in findings)
    lines = [f"{found.subject:{width}}  {found.answer}{': ' if found.why else ''}{found.why}" for found in findings]
    print_result(arguments.json, {found.subject: asdict(found) for found in findings}, *lines)
    return OK


def diagnose() -> list[Finding]:
    """Looks at devices, backends, engines and optional packages, by trying them."""
    # Late, so that the command line answers at once.
    import torch

    from fastcloak.ops.backend import BACKENDS, resolve_backend
    from fastcloak.ops.engine import ENGINES, resolve_engine
    from fastcloak.system.device import resolve_device

    device = resolve_device("auto")
    if device.type == "cuda":
        why = torch.cuda.get_device_name(device)
    else:
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
    findings = [
        Finding(
            "versions",
            f"fastcloak {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
            platform.platform(),
        ),
        Finding("device", str(device), why),
        Finding("threads", str(torch.get_num_threads()), f"{os.cpu_count()} cores; set OMP_NUM_THREADS to change"),
    ]
    findings += _choices("backend", BACKENDS, lambda name: resolve_backend(name, device)[0])
    findings += _choices("engine", ENGINES, lambda name: resolve_engine(name, device))
    for subject, look in (
        ("sface", packages.sface_file),
        ("dlib", packages.dlib_file),
        ("face detector", packages.yunet_file),
        ("ORL faces", packages.orl_folder),
    ):
        try:
            findings.append(Finding(subject, "yes", str(look())))
        except (AlteredFileError, MissingExtraError) as error:
            findings.append(Finding(subject, "no", str(error)))
    for module, extra in (("cv2", "faces"), ("onnx", "faces"), ("matplotlib", "demo")):
        found = importlib.util.find_spec(module) is not None
        findings.append(Finding(module, "yes" if found else "no", "" if found else f"pip install 'fastcloak[{extra}]'"))
    return findings


def _choices(subject: str, names: Sequence[str], resolve: Callable[[str], str]) -> list[Finding]:
    findings = [Finding(subject, resolve("auto"), "chosen by auto")]
    for name in names:
        if name == "auto":
            continue
        try:
            resolve(name)
            findings.append(Finding(f"{subject} {name}", "yes"))
        except ValueError as error:
            findings.append(Finding(f"{subject} {name}", "no", str(error)))
    return findings
