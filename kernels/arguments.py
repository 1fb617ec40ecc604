"""What the launchers ask of tensors: shape, dtype, device and memory format."""

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def is_channels_last(name: str, tensor: torch.Tensor) -> bool:
    """Whether a dense [.., 3, H, W] tensor lies pixel by pixel; False where both formats are the same.

    Raises:
        ValueError: it is in neither format.
    """
    if tensor.is_contiguous():
        return False
    if tensor.movedim(-3, -1).is_contiguous():
        return True
    raise ValueError(
        f"{name} must be contiguous or channels_last, got strides {tensor.stride()} for shape {tuple(tensor.shape)}; "
        "make it .contiguous() where it is allocated"
    )


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """An input unchanged where a kernel can read it, otherwise a contiguous copy."""
    return tensor if tensor.movedim(-3, -1).is_contiguous() else tensor.contiguous()


def check(
    name: str, tensor: torch.Tensor, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raises ValueError if `tensor` is not of this shape, where a letter stands for any size, dtype and device."""
    fits = tensor.dim() == len(shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes or tensor.device != device:
        sizes = ", ".join(str(size) for size in shape)
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"{name} must be [{sizes}] {names} on {device}, got {list(tensor.shape)} {tensor.dtype} on "
            f"{tensor.device}; convert it, or use backend 'reference'"
        )
