"""Class-universal privacy cloaks: one small additive mask per person that face recognition does not see past."""

__version__ = "0.1.0"

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
