"""Class-universal privacy cloaks: one small additive mask per person that face recognition does not see past."""

from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False  # what type checkers take for True; the module typing is slow to import
if TYPE_CHECKING:
    from fastcloak.cloak import Cloak, load
    from fastcloak.evaluation.check import check_photos
    from fastcloak.evaluation.page import write_page
    from fastcloak.evaluation.protocol import evaluate
    from fastcloak.evaluation.results import Evaluation
    from fastcloak.evaluation.verdict import Check
    from fastcloak.fitting.fitter import fit, fit_many
    from fastcloak.models import Surrogate, load_model
    from fastcloak.protection.album import plan_photos, protect_photos
    from fastcloak.protection.enrolment import Enrolment, enrol
    from fastcloak.protection.photo import protect, protect_photo
    from fastcloak.system.errors import (
        AlreadyProtectedError,
        CheckpointError,
        CloakFileError,
        FaceNotFoundError,
        FastcloakError,
        FitInterrupted,
        FitManyError,
        MissingExtraError,
        PersonNotFoundError,
        PhotoError,
    )
    from fastcloak.tailoring.album import tailor_photos
    from fastcloak.tailoring.tailor import tailor

__all__ = [
    "AlreadyProtectedError",
    "Check",
    "CheckpointError",
    "Cloak",
    "CloakFileError",
    "Enrolment",
    "Evaluation",
    "FaceNotFoundError",
    "FastcloakError",
    "FitInterrupted",
    "FitManyError",
    "MissingExtraError",
    "PersonNotFoundError",
    "PhotoError",
    "Surrogate",
    "check_photos",
    "enrol",
    "evaluate",
    "fit",
    "fit_many",
    "load",
    "load_model",
    "plan_photos",
    "protect",
    "protect_photo",
    "protect_photos",
    "tailor",
    "tailor_photos",
    "write_page",
]

_MODULES = {
    "cloak": ["Cloak", "load"],
    "evaluation.check": ["check_photos"],
    "evaluation.page": ["write_page"],
    "evaluation.protocol": ["evaluate"],
    "evaluation.results": ["Evaluation"],
    "evaluation.verdict": ["Check"],
    "fitting.fitter": ["fit", "fit_many"],
    "models": ["Surrogate", "load_model"],
    "protection.album": ["plan_photos", "protect_photos"],
    "protection.enrolment": ["Enrolment", "enrol"],
    "protection.photo": ["protect", "protect_photo"],
    "system.errors": [
        "AlreadyProtectedError",
        "CheckpointError",
        "CloakFileError",
        "FaceNotFoundError",
        "FastcloakError",
        "FitInterrupted",
        "FitManyError",
        "MissingExtraError",
        "PersonNotFoundError",
        "PhotoError",
    ],
    "tailoring.album": ["tailor_photos"],
    "tailoring.tailor": ["tailor"],
}
"""Where each public name is, so that it is imported at its first use: PyTorch takes a second."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        globals()[name] = getattr(import_module(f"fastcloak.{_MODULE_OF[name]}"), name)
        return globals()[name]
    try:
        return import_module(f"fastcloak.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fastcloak.{name}":
            raise
        raise AttributeError(f"module 'fastcloak' has no attribute {name!r}", name=name) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
