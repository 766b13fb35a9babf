"""GroupNorm and SiLU at the shapes of the U-Nets that the E-step runs."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from measure import Case, images
from torch import Tensor

from emfast.ops import group_norm_silu

SHAPES = {
    "CIFAR U-Net": [(4, 128, 32, 32), (4, 256, 16, 16), (4, 256, 4, 4)],
    "small U-Net": [(64, 32, 32, 32), (64, 64, 8, 8)],
}
DTYPES = (torch.float32, torch.bfloat16)


def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in native torch."""
    return F.silu(F.group_norm(x, 32, weight, bias))


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The op."""
    return group_norm_silu(x, 32, weight, bias)


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table. The forward reads x and writes y; the backward reads x and grad and writes dx."""
    ones, normal = partial(torch.ones, device=device), partial(torch.randn, device=device)
    for network, shapes in SHAPES.items():
        for count, *size in shapes:
            shape = (images(count, device), *size)
            for dtype in DTYPES:
                for layout in ("contiguous", "channels_last"):
                    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
                    x = normal(shape, dtype=dtype).contiguous(memory_format=format)
                    inputs = (x, ones(shape[1], dtype=dtype), ones(shape[1], dtype=dtype))
                    traffic = {"forward": 2 * x.nbytes, "forward+backward": 5 * x.nbytes}
                    label = f"{network}, {' x '.join(map(str, shape))}"
                    yield Case("group_norm_silu", label, dtype, layout, inputs, ours, native, traffic)
