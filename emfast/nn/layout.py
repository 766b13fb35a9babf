"""How images, weights and their rows lie in memory: the forms that layers on channels_last images pass around."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS_LAST = torch.channels_last


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x in a dtype and channels_last.

    Arguments:
        x: (B, C, H, W) images.
        dtype: The dtype.
    """
    return x.to(dtype=dtype, memory_format=CHANNELS_LAST)


def is_real(*tensors: Tensor) -> bool:
    """Returns whether tensors have values, on one device: they are no fake ones, on meta or of another class.

    To what computes with their addresses all else is no memory to read; torch has an error of its own for it.
    """
    device = tensors[0].device
    plain = all(type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device == device for tensor in tensors)
    return plain and device.type != "meta"


def joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Returns the concatenation of tensors, or the tensor itself if there is one.

    Arguments:
        parts: The tensors.
        axis: Along which they are joined.
    """
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), axis)


def as_kernel(weight: Tensor) -> Tensor:
    """Returns the weight of a linear layer, or of Conv1d, as that of a 1 x 1 convolution, and any other as it is."""
    return weight if weight.dim() == 4 else weight.reshape(*weight.shape[:2], 1, 1)


def as_rows(x: Tensor) -> Tensor:
    """Returns the pixels of a channels_last tensor as the rows of a matrix."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_image(rows: Tensor, like: Tensor) -> Tensor:
    """Undoes `as_rows`, for an image of the height and width of another.

    Arguments:
        rows: (B H W, C), as `as_rows` makes them.
        like: (B, ..., H, W) an image of the height and width.
    """
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def sorted_rows(x: Tensor, groups: int) -> Tensor:
    """Returns rows that belong to some groups in turn, the first group's first.

    Arguments:
        x: (C, ...) rows.
        groups: How many groups.
    """
    return x if groups == 1 else x.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)


def interleaved_rows(x: Tensor, groups: int) -> Tensor:
    """Undoes `sorted_rows`.

    Arguments:
        x: (C, ...) rows, as `sorted_rows` returns them.
        groups: How many groups.
    """
    return x if groups == 1 else x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Returns the kernel, (C, D, 4, 4), of the transposed convolution that upsampling and a convolution are together.

    Arguments:
        weight: The (D, C, 3, 3) kernel of the convolution, with padding 1, behind upsampling by two.
    """
    return _box(F.pad(weight.flip(2, 3), (1, 1, 1, 1))).transpose(0, 1)


def upsampling_kernel_gradient(grad: Tensor) -> Tensor:
    """Returns the gradient to the weight from that to its `upsampling_kernel`."""
    return _box(grad.transpose(0, 1)).flip(2, 3)


def _box(x: Tensor) -> Tensor:
    rows = x[..., 1:, :] + x[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]
