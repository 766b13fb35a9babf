"""Deblurring: A convolves with a separable Gaussian kernel."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from emfast._check import check
from emfast.operators.base import Operator, Parameters


class GaussianBlur(Operator):
    r"""A Gaussian blur, the same for every observation and channel.

    The kernel is separable, so A is one small matrix for the rows and one for the columns, with the padding inside:
    the adjoint is the transpose, exact for any padding.

    .. math:: A x = K_H x K_W^\top, \quad A^\top y = K_H^\top y K_W

    Arguments:
        size: The width of the kernel in pixels, odd.
        std: The standard deviation of the Gaussian in pixels, > 0; the kernel is cut at `size` and sums to one.
        padding: "reflect" (the edge pixel is not repeated, as in the DPS code) or "circular".

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022), arXiv 2209.14687
    """

    def __init__(self, size: int = 9, std: float = 2.0, padding: Literal["reflect", "circular"] = "reflect") -> None:
        check(size > 0 and size % 2 == 1, "GaussianBlur", "size", "to be odd and positive", size)
        check(std > 0, "GaussianBlur", "std", "to be > 0 pixels", std)
        check(padding in ("reflect", "circular"), "GaussianBlur", "padding", "to be reflect or circular", padding)
        self.size, self.std, self.padding = size, std, padding

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns the blur of each axis as a matrix, {"rows": (1, 1, H, H), "columns": (1, 1, W, W)}, float64.

        And their singular value decompositions, `rows_u`, `rows_s` (1, 1, H), `rows_v` and the same of the columns.
        """
        found: dict[str, Tensor] = {}
        for name, length in (("rows", shape[-2]), ("columns", shape[-1])):
            half, limit = self.size // 2, f"to be < {2 * length}, twice the side of the images"
            check(half < length, "GaussianBlur", "size", limit, self.size)
            for part, tensor in zip(("", "_u", "_s", "_v"), _factors(self, length), strict=True):
                found[name + part] = tensor.to(ids.device)[None, None]
        return found

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns the blurred images."""
        return parameters["rows"].to(x.dtype) @ x @ parameters["columns"].to(x.dtype).mT

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns the transposed blur of y."""
        return parameters["rows"].to(y.dtype).mT @ y @ parameters["columns"].to(y.dtype)

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns the minimiser, exact in the basis of the singular vectors."""
        own = {name: value.to(y.dtype) for name, value in parameters.items()}
        s = own["rows_s"][..., :, None] * own["columns_s"][..., None, :]
        y = own["rows_u"].mT @ y @ own["columns_u"]
        return own["rows_v"] @ (s / (s.square() + c) * y) @ own["columns_v"].mT


@lru_cache(maxsize=16)
def _factors(blur: GaussianBlur, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the blur of an axis of that length as a matrix K, and U, s, V with K = U diag(s) V^T."""
    offset = torch.arange(-(blur.size // 2), blur.size // 2 + 1)
    weight = torch.exp(-0.5 * (offset.to(torch.float64) / blur.std) ** 2)
    weight = weight / weight.sum()
    source = torch.arange(length)[:, None] + offset  # (L, K), the pixel that each tap reads
    reflected = (length - 1) - ((length - 1) - source.abs()).abs()
    source = source % length if blur.padding == "circular" else reflected
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, source, weight.expand(length, -1).contiguous())
    u, s, vt = torch.linalg.svd(matrix)
    return matrix, u, s, vt.mT.contiguous()
