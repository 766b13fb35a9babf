"""The misfit of images behind random camera shakes, a kernel for each, at the image sizes of the E-step."""

from collections.abc import Iterator
from functools import partial

import torch
from measure import Case, images
from torch import Tensor

from emfast.operators import MotionBlur
from emfast.ops import blur_misfit

SHAPES = [(64, 1, 32, 32), (256, 3, 32, 32), (4, 3, 256, 256)]
DTYPES = (torch.float32, torch.bfloat16)


def native(x: Tensor, y: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in native torch, by Fourier transforms: faster than convolutions of one channel each."""
    size, sides = kernel.shape[-1], x.shape[-2:]
    padded = torch.zeros(*kernel.shape[:2], *sides, device=x.device)
    padded[..., :size, :size] = kernel
    response = torch.fft.rfft2(padded.roll((-(size // 2),) * 2, (-2, -1))).conj()
    residual = y.float() - torch.fft.irfft2(torch.fft.rfft2(x.float()) * response, s=sides)
    adjoint = torch.fft.irfft2(torch.fft.rfft2(residual) * response.conj(), s=sides)
    return residual.to(x.dtype), residual.square().flatten(1).sum(1), adjoint.to(x.dtype)


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table. It reads x and y, and writes the residual and its adjoint."""
    for count, *size in SHAPES:
        shape = (images(count, device), *size)
        for name, side in (("path", 9), ("path", 27), ("full kernel", 9)):
            for dtype in DTYPES if side == 9 else DTYPES[:1]:
                x, y = torch.randn(2, *shape, device=device).to(dtype).unbind()
                kernel = MotionBlur(size=side).parameters(torch.arange(shape[0], device=device), shape[1:])["kernel"]
                kernel = kernel.float() + (0.001 if name != "path" else 0)
                label = f"{' x '.join(map(str, shape))}, {name} of {side}"
                ours, traffic = partial(blur_misfit, padding="circular"), {"forward": 4 * x.nbytes}
                yield Case("blur_misfit", label, dtype, "contiguous", (x, y, kernel), ours, native, traffic)
