"""What a CUDA graph cannot hold, found before a capture meets it.

A capture that fails at such an operation leaves the process unable to make another one in some versions of PyTorch
(2.11). PyTorch's own mode that finds them belongs to the whole process: other threads' `.item()` would raise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Of operations that give the host a value, or a tensor whose size is one."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation of this thread, or of its backward passes, that waits for the device.

    They are reads of a value or a size, copies between the host and a device, and LAPACK's. All operations do what they
    do without it.

    Attributes:
        found: its name, or "".
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.found and _waits(func, args, result):
            self.found = str(func)
        return result


def _waits(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    name = str(func)
    if name.startswith(("aten.linalg_", "aten._linalg_")):
        return not name.startswith(("aten.linalg_vector_norm.", "aten.linalg_cross."))
    if name.startswith(("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")):
        # Integers are read on the device; of a mask the host must count the ones.
        reads = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    else:
        reads = not READS.isdisjoint(getattr(func, "tags", ()))
    copies = name.startswith(("aten._to_copy.", "aten.copy_."))
    tensors = [one for one in tree_leaves((args, result)) if isinstance(one, Tensor)]
    # But for copies, a single number of the host may be an operand on the device.
    return reads or len({one.device.type for one in tensors if copies or one.dim()}) > 1
