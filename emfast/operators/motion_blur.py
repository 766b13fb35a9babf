"""Camera shake: A convolves each observation with a kernel of its own."""

import math

import torch
from torch import Tensor

from emfast import random
from emfast._check import check, check_finite, check_numbers, check_seed, check_whole
from emfast.data.rows import Rows, mapped, pieces
from emfast.operators.base import GivenParameters, Operator, Parameters, rows_of
from emfast.ops import blur, blur_misfit

POINTS = 256  # along a random path
PATH, TURN = 0, 1  # the counters of the random numbers of a kernel
LARGE = 15  # the side of a kernel from which on Fourier transforms are faster


class MotionBlur(Operator):
    r"""A convolution with circular padding, its kernel the path of a shaken camera: random, or given.

    .. math:: A x = k * x, \quad A^\top y = \tilde k * y, \quad \tilde k_i = k_{-i}

    Arguments:
        size: The side of a random kernel in pixels, odd.
        shake: How far the direction of a random path wanders, in radians along the whole path; 0 is a straight line.
        kernel: Given kernels instead, (K, K) for all observations or (N, K, K) with row id for observation id; K odd.
        seed: The key of the random kernels: observation id always has the kernel of (seed, id).
    """

    closed_form = True
    observes_images = True
    checks_rows = True
    reads = ("kernel",)

    def __init__(self, size: int = 9, shake: float = 3.0, kernel: Tensor | None = None, seed: int = 0) -> None:
        if kernel is not None:
            kernel = torch.as_tensor(kernel, dtype=torch.float64)
            check(kernel.ndim in (2, 3), "MotionBlur", "kernel", "to have shape (K, K) or (N, K, K)", kernel)
            kernel = _given_kernels(kernel)[:][:, 0]
            size = kernel.shape[-1]
        check_whole("MotionBlur", size=size)
        check_numbers("MotionBlur", shake=shake)
        check(size > 0 and size % 2 == 1, "MotionBlur", "size", "to be odd and positive", size)
        check(0 <= shake < math.inf, "MotionBlur", "shake", "to be >= 0 and finite", shake)
        self.size, self.shake, self.kernel, self.seed = size, shake, kernel, check_seed(seed, "MotionBlur")

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns {"kernel": (B or 1, 1, K, K)}, float64, each with sum one if it is random."""
        side = min(shape[-2:])
        check(self.size <= side, "MotionBlur", "size", f"to be <= {side}, the side of the images", self.size)
        if self.kernel is None:
            return {"kernel": self._path(ids)[:, None]}
        kernel, last = self.kernel, int(ids.max()) if len(ids) else -1
        if len(kernel) == 1:
            return {"kernel": kernel[:, None].to(ids.device)}
        enough = last < len(kernel)
        check(enough, "MotionBlur", "kernel", f"to have a row for every observation ({last + 1} or more)", len(kernel))
        return {"kernel": rows_of(kernel, ids)[:, None]}

    def checked(self, given: GivenParameters) -> GivenParameters:
        """Returns the parameters with the kernels as (N, 1, K, K) float64."""
        if "kernel" not in given:
            return given
        kernel = given["kernel"]
        good = kernel.ndim == 3 or (kernel.ndim == 4 and kernel.shape[1] == 1)
        check(good, "MotionBlur", "kernel", "to have shape (N, K, K) or (N, 1, K, K)", kernel)
        return {**given, "kernel": _given_kernels(kernel)}

    def _path(self, ids: Tensor) -> Tensor:
        """Returns (B, K, K) kernels: the time a smooth random path spends in every pixel."""
        key = random.derive(self.seed, "motion blur")
        z = random.normal((POINTS,), ids=ids, seed=key, step=PATH).to(torch.float64)
        turn = 2 * math.pi * random.uniform((1,), ids=ids, seed=key, step=TURN).to(torch.float64)
        angle = turn + self.shake / math.sqrt(POINTS) * z.cumsum(1)
        path = torch.stack((angle.sin(), angle.cos()), 2).cumsum(1)  # (B, P, 2)
        low, high = path.amin(1, keepdim=True), path.amax(1, keepdim=True)
        half = (self.size - 1) / 2
        position = half + (path - (low + high) / 2) * (2 * half / (high - low).amax(2, keepdim=True))
        axis = torch.arange(self.size, device=ids.device)
        weight = (1 - (position[..., None] - axis).abs()).clamp_min(0)  # (B, P, 2, K), bilinear
        return torch.einsum("bpi,bpj->bij", weight[:, :, 0], weight[:, :, 1]) / POINTS

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns the blurred images."""
        kernel = _kernel(parameters, x)
        if kernel.shape[-1] > LARGE:
            return _filter(x, _response(kernel, x))
        return blur(x, kernel, padding="circular", adjoint=True)

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns the correlation of y with the kernels."""
        kernel = _kernel(parameters, y)
        if kernel.shape[-1] > LARGE:
            return _filter(y, _response(kernel, y).conj())
        return blur(y, kernel, padding="circular")

    def gain(self, parameters: Parameters) -> float:
        """Returns the largest sum of the magnitudes in a kernel: 1 for random ones."""
        return float(parameters["kernel"].abs().sum((-2, -1)).max())

    def misfit(self, x: Tensor, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Returns r = y - A x, its squared norms and A^T r."""
        kernel = _kernel(parameters, x)
        if kernel.shape[-1] > LARGE:
            return super().misfit(x, y, parameters)
        return blur_misfit(x, y, kernel.flip(-2, -1), padding="circular")

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns the Wiener filter of y, exact in the Fourier basis."""
        response = _response(_kernel(parameters, y), y)
        return _filter(y, response.conj() / (response.abs().square() + c))


def _given_kernels(kernel: Tensor | Rows) -> Tensor | Rows:
    """Returns given kernels as (N, 1, K, K) float64."""
    check(not kernel.dtype.is_complex, "MotionBlur", "kernel", "to be real", kernel.dtype)
    odd = kernel.shape[-1] == kernel.shape[-2] and kernel.shape[-1] % 2 == 1
    check(odd, "MotionBlur", "kernel", "to have sides K x K, K odd", kernel)
    for _, part in pieces(kernel):
        check_finite({"kernel": part}, "MotionBlur", "the given kernels")
    return mapped(kernel, lambda part: part.to(torch.float64).reshape(-1, 1, *part.shape[-2:]))


def _kernel(parameters: Parameters, x: Tensor) -> Tensor:
    """Returns the kernels, none of which is larger than the images."""
    kernel, side = parameters["kernel"], min(x.shape[-2:])
    found = f"{kernel.shape[-2]} x {kernel.shape[-1]}"
    check(kernel.shape[-1] <= side, "MotionBlur", "kernel", f"to have sides <= {side}, those of the images", found)
    return kernel


def _response(kernel: Tensor, like: Tensor) -> Tensor:
    """Returns what a convolution multiplies each frequency with, for images like the given ones."""
    height, width, size = *like.shape[-2:], kernel.shape[-1]
    # Anything else could be broadcast: the kernels of three images to the three channels of each.
    good = kernel.ndim == 4 and kernel.shape[1] == 1 and len(kernel) in (1, len(like))
    check(good, "MotionBlur", "kernel", f"to have shape ({len(like)} or 1, 1, K, K)", tuple(kernel.shape))
    if len(like) == 0:
        return torch.zeros(0, 1, height, width // 2 + 1, dtype=_wide(like), device=like.device)
    padded = torch.zeros(*kernel.shape[:2], height, width, dtype=_wide(like), device=like.device)
    padded[..., :size, :size] = kernel.to(padded.dtype)
    return torch.fft.rfft2(padded.roll((-(size // 2),) * 2, (-2, -1)))


def _filter(x: Tensor, response: Tensor) -> Tensor:
    if len(x) == 0:  # Fourier transforms of no images are an error in torch
        return x
    return torch.fft.irfft2(torch.fft.rfft2(x.to(_wide(x))) * response, s=x.shape[-2:]).to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """Returns the dtype of transforms: there are none of bfloat16, and of float16 on a GPU alone."""
    return torch.promote_types(x.dtype, torch.float32)
