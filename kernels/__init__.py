"""Triton twins of the hot operations in `fastcloak.ops.reference`, under the same names and signatures.

They run on CUDA tensors, and on CPU tensors when TRITON_INTERPRET=1 is set before this package is imported.
"""

# mypy: disable-error-code="import-not-found"

from fastcloak.kernels.accumulate_step import accumulate_step_
from fastcloak.kernels.cloak_batch import cloak_batch_
from fastcloak.kernels.hull import hull_loss
from fastcloak.kernels.outer_step import outer_step_
from fastcloak.kernels.prelu import frozen_prelu

__all__ = ["accumulate_step_", "cloak_batch_", "frozen_prelu", "hull_loss", "outer_step_"]
