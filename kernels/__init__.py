"""Triton twins of the hot operations in `fastcloak.ops.reference`, under the same names and signatures.

They run on CUDA tensors, and on CPU tensors when TRITON_INTERPRET=1 is set before this package is imported.
"""

# mypy: disable-error-code="import-not-found"

from fastcloak.kernels.accumulate_step import accumulate_step_
from fastcloak.kernels.apart import apart_center
from fastcloak.kernels.cloak_batch import cloak_batch_
from fastcloak.kernels.hull import hull_loss
from fastcloak.kernels.jpeg import jpeg_batch_, jpeg_gradient_
from fastcloak.kernels.outer_step import outer_step_
from fastcloak.kernels.photo import photo_batch_, photo_gradient_
from fastcloak.kernels.prelu import frozen_prelu
from fastcloak.kernels.views import view_batch_, view_gradient_, view_step_

__all__ = [
    "accumulate_step_",
    "apart_center",
    "cloak_batch_",
    "frozen_prelu",
    "hull_loss",
    "jpeg_batch_",
    "jpeg_gradient_",
    "outer_step_",
    "photo_batch_",
    "photo_gradient_",
    "view_batch_",
    "view_gradient_",
    "view_step_",
]
