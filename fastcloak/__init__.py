"""Class-universal privacy cloaks: one small additive mask per person that face recognition does not see past."""

__version__ = "0.1.0"

from fastcloak.assets import MissingExtraError
from fastcloak.check import Check, check_photos
from fastcloak.cloak import Cloak, CloakFileError, load
from fastcloak.evaluation import Evaluation, evaluate
from fastcloak.faces import FaceNotFoundError
from fastcloak.fitting import FitManyError, fit, fit_many
from fastcloak.models import Surrogate, load_model
from fastcloak.page import write_page
from fastcloak.photos import PhotoError
from fastcloak.protect import protect, protect_photo

__all__ = [
    "Check",
    "Cloak",
    "CloakFileError",
    "Evaluation",
    "FaceNotFoundError",
    "FitManyError",
    "MissingExtraError",
    "PhotoError",
    "Surrogate",
    "check_photos",
    "evaluate",
    "fit",
    "fit_many",
    "load",
    "load_model",
    "protect",
    "protect_photo",
    "write_page",
]
