"""Winograd's convolution in float32, and the gradients to its input and weight, at the U-Nets' shapes."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from measure import Case
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from emfast.ops import WinogradWeights, winograd_convolution, winograd_kernel, winograd_weight_gradient
from emfast.ops._winograd import best_width

SHAPES = {  # batch, channels, outputs, side
    "CIFAR U-Net": [(4, 128, 128, 32), (4, 256, 256, 16), (4, 512, 256, 16), (4, 256, 256, 8), (4, 256, 256, 4)],
    "small U-Net": [(64, 32, 32, 32), (64, 64, 64, 16), (64, 64, 64, 8)],
}


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table, with kernels transformed before or new. Each reads one image and the weight."""
    if device.type != "cpu":
        return
    for network, shapes in SHAPES.items():
        for batch, channels, outputs, side in shapes:
            label = f"{network}, {batch} x {channels} x {side} x {side} to {outputs}"
            x, grad = (torch.randn(batch, c, side, side, device=device) for c in (channels, outputs))
            weight = torch.randn(outputs, channels, 3, 3, device=device) / (9 * channels) ** 0.5
            yield from _case(label, x, weight, grad)


def _case(label: str, x: Tensor, weight: Tensor, grad: Tensor) -> Iterator[Case]:
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    last = weight.contiguous(memory_format=torch.channels_last)
    width = best_width(x.shape[3])
    weights, flipped = WinogradWeights(weight, width=width), WinogradWeights(weight, adjoint=True, width=width)
    kernel, adjoint = winograd_kernel(weights), winograd_kernel(flipped)
    traffic = {"forward": x.nbytes + weight.nbytes + grad.nbytes}
    flops = {"forward": 2 * grad.numel() * weight[0].numel()}
    outputs, channels = weight.shape[:2]

    def row(name: str, inputs: tuple[Tensor, ...], ours: object, native: object) -> Case:
        return Case(name, label, x.dtype, "channels_last", inputs, ours, native, traffic, flops)  # type: ignore[arg-type]

    yield row(
        "winograd_convolution",
        (x,),
        lambda x: winograd_convolution(x, kernel, outputs),
        lambda x: F.conv2d(x, last, padding=1),
    )
    yield row(
        "winograd_convolution, new weights",
        (x,),
        lambda x: winograd_convolution(x, weights, outputs),
        lambda x: F.conv2d(x, weight, padding=1),
    )
    yield row(
        "winograd_convolution, to the input",
        (grad,),
        lambda grad: winograd_convolution(grad, adjoint, channels),
        lambda grad: conv2d_input(x.shape, last, grad, padding=1),
    )
    yield row(
        "winograd_weight_gradient",
        (grad, x),
        lambda grad, x: winograd_weight_gradient(grad, x, width=width),
        lambda grad, x: conv2d_weight(x, weight.shape, grad, padding=1),
    )
