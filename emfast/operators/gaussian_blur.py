"""Deblurring: A convolves with a separable Gaussian kernel."""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from emfast._check import check, check_numbers, check_whole
from emfast.operators.base import Operator, Parameters
from emfast.ops import separable_blur, separable_blur_misfit


class GaussianBlur(Operator):
    r"""A Gaussian blur, the same for every observation and channel.

    The kernel is separable, so A is one small matrix for the rows and one for the columns, with the padding inside.
    The images are blurred along one axis and then the other; the adjoint is exact for any padding.

    .. math:: A x = K_H x K_W^\top, \quad A^\top y = K_H^\top y K_W

    Arguments:
        size: The width of the kernel in pixels, odd.
        std: The standard deviation of the Gaussian in pixels, > 0; the kernel is cut at `size` and sums to one.
        padding: "reflect" (the edge pixel is not repeated, as in the DPS code) or "circular".

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022), arXiv 2209.14687
    """

    closed_form = True
    observes_images = True

    def __init__(self, size: int = 9, std: float = 2.0, padding: Literal["reflect", "circular"] = "reflect") -> None:
        check_whole("GaussianBlur", size=size)
        check_numbers("GaussianBlur", std=std)
        check(size > 0 and size % 2 == 1, "GaussianBlur", "size", "to be odd and positive", size)
        check(0 < std < math.inf, "GaussianBlur", "std", "to be > 0 pixels and finite", std)
        check(padding in ("reflect", "circular"), "GaussianBlur", "padding", "to be reflect or circular", padding)
        self.size, self.std, self.padding = size, std, padding

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns the weights of the kernel along an axis, {"taps": (1, K)}, float64.

        And the singular value decomposition of the blur of each axis as a matrix, `rows_u` (1, 1, H, H), `rows_s`
        (1, 1, H), `rows_v` and the same of the columns.
        """
        found = {"taps": _taps(self.size, self.std).to(ids.device)[None]}
        for name, length in (("rows", shape[-2]), ("columns", shape[-1])):
            half, limit = self.size // 2, f"to be < {2 * length}, twice the side of the images"
            check(half < length, "GaussianBlur", "size", limit, self.size)
            factors = _factors(self.size, self.std, self.padding, length)
            for part, tensor in zip(("_u", "_s", "_v"), factors, strict=True):
                found[name + part] = tensor.to(ids.device)[None, None]
        return found

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns the blurred images."""
        return separable_blur(x, parameters["taps"][0], parameters["taps"][0], padding=self.padding)

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns the transposed blur of y."""
        return separable_blur(y, parameters["taps"][0], parameters["taps"][0], padding=self.padding, adjoint=True)

    def gain(self, parameters: Parameters) -> float:
        """Returns 1: the kernel is positive and sums to one."""
        return 1.0

    def misfit(self, x: Tensor, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Returns r = y - A x, its squared norms and A^T r."""
        return separable_blur_misfit(x, y, parameters["taps"][0], parameters["taps"][0], padding=self.padding)

    def condition(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y and ones: the matrices of the blur are the same for all observations."""
        image = self.adjoint(y, parameters)
        return torch.cat((image, torch.ones_like(image[:, :1])), 1)

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns the minimiser, exact in the basis of the singular vectors."""
        own = {name: value.to(y.dtype) for name, value in parameters.items()}
        s = own["rows_s"][..., :, None] * own["columns_s"][..., None, :]
        y = own["rows_u"].mT @ y @ own["columns_u"]
        return own["rows_v"] @ (s / (s.square() + c) * y) @ own["columns_v"].mT


def _taps(size: int, std: float) -> Tensor:
    """Returns the weights of the kernel, (K,)."""
    offset = torch.arange(-(size // 2), size // 2 + 1)
    weight = torch.exp(-0.5 * (offset.to(torch.float64) / std) ** 2)
    return weight / weight.sum()


@lru_cache(maxsize=16)
def _factors(size: int, std: float, padding: str, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U, s, V, the singular value decomposition of the blur of an axis of that length as a matrix."""
    offset = torch.arange(-(size // 2), size // 2 + 1)
    source = torch.arange(length)[:, None] + offset  # (L, K), the pixel that each tap reads
    reflected = (length - 1) - ((length - 1) - source.abs()).abs()
    source = source % length if padding == "circular" else reflected
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, source, _taps(size, std).expand(length, -1).contiguous())
    u, s, vt = torch.linalg.svd(matrix)
    return u, s, vt.mT.contiguous()
