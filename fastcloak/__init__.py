"""Class-universal privacy cloaks: one small additive mask per person that face recognition does not see past."""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

TYPE_CHECKING = False  # what type checkers take for True; the module typing is slow to import
if TYPE_CHECKING:
    from fastcloak.assets import MissingExtraError
    from fastcloak.check import check_photos
    from fastcloak.check_results import Check
    from fastcloak.checkpoint import CheckpointError
    from fastcloak.cloak import Cloak, CloakFileError, load
    from fastcloak.enrolment import Enrolment, PersonNotFoundError, enrol
    from fastcloak.evaluation import Evaluation, evaluate
    from fastcloak.faces import FaceNotFoundError
    from fastcloak.fitting import FitInterrupted, FitManyError, fit, fit_many
    from fastcloak.folder import plan_photos, protect_photos
    from fastcloak.models import Surrogate, load_model
    from fastcloak.page import write_page
    from fastcloak.photos import PhotoError
    from fastcloak.protect import AlreadyProtectedError, protect, protect_photo

__all__ = [
    "AlreadyProtectedError",
    "Check",
    "CheckpointError",
    "Cloak",
    "CloakFileError",
    "Enrolment",
    "Evaluation",
    "FaceNotFoundError",
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
    "write_page",
]

_MODULES = {
    "assets": ["MissingExtraError"],
    "check": ["check_photos"],
    "check_results": ["Check"],
    "checkpoint": ["CheckpointError"],
    "cloak": ["Cloak", "CloakFileError", "load"],
    "enrolment": ["Enrolment", "PersonNotFoundError", "enrol"],
    "evaluation": ["Evaluation", "evaluate"],
    "faces": ["FaceNotFoundError"],
    "fitting": ["FitInterrupted", "FitManyError", "fit", "fit_many"],
    "folder": ["plan_photos", "protect_photos"],
    "models": ["Surrogate", "load_model"],
    "page": ["write_page"],
    "photos": ["PhotoError"],
    "protect": ["AlreadyProtectedError", "protect", "protect_photo"],
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


class _Package(ModuleType):
    """The package; a submodule does not take the place of a public function of its name, such as `protect`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
