"""Convolutions with weights that are new at every step, and the gradients to their inputs, at the U-Nets' shapes."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from convolutions import draw, native, source
from measure import Case
from torch import Tensor

from emfast.ops.convolution import Window, convolution, convolution_input_gradient, unsupported_machine


def ours(x: Tensor, weight: Tensor, bias: Tensor, window: Window) -> Tensor:
    """The op."""
    return convolution(x, None, [weight], [bias], None, window)


def native_gradient(grad: Tensor, weight: Tensor, x: Tensor, window: Window) -> Tensor:
    """The gradient to x in native torch."""
    (stride, padding, upsample), one, mask = window, [1, 1], [True, False, False]
    h, w = source(x, window), weight.to(grad.dtype)
    dh: Tensor = torch.ops.aten.convolution_backward(
        grad, h, w, None, [stride] * 2, [padding] * 2, one, False, [0, 0], 1, mask
    )[0]
    return 4 * F.avg_pool2d(dh, 2) if upsample else dh


def ours_gradient(grad: Tensor, weight: Tensor, x: Tensor, window: Window) -> Tensor:
    """The op of the gradient."""
    return convolution_input_gradient(grad, [weight], x.shape, window)[0]


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table, for machines that have the kernel. Each reads one image and the weights, once."""
    if device.type != "cpu" or unsupported_machine():
        return
    for label, window, x, weight, bias, grad in draw(device):
        traffic = {"forward": x.nbytes + weight.nbytes + grad.nbytes}
        calls = [partial(function, window=window) for function in (ours, native)]
        yield Case("convolution", label, x.dtype, "channels_last", (x, weight, bias), *calls, traffic)
        calls = [partial(function, window=window) for function in (ours_gradient, native_gradient)]
        name = "convolution_input_gradient"
        yield Case(name, label, x.dtype, "channels_last", (grad, weight, x), *calls, traffic)
