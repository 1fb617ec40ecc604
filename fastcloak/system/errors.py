"""Every exception of fastcloak's own. Bad arguments raise Python's ValueError and TypeError, disks OSError.

FastcloakError              every one below but FitInterrupted
├── PhotoError              ValueError: a photo cannot be read or written
├── FaceNotFoundError       ValueError: no face in a photo
│   └── PersonNotFoundError     none of its faces is the enrolled person's
├── AlreadyProtectedError   ValueError: a photo carries the cloak already
├── CloakFileError          ValueError: not a whole, unaltered cloak file
├── FitManyError            ValueError: some of many people could not be fitted; holds the cloaks of the others
├── EngineError             ValueError: an engine cannot launch a network
├── CheckpointError         OSError: a checkpoint cannot be written or is in use; holds the cloaks so far
├── MissingExtraError       ImportError: an optional package is not installed
└── AlteredFileError        RuntimeError: an installed data file is not the tested one
FitInterrupted              KeyboardInterrupt: Ctrl-C during a fit; holds the cloaks so far
"""

from __future__ import annotations

from itertools import islice
from typing import Any


class FastcloakError(Exception):
    """Base of fastcloak's exceptions; each is also the Python exception of its kind."""


class PhotoError(FastcloakError, ValueError):
    """A photo cannot be read, or not written in the wanted format; the message says which one, why and a hint."""


class FaceNotFoundError(FastcloakError, ValueError):
    """No face was found in a photo; the message names the photo."""


class PersonNotFoundError(FaceNotFoundError):
    """No face of a photo is the enrolled person's; the message says how near the nearest came."""


class AlreadyProtectedError(FastcloakError, ValueError):
    """A photo carries this cloak already; the message names the photo. A second mask would be twice as visible."""


class CloakFileError(FastcloakError, ValueError):
    """A file that is not a whole, unaltered cloak of a known schema."""


class EngineError(FastcloakError, ValueError):
    """The engine cannot launch this network."""


class MissingExtraError(FastcloakError, ImportError):
    """An optional package is not installed; the message holds the pip command that installs it."""


class AlteredFileError(FastcloakError, RuntimeError):
    """A data file is not the one this project was tested with."""


class FitManyError(FastcloakError, ValueError):
    """Some people could not be fitted; the others are not lost.

    Attributes:
        cloaks: the cloaks of everyone who could be fitted, by name.
        errors: what went wrong with each of the others, by name.
    """

    def __init__(self, cloaks: dict[str, Any], errors: dict[str, Exception]) -> None:
        self.cloaks, self.errors = cloaks, errors
        listed = "; ".join(f"{name}: {error}" for name, error in islice(errors.items(), 5))
        super().__init__(
            f"{len(errors)} of {len(errors) + len(cloaks)} people could not be fitted (the others are in .cloaks): "
            f"{listed}{' ...' if len(errors) > 5 else ''}"
        )


class CheckpointError(FastcloakError, OSError):
    """A checkpoint cannot be written, or is in use.

    Attributes:
        cloaks: the cloaks of the people already done, by name.
        partial: what had been learnt for those under way, by name: see `fastcloak.FitInterrupted`.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cloaks: dict[str, Any] = {}
        self.partial: dict[str, Any] = {}


class FitInterrupted(KeyboardInterrupt):
    """A fit was interrupted, by Ctrl-C; what was learnt until then is not lost.

    Attributes:
        cloaks: the cloaks of the people already done, by name.
        partial: the cloaks of those under way after their last whole step, by name ("" in `fit`); none before the first
            step. Their info has `partial`, True, and `steps_done`, of which its losses and image_gradients are.
    """

    def __init__(self, cloaks: dict[str, Any], partial: dict[str, Any], message: str) -> None:
        self.cloaks, self.partial = cloaks, partial
        super().__init__(message)
