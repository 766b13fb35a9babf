"""Attention at the shapes of the U-Nets that the E-step runs, on the output of one projection."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from measure import Case, images, measure, median
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from emfast.ops import packed_attention

SHAPES = {  # (B, H, N, D)
    "CIFAR U-Net": [(4, 32, 256, 8), (4, 32, 16, 8)],
    "CIFAR U-Net, one head": [(4, 1, 256, 256)],
    "small U-Net": [(64, 8, 64, 8)],
    "guided diffusion": [(4, 4, 256, 64), (1, 4, 1024, 64)],
    "large image": [(1, 1, 4096, 32)],
}
DTYPES = (torch.float32, torch.bfloat16)
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def native(qkv: Tensor) -> Tensor:
    """The same in native torch, up to the input of the next projection."""
    return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)


def on(backend: SDPBackend, qkv: Tensor) -> Tensor:
    """The same on one of the backends that torch has on a GPU."""
    with sdpa_kernel(backend):
        return native(qkv)


def best(qkv: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the fastest of native torch's ways, forward and backward: on a GPU, of its backends that take these."""
    if not qkv.is_cuda:
        return native
    leaf, ways, steps = qkv.detach().requires_grad_(), {"torch's choice": native}, {}
    ways |= {backend.name: partial(on, backend) for backend in BACKENDS}
    for name, way in ways.items():
        try:
            out = way(leaf)
            steps[name] = partial(_step, way, leaf, out.detach())
            steps[name]()
        except RuntimeError:  # it does not take these
            steps.pop(name, None)
    times = measure(steps, qkv.device, 0.02)
    return ways[min(times, key=lambda name: median(times[name])[1])]


def _step(way: Callable[[Tensor], Tensor], leaf: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(way(leaf), leaf, grad)


def ours(qkv: Tensor) -> Tensor:
    """The op."""
    return packed_attention(qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table. The forward reads q, k, v and writes out; the backward reads all and grad."""
    for network, shapes in SHAPES.items():
        for count, heads, tokens, size in shapes:
            batch = images(count, device)
            for dtype in DTYPES:
                qkv = torch.randn(batch, tokens, 3, heads, size, dtype=dtype, device=device)
                unit = qkv.nbytes // 3
                traffic = {"forward": 4 * unit, "forward+backward": 12 * unit}
                label = f"{network}, {batch} x {heads} x {tokens} x {size}"
                product = 2 * batch * heads * tokens**2 * size
                flops = {"forward": 2 * product, "forward+backward": 7 * product}
                yield Case("attention", label, dtype, "packed", (qkv,), ours, best(qkv), traffic, flops)
