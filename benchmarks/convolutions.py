"""The convolutions of the U-Nets that are trained, for the ops that compute them and their gradients."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.ops.convolution import Window

SAME, POINT = (1, 1, False), (1, 0, False)
SHAPES: dict[str, list[tuple[int, int, int, int, int, Window]]] = {  # batch, channels, outputs, side, kernel, window
    "CIFAR U-Net": [
        (4, 3, 128, 32, 3, SAME),
        (4, 128, 128, 32, 3, SAME),
        (4, 256, 256, 16, 3, SAME),
        (4, 256, 256, 4, 3, SAME),
        (4, 256, 256, 16, 1, POINT),
        (4, 256, 256, 16, 3, (2, 1, False)),
        (4, 256, 256, 8, 3, (1, 1, True)),
    ],
    "small U-Net": [(64, 32, 32, 32, 3, SAME), (64, 64, 64, 8, 3, SAME), (64, 64, 64, 8, 1, POINT)],
}


def native(x: Tensor, weight: Tensor, bias: Tensor, window: Window) -> Tensor:
    """The convolution in native torch, the weights cast as autocast does at every step."""
    stride, padding, _ = window
    return F.conv2d(source(x, window), weight.to(x.dtype), bias.to(x.dtype), stride, padding)


def source(x: Tensor, window: Window) -> Tensor:
    """What native torch convolves: x, or x upsampled."""
    return F.interpolate(x, scale_factor=2.0) if window[2] else x


def draw(device: torch.device) -> Iterator[tuple[str, Window, Tensor, Tensor, Tensor, Tensor]]:
    """Yields for each shape the label, the window, x, weight, bias and the gradient to the result."""
    for network, shapes in SHAPES.items():
        for batch, channels, outputs, side, kernel, window in shapes:
            x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last)
            weight = torch.randn(outputs, channels, kernel, kernel, device=device) / (channels * kernel**2) ** 0.5
            bias = torch.randn(outputs, device=device)
            grad = torch.randn_like(native(x, weight, bias, window))
            extra = {(2, 1, False): ", stride 2", (1, 1, True): ", upsampled"}.get(window, "")
            label = f"{network}, {batch} x {channels} x {side} x {side} to {outputs}, {kernel} x {kernel}{extra}"
            yield label, window, x, weight, bias, grad
