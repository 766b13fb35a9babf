"""The last line of a sampler's step, noise included, at the image sizes of the E-step."""

from collections.abc import Iterator

import torch
from measure import Case, images
from torch import Tensor

from emfast import random
from emfast.ops import sampler_update

SHAPES = [(64, 1, 32, 32), (256, 3, 32, 32), (4, 3, 256, 256)]
DTYPES = (torch.float32, torch.bfloat16)


def native(x_t: Tensor, x_0: Tensor, guidance: Tensor, table: Tensor, k: Tensor, ids: Tensor) -> Tensor:
    """The same in native torch, with the noise of the reference."""
    c_x, c_0, std = table.index_select(0, k[None])[0, 3:6].to(x_t.dtype).unbind()
    z = random.reference(x_t.shape[1:], ids, k, 5).to(x_t.dtype)
    return c_x * x_t + c_0 * x_0 + std * z + guidance


def ours(x_t: Tensor, x_0: Tensor, guidance: Tensor, table: Tensor, k: Tensor, ids: Tensor) -> Tensor:
    """The op."""
    return sampler_update(x_t, x_0, guidance, table, k, ids=ids, seed=5)


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table. It reads x_t, x_0 and guidance, and writes x_s."""
    table = torch.full((10, 9), 0.5, dtype=torch.float64, device=device)
    k = torch.tensor(3, device=device)
    for count, *size in SHAPES:
        shape = (images(count, device), *size)
        for dtype in DTYPES:
            x = tuple(torch.randn(3, *shape, device=device).to(dtype).unbind())
            inputs = (*x, table, k, torch.arange(shape[0], device=device))
            label = " x ".join(map(str, shape))
            traffic = {"forward": 4 * x[0].nbytes}
            yield Case("sampler_update", label, dtype, "contiguous", inputs, ours, native, traffic)
