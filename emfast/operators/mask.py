"""Inpainting: A keeps the pixels where the mask is 1."""

import os
from typing import Any, overload

import torch
from torch import Tensor

from emfast import random
from emfast._check import check, check_numbers, check_seed
from emfast.data.arrays import read_array
from emfast.data.rows import Rows, mapped, pieces
from emfast.operators.base import GivenParameters, Operator, Parameters, rows_of
from emfast.ops import mask_misfit


class Mask(Operator):
    r"""A mask, 1 where a pixel is observed and 0 where it is missing, shared by the channels.

    .. math:: A x = m \odot x

    Give one of `missing`, `box` or `mask`; or none, where a file of observations brings the masks along.

    Arguments:
        missing: The probability in [0, 1) that a pixel is missing, drawn for each pixel and observation.
        box: The side in pixels of a missing square, smaller than the image, placed at random in each observation.
        mask: A given mask with values 0 and 1: (H, W) or (1, H, W) for all observations, or (N, 1, H, W) with row id
            for observation id. A tensor, which may be the first argument, or the path of a .npy, .npz, .safetensors or
            .h5 file (`file.npz:key`).
        seed: The key of the random masks: observation id always has the mask of (seed, id).
    """

    closed_form = True
    observes_images = True
    checks_rows = True
    reads = ("mask",)

    @overload
    def __init__(self, missing: Tensor, *, seed: int = 0) -> None: ...

    @overload
    def __init__(
        self, missing: float | None = None, box: int | None = None, mask: str | Tensor | None = None, seed: int = 0
    ) -> None: ...

    def __init__(  # type: ignore[misc]  # the command line offers what is annotated here
        self, missing: float | None = None, box: int | None = None, mask: str | Tensor | None = None, seed: int = 0
    ) -> None:
        first: Any = missing
        if getattr(first, "ndim", 0) > 0 and mask is None:  # Mask(mask)
            missing, mask = None, first
        given = [name for name, value in (("missing", missing), ("box", box), ("mask", mask)) if value is not None]
        check(len(given) <= 1, "Mask", "one of missing, box and mask", "to be given", " and ".join(given))
        check_numbers("Mask", missing=missing, box=box)
        if missing is not None:
            check(0 <= missing < 1, "Mask", "missing", "to be a probability in [0, 1)", missing)
        if box is not None:
            check(box > 0 and box == int(box), "Mask", "box", "to be a whole number > 0 of pixels", box)
        self.missing, self.box, self.seed = missing, box, check_seed(seed, "Mask")
        self.mask = None if mask is None else _one_or_rows(mask)

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns {"mask": (B, 1, H, W) float32}."""
        _, height, width = shape
        if self.mask is not None:
            return {"mask": _rows(self.mask, ids, height, width)}
        key = random.derive(self.seed, "mask")
        if self.missing is not None:
            keep = random.uniform((1, height, width), ids=ids, seed=key) >= self.missing
            return {"mask": keep.to(torch.float32)}
        if self.box is None:
            return {}
        side = self.box
        check(side <= min(height, width), "Mask", "box", f"to be <= {min(height, width)}, the side of the images", side)
        check(side < max(height, width), "Mask", "box", f"to be < {side}: it hides whole images", side)
        u = random.uniform((2,), ids=ids, seed=key)
        top, left = (u * torch.tensor([height - side + 1, width - side + 1], device=ids.device)).long().unbind(1)
        rows = torch.arange(height, device=ids.device) - top[:, None]
        columns = torch.arange(width, device=ids.device) - left[:, None]
        inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        return {"mask": (~inside).to(torch.float32)[:, None]}

    def checked(self, given: GivenParameters) -> GivenParameters:
        """Returns the parameters with the masks as float32 (N, 1, H, W)."""
        if "mask" not in given:
            return given
        mask = given["mask"]
        check(mask.ndim > 2, "Mask", "mask", "to have shape (N, 1, H, W) or (N, H, W)", tuple(mask.shape))
        return {**given, "mask": given_mask(mask)}

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns m * x."""
        return _mask(parameters, x) * x

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns m * y: a mask is its own adjoint."""
        return _mask(parameters, y) * y

    def project(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns y where a pixel is observed and 0 elsewhere, even where y is NaN, which 0 * y would keep."""
        return torch.where(_mask(parameters, y) != 0, y, 0)

    def gain(self, parameters: Parameters) -> float:
        """Returns 1: an observed pixel is as it is."""
        return 1.0

    def misfit(self, x: Tensor, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Returns r = y - m * x, its squared norms and m * r, in one pass."""
        return mask_misfit(x, y, _mask(parameters, x))

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns m y / (m^2 + c)."""
        mask = _mask(parameters, y)
        return mask * y / (mask.square() + c)

    def noise(self, z: Tensor, parameters: Parameters) -> Tensor:
        """Returns m * z: a missing pixel stays zero."""
        return _mask(parameters, z) * z


def _mask(parameters: Parameters, x: Tensor) -> Tensor:
    """Returns the masks in the dtype of x, checked to fit it."""
    fix = "Give missing, box or mask, or observations that bring their masks along under the name mask"
    check("mask" in parameters, "Mask", "a mask", "to be given", ", ".join(parameters) or "none", fix)
    mask, fix = parameters["mask"], "Store single-channel images as (N, 1, H, W)"
    check(x.ndim == 4, "Mask", "images and observations", "to have shape (B, C, H, W)", tuple(x.shape), fix)
    _check_size(mask, *x.shape[-2:])
    # Anything else could be broadcast: the masks of three images to the three channels of each.
    good = mask.ndim == 4 and mask.shape[1] == 1 and len(mask) in (1, len(x))
    check(good, "Mask", "mask", f"to have shape ({len(x)} or 1, 1, {x.shape[2]}, {x.shape[3]})", tuple(mask.shape))
    return mask.to(x.dtype)


def _check_size(mask: Tensor, height: int, width: int) -> None:
    expected = f"to have the size of the images, {height} x {width}"
    check(mask.shape[-2:] == (height, width), "Mask", "mask", expected, f"{mask.shape[-2]} x {mask.shape[-1]}")


def _rows(mask: Tensor, ids: Tensor, height: int, width: int) -> Tensor:
    """Returns the rows of a given mask (N, 1, H, W) that belong to the ids; a single mask serves all."""
    _check_size(mask, height, width)
    if len(mask) == 1:
        return mask.to(ids.device).expand(len(ids), 1, height, width)
    last = int(ids.max()) if len(ids) else -1
    check(last < len(mask), "Mask", "mask", f"to have a row for every observation ({last + 1} or more)", len(mask))
    return rows_of(mask, ids)


def _one_or_rows(mask: str | Tensor) -> Tensor:
    """Returns the mask that `Mask` is given, (N, 1, H, W): (3, H, W) might be three masks, or one of three channels."""
    mask = read_array(mask, "mask") if isinstance(mask, str | os.PathLike) else torch.as_tensor(mask)
    good = mask.ndim != 3 or len(mask) == 1
    check(good, "Mask", "mask", "to have shape (H, W), (1, H, W) or (N, 1, H, W)", tuple(mask.shape))
    return given_mask(mask)[:]


def given_mask(mask: Tensor | Rows) -> Tensor | Rows:
    """Returns a given mask as float32 (N, 1, H, W).

    Arguments:
        mask: A mask as `Mask` takes it, or (N, H, W).
    Raises:
        ValueError: If it has another shape or values other than 0 and 1, or shows nothing at all.
    """
    check(2 <= mask.ndim <= 4, "Mask", "mask", "to have shape (H, W), (1, H, W) or (N, 1, H, W)", tuple(mask.shape))
    check(not mask.dtype.is_complex, "Mask", "mask", "to be real", mask.dtype)
    shows = False
    for _, part in pieces(mask):
        bad = part[~((part == 0) | (part == 1))]
        check(len(bad) == 0, "Mask", "mask", "to be made of 0 and 1", bad[0].item() if len(bad) else "")
        shows = shows or bool(part.any())
    check(shows, "Mask", "mask", "to be 1 somewhere", "0 everywhere: nothing is observed")
    mask = mapped(mask, _with_channel)
    check(mask.shape[1] == 1, "Mask", "mask", "to be shared by the channels, (N, 1, H, W)", tuple(mask.shape))
    return mask


def _with_channel(mask: Tensor) -> Tensor:
    mask = mask.to(torch.float32)
    return mask if mask.ndim == 4 else mask.reshape(-1, 1, *mask.shape[-2:])
